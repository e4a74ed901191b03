"""`PolicyStep`: a policy's step for many environments that are simulated on its device, captured as a CUDA graph.

    step = PolicyStep(model.policy, n_envs=4096)
    actions, values, log_probs, held = step(observation, episode_starts)

Nothing waits for the device: observations come from there and actions stay there.
"""

from __future__ import annotations

from typing import Any, NamedTuple, final

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from torch import Tensor

from ncp_rl.cuda_graph import Addresses, capture
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.policy import NCPPolicy, bad_readings_held, frozen_standardization, without_waiting
from ncp_rl.readings import HELD, LARGEST, BadInputError, discrete_values

Observation = Tensor | dict[str, Tensor]


class StepOutcome(NamedTuple):
    """What a step gives for N environments. The next step overwrites it: copy what must last."""

    actions: Tensor
    """(N, ...) as the action space has them, before they are clipped to it"""
    values: Tensor
    """(N, 1) float32"""
    log_probs: Tensor
    """(N,) float32, of the actions"""
    held: Tensor
    """(N,) bool, whether a bad reading held the environment's neurons"""


@final
class PolicyStep:
    """A policy's step for N environments, whose states it carries itself, on buffers that stay where they are.

    The step is that of `policy.forward`, with three differences:

    - A bad reading (not finite, a negative elapsed time, a number that a discrete space lacks) raises nothing, which
      would wait for the device. It is replaced by zero, and its environment held: neurons stay as they are, and with
      them the action mean, as `NCPPolicy.predict` does with "hold", whatever `on_bad_input` is. `outcome.held` says so,
      and `check` raises the error when it is called.
    - `Standardize` collects nothing; it applies the statistics that it has.
    - Sampled discrete actions are drawn by another method, from the same probabilities.

    Weights may change in place between steps, as an optimizer and `load_state_dict` change them: a captured step
    computes what it derives from them anew each time. The training mode of the policy's modules is that of the capture.

    Attributes:
        observation: The buffers that a step reads, (N, ...) each; a simulator may write into them and pass them.
        states: The recurrent states before the next step, as `policy.forward` takes them.
        outcome: The last step's outcome, or None.
    """

    def __init__(self, policy: NCPPolicy, n_envs: int, *, deterministic: bool = False, captured: bool = True) -> None:
        """Make the buffers on the policy's device, and capture the step.

        Args:
            policy: The policy.
            n_envs: N, number of environments.
            deterministic: Whether actions are the most likely ones; otherwise they are sampled by PyTorch's generator
                of the device (`torch.manual_seed`).
            captured: Whether the step becomes a CUDA graph; False runs it operation by operation, on any device.

        Raises:
            TypeError: It is not an `NCPPolicy`.
            ValueError: n_envs is below 1; the policy is to be captured and not on a GPU, or is to be sampled with gSDE.
            RuntimeError: A part of the policy waits for the device, which a graph cannot.
        """
        if not isinstance(policy, NCPPolicy):
            raise TypeError(f"policy must be an NCPPolicy, got {type(policy).__name__}; pass model.policy.")
        if n_envs < 1:
            raise ValueError(f"n_envs must be at least 1, got {n_envs}.")
        if policy.use_sde and not deterministic:
            raise ValueError(
                "gSDE draws its exploration matrices outside of a step, and sampled actions would always have those "
                "of the capture; set deterministic=True."
            )
        if captured and policy.device.type != "cuda":
            raise ValueError(
                f'A CUDA graph needs a policy on a GPU, and this one is on "{policy.device}"; make the model with '
                'device="cuda", or pass captured=False, which runs the same step operation by operation.'
            )
        self.policy, self.n_envs, self.deterministic = policy, n_envs, deterministic
        space, device = policy.observation_space, policy.device
        keys = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        self._parts = {key: _Part(part, n_envs, device, seconds=key == ELAPSED_TIME) for key, part in keys.items()}
        buffers = {key: part.readings for key, part in self._parts.items()}
        self.observation: Observation = buffers.get("", buffers)
        self._starts = torch.zeros(n_envs, device=device)
        shape = policy.lstm_hidden_state_shape[0], n_envs, policy.lstm_hidden_state_shape[2]
        h, c, critic_h, critic_c = (torch.zeros(shape, device=device) for _ in range(4))
        self.states = RNNStates((h, c), (critic_h, critic_c))
        self.outcome: StepOutcome | None = None
        self._graph, self._addresses = None, None
        if captured:
            self._graph, self._addresses = capture(self._run, device), Addresses(policy)
            self.reset()

    def __call__(self, observation: Observation, episode_starts: Tensor | None = None) -> StepOutcome:
        """Take a step in all environments, and go on from its states in the next.

        Args:
            observation: (N, ...) on the policy's device, or a dict of such, in the space's dtype, after the wrappers of
                the environment.
            episode_starts: (N,) bool or 0 and 1 on the policy's device, where an episode starts with this observation;
                None stands for nowhere.

        Raises:
            ValueError: The observation does not fit.
            RuntimeError: The policy's parameters or buffers were moved since the capture.
        """
        self._take(observation)
        if episode_starts is None:
            self._starts.zero_()
        else:
            self._fit("episode_starts", episode_starts, self._starts, any_dtype=True)
            self._starts.copy_(episode_starts)
        if self._graph is None:
            self._run()
        else:
            self._refuse_moved()
            self._graph.replay()
        assert self.outcome is not None
        return self.outcome

    def reset(self, states: RNNStates | None = None) -> None:
        """Go on from these states, or from zero; forget bad readings.

        Args:
            states: h and c of actor and critic, (1, N, U) each, as `policy.forward` returns them.
        """
        given = [None] * 4 if states is None else [tensor for pair in states for tensor in pair]
        for own, new in zip(self._state_tensors(self.states), given, strict=True):
            if new is None:
                own.zero_()
            else:
                self._fit("states", new, own)
                own.copy_(new)
        self._forget_bad()

    def check(self) -> None:
        """Raise an error if a reading was bad since the last check or reset. This waits for the device.

        Raises:
            BadInputError: The message names the first environment with a bad reading, the reading and its last value.
        """
        found: Any = {key: part.last_bad.numpy(force=True).copy() for key, part in self._parts.items()}
        self._forget_bad()
        bad = self.policy.find_bad(found.get("", found), privileged=True)
        if bad is not None:
            raise BadInputError(
                f"{bad.first.sentence()} Since the last check such readings held {int(bad.rows.sum())} of "
                f"{self.n_envs} environments; correct them."
            )

    def _run(self) -> None:
        """Compute a step from the buffers, and write its states into them."""
        held = torch.zeros_like(self._starts, dtype=torch.bool)
        admitted = {}
        for key, part in self._parts.items():
            admitted[key], held_by_part = part.admit()
            if held_by_part is not None:
                held |= held_by_part
        policy, starts = self.policy, self._starts + HELD * held
        observation: Any = admitted.get("", admitted)
        with torch.no_grad(), bad_readings_held(policy), frozen_standardization(policy), without_waiting(policy):
            actions, values, log_probs, states = policy(observation, self.states, starts, self.deterministic)
            for own, new in zip(self._state_tensors(self.states), self._state_tensors(states), strict=True):
                if new is not own:
                    own.copy_(new)
        self.outcome = StepOutcome(actions, values, log_probs, held)

    def _take(self, observation: Observation) -> None:
        parts = observation if isinstance(observation, dict) else {"": observation}
        if parts.keys() != self._parts.keys():
            expected = "a tensor" if "" in self._parts else f"a dict with the keys {', '.join(self._parts)}"
            came = f"keys {', '.join(parts)}" if isinstance(observation, dict) else "a tensor"
            raise ValueError(f"observation must be {expected}, got {came}.")
        for key, part in parts.items():
            own = self._parts[key].readings
            if part is not own:
                self._fit(f"observation[{key!r}]" if key else "observation", part, own)
                own.copy_(part)

    def _fit(self, name: str, given: Tensor, own: Tensor, *, any_dtype: bool = False) -> None:
        """Refuse a tensor that cannot be copied to a buffer as it is."""
        if given.shape != own.shape:
            raise ValueError(
                f"{name} must be {tuple(own.shape)}, got {tuple(given.shape)}; a step serves {self.n_envs} "
                "environments, make another one for another number."
            )
        if given.device != own.device:
            raise ValueError(f"{name} must be on {own.device} like the policy, got {given.device}; move it there.")
        if given.dtype != own.dtype and not any_dtype:
            raise ValueError(f"{name} must be {own.dtype}, got {given.dtype}; convert it with .to({own.dtype}).")

    def _refuse_moved(self) -> None:
        moved = None if self._addresses is None else self._addresses.first_moved()
        if moved is not None:
            raise RuntimeError(
                f"{moved} of the policy was replaced or moved since the step was captured, whose graph would read the "
                "old numbers; make a new PolicyStep."
            )

    def _forget_bad(self) -> None:
        for part in self._parts.values():
            part.forget_bad()

    @staticmethod
    def _state_tensors(states: Any) -> list[Tensor]:
        return [tensor for pair in states for tensor in pair]


