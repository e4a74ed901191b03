"""What the Triton backend would take of an H100, from its machine code: the table of `docs/kernels.md`.

    python -m tests.kernels.triton_cost                 # U/S/N/T = 64/32/4096/128
    python -m tests.kernels.triton_cost 32 16 16 128    # U S N T

The backend runs as ever, on tensors in the CPU's memory, but for the last step: a driver takes the place of CUDA's that
compiles what is launched, notes it, and runs nothing.

The model: each multiprocessor has four schedulers, each of which issues one instruction a cycle; special functions take
8 cycles of a scheduler's unit for a warp; loads, stores and shuffles take a cycle of what the four schedulers share.
A kernel takes as long as the busiest of the three, where others hide a warp's waits, but never less than one of its
warps takes alone (`latency.py`). `docs/kernels.md` has what an H200 took beside it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections import Counter
from typing import Any, NamedTuple
from unittest import mock

import torch

from tests.kernels.latency import cycles
from tests.kernels.machine_code import Code, Resources, Times, count

MULTIPROCESSORS = 132
SCHEDULERS = 4 * MULTIPROCESSORS
CLOCK_HZ = 1.755e9
#: Cycles of a scheduler for one instruction of a warp.
SPECIAL_FUNCTION_CYCLES = 8
MEMORY_CYCLES = 4


class Launch(NamedTuple):
    """A kernel that would have run."""

    name: str
    resident: bool
    warps: int
    """Of all its programs"""
    arguments: dict[str, Any]
    cubin: bytes


class Cost(NamedTuple):
    """What a launch takes."""

    name: str
    resources: Resources
    executed: Counter[str]
    """By one of its warps"""
    warps: int
    latency: float
    """Cycles of one of its warps alone"""

    @property
    def instructions(self) -> float:
        """Of one warp."""
        return sum(self.executed.values())

    @property
    def special_functions(self) -> float:
        """Of one warp."""
        return count(self.executed, "MUFU")

    @property
    def memory(self) -> float:
        """Loads, stores and shuffles of one warp."""
        return count(self.executed, "LDG", "STG", "LDS", "STS", "LDL", "STL", "SHFL", "ATOM", "ATOMG")

    @property
    def barriers(self) -> float:
        """Of one warp."""
        return count(self.executed, "BAR")

    @property
    def seconds(self) -> float:
        """By the model."""
        busiest = max(self.instructions, SPECIAL_FUNCTION_CYCLES * self.special_functions, MEMORY_CYCLES * self.memory)
        return max(busiest * max(self.warps / SCHEDULERS, 1.0), self.latency) / CLOCK_HZ


class _Driver:
    """Compiles for an H100 and loads nothing."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.utils = self
        self.launcher_cls = functools.partial(_Launcher, self.launches)

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 227 << 10, "multiprocessor_count": MULTIPROCESSORS}

    def load_binary(self, name: str, cubin: bytes, shared: int, device: int) -> tuple[Any, Any, int, int, int]:
        """Module and function, of which the launcher needs nothing but the code; registers, spills, most threads."""
        return cubin, cubin, 0, 0, 1024


class _Launcher:
    """Notes a launch."""

    def __init__(self, launches: list[Launch], source: Any, metadata: Any) -> None:
        self.launches, self.kernel, self.n_warps = launches, source.fn, metadata.num_warps

    def __call__(self, x: int, y: int, z: int, stream: int, cubin: bytes, *rest: Any) -> None:
        arguments = dict(zip(self.kernel.arg_names, rest[-len(self.kernel.arg_names) :], strict=True))
        resident = self.kernel.__module__.endswith("resident")
        self.launches.append(Launch(self.kernel.__name__, resident, x * y * z * self.n_warps, arguments, cubin))


@functools.cache
def _driver() -> _Driver:
    # Compiled kernels keep the launcher that they were first launched by.
    return _Driver()


class Shape(NamedTuple):
    """U neurons wired by AutoNCP, S inputs, N sequences of T steps."""

    units: int
    n_inputs: int
    n_sequences: int
    n_steps: int


def launches(
    operands: Any, *, backward: bool, resident: bool = True, save: bool = False, few: int | None = None
) -> list[Launch]:
    """What the backend would launch for these operands.

    Args:
        operands: Operands of the scan, whose values nobody reads but those of the lists.
        backward: Whether to list the backward pass alone, instead of the forward pass.
        resident: Whether circuits that fit may stay in registers.
        save: Whether the forward pass saves what the backward pass needs.
        few: In place of `FEW_SEQUENCES`.
    """
    from triton.runtime import driver

    from ncp_rl.kernels.triton import backend, slots

    recorder = _driver()
    recorder.launches.clear()
    driver.set_active(recorder)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(backend, "_multiprocessors", lambda device: MULTIPROCESSORS))
        if few is not None:
            stack.enter_context(mock.patch.object(backend, "FEW_SEQUENCES", few))
        if not resident:
            stack.enter_context(mock.patch.object(slots, "lay_out", lambda *args, **kwargs: None))
        potentials, saved = backend.forward(operands, save=backward or save)
        if backward:
            recorder.launches.clear()
            backend.backward(torch.zeros_like(potentials), potentials, saved, operands)
    return list(recorder.launches)


