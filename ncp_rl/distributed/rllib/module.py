"""`NCPModule`: an `NCPPolicy` as an RLModule of RLlib's current API stack."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from ray.rllib.core.columns import Columns
from ray.rllib.core.distribution.torch.torch_distribution import (
    TorchCategorical,
    TorchDiagGaussian,
    TorchMultiCategorical,
)
from ray.rllib.core.rl_module.apis import ValueFunctionAPI
from ray.rllib.core.rl_module.torch.torch_rl_module import TorchRLModule
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor, nn

from ncp_rl.encoder import Standardize
from ncp_rl.learning import VALUE_GRADIENT, scale_gradient
from ncp_rl.policy import NCPPolicy, frozen_standardization

# Names of the parts of a state: the potentials of the actor and of the critic, and the memory cells of an LSTM critic.
_ACTOR, _CRITIC, _CRITIC_CELLS = "actor", "critic", "critic_cells"


class Gaussian(TorchDiagGaussian):
    """Independent normal distributions, given by means and deviations side by side, (..., 2 A).

    RLlib's own class takes the logarithm of the deviation, whose exponential would not give the policy's bits again.
    """

    @classmethod
    def from_logits(cls, logits: Any, **kwargs: Any) -> Gaussian:
        """Make the distribution; see upstream."""
        mean, deviation = logits.chunk(2, dim=-1)
        return cls(loc=mean, scale=deviation)


class NCPModule(TorchRLModule, ValueFunctionAPI):
    """An RLModule around an `NCPPolicy`, whose modules and whose forward pass it uses.

    RLlib gives sequences as (B, T, ...), each within one episode, padded by zeros behind their end, and the state
    before each sequence. The state of a new episode is zero (`get_initial_state`), and RLlib's connectors carry the
    others, so that potentials are those of `RecurrentPPO`, which resets them where episodes start.

    Attributes:
        policy: The policy. Its weights are those of the module: `policy.load_state_dict` and `policy.state_dict`
            convert to and from `RecurrentPPO`; `NCPModule.around` makes a module of another policy's kind and weights.
    """

    policy: NCPPolicy

    def setup(self) -> None:
        """Build the policy from the spaces and `model_config`; RLlib calls this.

        `model_config` holds `policy_class`, a `NCPPolicy` class; `policy_kwargs`, its arguments; `max_seq_len`, steps
        of the sequences that learners train on; `sde_sample_freq`, steps for which gSDE keeps its noise.

        Raises:
            ValueError: RLlib cannot serve the action space.
        """
        observations, actions = self.observation_space, self.action_space
        assert observations is not None and actions is not None
        check_action_space(actions)
        arguments: Any = self.model_config
        policy_class: type[NCPPolicy] = arguments["policy_class"]
        # RLlib writes the learning rate into the optimizer before it is used.
        self.policy = policy_class(observations, actions, _no_rate, **arguments["policy_kwargs"])
        self._sde_sample_freq: int = arguments["sde_sample_freq"]
        self._standardizers = [module for module in self.policy.modules() if isinstance(module, Standardize)]
        self._steps_with_noise = 0

    @classmethod
    def around(cls, policy: NCPPolicy, *, max_seq_len: int, sde_sample_freq: int = 1) -> NCPModule:
        """Make a module of the kind and with the weights of a policy, which is copied.

        Args:
            policy: The policy.
            max_seq_len: Steps of the sequences that learners train on.
            sde_sample_freq: Steps for which gSDE keeps its noise.
        """
        module = cls(
            observation_space=policy.observation_space,
            action_space=policy.action_space,
            model_config=model_config(policy, max_seq_len=max_seq_len, sde_sample_freq=sde_sample_freq),
        )
        module.policy.load_state_dict(policy.state_dict())
        return module

    def get_initial_state(self) -> dict[str, Tensor]:
        """Return the state of a new episode: zeros, (U,) each; RLlib adds the axis of sequences."""
        names = [_ACTOR]
        if self.policy.lstm_critic is not None:
            names += [_CRITIC, *([_CRITIC_CELLS] if isinstance(self.policy.lstm_critic, nn.LSTM) else [])]
        return {name: torch.zeros(self.policy.wiring.units) for name in names}

    def _forward_inference(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            return self._run(batch, deterministic=True)[0]

    def _forward_exploration(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        with torch.no_grad():
            if self.policy.use_sde:
                self._renew_noise(len(batch[Columns.STATE_IN][_ACTOR]))
            return self._run(batch, deterministic=False)[0]

    def _forward_train(self, batch: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        # The actions taken are in the batch: none is drawn here.
        output, values = self._run(batch, deterministic=True)
        # RLlib hands embeddings on to `compute_values`, so that there is one pass for both heads.
        kept = {name: output[name] for name in (Columns.ACTION_DIST_INPUTS, Columns.STATE_OUT)}
        return kept | {Columns.EMBEDDINGS: scale_gradient(values, VALUE_GRADIENT)}

    def compute_values(self, batch: dict[str, Any], embeddings: Tensor | None = None) -> Tensor:
        """Return the values, (B, T).

        Args:
            batch: Observations and the states before them.
            embeddings: The values themselves, where `forward_train` has computed them already.
        """
        return self._run(batch, deterministic=True)[1] if embeddings is None else embeddings

    def _run(self, batch: dict[str, Any], *, deterministic: bool) -> tuple[dict[str, Any], Tensor]:
        """Run the policy over B sequences of T steps; return RLlib's columns, and the values, (B, T)."""
        n_sequences, n_steps = _first(batch[Columns.OBS]).shape[:2]
        observations = _mapped(batch[Columns.OBS], lambda part: part.flatten(0, 1))
        states = self._states(batch[Columns.STATE_IN])
        starts = torch.zeros(n_sequences * n_steps, device=states.pi[0].device)
        with frozen_standardization(self.policy), _heard(self.policy.action_net) as heard:
            actions, values, log_probs, states = self.policy.forward(observations, states, starts, deterministic)
        shape = (n_sequences, n_steps)
        output = {
            Columns.ACTIONS: actions.reshape(*shape, *actions.shape[1:]),
            Columns.ACTION_LOGP: log_probs.reshape(shape),
            Columns.ACTION_DIST_INPUTS: self._distribution_inputs(heard).reshape(*shape, -1),
            Columns.STATE_OUT: self._columns(states),
        }
        return output, values.reshape(shape)

    def _distribution_inputs(self, heard: list[Tensor]) -> Tensor:
        """Return what makes the distribution of the pass that has just ended: logits, or means and deviations."""
        if not isinstance(self.action_space, spaces.Box):
            return heard[0]
        normal: Any = self.policy.action_dist.distribution
        return torch.cat([normal.loc, normal.scale], dim=-1)

    def _states(self, columns: Mapping[str, Tensor]) -> RNNStates:
        """Return RLlib's states, (B, U) each, as the pairs (h, c) of (1, B, U) that the policy takes."""
        actor = columns[_ACTOR][None]
        nothing = torch.zeros_like(actor)
        critic = columns[_CRITIC][None] if _CRITIC in columns else nothing
        cells = columns[_CRITIC_CELLS][None] if _CRITIC_CELLS in columns else nothing
        return RNNStates((actor, nothing), (critic, cells))

    def _columns(self, states: RNNStates) -> dict[str, Tensor]:
        found = {_ACTOR: states.pi[0][0], _CRITIC: states.vf[0][0], _CRITIC_CELLS: states.vf[1][0]}
        return {name: found[name] for name in self.get_initial_state()}

    def _renew_noise(self, n_envs: int) -> None:
        """Draw gSDE's noise anew every `sde_sample_freq` steps."""
        if self._steps_with_noise % self._sde_sample_freq == 0:
            self.policy.reset_noise(n_envs)
        self._steps_with_noise += 1

    def watch(self, batch: dict[str, Any]) -> None:
        """Let `Standardize` see the readings of a rollout; the mean and deviation move at the next `adapt`.

        Args:
            batch: Observations, (B, T, ...), and the loss mask, (B, T), which is false where there was no step.
        """
        if not self._standardizers:
            return
        steps = batch[Columns.LOSS_MASK]
        readings = _mapped(batch[Columns.OBS], lambda part: part[steps])
        for module in self._standardizers:
            module.watching = True
        try:
            with torch.no_grad():
                self.policy.extract_features(readings)
        finally:
            for module in self._standardizers:
                module.watching = False

    def adapt(self) -> None:
        """Move `Standardize` by the readings that were watched, those of other learners included.

        `RecurrentPPO` moves it before the next rollout; here it moves after the update, before the weights go to the
        env runners, so that each rollout is collected and learned from with the same mean and deviation in both.
        """
        for module in self._standardizers:
            if torch.distributed.is_available() and torch.distributed.is_initialized():
                shards: list[Any] = [None] * torch.distributed.get_world_size()
                torch.distributed.all_gather_object(shards, [part.cpu() for part in module.seen])
                module.seen = [part.to(module.mean.device) for shard in shards for part in shard]
            module.adapt()

    def get_inference_action_dist_cls(self) -> type[Any]:
        """Return RLlib's class of the policy's distribution."""
        if isinstance(self.action_space, spaces.Box):
            return Gaussian
        if isinstance(self.action_space, spaces.Discrete):
            return TorchCategorical
        assert isinstance(self.action_space, spaces.MultiDiscrete)
        base: Any = TorchMultiCategorical
        partial: type[Any] = base.get_partial_dist_cls(input_lens=self.action_space.nvec.tolist())
        return partial


