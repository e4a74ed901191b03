"""NCP policies for the stock `sb3_contrib.RecurrentPPO`.

    model = RecurrentPPO(NCPPolicy, "Pendulum-v1", policy_kwargs=dict(wiring=AutoNCP(units=32)))

observation -> encoder -> S sensory neurons -> LTC neurons with NCP wiring -> M motor neurons -> gain and offset each
-> action distribution. A motor neuron is an action: no dense layer stands behind it unless asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from ncp_rl.encoder import ELAPSED_TIME, KeyFilter, MultiInputReceptors, Receptors, sensory_names
from ncp_rl.kernels import Backend, exporting
from ncp_rl.ltc import LTC, LTCInit, MotorMap
from ncp_rl.wiring import AutoNCP, Recipe, Wiring

Critic = Literal["ltc", "lstm", "mlp", "shared"]
LSTMStates = tuple[Tensor, Tensor]

# What the LSTM policies' arguments are here.
_LSTM_ARGUMENTS = {
    "lstm_hidden_size": "wiring=AutoNCP(units=...)",
    "n_lstm_layers": "wiring, whose layers are sensory, inter, command and motor neurons",
    "shared_lstm": 'critic="shared"',
    "enable_critic_lstm": 'critic="ltc", "lstm" or "mlp"',
    "lstm_kwargs": "init=LTCInit(...), ode_unfolds and elapsed_time",
}


class NCPPolicy(RecurrentActorCriticPolicy):
    """Recurrent actor-critic policy whose actor is a neural circuit policy.

    The recurrent states are SB3's tuples (h, c) of shape (1, N, U): h holds the membrane potentials, c stays zero.

    Attributes:
        wiring: The actor's built wiring.
        sensory_names: (S,), what each sensory neuron carries.
        action_names: (A,), of the action outputs.
        lstm_actor: The actor's `LTC`, under the name that RecurrentPPO asks for.
        lstm_critic: The critic's `LTC` or `nn.LSTM`, or None.
    """

    # Upstream's cores are nn.LSTM alone.
    lstm_actor: LTC  # type: ignore[assignment]
    lstm_critic: LTC | nn.LSTM | None  # type: ignore[assignment]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        net_arch: list[int] | dict[str, list[int]] | None = None,
        activation_fn: type[nn.Module] = nn.Tanh,
        ortho_init: bool = True,
        use_sde: bool = False,
        log_std_init: float = 0.0,
        full_std: bool = True,
        use_expln: bool = False,
        squash_output: bool = False,
        features_extractor_class: type[BaseFeaturesExtractor] = Receptors,
        features_extractor_kwargs: dict[str, Any] | None = None,
        share_features_extractor: bool = True,
        normalize_images: bool = True,
        optimizer_class: type[torch.optim.Optimizer] = torch.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        *,
        wiring: Recipe | Wiring = AutoNCP(units=32),  # noqa: B008  (a frozen value)
        critic: Critic | Recipe | Wiring = "ltc",
        n_motor: int | None = None,
        motor_map: Literal["affine", "dense"] = "affine",
        elapsed_time: float = 1.0,
        ode_unfolds: int = 6,
        init: LTCInit | None = None,
        privileged_keys: tuple[str, ...] = (),
        action_names: Sequence[str] | None = None,
        backend: Backend = "auto",
        **lstm_arguments: Any,
    ) -> None:
        """Build the policy; arguments not named here are those of SB3's `ActorCriticPolicy`.

        Args:
            observation_space: Box, Discrete, image or Dict.
            action_space: Box, Discrete, MultiDiscrete or MultiBinary.
            lr_schedule: Learning rate by remaining progress.
            net_arch: `dict(vf=[...])`, hidden layers of the critic behind its recurrent core; [64, 64] where None.
            activation_fn: Of the critic's hidden layers.
            ortho_init: Orthogonal initial weights for the critic and dense encoders.
            use_sde: Generalised state-dependent exploration, over the potentials of all neurons.
            log_std_init: Initial logarithm of the actions' standard deviation.
            full_std: gSDE: a deviation per neuron and action.
            use_expln: gSDE: `expln` in place of `exp`.
            squash_output: gSDE: squash actions by tanh.
            features_extractor_class: The encoder.
            features_extractor_kwargs: For the encoder, such as `dict(receptors=4, names=["x", "theta"])`.
            share_features_extractor: One encoder for actor and critic.
            normalize_images: Divide uint8 images by 255.
            optimizer_class: The optimizer.
            optimizer_kwargs: For the optimizer, without the learning rate; for Adam eps=1e-5, as in SB3, and fused=True
                where None: a circuit has many small parameters.
            wiring: Recipe of the actor's circuit, or a built wiring.
            critic: "ltc": LTC neurons wired by the actor's recipe, all of them read out; "lstm": as many LSTM units;
                "mlp": no memory; "shared": reads the actor's potentials, without gradient; or a recipe for the
                critic's LTC.
            n_motor: Motor neurons; one per action (per logit for discrete actions) where None.
            motor_map: "affine": gain and offset per motor neuron; "dense": a linear layer behind them.
            elapsed_time: Seconds between observations, unless the observation has the key `elapsed_time`.
            ode_unfolds: Solver substeps per observation.
            init: Ranges of the initial LTC parameters.
            privileged_keys: Keys of a Dict observation that the critic alone sees (asymmetric actor-critic).
            action_names: Of the action outputs (logits of discrete actions); action_0, action_1, ... where None.
            backend: Of the scan; see `ncp_rl.kernels.ltc_scan`.
            **lstm_arguments: Refused, each with what stands for it here.

        Raises:
            ValueError: Arguments that contradict each other or the spaces.
            TypeError: Arguments of SB3's LSTM policies that have no meaning here.
        """
        for name in lstm_arguments:
            hint = _LSTM_ARGUMENTS.get(name)
            raise TypeError(f"{type(self).__name__} has no argument {name!r}" + (f"; use {hint}." if hint else "."))
        _check_arguments(critic, motor_map, net_arch)
        known = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
        if not known.issuperset(privileged_keys):
            raise ValueError(f"privileged_keys {privileged_keys} must be keys of the observation, {observation_space}.")
        if optimizer_kwargs is None and optimizer_class is torch.optim.Adam:
            optimizer_kwargs = dict(eps=1e-5, fused=True)
        self.recipe, self.critic_recipe = wiring, critic
        self.n_motor, self.motor_map = n_motor, motor_map
        self.elapsed_time, self.ode_unfolds, self.init, self.backend = elapsed_time, ode_unfolds, init, backend
        self.privileged_keys = tuple(privileged_keys)
        n_outputs = _n_action_outputs(action_space)
        self.action_names = tuple(action_names or (f"action_{i}" for i in range(n_outputs)))
        if len(self.action_names) != n_outputs:
            raise ValueError(f"action_names must name the {n_outputs} action outputs, got {self.action_names}.")
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            net_arch=_critic_arch(net_arch),
            activation_fn=activation_fn,
            ortho_init=ortho_init,
            use_sde=use_sde,
            log_std_init=log_std_init,
            full_std=full_std,
            use_expln=use_expln,
            squash_output=squash_output,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            share_features_extractor=share_features_extractor and not privileged_keys,
            normalize_images=normalize_images,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            lstm_hidden_size=1,  # Stands in until the cores below take its place.
            shared_lstm=critic == "shared",
            enable_critic_lstm=critic not in ("shared", "mlp"),
        )
        self._place_cores()
        # Upstream has handed its own cores' parameters to the optimizer already.
        optimizer_kwargs = dict(lr=lr_schedule(1)) | self.optimizer_kwargs
        self.optimizer = self.optimizer_class(self.parameters(), **optimizer_kwargs)

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Upstream hands Dict observations on whole: keep the elapsed time out of the encoder."""
        return self._encoder(hidden_keys=frozenset())

    def _encoder(self, hidden_keys: frozenset[str]) -> BaseFeaturesExtractor:
        space = self.observation_space
        if isinstance(space, spaces.Dict) and (hidden_keys or ELAPSED_TIME in space.spaces):
            return KeyFilter(space, self.features_extractor_class, self.features_extractor_kwargs, hidden_keys)
        return super().make_features_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        """Upstream sizes the heads here, between encoder and recurrent cores: the circuit's size must be known."""
        if self.privileged_keys:
            self.features_extractor = self.pi_features_extractor = self._encoder(frozenset(self.privileged_keys))
        n_outputs = _n_action_outputs(self.action_space)
        n_motor = self.n_motor or n_outputs
        if self.motor_map == "affine" and n_motor != n_outputs:
            raise ValueError(
                f"{n_motor} motor neurons cannot be mapped one to one on {n_outputs} action outputs; leave n_motor "
                'out, or set motor_map="dense".'
            )
        self.wiring = self.recipe.build(_n_sensory(self.pi_features_extractor), n_motor)
        self.sensory_names = sensory_names(self.pi_features_extractor, self.wiring.n_sensory)
        self.lstm_output_dim = self.wiring.units
        super()._build(lr_schedule)

    def _place_cores(self) -> None:
        """Put the circuits where upstream has built LSTMs of size 1."""
        units, timing = self.wiring.units, dict(elapsed_time=self.elapsed_time, ode_unfolds=self.ode_unfolds)
        shared: dict[str, Any] = dict(input_map=False, init=self.init, backend=self.backend, **timing)
        self.lstm_actor = LTC(self.wiring, **shared)
        self.lstm_hidden_state_shape = (1, 1, units)
        n_critic, critic_features = _n_sensory(self.vf_features_extractor), self.vf_features_extractor.features_dim
        if self.critic_recipe == "mlp":
            self.critic = nn.Linear(critic_features, units)
        elif self.critic_recipe == "lstm":
            self.lstm_critic = nn.LSTM(critic_features, units)
        elif self.critic_recipe != "shared":
            recipe = self.recipe if isinstance(self.critic_recipe, str) else self.critic_recipe
            wiring = recipe.build(n_critic, self.wiring.n_motor)
            if wiring.units != units:
                raise ValueError(
                    f"The critic's recipe gives {wiring.units} neurons, the actor has {units}; RecurrentPPO keeps both "
                    "states in one shape, so they must be equal."
                )
            self.lstm_critic = LTC(wiring, motor_map=False, **shared)
        if self.motor_map == "affine":
            # The circuit's own motor map gives the action: a circuit alone then holds all from senses to action.
            self.action_net = self.lstm_actor.motor_map
            _start_at_bounds(self.lstm_actor.motor_map, self.action_space)
        else:
            dense = nn.Linear(self.wiring.n_motor, _n_action_outputs(self.action_space))
            self.action_net = nn.Sequential(self.lstm_actor.motor_map, dense)

    @staticmethod
    def _process_sequence(  # type: ignore[override]  # Upstream's annotation forgets that states are pairs.
        features: Tensor, lstm_states: LSTMStates, episode_starts: Tensor, lstm: nn.LSTM | LTC
    ) -> tuple[Tensor, LSTMStates]:
        """Run a core over padded sequences; resets happen inside the scan, where upstream loops over time.

        Args:
            features: (N * T, features), sequence by sequence.
            lstm_states: h and c, each (1, N, U).
            episode_starts: (N * T,), 1 where an episode starts.
            lstm: The core.

        Returns:
            (N * T, U), the potentials of all neurons; the new h and c.
        """
        h, c = lstm_states
        n_sequences = h.shape[1]
        starts = episode_starts.reshape(n_sequences, -1).swapaxes(0, 1)  # (T, N)
        if not isinstance(lstm, LTC):
            # RecurrentPPO cuts sequences where episodes start, so that resets stand in the first step alone: made
            # here, they spare upstream's loop over time.
            keep = 1.0 - starts[0].reshape(1, n_sequences, 1)
            later = torch.cat([torch.zeros_like(starts[:1]), starts[1:]]).swapaxes(0, 1).flatten()
            return RecurrentActorCriticPolicy._process_sequence(  # type: ignore[return-value]
                features, (keep * h, keep * c), later, lstm
            )
        sequence = features.reshape(n_sequences, -1, features.shape[-1]).swapaxes(0, 1)  # (T, N, features)
        inputs, elapsed = sequence[..., : lstm.input_size], sequence[..., lstm.input_size :]
        potentials, state = lstm(inputs, h[0], starts, elapsed[..., 0] if elapsed.shape[-1] else None)
        return potentials.swapaxes(0, 1).flatten(0, 1), (state[None], c)

    def evaluate_actions(  # type: ignore[override]  # Upstream's recurrent class has two arguments more.
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Upstream's buffer hands MultiBinary actions on as int8, which its distribution refuses."""
        if isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.float()
        return super().evaluate_actions(obs, actions, lstm_states, episode_starts)

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        """As upstream; but PyTorch's distributions look at values to check them, and an exported graph has none yet."""
        if not exporting():
            return super()._get_action_dist_from_latent(latent_pi)
        checking = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(False)
        try:
            action_dist = super()._get_action_dist_from_latent(latent_pi)
        finally:
            torch.distributions.Distribution.set_default_validate_args(checking)
        made: Any = action_dist.distribution
        for distribution in made if isinstance(made, list) else [made]:
            distribution._validate_args = False
        return action_dist

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Upstream names ActorCriticPolicy's arguments alone; `load` needs ours too."""
        return super()._get_constructor_parameters() | dict(
            share_features_extractor=self.share_features_extractor,
            wiring=self.recipe,
            critic=self.critic_recipe,
            n_motor=self.n_motor,
            motor_map=self.motor_map,
            elapsed_time=self.elapsed_time,
            ode_unfolds=self.ode_unfolds,
            init=self.init,
            privileged_keys=self.privileged_keys,
            action_names=self.action_names,
            backend=self.backend,
        )


class CnnNCPPolicy(NCPPolicy):
    """`NCPPolicy` for images: a `NatureCNN` gives the sensory inputs, 32 of them unless features_dim is given."""

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = NatureCNN,
        features_extractor_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Build it; arguments as in `NCPPolicy`."""
        if features_extractor_kwargs is None and features_extractor_class is NatureCNN:
            features_extractor_kwargs = dict(features_dim=32)
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            features_extractor_kwargs=features_extractor_kwargs,
            **kwargs,
        )


class MultiInputNCPPolicy(NCPPolicy):
    """`NCPPolicy` for Dict observations: receptors for vectors, CNNs for images, `elapsed_time` as time."""

    def __init__(
        self,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        features_extractor_class: type[BaseFeaturesExtractor] = MultiInputReceptors,
        **kwargs: Any,
    ) -> None:
        """Build it; arguments as in `NCPPolicy`."""
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


def _check_arguments(critic: object, motor_map: str, net_arch: list[int] | dict[str, list[int]] | None) -> None:
    if isinstance(critic, str) and critic not in ("ltc", "lstm", "mlp", "shared"):
        raise ValueError(f'critic must be "ltc", "lstm", "mlp", "shared" or a recipe, got {critic!r}.')
    if motor_map not in ("affine", "dense"):
        raise ValueError(f'motor_map must be "affine" or "dense", got {motor_map!r}.')
    if net_arch and (isinstance(net_arch, list) or net_arch.get("pi")):
        raise ValueError(
            f"net_arch puts layers behind the motor neurons: {net_arch}. A motor neuron is an action here; give layers "
            'to the critic alone, net_arch=dict(vf=[64, 64]), or set motor_map="dense".'
        )


def _critic_arch(net_arch: list[int] | dict[str, list[int]] | None) -> dict[str, list[int]]:
    if net_arch is None:
        return dict(pi=[], vf=[64, 64])
    return dict(pi=[], vf=net_arch.get("vf", []) if isinstance(net_arch, dict) else [])


def _n_action_outputs(action_space: spaces.Space[Any]) -> int:
    """Numbers that parametrise a distribution over actions: means of a Box, logits of discrete spaces.

    Raises:
        ValueError: An action space that RecurrentPPO cannot serve.
    """
    if isinstance(action_space, spaces.Box):
        return int(np.prod(action_space.shape))
    if isinstance(action_space, spaces.Discrete):
        return int(action_space.n)
    if isinstance(action_space, spaces.MultiDiscrete):
        return int(np.sum(action_space.nvec))
    if isinstance(action_space, spaces.MultiBinary):
        return int(np.prod(action_space.shape))
    raise ValueError(f"Actions must be Box, Discrete, MultiDiscrete or MultiBinary, got {action_space}.")


def _n_sensory(encoder: BaseFeaturesExtractor) -> int:
    """Sensory inputs that an encoder feeds; the elapsed time is none."""
    return encoder.features_dim - (isinstance(encoder, KeyFilter) and encoder.timed)


def _start_at_bounds(motor_map: nn.Module, action_space: spaces.Space[Any]) -> None:
    """Let potentials from -1 to 1 reach from the lower to the upper bound of bounded actions."""
    assert isinstance(motor_map, MotorMap)
    if isinstance(action_space, spaces.Box) and action_space.is_bounded():
        low, high = (torch.from_numpy(bound).float().flatten() for bound in (action_space.low, action_space.high))
        with torch.no_grad():
            motor_map.weight.copy_((high - low) / 2)
            motor_map.bias.copy_((high + low) / 2)
