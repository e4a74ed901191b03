"""How do the neurons answer a step? One sensory input of a circuit at rest is stepped.

response = step_response(circuit, "theta_3", 0.5)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ncp_rl.audit.cell import Array
from ncp_rl.audit.json_values import finite, listed
from ncp_rl.circuit import Circuit


@dataclass(frozen=True, kw_only=True)
class StepResponse:
    """The response of all neurons, from rest, to a step of one sensory input.

    Attributes:
        sensory: Name of the input.
        amount: By how much it steps.
        time: (T,) seconds since the step, from the first observation after it.
        rest: (U,) potentials at rest, before the step.
        potentials: (T, U) after the step.
        settled: Whether the last step moved no neuron by more than 1e-5; the figures below describe settled responses.
        change: (U,), last potential less rest.
        rise_time: (U,) seconds until a neuron has first gone 1 - 1/e = 63.2 % of its change, linear between steps, 0 s
            at rest; NaN where the change is below 1e-4. A neuron whose conductances hold still takes its tau, as far as
            the solver's substeps are short against it.
        overshoot: (U,), how far it goes beyond its last potential, as a share of the change; NaN as above.
        slowest_mode: Seconds, -dt / log |lambda|, lambda the largest eigenvalue (by size) of the Jacobian of one step
            with respect to the potentials, at the end: how fast a small disturbance dies away at last; inf or negative
            where it does not.
    """

    sensory: str
    amount: float
    time: Array
    rest: Array
    potentials: Array
    settled: bool
    change: Array
    rise_time: Array
    overshoot: Array
    slowest_mode: float

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for JSON, without the traces."""
        return {
            "sensory": self.sensory,
            "amount": self.amount,
            "settled": self.settled,
            "change": listed(self.change),
            "rise_time": listed(self.rise_time),
            "overshoot": listed(self.overshoot),
            "slowest_mode": finite(self.slowest_mode),
        }


def step_response(
    circuit: Circuit,
    sensory: str | int,
    amount: float,
    *,
    base: npt.ArrayLike | None = None,
    elapsed_time: float | None = None,
    n_steps: int = 500,
) -> StepResponse:
    """Let the circuit come to rest, step one sensory input, and record the response (as in any book on control).

    Args:
        circuit: The circuit.
        sensory: Name or number of the sensory input.
        amount: By how much it steps.
        base: (S,) sensory inputs at rest, of which the step changes one; None stands for zeros.
        elapsed_time: Seconds per step; the circuit's constant where None.
        n_steps: Number of steps before the step of the input, and after it.

    Raises:
        ValueError: There is no such sensory input, or base has another size.
    """
    names = circuit.sensory_names
    number = names.index(sensory) if isinstance(sensory, str) and sensory in names else sensory
    if isinstance(number, str) or not 0 <= number < len(names):
        raise ValueError(f"There is no sensory input {sensory!r}; the {len(names)} inputs are {', '.join(names)}.")
    inputs = np.zeros(len(names)) if base is None else np.asarray(base, np.float64)
    if inputs.shape != (len(names),):
        raise ValueError(f"base must be (S,) = ({len(names)},), got {inputs.shape}.")
    seconds = circuit.core.elapsed_time if elapsed_time is None else elapsed_time
    before = _held(circuit, inputs, np.zeros(circuit.wiring.units), seconds, n_steps)
    stepped = inputs + amount * (np.arange(len(names)) == number)
    potentials = _held(circuit, stepped, before[-1], seconds, n_steps)
    rest = before[-1]
    time: Array = seconds * np.arange(1.0, n_steps + 1)
    change = potentials[-1] - rest
    rise_time, overshoot = _rise(np.concatenate([rest[None], potentials]), np.concatenate([[0.0], time]))
    settled = bool(max(_last_move(before), _last_move(potentials)) < 1e-5)
    return StepResponse(
        sensory=names[number],
        amount=float(amount),
        time=time,
        rest=rest,
        potentials=potentials,
        settled=settled,
        change=change,
        rise_time=rise_time,
        overshoot=overshoot,
        slowest_mode=_slowest_mode(circuit, stepped, potentials[-1], seconds),
    )


def _held(circuit: Circuit, inputs: Array, start: Array, seconds: float, n_steps: int) -> Array:
    """Return (n_steps, U) potentials under constant inputs (S,)."""
    sensory = np.tile(inputs.astype(np.float32), (n_steps, 1))
    return circuit.run(sensory, start.astype(np.float32), np.full(n_steps, seconds, np.float32)).astype(np.float64)


def _rise(potentials: Array, time: Array) -> tuple[Array, Array]:
    """Return the rise times and overshoots, each (U,), of potentials (T + 1, U) that start at rest."""
    change = potentials[-1] - potentials[0]
    moved = np.abs(change) >= 1e-4
    gone = (potentials - potentials[0]) / np.where(moved, change, 1.0)  # 0 at rest, 1 at the end.
    level = 1 - math.exp(-1)
    after = np.argmax(gone >= level, axis=0).clip(min=1)
    columns = np.arange(len(change))
    low, high = gone[after - 1, columns], gone[after, columns]
    share = (level - low) / np.where(moved, high - low, 1.0)
    rise_time = time[after - 1] + share * (time[after] - time[after - 1])
    overshoot = gone.max(axis=0) - 1
    return np.where(moved, rise_time, np.nan), np.where(moved, overshoot, np.nan)


def _last_move(potentials: Array) -> float:
    return float(np.abs(np.diff(potentials[-2:], axis=0)).max(initial=0.0))


def _slowest_mode(circuit: Circuit, inputs: Array, potentials: Array, seconds: float) -> float:
    device = circuit.device
    sensory, state, elapsed = (
        torch.tensor(array, dtype=torch.float32, device=device) for array in (inputs, potentials, [[seconds]])
    )

    def step(v: torch.Tensor) -> torch.Tensor:
        after: torch.Tensor = circuit.core(sensory[None, None], v[None], None, elapsed)[1][0]
        return after

    jacobian = torch.autograd.functional.jacobian(step, state)
    largest = float(np.abs(np.linalg.eigvals(jacobian.cpu().numpy().astype(np.float64))).max())
    if largest == 1.0:
        return math.inf
    return -seconds / math.log(largest) if largest > 0 else 0.0
