"""What cannot be explained or audited: circuits and episodes with numbers that are not finite, or too large."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode, RecordingError

#: Largest magnitude of a number, so that sums of products of two numbers are still float32.
LARGEST = 1e15

_QUANTITIES = (
    *("start", "elapsed_time", "sensory", "potentials", "tau", "action_mean", "action", "reward", "observation"),
)


def check_measurable(circuit: Circuit, episodes: Iterable[Episode]) -> None:
    """Refuse numbers that are not finite, or so large that sums of their products are not.

    Raises:
        RecordingError: There is such a number; the message says where.
    """
    for _ in measurable(circuit, episodes):
        pass


def measurable(circuit: Circuit, episodes: Iterable[Episode]) -> Iterator[Episode]:
    """Yield each episode once `check_measurable` would not refuse it; the circuit is checked once, before the first.

    Raises:
        RecordingError: As `check_measurable`.
    """
    numbers = circuit.parameters() | {"readout": circuit.readout, "bias": circuit.bias}
    for name, values in numbers.items():
        wrong = np.flatnonzero(~(np.abs(values) <= LARGEST))
        if len(wrong):
            raise RecordingError(f"{name}[{wrong[0]}] of the circuit must be {_WANTED}, got {values.flat[wrong[0]]}.")
    quantities = [name for name in _QUANTITIES if name != "tau" or circuit.core.has_time_constants]
    for episode in episodes:
        for name in quantities:
            values = np.asarray(getattr(episode, name))
            if name == "observation":
                values = np.where(episode.held[:, None], 0.0, values)  # Nothing was computed from what was held.
            places = np.argwhere(~(np.abs(values) <= LARGEST))
            if len(places):
                where = "at the start" if name == "start" else f"in step {places[0][0]}"
                raise RecordingError(
                    f"{name} {where} of episode {episode.index} must be {_WANTED} to be explained or audited, got "
                    f"{values[tuple(places[0])]}; verify and replay say whether it is true."
                )
        yield episode


_WANTED = f"a finite number up to {LARGEST:.0e}"
