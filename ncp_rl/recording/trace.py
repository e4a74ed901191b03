"""Observation of a running policy: `trace_neurons` for users, `PolicyTap` for recorders. Neither changes a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.distributions import Distribution
from torch import Tensor, nn
from torch.distributions import Normal

from ncp_rl.circuit import Circuit
from ncp_rl.policy import NCPPolicy

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class NeuronTrace:
    """The neurons in one call of a policy over T steps of N sequences.

    Attributes:
        sensory: (T, N, S) float32, inputs of the circuit.
        inter: (T, N, I) float32, potentials after each step.
        command: (T, N, C) float32, potentials after each step.
        motor: (T, N, M) float32, potentials after each step.
        tau: (T, N, U) float32, seconds, time constants at the end of each step, by the wiring's order of neurons; None
            where the neurons have none.
        names: Names by layer, "sensory", "inter", "command", "motor", and those of `tau`'s neurons, "neurons".
    """

    sensory: Floats
    inter: Floats
    command: Floats
    motor: Floats
    tau: Floats | None
    names: dict[str, tuple[str, ...]]


@contextmanager
def trace_neurons(policy: NCPPolicy) -> Iterator[list[NeuronTrace]]:
    """Collect the actor's neurons in every call inside the `with`: forward, predict, evaluate_actions and all others.

        with trace_neurons(model.policy) as calls:
            model.predict(observation)
        calls[0].command  # (T, N, C)

    Args:
        policy: The policy; its results do not change.
    """
    calls: list[NeuronTrace] = []

    def keep(module: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        calls.append(_neuron_trace(Circuit.from_policy(policy), _array(inputs[0]), _array(output[0])))

    handle = policy.lstm_actor.register_forward_hook(keep)
    try:
        yield calls
    finally:
        handle.remove()


def _neuron_trace(circuit: Circuit, sensory: Floats, potentials: Floats) -> NeuronTrace:
    wiring = circuit.wiring
    layers = {"inter": wiring.inter, "command": wiring.command, "motor": wiring.motor}
    names = {name: wiring.names[where] for name, where in layers.items()}
    return NeuronTrace(
        sensory=sensory,
        **{name: potentials[..., where] for name, where in layers.items()},
        tau=circuit.time_constants(sensory, potentials) if circuit.core.has_time_constants else None,
        names={"sensory": circuit.sensory_names, **names, "neurons": wiring.names},
    )


class Seen(NamedTuple):
    """A policy's results for one step of N environments, whole tensors on its device, since indexing one takes 4 us."""

    before: Tensor
    """(N, U), potentials before the step, before resets"""
    sensory: Tensor
    """(1, N, S)"""
    episode_starts: Tensor
    """(1, N)"""
    elapsed_time: Tensor | None
    """(1, N) seconds, or None for the policy's constant"""
    potentials: Tensor
    """(1, N, U), after the step"""
    action_mean: Tensor
    """(N, A), or logits"""
    action_std: Tensor | None
    """(N, A), or None for discrete actions"""
    value: Tensor
    """(N, 1)"""
    log_prob: Tensor
    """(N,)"""


class PolicyTap:
    """Keeps the results of the policy's last `forward`, which rollouts call once per step.

    Other calls, such as evaluations or values of last observations, use other methods and do not change it.
    """

    def __init__(self, policy: NCPPolicy) -> None:
        """Listen to `policy` until `close`."""
        self.seen: Seen | None = None
        self._policy = policy
        self._core: tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor]
        self._mean: Tensor | None = None
        self._listening = ExitStack()
        core: Any = policy.lstm_actor
        for module, hear in (
            (core, self._on_core),
            (policy.action_net, self._on_mean),
            (policy, self._on_forward),
        ):
            self._listening.enter_context(_listen(module, hear))

    def close(self) -> None:
        """Stop listening."""
        self._listening.close()

    def _on_core(self, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        sensory, before, starts, elapsed = inputs
        self._core = (before, sensory, starts, elapsed, output[0])

    def _on_mean(self, inputs: tuple[Any, ...], output: Tensor) -> None:
        self._mean = output

    def _on_forward(self, inputs: tuple[Any, ...], output: Any) -> None:
        _, value, log_prob, _ = output
        assert self._mean is not None
        deviation = _deviation(self._policy.action_dist)
        self.seen = Seen(*self._core, self._mean, deviation, value, log_prob)


class _Forward:
    """A replacement of a module's `forward` that calls listeners with the arguments and the result."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.listeners: list[Callable[[tuple[Any, ...], Any], None]] = []
        self._forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        output = self._forward(*args, **kwargs)
        for hear in self.listeners:
            hear(args, output)
        return output


@contextmanager
def _listen(module: nn.Module, hear: Callable[[tuple[Any, ...], Any], None]) -> Iterator[None]:
    # A hook of PyTorch's would lengthen each call of a module by 10 us.
    before = vars(module).get("forward")
    forward = before if isinstance(before, _Forward) else _Forward(module.forward)
    vars(module)["forward"] = forward
    forward.listeners.append(hear)
    try:
        yield
    finally:
        forward.listeners.remove(hear)
        if not forward.listeners:
            del vars(module)["forward"]


def _deviation(distribution: Distribution) -> Tensor | None:
    """Return the standard deviations of the last distribution; None where it has none."""
    normal = distribution.distribution
    return normal.scale if isinstance(normal, Normal) else None


def _array(tensor: Tensor) -> Floats:
    return np.asarray(tensor.detach().cpu()).copy()
