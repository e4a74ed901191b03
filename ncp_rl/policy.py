"""NCP policies for the stock `sb3_contrib.RecurrentPPO`.

    model = RecurrentPPO(NCPPolicy, "Pendulum-v1", policy_kwargs=dict(wiring=AutoNCP(units=32)))

observation -> encoder -> S sensory neurons -> neurons with NCP wiring -> M motor neurons -> gain and offset each
-> action distribution. A motor neuron is an action: no dense layer follows it unless asked for.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.distributions import Distribution
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, NatureCNN
from stable_baselines3.common.type_aliases import Schedule
from torch import Tensor, nn

from ncp_rl.action_outputs import action_bounds, clip_inward, drawn_on_device, n_action_outputs, start_motor_map
from ncp_rl.cell import RecurrentCell
from ncp_rl.choices import CellName, Critic
from ncp_rl.cores import CELLS, cell_builder, cell_class, run_cell, run_lstm
from ncp_rl.encoder import (
    ELAPSED_TIME,
    KeyFilter,
    MultiInputReceptors,
    Receptors,
    Standardize,
    observed_names,
    sensory_names,
)
from ncp_rl.kernels import Backend, exporting
from ncp_rl.learning import VALUE_GRADIENT, ScaledAdam, SignedSquare, scale_gradient
from ncp_rl.ltc import LTCInit
from ncp_rl.readings import HELD, BadInput, BadInputError, OnBadInput, find_bad, is_finite, replace_bad
from ncp_rl.refusals import check_algorithm, check_encoder, check_spaces
from ncp_rl.wiring import AutoNCP, Recipe, Wiring, read_recipe

#: The default has more command neurons than ncps, densely wired among themselves: it learns to remember sooner.
DEFAULT_WIRING = AutoNCP(units=32, command_share=0.6, recurrence=1.0)

LSTMStates = tuple[Tensor, Tensor]

# Hints for the arguments of SB3's LSTM policies.
_LSTM_ARGUMENTS = {
    "lstm_hidden_size": "wiring=AutoNCP(units=...)",
    "n_lstm_layers": "wiring, whose layers are sensory, inter, command and motor neurons",
    "shared_lstm": 'critic="shared"',
    "enable_critic_lstm": 'critic="cell", "lstm" or "mlp"',
    "lstm_kwargs": "init=LTCInit(...), ode_unfolds and elapsed_time",
}


class NCPPolicy(RecurrentActorCriticPolicy):
    """Recurrent actor-critic policy whose actor is a neural circuit policy.

    The recurrent states are SB3's tuples (h, c) of shape (1, N, U): h holds the membrane potentials, c stays zero.

    Attributes:
        wiring: The actor's built wiring.
        sensory_names: (S,), names of the sensory neurons.
        action_names: (A,), names of the action outputs.
        lstm_actor: The actor's `LTC`, `CfC` or other `RecurrentCell`, under the name that RecurrentPPO reads.
        lstm_critic: The critic's cell or `nn.LSTM`, or None.
        on_bad_input: What `predict` does with a bad reading, "raise" or "hold"; may be set at any time.
        learned_since_rollout: Whether the policy was updated since the last rollout, so that `Standardize` moves at the
            next.
    """

    # Upstream's annotations allow nn.LSTM only.
    lstm_actor: RecurrentCell  # type: ignore[assignment]
    lstm_critic: RecurrentCell | nn.LSTM | None  # type: ignore[assignment]
    _mean_bounds: Tensor | None
    _on_bad_input: OnBadInput = "raise"
    _never_waits: bool = False

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
        optimizer_class: type[torch.optim.Optimizer] = ScaledAdam,
        optimizer_kwargs: dict[str, Any] | None = None,
        *,
        wiring: Recipe | Wiring | Mapping[str, Any] = DEFAULT_WIRING,
        cell: CellName | type[RecurrentCell] = "ltc",
        cell_kwargs: Mapping[str, Any] | None = None,
        critic: Critic | Recipe | Wiring | Mapping[str, Any] = "cell",
        n_motor: int | None = None,
        motor_map: Literal["affine", "dense"] = "affine",
        elapsed_time: float = 1.0,
        ode_unfolds: int = 6,
        init: LTCInit | Mapping[str, Any] | None = None,
        privileged_keys: tuple[str, ...] = (),
        action_names: Sequence[str] | None = None,
        backend: Backend = "auto",
        on_bad_input: OnBadInput = "raise",
        **lstm_arguments: Any,
    ) -> None:
        """Build the policy; arguments not named here are those of SB3's `ActorCriticPolicy`.

        Args:
            observation_space: Box, Discrete, image or Dict.
            action_space: Box, Discrete, MultiDiscrete or MultiBinary.
            lr_schedule: Learning rate by remaining progress.
            net_arch: `dict(vf=[...])`, hidden layers of the critic behind its recurrent core; None stands for [64, 64].
                Layers of `pi` beside them, as tuners send, are ignored with a warning.
            activation_fn: Activation of the critic's hidden layers.
            ortho_init: Whether the critic and dense encoders start with orthogonal weights.
            use_sde: Whether to use generalised state-dependent exploration (gSDE), over the potentials of all neurons.
            log_std_init: Initial logarithm of the actions' standard deviation.
            full_std: Whether gSDE has a deviation for each neuron and action.
            use_expln: Whether gSDE uses `expln` in place of `exp`.
            squash_output: Whether gSDE squashes actions by tanh.
            features_extractor_class: The encoder.
            features_extractor_kwargs: Arguments of the encoder, such as `dict(receptors=4, names=["x", "theta"])`.
            share_features_extractor: Whether actor and critic have one encoder in common.
            normalize_images: Whether uint8 images are divided by 255.
            optimizer_class: The optimizer. `ncp_rl.learning.ScaledAdam` takes steps of `lr_scale` learning rates, by
                default those of the cell (LTC 5, CfC 3), but of one learning rate in encoders other than `Receptors`
                and for the actions' deviation.
            optimizer_kwargs: Arguments of the optimizer without the learning rate, such as `dict(lr_scale=3)`. None
                stands for eps=1e-12 and fused=True with both Adams, since a circuit has many small parameter tensors.
            wiring: Recipe of the actor's circuit, or a built wiring; also a mapping that names a recipe, such as
                `{"recipe": "AutoNCP", "units": 32}`, which a yml file can hold.
            cell: The neurons: "ltc", liquid time-constant neurons; "cfc", closed-form continuous-time ones; or a class
                that is a `ncp_rl.cell.RecurrentCell`.
            cell_kwargs: Further arguments of the cell, such as `dict(mode="no_gate")` for "cfc".
            critic: "cell": neurons of the actor's kind, wired by the actor's recipe, which are all read out; "ltc",
                "cfc": neurons of that kind, wired likewise; "lstm": as many LSTM units; "mlp": no memory; "shared": the
                actor's potentials are read, without gradient; or a recipe for the critic's neurons, given as for
                `wiring`.
            n_motor: Number of motor neurons; None stands for one per action (per logit for discrete actions).
            motor_map: "affine" for a gain and an offset per motor neuron, "dense" for a linear layer behind these.
            elapsed_time: Seconds between observations, unless the observation has the key `elapsed_time`.
            ode_unfolds: Solver substeps per observation, of LTC neurons.
            init: Ranges of the initial parameters of LTC neurons, also as a mapping.
            privileged_keys: Keys of a Dict observation that only the critic sees (asymmetric actor-critic).
            action_names: Names of the action outputs (logits of discrete actions); None stands for action_0, action_1,
                ...
            backend: Backend of the scan over LTC neurons; see `ncp_rl.kernels.ltc_scan`.
            on_bad_input: What `predict` does with a reading that is not finite: "raise" an error, or "hold" the
                neurons and the action; see `predict`.
            **lstm_arguments: Arguments of SB3's LSTM policies, which are refused with a hint at the one to use.

        Raises:
            ValueError: Arguments contradict each other, or policies of this class do not serve the spaces.
            TypeError: There is no such argument, or the algorithm keeps no states.
        """
        for name in lstm_arguments:
            hint = _LSTM_ARGUMENTS.get(name)
            raise TypeError(f"{type(self).__name__} has no argument {name!r}" + (f"; use {hint}." if hint else "."))
        _check_arguments(critic, motor_map, net_arch)
        check_algorithm(type(self).__name__)
        check_spaces(observation_space, action_space)
        extractor = features_extractor_class, features_extractor_kwargs or {}
        check_encoder(type(self).__name__, observation_space, *extractor, normalize_images=normalize_images)
        self.on_bad_input = on_bad_input
        known = set(observation_space.spaces) if isinstance(observation_space, spaces.Dict) else set()
        if not known.issuperset(privileged_keys):
            raise ValueError(
                f"privileged_keys must be keys of the observation {observation_space}, got {privileged_keys}."
            )
        if optimizer_kwargs is None and optimizer_class in (torch.optim.Adam, ScaledAdam):
            optimizer_kwargs = dict(eps=1e-12, fused=True)
        self.recipe = read_recipe(wiring)
        self.critic_recipe = critic if isinstance(critic, str) else read_recipe(critic, "critic")
        self.n_motor, self.motor_map = n_motor, motor_map
        self.elapsed_time, self.ode_unfolds, self.backend = elapsed_time, ode_unfolds, backend
        self.init = LTCInit(**{k: tuple(v) for k, v in init.items()}) if isinstance(init, Mapping) else init
        self.cell, self.cell_kwargs = cell, dict(cell_kwargs or {})
        self._cell_class = cell_class(cell)
        self._build_cell = self._build_critic = cell_builder(
            self._cell_class,
            elapsed_time=elapsed_time,
            ode_unfolds=ode_unfolds,
            init=self.init,
            backend=backend,
            **self.cell_kwargs,
        )
        if isinstance(critic, str) and CELLS.get(critic, self._cell_class) is not self._cell_class:
            self._build_critic = cell_builder(CELLS[critic], elapsed_time=elapsed_time)
        self.privileged_keys = tuple(privileged_keys)
        n_outputs = n_action_outputs(action_space)
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
            lstm_hidden_size=1,  # The cores below replace these LSTMs.
            shared_lstm=critic == "shared",
            enable_critic_lstm=critic not in ("shared", "mlp"),
        )
        self._place_cores()
        self.value_net = nn.Sequential(self.value_net, SignedSquare())  # type: ignore[assignment]
        # Squashed actions keep to their bounds by themselves.
        mean_bounds = None if squash_output else action_bounds(action_space)
        self.register_buffer("_mean_bounds", mean_bounds, persistent=False)
        self._standardizers = [module for module in self.modules() if isinstance(module, Standardize)]
        self.learned_since_rollout = self._standardization_frozen = False
        # Upstream has given its own cores' parameters to the optimizer, which is therefore made anew.
        scale = dict(lr_scale=self._cell_class.lr_scale) if issubclass(self.optimizer_class, ScaledAdam) else {}
        optimizer_kwargs = dict(lr=lr_schedule(1)) | scale | self.optimizer_kwargs
        self.optimizer = self.optimizer_class(self._parameter_groups(), **optimizer_kwargs)

    def _parameter_groups(self) -> Any:
        """Return the optimizer's parameter groups: a circuit's parameters, and those that stock steps suit."""
        if not issubclass(self.optimizer_class, ScaledAdam):
            return self.parameters()
        modules = (module for module in self.modules() if isinstance(module, BaseFeaturesExtractor))
        dense = [m for m in modules if not isinstance(m, (Receptors, MultiInputReceptors, KeyFilter))]
        stock = {id(p) for module in dense for p in module.parameters()}
        stock |= {id(p) for name, p in self.named_parameters() if name == "log_std"}
        fast = [p for p in self.parameters() if id(p) not in stock]
        slow = [p for p in self.parameters() if id(p) in stock]
        return [dict(params=fast), *([dict(params=slow, lr_scale=1.0)] if slow else [])]

    def make_features_extractor(self) -> BaseFeaturesExtractor:
        """Make an encoder without the elapsed time, since upstream gives encoders whole Dict observations."""
        return self._encoder(hidden_keys=frozenset())

    def _encoder(self, hidden_keys: frozenset[str]) -> BaseFeaturesExtractor:
        space = self.observation_space
        if isinstance(space, spaces.Dict) and (hidden_keys or ELAPSED_TIME in space.spaces):
            return KeyFilter(space, self.features_extractor_class, self.features_extractor_kwargs, hidden_keys)
        return super().make_features_extractor()

    def _build(self, lr_schedule: Schedule) -> None:
        """Build the heads, which upstream sizes here, between encoder and cores; the circuit's size must be known."""
        if self.privileged_keys:
            self.features_extractor = self.pi_features_extractor = self._encoder(frozenset(self.privileged_keys))
        n_outputs = n_action_outputs(self.action_space)
        n_motor = self.n_motor or n_outputs
        if self.motor_map == "affine" and n_motor != n_outputs:
            raise ValueError(
                f"n_motor must be {n_outputs}, a motor neuron for each action output, got {n_motor}; leave n_motor "
                'out, or set motor_map="dense".'
            )
        self.wiring = self.recipe.build(_n_sensory(self.pi_features_extractor), n_motor)
        self.sensory_names = sensory_names(self.pi_features_extractor, self.wiring.n_sensory)
        self.lstm_output_dim = self.wiring.units
        super()._build(lr_schedule)

    def _place_cores(self) -> None:
        """Replace upstream's LSTMs of size 1 by the circuits."""
        units = self.wiring.units
        self.lstm_actor = self._build_cell(self.wiring)
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
            self.lstm_critic = self._build_critic(wiring, motor_map=False)
        if self.motor_map == "affine":
            # The circuit's own motor map gives the action, so that a circuit holds the whole way from senses to action.
            self.action_net = self.lstm_actor.motor_map
            start_motor_map(self.lstm_actor.motor_map, self.action_space)
        else:
            dense = nn.Linear(self.wiring.n_motor, n_action_outputs(self.action_space))
            self.action_net = nn.Sequential(self.lstm_actor.motor_map, dense)

    @property
    def on_bad_input(self) -> OnBadInput:
        """What `predict` does with a bad reading: "raise" or "hold"."""
        return self._on_bad_input

    @on_bad_input.setter
    def on_bad_input(self, value: OnBadInput) -> None:
        if value not in ("raise", "hold"):
            raise ValueError(f'on_bad_input must be "raise" or "hold", got {value!r}.')
        self._on_bad_input = value

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Return the action and the next state; see `stable_baselines3.common.base_class.BaseAlgorithm.predict`.

        Neither is ever computed from a bad reading: a number that is not finite, an elapsed time that is negative, or a
        number that a discrete space lacks. `on_bad_input` says what happens to an environment that gives one:

        - "raise": a `BadInputError` names the reading, its index and the environment.
        - "hold": its neurons stay as they are, as if no time had passed, at zero where an episode starts. An action is
          a function of the motor neurons alone, so that the last action mean is held with them; a sampled action is
          drawn around it anew. The other environments go on. The seconds of such a step are lost. Nothing
          is remembered except in the state, which the caller holds.

        Keys in `privileged_keys`, which the actor does not see, are not checked.

        Raises:
            BadInputError: A reading is bad and `on_bad_input` is "raise".
            ValueError: `state` is not finite in an environment whose episode goes on.
        """
        if state is not None and not is_finite(state[0]):
            self._check_state(state[0][0], episode_start)
        admitted, starts = self.admit(observation, episode_start)
        return super().predict(admitted, state, starts, deterministic)

    def admit(self, observation: Any, episode_start: npt.NDArray[Any] | None) -> tuple[Any, npt.NDArray[Any] | None]:
        """Return the observation and the episode starts as `forward` and upstream's `predict` take them.

        Both are the caller's objects unless a reading is bad and is to be held. Then zeros replace bad readings, and
        `HELD` is added to the episode start of their environments.

        Raises:
            BadInputError: A reading is bad and is not to be held.
        """
        bad = self.find_bad(observation)
        if bad is None:
            return observation, episode_start
        if self.on_bad_input == "raise":
            raise BadInputError(
                f'{bad.first.sentence()} Correct the reading, or set policy.on_bad_input = "hold", which keeps the '
                "neurons and the action of that environment unchanged in such a step."
            )
        starts = np.zeros(len(bad.rows)) if episode_start is None else np.asarray(episode_start, np.float32)
        return replace_bad(observation, self.observation_space), starts.reshape(-1) + HELD * bad.rows

    def find_bad(self, observation: Any, *, privileged: bool = False) -> BadInput | None:
        """Return the bad readings of an observation, with the encoders' names, or None.

        Args:
            observation: An array, or a dict of arrays, of one environment or of N environments.
            privileged: Whether to check `privileged_keys` too.
        """
        bad = find_bad(observation, self.observation_space, unread=() if privileged else self.privileged_keys)
        if bad is None:
            return None
        names = observed_names(self.vf_features_extractor) | observed_names(self.pi_features_extractor)
        named = {env: reading.named(names.get(reading.key, ())) for env, reading in bad.readings.items()}
        return bad._replace(readings=named)

    def _check_state(self, potentials: npt.NDArray[Any], episode_start: npt.NDArray[Any] | None) -> None:
        """Refuse potentials (N, U) that are not finite, except where an episode starts, which resets them."""
        goes_on = np.ones(len(potentials), np.bool_) if episode_start is None else ~np.asarray(episode_start, np.bool_)
        wrong = np.argwhere(~np.isfinite(potentials) & goes_on.reshape(-1, 1))
        if len(wrong):
            env, neuron = wrong[0].tolist()
            raise ValueError(
                f"The state of environment {env} is not finite: {self.wiring.names[neuron]} is "
                f"{potentials[env, neuron]}. Continue with state=None, or set episode_start for that environment; if "
                "it "
                "happens again, the policy has parameters that are not finite."
            )

    def forward(  # type: ignore[override]  # Upstream's recurrent class has two arguments more.
        self, obs: Any, lstm_states: RNNStates, episode_starts: Tensor, deterministic: bool = False
    ) -> tuple[Tensor, Tensor, Tensor, RNNStates]:
        """Return a rollout's actions, values, log-probabilities and states; see upstream. Bad readings raise an error.

        Raises:
            BadInputError: The message names the reading, its index and the environment.
        """
        on_gpu = _is_cuda(obs)
        if not on_gpu:
            self._refuse_bad(obs)
        with self._watching():
            outcome = super().forward(obs, lstm_states, episode_starts, deterministic)
        if on_gpu:
            # The computation is queued, and RecurrentPPO waits for the action next, so that the check costs no wait of
            # its own.
            self._refuse_bad(obs)
        return outcome

    def predict_values(self, obs: Any, lstm_states: LSTMStates, episode_starts: Tensor) -> Tensor:  # type: ignore[override]
        """Return values, also of last observations of rollouts and episodes; see upstream. Bad readings raise an error.

        Raises:
            BadInputError: The message names the reading, its index and the environment.
        """
        self._refuse_bad(obs)
        return super().predict_values(obs, lstm_states, episode_starts)

    def _refuse_bad(self, obs: Any) -> None:
        if self._never_waits or torch.compiler.is_compiling() or exporting():
            return
        # A sum is finite only where all readings are, which is the fastest check of vectors.
        if isinstance(obs, Tensor) and obs.dtype is torch.float32 and math.isfinite(obs.sum().item()):
            return
        parts = {key: _array(part) for key, part in obs.items()} if isinstance(obs, dict) else _array(obs)
        bad = self.find_bad(parts, privileged=True)
        if bad is None:
            return
        first = bad.first
        text = f"{first.sentence()} A policy cannot learn from it; correct the environment."
        if len(bad.rows) > 1 and bad.rows.all() and first.key != ELAPSED_TIME:
            text += (
                " All environments give such a reading. A single one spoils the statistics of VecNormalize for all "
                "environments; find it by VecCheckNan beneath VecNormalize."
            )
        raise BadInputError(text)

    def _process_sequence(  # type: ignore[override]  # Upstream's annotation forgets that states are pairs.
        self, features: Tensor, lstm_states: LSTMStates, episode_starts: Tensor, lstm: nn.LSTM | RecurrentCell
    ) -> tuple[Tensor, LSTMStates]:
        """Run a core over padded sequences.

        Args:
            features: (N * T, features), sequence by sequence.
            lstm_states: h and c, each (1, N, U).
            episode_starts: (N * T,), 1 where an episode starts; `HELD` is added where neurons are held.
            lstm: The core.

        Returns:
            (N * T, U), the potentials of all neurons; the new h and c.
        """
        starts = episode_starts.reshape(lstm_states[0].shape[1], -1).swapaxes(0, 1)  # (T, N)
        held: Tensor | None = None
        # No step is held where gradients are wanted, since `forward` has refused bad readings before.
        if self._on_bad_input == "hold" and not torch.is_grad_enabled():
            held, starts = starts >= HELD, starts % HELD
        if isinstance(lstm, nn.LSTM):
            return run_lstm(lstm, features, lstm_states, starts, held)
        return run_cell(lstm, features, lstm_states, starts, held)

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Let `Standardize` collect the inputs of a rollout of the training, and move before the next one."""
        if self._standardization_frozen or exporting():
            yield
            return
        for module in self._standardizers:
            if self.learned_since_rollout:
                module.adapt()
            module.watching = True
        self.learned_since_rollout = False
        try:
            yield
        finally:
            for module in self._standardizers:
                module.watching = False

    def evaluate_actions(  # type: ignore[override]  # Upstream's recurrent class has two arguments more.
        self, obs: Any, actions: Tensor, lstm_states: RNNStates, episode_starts: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Evaluate as upstream does, but scale the values' gradient by `VALUE_GRADIENT`; see `ncp_rl.learning`."""
        self.learned_since_rollout = True
        # Upstream's buffer gives MultiBinary actions as int8, which its distribution refuses.
        if isinstance(self.action_space, spaces.MultiBinary):
            actions = actions.float()
        values, log_prob, entropy = super().evaluate_actions(obs, actions, lstm_states, episode_starts)
        return scale_gradient(values, VALUE_GRADIENT), log_prob, entropy

    def _get_action_dist_from_latent(self, latent_pi: Tensor) -> Distribution:
        """Make the distribution as upstream does, with the mean of a bounded action clipped to the bounds.

        Noise around a mean beyond them would not change what is done, and nothing would be learned from it. In graphs
        PyTorch's checks are left out, since they read values back.
        """
        waits = not (self._never_waits or exporting())
        checking = torch.distributions.Distribution._validate_args
        torch.distributions.Distribution.set_default_validate_args(checking and waits)
        try:
            action_dist = super()._get_action_dist_from_latent(latent_pi)
        finally:
            torch.distributions.Distribution.set_default_validate_args(checking)
        made: Any = action_dist.distribution
        if self._mean_bounds is not None:
            made.loc = clip_inward(made.loc, *self._mean_bounds.unbind())
        if not waits:
            for distribution in made if isinstance(made, list) else [made]:
                distribution._validate_args = False
        if self._never_waits:
            action_dist.distribution = drawn_on_device(made)
        return action_dist

    def _get_constructor_parameters(self) -> dict[str, Any]:
        """Return the constructor's arguments for `load`; upstream returns those of ActorCriticPolicy only."""
        return super()._get_constructor_parameters() | dict(
            share_features_extractor=self.share_features_extractor,
            wiring=self.recipe,
            cell=self.cell,
            cell_kwargs=self.cell_kwargs,
            critic=self.critic_recipe,
            n_motor=self.n_motor,
            motor_map=self.motor_map,
            elapsed_time=self.elapsed_time,
            ode_unfolds=self.ode_unfolds,
            init=self.init,
            privileged_keys=self.privileged_keys,
            action_names=self.action_names,
            backend=self.backend,
            on_bad_input=self.on_bad_input,
        )


@contextmanager
def frozen_standardization(policy: NCPPolicy) -> Iterator[None]:
    """Keep `policy.forward` from moving `Standardize`, as it would in a rollout of the training."""
    policy._standardization_frozen = True
    try:
        yield
    finally:
        policy._standardization_frozen = False


@contextmanager
def bad_readings_held(policy: NCPPolicy) -> Iterator[None]:
    """Let `policy` hold bad readings inside the context, whatever `on_bad_input` it has outside."""
    before = policy.on_bad_input
    policy.on_bad_input = "hold"
    try:
        yield
    finally:
        policy.on_bad_input = before


@contextmanager
def without_waiting(policy: NCPPolicy) -> Iterator[None]:
    """Keep `policy.forward` from reading values back from the device, which a captured CUDA graph cannot.

    So readings are not checked, and discrete actions are drawn by another method, from the same probabilities.
    """
    policy._never_waits = True
    try:
        yield
    finally:
        policy._never_waits = False


class CnnNCPPolicy(NCPPolicy):
    """`NCPPolicy` for images: a `NatureCNN` gives the sensory inputs, 32 of them unless features_dim is set."""

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
        """Build the policy; the arguments are those of `NCPPolicy`."""
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
        """Build the policy; the arguments are those of `NCPPolicy`."""
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            features_extractor_class=features_extractor_class,
            **kwargs,
        )


