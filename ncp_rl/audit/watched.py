"""The neurons that an audit watches: the command neurons, where a circuit has any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ncp_rl.audit.cell import Array
from ncp_rl.recording import Episode
from ncp_rl.wiring import Wiring


@dataclass(frozen=True)
class Watched:
    """C of a circuit's U neurons.

    Attributes:
        layer: "command"; "all" where the wiring has no command neurons (`FullyConnected`, `Random`), so that every
            neuron is watched.
        index: (C,) int, positions among the U neurons.
        names: (C,), names of these neurons.
    """

    layer: str
    index: npt.NDArray[np.int64]
    names: tuple[str, ...]

    @classmethod
    def of(cls, wiring: Wiring) -> Watched:
        """Return the command neurons of `wiring`, or all its neurons where it has none."""
        part = wiring.command if wiring.n_command else slice(0, wiring.units)
        return cls("command" if wiring.n_command else "all", np.arange(wiring.units)[part], wiring.names[part])

    def __str__(self) -> str:
        """Return which neurons these are, as sentences name them."""
        return "command neurons" if self.layer == "command" else "neurons (the wiring has no command neurons)"

    def stacked(self, episodes: Sequence[Episode]) -> Array:
        """Return the potentials of all steps of all episodes, one after the other: (steps, C) float64.

        Raises:
            ValueError: There are no episodes, or potentials are not finite; the message names the first.
        """
        if not episodes:
            raise ValueError("At least one episode is needed, got none.")
        for episode in episodes:
            wrong = np.argwhere(~np.isfinite(episode.potentials))
            if len(wrong):
                step, neuron = (int(at) for at in wrong[0])
                raise ValueError(
                    f"Potentials must be finite, but episode {episode.index} has "
                    f"{episode.potentials[step, neuron]} at step {step}, neuron {neuron}; leave the episode out."
                )
        return np.concatenate([episode.potentials[:, self.index] for episode in episodes]).astype(np.float64)
