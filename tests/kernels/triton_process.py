"""What the tests of the Triton kernels run in processes of their own.

Triton decides on import whether its kernels are compiled or interpreted, so that one process cannot have both.
"""

# mypy: allow-untyped-calls

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

from ncp_rl.kernels import Params, reference
from ncp_rl.kernels.contract import Gradients
from tests.kernels import triton_cost
from tests.kernels.circuits import Case, Sizes, draw_case
from tests.kernels.machine_code import Code, Resources

#: Sequences that `_triton` has the kernels take for few, so that small cases are of both kinds.
_FEW_SEQUENCES = 3


def begin(interpret: bool, cache: str) -> None:
    """Set up a fresh process, before anything imports triton."""
    os.environ["TRITON_INTERPRET"] = str(int(interpret))
    os.environ["TRITON_CACHE_DIR"] = cache
    torch.set_num_threads(1)


def errors(
    sizes: Sizes,
    ode_unfolds: int = 6,
    saved_bytes: int = 2**30,
    *,
    device: str = "cpu",
    few: bool | None = None,
    **drawing: Any,
) -> dict[str, float]:
    """Against the float64 reference: the largest of the potentials, the relative norm of every row of gradients.

    `few` says whether the kernels take the sequences for few, whatever their number is.
    """
    case = draw_case(sizes, ode_unfolds=ode_unfolds, **drawing)
    expected = _reference(case.with_dtype(torch.float64).to(device))
    actual = _triton(case.with_dtype(torch.float32, requires_grad=False), saved_bytes, device, few=few)
    result = {"potentials": (actual.pop("potentials") - expected.pop("potentials")).abs().max().item()}
    for name, gradient in actual.items():
        assert gradient.isfinite().all(), name
        # Where nothing flows (no synapses, no seconds), the reference is zero but for its rounding.
        norm = expected[name].norm().clamp_min(1e-6)
        result[name] = ((gradient - expected[name]).norm() / norm).item()
    return result


def is_repeatable(sizes: Sizes, device: str = "cpu", *, few: bool | None = None) -> bool:
    """Whether two runs agree in every bit, with states saved in the forward and without."""
    case = draw_case(sizes, ode_unfolds=3).with_dtype(torch.float32, requires_grad=False)
    first, second, unsaved = (_triton(case, saved_bytes, device, few=few) for saved_bytes in (2**30, 2**30, 0))
    return all(torch.equal(first[name], second[name]) for name in first) and torch.equal(
        first["potentials"], unsaved["potentials"]
    )


def stays_without_time(sizes: Sizes, device: str = "cpu") -> bool:
    """Whether potentials stay what they are, to the bit, through steps of 0 seconds."""
    case = draw_case(sizes, resets=False, ode_unfolds=3).with_dtype(torch.float32, requires_grad=False)
    assert case.elapsed_time is not None
    potentials = _triton(case._replace(elapsed_time=torch.zeros_like(case.elapsed_time)), 2**30, device)["potentials"]
    return torch.equal(potentials, case.state.expand_as(potentials))