class _Part:
    """The buffer of an observation, or of a key's part of it, and which of its readings are bad (`ncp_rl.readings`)."""

    def __init__(self, space: spaces.Space[Any], n_envs: int, device: torch.device, *, seconds: bool) -> None:
        zeros = np.zeros((n_envs, *(space.shape or ())), space.dtype)
        self.readings = torch.from_numpy(zeros).to(device)
        self.seconds = seconds
        values = discrete_values(space)
        low, count = (0, 1) if values is None else values
        # The bounds of a discrete space, on the device, where a graph can read them.
        self.low, self.high = (torch.as_tensor(bound, device=device) for bound in (low, low + count - 1))
        self.is_discrete = values is not None
        self.last_bad = torch.empty_like(self.readings)
        """Of each reading the last bad value since the last check, and a good one where there was none"""
        self.forget_bad()

    def forget_bad(self) -> None:
        self.last_bad.copy_(self.low)

    def admit(self) -> tuple[Tensor, Tensor | None]:
        """Return the readings with zeros for bad ones, and whether an environment (N,) has one; None if none can."""
        wrong = self._wrong()
        if wrong is None:
            return self.readings, None
        self.last_bad.copy_(torch.where(wrong, self.readings, self.last_bad))
        return self.readings.masked_fill(wrong, 0), wrong.reshape(len(wrong), -1).any(1)

    def _wrong(self) -> Tensor | None:
        part = self.readings
        if self.is_discrete:
            return ~((part >= self.low) & (part <= self.high))
        if not part.is_floating_point():
            return part < 0 if self.seconds else None
        wrong = ~(part.abs() <= LARGEST)
        return wrong | (part < 0) if self.seconds else wrong
