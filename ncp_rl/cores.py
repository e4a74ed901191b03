"""The recurrent cores of a policy: the table of cells, how one is built, and how RecurrentPPO's sequences run on it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from torch import Tensor, nn

from ncp_rl.cell import RecurrentCell
from ncp_rl.cfc import CfC
from ncp_rl.kernels import Backend
from ncp_rl.ltc import LTC, LTCInit

States = tuple[Tensor, Tensor]

#: The cells by the names under which policies and recordings know them.
CELLS: dict[str, type[RecurrentCell]] = {kind.cell: kind for kind in (LTC, CfC)}


def cell_class(cell: str | type[RecurrentCell], argument: str = "cell") -> type[RecurrentCell]:
    """Return the class of a cell, given by its name or as the class itself.

    Raises:
        ValueError: No cell has that name.
    """
    if isinstance(cell, str) and cell not in CELLS:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, CELLS))}, or a class, got {cell!r}.")
    return CELLS[cell] if isinstance(cell, str) else cell


def cell_builder(
    cell: type[RecurrentCell],
    *,
    elapsed_time: float,
    ode_unfolds: int = 6,
    init: LTCInit | None = None,
    backend: Backend = "auto",
    **cell_kwargs: Any,
) -> Callable[..., RecurrentCell]:
    """Return a function that makes a cell from a wiring. An LTC gets no input map, since an encoder precedes it.

    Args:
        cell: Class of the cell.
        elapsed_time: Seconds that a step lasts.
        ode_unfolds: As in `LTC`, for LTC neurons only.
        init: As in `LTC`, for LTC neurons only.
        backend: As in `LTC`, for LTC neurons only.
        **cell_kwargs: Further arguments of the class.

    Raises:
        ValueError: Arguments of LTC neurons are given to another cell.
    """
    arguments: dict[str, Any] = dict(elapsed_time=elapsed_time)
    of_ltc: dict[str, Any] = dict(ode_unfolds=ode_unfolds, init=init, backend=backend)
    if issubclass(cell, LTC):
        arguments |= dict(input_map=False, **of_ltc)
    elif of_ltc != _LTC_DEFAULTS:
        given = ", ".join(name for name, value in of_ltc.items() if value != _LTC_DEFAULTS[name])
        raise ValueError(f"Only LTC neurons take the argument {given}, and the cell is {cell.__name__}; leave it out.")
    return functools.partial(cell, **(arguments | cell_kwargs))


_LTC_DEFAULTS: dict[str, Any] = dict(ode_unfolds=6, init=None, backend="auto")


def run_lstm(
    lstm: nn.LSTM, features: Tensor, states: States, starts: Tensor, held: Tensor | None
) -> tuple[Tensor, States]:
    """Run an LSTM over padded sequences; see `run_cell` for arguments and results."""
    h, c = states
    n_sequences = h.shape[1]
    # RecurrentPPO cuts sequences where episodes start, so only the first step can need a reset. Resetting here
    # avoids upstream's loop over time.
    keep = 1.0 - starts[0].reshape(1, n_sequences, 1)
    kept = keep * h, keep * c
    if len(starts) == 1:
        # Upstream would ask the device whether an episode starts, and wait for it.
        (output,), (new_h, new_c) = lstm(features[None], kept)
    else:
        later = torch.cat([torch.zeros_like(starts[:1]), starts[1:]]).swapaxes(0, 1).flatten()
        output, (new_h, new_c) = RecurrentActorCriticPolicy._process_sequence(features, kept, later, lstm)
    if held is not None and len(starts) == 1:
        # Readings come, and are held, one step at a time, so the output is the new h.
        rows = held[0][:, None]
        new_h, new_c = torch.where(rows, kept[0], new_h), torch.where(rows, kept[1], new_c)
        output = new_h[0]
    return output, (new_h, new_c)


def run_cell(
    cell: RecurrentCell, features: Tensor, states: States, starts: Tensor, held: Tensor | None
) -> tuple[Tensor, States]:
    """Run a cell over padded sequences in one call, resets included, where upstream loops over time.

    Args:
        cell: The cell.
        features: (N * T, features), sequence by sequence; the elapsed time, if any, follows the sensory inputs.
        states: h and c, each (1, N, U).
        starts: (T, N), 1 where an episode starts.
        held: (T, N) bool, where neurons are held, or None.

    Returns:
        (N * T, U), the potentials of all neurons; the new h and c.
    """
    h, c = states
    sequence = features.reshape(h.shape[1], -1, features.shape[-1]).swapaxes(0, 1)  # (T, N, features)
    inputs, elapsed = sequence[..., : cell.input_size], sequence[..., cell.input_size :]
    seconds = elapsed[..., 0] if elapsed.shape[-1] else None
    if held is not None:
        # A step of -0.0 seconds leaves neurons unchanged, so a recording of it replays like any other. The sign of the
        # zero distinguishes a held step from a step of zero seconds that the environment reports.
        constant = features.new_full(starts.shape, cell.elapsed_time)
        seconds = torch.where(held, -0.0, constant if seconds is None else seconds)
    potentials, state = cell(inputs, h[0], starts, seconds)
    return potentials.swapaxes(0, 1).flatten(0, 1), (state[None], c)