def nan_positions(sizes: Sizes, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Where the potentials are NaN after NaN went into inputs, state and elapsed time, and where they should be.

    It goes in where the first synapses start, whose numbers stand in for those of synapses that there are not.
    """
    drawn = (draw_case(sizes, ode_unfolds=3, seed=seed) for seed in range(100))
    # The first neuron has no inputs, so that nothing but its own NaN may reach it.
    case = next(case for case in drawn if case.synapses.source[0] != 0)
    case = case.with_dtype(torch.float32, requires_grad=False)
    assert case.elapsed_time is not None
    case.inputs[2, 0, case.synapses.sensory_source[0]] = torch.nan
    case.state[1, case.synapses.source[0]] = torch.nan
    case.elapsed_time[3, -1] = torch.nan
    return _triton(case, 2**30, device)["potentials"].isnan(), reference.scan(case).isnan()


def nan_gradient_positions(sizes: Sizes) -> tuple[Tensor, Tensor]:
    """Where the initial state's gradients are NaN after NaN reached an output's, and where they should be."""
    case = draw_case(sizes, resets=False, ode_unfolds=1).with_dtype(torch.float32)
    weights = torch.ones(sizes.n_steps, sizes.n_sequences, sizes.n_neurons)
    # Where the first synapse ends.
    weights[-1, 1, case.synapses.pointer.diff().nonzero()[0]] = torch.nan
    (expected,) = torch.autograd.grad(reference.scan(case), case.state, weights)
    actual = _triton(case.with_dtype(torch.float32, requires_grad=False), 2**30, weights=weights)["state"]
    return actual.isnan(), expected.isnan()


def strided_agrees(sizes: Sizes) -> bool:
    """Whether operands that are not contiguous give the same potentials and gradients."""
    case = draw_case(sizes, ode_unfolds=3).with_dtype(torch.float32, requires_grad=False)
    strided = case._replace(
        params=Params(*(row.T.contiguous().T for row in case.params)),
        inputs=case.inputs.transpose(0, 1).contiguous().transpose(0, 1),
        state=case.state.T.contiguous().T,
    )
    expected, actual = _triton(case, 2**30), _triton(strided, 2**30)
    return all(torch.equal(actual[name], expected[name]) for name in expected)


def triton_version() -> tuple[int, int]:
    """Major and minor version of what is installed."""
    import triton

    major, minor, *_ = triton.__version__.split(".")
    return int(major), int(minor)


def counts(shape: triton_cost.Shape, *, resident: bool = True) -> dict[str, dict[str, float]]:
    """By kernel, its registers and spilled bytes, and by sequence and unfold what it executes on an H100."""
    operands = triton_cost.operands_of(shape)
    unfolds = shape.n_sequences * shape.n_steps * operands.ode_unfolds
    return {
        cost.name: {
            "registers": cost.resources.registers,
            "spilled_bytes": cost.resources.spilled_bytes,
            **{
                name: getattr(cost, name) * cost.warps / unfolds
                for name in ("instructions", "special_functions", "memory", "barriers")
            },
        }
        for backward in (False, True)
        for cost in triton_cost.costs(
            triton_cost.launches(operands, backward=backward, resident=resident), operands.synapses, shape.n_inputs
        )
    }


def latency(shape: triton_cost.Shape, *, few: bool) -> dict[str, float]:
    """Milliseconds of the scans on an H100 by their latency: forward, which saves, and reverse."""
    operands = triton_cost.operands_of(shape)
    found = {}
    for backward in (False, True):
        launched = triton_cost.launches(operands, backward=backward, save=True, few=2**30 * few)
        for cost in triton_cost.costs(launched, operands.synapses, shape.n_inputs):
            found[cost.name] = 1e3 * cost.latency / triton_cost.CLOCK_HZ
            assert cost.resources.spilled_bytes == 0 and cost.barriers == 0, cost
    return {name: ms for name, ms in found.items() if name.endswith("_scan")}


def share_of_ceiling(shape: triton_cost.Shape) -> tuple[float, float]:
    """Of the forward pass, and of the backward pass."""
    return triton_cost.share_of_ceiling(triton_cost.operands_of(shape))


def compiled_names(sizes: Sizes, **drawing: Any) -> list[tuple[str, bool, int]]:
    """Kernels that a forward and a backward pass launch: name, whether it is resident, bytes that it spills."""
    case = draw_case(sizes, **drawing).with_dtype(torch.float32, requires_grad=False)
    launched = [launch for backward in (False, True) for launch in triton_cost.launches(case, backward=backward)]
    return [(launch.name, launch.resident, Code(launch.cubin).resources.spilled_bytes) for launch in launched]


def border_resources(kernel: str, n_blocks: int, peer_blocks: int, ahead: int = 1) -> Resources:
    """What a resident kernel takes that has as many slots as `lanes.py` gives it, with all that it may be given."""
    from ncp_rl.kernels.triton import lanes, resident

    registers = lanes.FORWARD if kernel == "forward_scan" else lanes.REVERSE
    if ahead > 1:
        registers = lanes.REVERSE._replace(base=lanes.REVERSE.base + lanes.PER_UNFOLD_AHEAD * ahead)
    n_slots = registers.most_slots(n_blocks, peer_blocks)
    n_slots = n_slots if ahead == 1 else min(n_slots, lanes.MOST_SLOTS_AHEAD // ahead)
    trips = (n_slots - (n_blocks - 1) * (n_slots // n_blocks), *[n_slots // n_blocks] * (n_blocks - 1))
    fixed: dict[str, Any] = {
        "n_unfolds": max(ahead, 6), "AHEAD": ahead, "SAVE": True, "ROWS": 16, "BLOCKS": n_blocks, "TRIPS": trips,
        "TAILS": tuple(n // 2 if n_blocks > 1 else 0 for n in trips), "PEER_BLOCKS": peer_blocks,
    }  # fmt: skip
    return Code(_compile(getattr(resident, kernel), fixed)).resources


def _reference(case: Case) -> dict[str, Tensor]:
    potentials = reference.scan(case)
    leaves = case.differentiable
    gradients = torch.autograd.grad(potentials, list(leaves.values()), _weights(potentials), materialize_grads=True)
    named = dict(zip(leaves, gradients, strict=True))
    params = Params(*(named.pop(name) for name in Params._fields))
    rows = _rows(Gradients(params, named["inputs"], named["state"], named.get("elapsed_time")))
    return {name: row.cpu() for name, row in ({"potentials": potentials.detach()} | rows).items()}


def _triton(
    case: Case, saved_bytes: int, device: str = "cpu", *, weights: Tensor | None = None, few: bool | None = None
) -> dict[str, Tensor]:
    from ncp_rl.kernels.triton import backend

    case = case.to(device)

    # So that a few sequences fill programs of several, the last one not wholly.
    backend.PROGRAMS_PER_MULTIPROCESSOR = 1
    backend.REVERSE_PROGRAMS = 2
    backend.SENSORY_PROGRAMS = 3
    backend.SAVED_BYTES = saved_bytes
    backend.FEW_SEQUENCES = _FEW_SEQUENCES if few is None else 2**30 * few
    potentials, saved = backend.forward(case, save=True)
    assert (saved is not None) == (2 * case.ode_unfolds * potentials.nbytes <= saved_bytes)
    gradients = backend.backward(_weights(potentials) if weights is None else weights, potentials, saved, case)
    return {name: rows.cpu() for name, rows in ({"potentials": potentials} | _rows(gradients)).items()}


def _weights(potentials: Tensor) -> Tensor:
    return torch.randn(potentials.shape, generator=torch.Generator().manual_seed(1)).to(potentials)


def _rows(gradients: Gradients) -> dict[str, Tensor]:
    """Gradients by name, the parameters' row by row: w, sigma, mu, erev, cm, gleak and vleak differ in size."""
    rows = {f"{name}[{i}]": row for name, rows in gradients.params._asdict().items() for i, row in enumerate(rows)} | {
        "inputs": gradients.inputs,
        "state": gradients.state,
    }
    return rows if gradients.elapsed_time is None else rows | {"elapsed_time": gradients.elapsed_time}


def _compile(kernel: Any, fixed: dict[str, Any]) -> bytes:
    """Machine code of a kernel of one warp, for an H100."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ncp_rl.kernels.triton.backend import OPTIONS

    signature = {name: "constexpr" if name in fixed else _type(name) for name in kernel.arg_names}
    positions = {name: (position,) for position, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={positions[name]: fixed[name] for name in kernel.arg_names if name in fixed},
        attrs={positions[name]: [["tt.divisibility", 16]] for name in signature if signature[name].startswith("*")},
    )
    options = {"num_warps": 1, **OPTIONS}
    cubin: bytes = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
    return cubin


def _type(name: str) -> str:
    """Type of a kernel's argument in Triton's notation."""
    if name.startswith("n_"):
        return "i32"
    if name in ("neurons", "synapses", "peers", "partners", "roles"):
        return "*i32"
    return "*u8" if name == "episode_starts" else "*fp32"