def check_action_space(space: spaces.Space[Any]) -> None:
    """Refuse action spaces that RLlib has no distribution for.

    Raises:
        ValueError: The space is neither Discrete, nor MultiDiscrete nor a Box with one axis.
    """
    one_axis = isinstance(space, (spaces.Box, spaces.MultiDiscrete)) and len(space.shape or ()) == 1
    if not (one_axis or isinstance(space, spaces.Discrete)):
        raise ValueError(
            "A training with RLlib takes actions that are Discrete, or MultiDiscrete or Box with one axis, got "
            f"{space}; wrap the environment, or train with ncp_rl.runs.train."
        )


def model_config(policy: NCPPolicy, *, max_seq_len: int, sde_sample_freq: int) -> dict[str, Any]:
    """Return the `model_config` of modules around policies of the same kind; see `NCPModule.setup`."""
    elsewhere = ("observation_space", "action_space", "lr_schedule")
    arguments = {name: part for name, part in policy._get_constructor_parameters().items() if name not in elsewhere}
    return dict(
        policy_class=type(policy),
        policy_kwargs=arguments,
        max_seq_len=max_seq_len,
        sde_sample_freq=sde_sample_freq,
    )


def _no_rate(_: float) -> float:
    return 0.0


@contextmanager
def _heard(module: nn.Module) -> Iterator[list[Tensor]]:
    """Give the list of a module's outputs inside the context."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda _module, _inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def _first(observations: Any) -> Tensor:
    first: Tensor = next(iter(observations.values())) if isinstance(observations, Mapping) else observations
    return first


def _mapped(observations: Any, change: Any) -> Any:
    """Apply a function to an observation, or to each part of a Dict observation."""
    if isinstance(observations, Mapping):
        return {key: change(part) for key, part in observations.items()}
    return change(observations)
