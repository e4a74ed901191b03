"""Recorded values against values computed again: `Divergence`, `Comparison`, and `Tally`, which collects them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.recording.episode import Episode

Array = npt.NDArray[Any]

#: Difference allowed on another platform, absolute up to 1 and relative beyond.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Divergence:
    """The first value that differed when it was computed again."""

    episode: int | None
    """Number of the episode; None for a parameter of the circuit."""
    step: int | None
    name: str
    """Name of the neuron, action, quantity or parameter."""
    recorded: float
    replayed: float

    def __str__(self) -> str:
        """Return a clause with the place and both values."""
        where = "in the circuit" if self.episode is None else f"in step {self.step} of episode {self.episode}"
        return f"{self.name} {where}: recorded {self.recorded:.9g}, replayed {self.replayed:.9g}"


@dataclass(frozen=True)
class Comparison:
    """One recorded quantity against its replay.

    Attributes:
        what: The quantity, such as "potentials".
        n_values: How many numbers were compared.
        bitwise: Whether all are equal, bit for bit (any NaN equals any other).
        max_difference: The greatest difference, absolute up to 1 and relative beyond.
        first: The first value beyond the tolerance, or None.
    """

    what: str
    n_values: int
    bitwise: bool
    max_difference: float
    first: Divergence | None


class Tally:
    """The comparisons so far, by quantity."""

    def __init__(self, tolerance: float) -> None:
        """Allow differences up to `tolerance`, or none where it is 0."""
        self.tolerance = tolerance
        self._found: dict[str, Comparison] = {}

    @property
    def exact(self) -> bool:
        """Whether every bit must be equal."""
        return self.tolerance == 0

    def add(
        self,
        episode: Episode,
        what: str,
        recorded: Array,
        replayed: Array,
        names: Iterable[str] = (),
        *,
        magnitude: Array | float = 1.0,
    ) -> None:
        """Compare a quantity (T, ...) of an episode, from its first step on.

        Args:
            episode: The episode.
            what: The quantity.
            recorded: (T, ...) recorded values.
            replayed: (T, ...) values computed again.
            names: Names of the quantity's values.
            magnitude: (T,), to which differences are relative where it is greater than 1 and the recorded value.
        """
        self._compare(what, recorded, replayed, tuple(names), self.tolerance, magnitude, episode.index)

    def add_number(self, episode: Episode, what: str, recorded: float, replayed: float) -> None:
        """Compare a number of the whole episode as that of its last step."""
        values = np.full((2, len(episode)), recorded, np.float64)
        values[1, -1] = replayed
        self.add(episode, what, *values)

    def add_parameters(
        self, what: str, recorded: Array, replayed: Array, names: Iterable[str], *, tolerance: float = 0.0
    ) -> None:
        """Compare parameters of the circuit, (P,) each."""
        self._compare(what, recorded[None], replayed[None], tuple(names), tolerance, 1.0, None)

    def _compare(
        self,
        what: str,
        recorded: Array,
        replayed: Array,
        names: tuple[str, ...],
        tolerance: float,
        magnitude: Array | float,
        episode: int | None,
    ) -> None:
        n_steps = len(recorded)
        recorded, replayed = (np.asarray(a, np.float64).reshape(n_steps, -1) for a in (recorded, replayed))
        before = self._found.get(what, Comparison(what, 0, True, 0.0, None))
        both_nan = np.isnan(recorded) & np.isnan(replayed)
        equal = both_nan | ((recorded == replayed) & (np.signbit(recorded) == np.signbit(replayed)))
        scale = np.maximum(np.broadcast_to(magnitude, n_steps)[:, None], np.maximum(1.0, np.abs(recorded)))
        with np.errstate(invalid="ignore", over="ignore"):
            difference = np.abs(recorded - replayed) / scale
        difference = np.where(equal, 0.0, np.nan_to_num(difference, nan=np.inf))
        beyond = ~equal & ~((difference <= tolerance) & (tolerance > 0))
        first = before.first
        if first is None and beyond.any():
            t, i = np.argwhere(beyond)[0].tolist()
            name = names[i] if i < len(names) else f"{what} {i}"
            step = None if episode is None else t
            first = Divergence(episode, step, name, float(recorded[t, i]), float(replayed[t, i]))
        self._found[what] = Comparison(
            what,
            before.n_values + recorded.size,
            before.bitwise and bool(equal.all()),
            max(before.max_difference, float(difference.max(initial=0.0))),
            first,
        )

    def comparisons(self) -> tuple[Comparison, ...]:
        """Return all comparisons."""
        return tuple(self._found.values())