def _is_cuda(obs: Any) -> bool:
    return bool((next(iter(obs.values())) if isinstance(obs, dict) else obs).is_cuda)


def _array(part: Tensor) -> npt.NDArray[Any]:
    # Integers are always finite, so that images need no copy to the CPU.
    if part.dtype == torch.uint8:
        return np.empty(0, np.uint8)
    return part.numpy(force=True) if part.is_cuda or part.requires_grad else part.numpy()


def _check_arguments(critic: object, motor_map: str, net_arch: list[int] | dict[str, list[int]] | None) -> None:
    if isinstance(critic, str) and critic not in get_args(Critic):
        known = ", ".join(f'"{name}"' for name in get_args(Critic))
        raise ValueError(f"critic must be {known} or a recipe, got {critic!r}.")
    if motor_map not in ("affine", "dense"):
        raise ValueError(f'motor_map must be "affine" or "dense", got {motor_map!r}.')
    if not net_arch or not (isinstance(net_arch, list) or net_arch.get("pi")):
        return
    message = (
        f"net_arch puts layers behind the motor neurons: {net_arch}. A motor neuron is an action here; give layers "
        'to the critic alone, net_arch=dict(vf=[64, 64]), or set motor_map="dense".'
    )
    if isinstance(net_arch, list) or "vf" not in net_arch:
        raise ValueError(message)
    # Tuners such as rl-zoo's sampler always send both; only the critic's layers can be tuned.
    warnings.warn(f"{message} The layers of pi are ignored.", stacklevel=3)


def _critic_arch(net_arch: list[int] | dict[str, list[int]] | None) -> dict[str, list[int]]:
    if net_arch is None:
        return dict(pi=[], vf=[64, 64])
    return dict(pi=[], vf=net_arch.get("vf", []) if isinstance(net_arch, dict) else [])


def _n_sensory(encoder: BaseFeaturesExtractor) -> int:
    """Count the sensory inputs that an encoder feeds; the elapsed time is not one of them."""
    return encoder.features_dim - (isinstance(encoder, KeyFilter) and encoder.timed)