def costs(launched: list[Launch], synapses: Any, n_inputs: int) -> list[Cost]:
    """What each of the launches takes."""
    result = []
    for launch in launched:
        code = Code(launch.cubin)
        times = _times(launch, synapses, n_inputs)
        latency = cycles(code, times) if launch.resident and launch.name.endswith("_scan") else 0.0
        result.append(Cost(launch.name, code.resources, code.executed(times), launch.warps, latency))
    return result


def _times(launch: Launch, synapses: Any, n_inputs: int) -> Times:
    """How often the loops of a kernel run."""
    from ncp_rl.kernels.triton.lanes import WARP
    from ncp_rl.kernels.triton.slots import tables

    n = launch.arguments
    held = tables(synapses, n_inputs)
    if launch.name == "synapse_gradients":
        return [(n["samples_per_program"] / n["SAMPLES"], [])]
    if launch.name == "leak_and_senses":
        return [(held.sensory_to_neuron.trips.float().mean().item(), [])]
    if launch.name == "sensory_gradients":
        groups = held.from_input
        warps_per_group = launch.warps / groups.n_groups
        return [(n["n_samples"] / (WARP // groups.rows) / warps_per_group, [])]
    if launch.resident:
        steps: Times = [(n["n_steps"], [(n["n_unfolds"], [])] if n["AHEAD"] == 1 else [])]
        return steps if launch.name == "forward_scan" else [(n["n_groups"] / launch.warps, steps)]
    slots = held.to_neuron if launch.name == "forward_scan" else held.from_neuron
    return [(n["n_steps"] * n["n_unfolds"], [(float(trips), []) for trips in slots.trips])]


def operands_of(shape: Shape) -> Any:
    """Operands of the scan, without resets and elapsed time."""
    from ncp_rl import LTC, AutoNCP
    from ncp_rl.kernels.contract import Operands

    torch.manual_seed(0)
    ltc = LTC(AutoNCP(shape.units).build(shape.n_inputs, 4))
    with torch.no_grad():
        params, synapses, *_ = ltc.packed()
    inputs = torch.empty(shape.n_steps, shape.n_sequences, shape.n_inputs)
    state = torch.empty(shape.n_sequences, shape.units)
    return Operands(params, synapses, inputs, state, None, None, ltc.ode_unfolds)


def ceiling_seconds(operands: Any) -> float:
    """What the special functions of a forward pass take alone, two for each synapse; a backward pass has twice as many.

    The backward pass may stay below: where the reverse scan sums the synapses' gradients itself, it has as many.
    """
    from ncp_rl.kernels.triton.backend import synapse_evaluations

    n_steps, n_sequences, _ = operands.inputs.shape
    evaluations = synapse_evaluations(operands.synapses, n_steps, n_sequences, ode_unfolds=operands.ode_unfolds)
    return 2 * evaluations / (16 * MULTIPROCESSORS * CLOCK_HZ)


def share_of_ceiling(operands: Any) -> tuple[float, float]:
    """Of the forward pass, and of the backward pass, by the model."""
    n_inputs = operands.inputs.shape[2]
    passes = (costs(launches(operands, backward=backward), operands.synapses, n_inputs) for backward in (False, True))
    forward, backward = (sum(cost.seconds for cost in launched) for launched in passes)
    ceiling = ceiling_seconds(operands)
    return ceiling / forward, 2 * ceiling / backward


def report(shape: Shape, *, resident: bool) -> str:
    """The rows of the table for one shape."""
    operands = operands_of(shape)
    ceiling = ceiling_seconds(operands)
    unfolds = shape.n_steps * shape.n_sequences * operands.ode_unfolds
    rows = []
    for backward in (False, True):
        total = 0.0
        launched = launches(operands, backward=backward, resident=resident)
        for cost in costs(launched, operands.synapses, shape.n_inputs):
            total += cost.seconds
            numbers = (cost.instructions, cost.special_functions, cost.memory, cost.barriers)
            per_unfold = " | ".join(f"{number * cost.warps / unfolds:.1f}" for number in numbers)
            rows.append(
                f"| {cost.name} | {per_unfold} | {cost.resources.registers} | {cost.resources.spilled_bytes} | "
                f"{1e3 * cost.seconds:.3f} |"
            )
        share = (2 if backward else 1) * ceiling / total
        name = "backward" if backward else "forward"
        rows.append(f"| **{name}** | | | | | | | **{1e3 * total:.2f}** ({100 * share:.0f} % of the ceiling) |")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Print the table: kernels as they are chosen, and as they are for circuits that registers do not suffice for."""
    import triton

    os.environ.setdefault("TRITON_INTERPRET", "0")
    shape = Shape(*map(int, arguments)) if arguments else Shape(64, 32, 4096, 128)
    print(f"Triton {triton.__version__}, U/S/N/T = {'/'.join(map(str, shape))}; counts by sequence and unfold")
    for resident in (True, False):
        print(f"\n{'resident' if resident else 'streaming'}\n{report(shape, resident=resident)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
