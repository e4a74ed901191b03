"""`Episode`: the recorded arrays of one episode."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Episode:
    """One episode of T steps; row t holds the policy's observation and action at step t, and their outcome.

    Attributes:
        index: Number of the episode in its recording.
        env_index: Number of the environment that it ran in, among those side by side.
        observation: (T, D) as the environment gave it, before normalisation; flattened, a Dict observation key by key.
        observation_names: (D,), names of the observed quantities.
        action: (T, A) float32, as given to the environment.
        reward: (T,) float32, not normalised.
        terminated: Whether the last step ended the episode by the task's own rules.
        truncated: Whether the last step ended it by a limit; both are False where the recording stopped before the end.
        sensory: (T, S) float32, inputs of the circuit.
        start: (U,) float32, potentials before the first step.
        potentials: (T, U) float32, after each step; motor, command and inter neurons by the wiring's slices.
        tau: (T, U) float32, seconds, time constants at the end of each step; NaN where the neurons have none.
        value: (T,) float32, the critic's value.
        action_mean: (T, A) float32, mean of the action's distribution before it is clipped; logits where discrete.
        action_std: (T, A) float32, standard deviation of the distribution; NaN where actions are discrete.
        log_prob: (T,) float32, log-probability of `sample`.
        elapsed_time: (T,) float32, seconds since the observation before; -0.0 where the step was held.
        sample: (T, A) float32, the action drawn from the distribution, before clipping; None where unknown.
        final_observation: (D,), observation after the last step; None where the recording stopped
            before. Where observations were normalised it is computed from the normalised one, with rounding.
    """

    index: int
    env_index: int
    observation: npt.NDArray[Any]
    observation_names: tuple[str, ...]
    action: Floats
    reward: Floats
    terminated: bool
    truncated: bool
    sensory: Floats
    start: Floats
    potentials: Floats
    tau: Floats
    value: Floats
    action_mean: Floats
    action_std: Floats
    log_prob: Floats
    elapsed_time: Floats
    sample: Floats | None = None
    final_observation: npt.NDArray[Any] | None = None

    def __len__(self) -> int:
        """Return the number of steps T."""
        return len(self.reward)

    def part(self, first: int, stop: int) -> Episode:
        """Return the steps from `first` to before `stop`, as an episode that starts from the potentials before them."""
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        whole = ("start", "final_observation")
        steps: dict[str, Any] = {
            name: array[first:stop]
            for name, array in arrays.items()
            if isinstance(array, np.ndarray) and name not in whole
        }
        return replace(self, **steps, start=self.potentials[first - 1] if first else self.start)

    @property
    def time(self) -> npt.NDArray[np.float64]:
        """(T,) float64, seconds since the episode's start at each step."""
        return np.cumsum(self.elapsed_time, dtype=np.float64)

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """(T,) bool, whether a reading was bad, so that neurons and action were held; see `NCPPolicy.predict`."""
        return np.signbit(self.elapsed_time)
