"""Envelopes: the region of the command neurons in clean episodes, and the distance from it that raises an alarm.

A **score** measures how far the watched neurons' potentials v (C,) are from those of clean episodes at a step:

- box: `max_j |v_j - centre_j| / half_j`, where `centre_j +- half_j` is the range of neuron j in the fitting episodes; 1
  at the edge.
- Mahalanobis: `d = sqrt((v - m)' P (v - m))`, P the inverse of the covariance that Ledoit and Wolf's shrinkage
  estimates (Journal of Multivariate Analysis 88, 2004; scikit-learn's `LedoitWolf`), m the mean.

An **alarm** is the first step of an episode whose score exceeds the **threshold**:

- `fit_box`, `fit_mahalanobis`: (1 + margin) times the largest score of the fitting episodes. It promises nothing.
- `fit_conformal`: split-conformal over either score, divided by its **profile**: the largest score of the fitting
  episodes within 5 steps of the same step. Where episodes pass through phases (a pendulum swings up, then balances),
  a potential that is usual in one phase is unusual in another. From the step that half of the fitting episodes do not
  reach, the profile is the largest score of all later ones. From n calibration episodes, which the score was not fitted
  on, take the largest score of each; the threshold is the k-th smallest of these, k = ceil((n + 1) (1 - alpha))
  (Papadopoulos et al., ECML 2002; Vovk et al., "Algorithmic learning in a random world", 2005; Angelopoulos and Bates,
  arXiv:2107.07511, section 1).

**What is promised.** A new clean episode raises an alarm, at whichever step, with probability at most alpha, and more
than alpha - 1 / (n + 1) where maxima do not tie. It holds for any circuit, any score and any number of episodes, if the
new episode is exchangeable with the calibration episodes: same environment, same way of starting, same policy, same
noise, independent of each other. It is a promise per *episode*, since the steps of one depend on each other; an episode
longer than those of the calibration is not covered. It is marginal: an average over calibration sets. The rate under
one given set follows Beta(n + 1 - k, k) (Vovk, "Conditional validity of inductive conformal predictors", ACML 2012),
which `monitor.false_alarms` takes into account. Nothing is promised on faults: how many are found is measured, by
`monitor.detect`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from sklearn.covariance import LedoitWolf

from ncp_rl.audit.cell import Array
from ncp_rl.audit.episode_split import split_episodes
from ncp_rl.audit.json_values import finite, listed
from ncp_rl.audit.watched import Watched
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode

Score = Literal["box", "mahalanobis"]

# Potentials are float32 of the order of 1: a neuron that moved less than this in clean episodes counts as having moved
# this much, so that rounding raises no alarm.
_SMALLEST_MOVE = 1e-4

# The profile at a step is taken from the scores of this many steps before and after it.
_WINDOW = 5


@dataclass(frozen=True)
class Alarm:
    """The first step of an episode outside the envelope.

    Attributes:
        episode: Number of the episode; in a live run counted from 0 per environment.
        env_index: Number of the environment.
        step: Step of the episode, from 0.
        time: Seconds since the episode's start.
        neuron: Name of the neuron that is furthest out; see `Envelope.blame`.
        score: Score at this step; inf where a potential is not finite.
        threshold: Threshold that the score exceeds.
        bad_input: Fault of the observation, in a clause, where a bad reading that was held raised the alarm;
            `neuron` and `score` are then those of the held potentials.
    """

    episode: int
    env_index: int
    step: int
    time: float
    neuron: str
    score: float
    threshold: float
    bad_input: str = ""

    def __str__(self) -> str:
        """Return a line for people."""
        if self.bad_input:
            where = f"episode {self.episode}, step {self.step} ({self.time:.2f} s)"
            return f"{where}: {self.bad_input}; neurons and action are held"
        return (
            f"episode {self.episode}, step {self.step} ({self.time:.2f} s): {self.neuron} leaves known territory, "
            f"score {self.score:.3g} > {self.threshold:.3g}"
        )


@dataclass(frozen=True, kw_only=True)
class Envelope:
    """The region of the watched neurons in clean episodes, and the score above which an alarm is raised.

    Attributes:
        watched: The neurons.
        score: Kind of the score.
        centre: (C,), middle of the range (box) or mean (Mahalanobis).
        low, high: (C,), smallest and largest potential of each watched neuron in the fitting episodes.
        precision: (C, C), inverse covariance; diagonal with 1 / half^2 for the box.
        profile: (P,), what the score at each step of an episode is divided by; its last entry holds for all later
            steps. It is [1] where the score is not divided.
        threshold: A higher score raises an alarm; inf never does.
        alpha: Promised false-alarm rate per episode; None where nothing is promised.
        n_fit, n_calibration: Numbers of episodes that the score was fitted on, and that the threshold was calibrated
            on; without calibration nothing is promised.
        calibration: (n_calibration,), largest score of each calibration episode, ascending.
        elapsed_time: Seconds per step, used where a live run gives none.
    """

    watched: Watched
    score: Score
    centre: Array
    low: Array
    high: Array
    precision: Array
    profile: Array
    threshold: float
    alpha: float | None
    n_fit: int
    n_calibration: int
    calibration: Array
    elapsed_time: float

    def outlyingness(self, potentials: npt.NDArray[np.floating[Any]]) -> Array:
        """Return (..., C) squared share of each watched neuron in the score, from potentials (..., U) of all neurons.

        Box: (v_j - centre_j)^2 / half_j^2; its largest entry is the squared score. Mahalanobis: [P (v - m)]_j^2 /
        P_jj, by how much d^2 would fall if neuron j were left out (the conditional term of Hotelling's T^2 in Mason,
        Tracy and Young, Journal of Quality Technology 27, 1995). inf where the potential is not finite.
        """
        deviation = potentials[..., self.watched.index] - self.centre
        known = np.isfinite(deviation)
        weighted = np.where(known, deviation, 0.0) @ self.precision
        shares: Array = np.where(known, weighted**2 / np.diag(self.precision), np.inf)
        return shares

    def scores(self, potentials: npt.NDArray[np.floating[Any]], step: npt.NDArray[np.integer[Any]]) -> Array:
        """Return (...) score of potentials (..., U) of all neurons; inf where one of the watched is not finite.

        Args:
            potentials: (..., U), potentials of all neurons.
            step: (...) int, step of the episode, from 0.
        """
        if self.score == "box":
            squared = self.outlyingness(potentials).max(axis=-1)
        else:
            deviation = potentials[..., self.watched.index] - self.centre
            known = np.isfinite(deviation)
            kept = np.where(known, deviation, 0.0)
            squared = np.where(known.all(axis=-1), ((kept @ self.precision) * kept).sum(axis=-1), np.inf)
        profile = self.profile[np.minimum(step, len(self.profile) - 1)]
        result: Array = np.sqrt(np.maximum(squared, 0.0)) / profile
        return result

    def scores_of(self, episode: Episode) -> Array:
        """Return (T,) score of each step of an episode."""
        return self.scores(episode.potentials, np.arange(len(episode)))

    def blame(self, potentials: npt.NDArray[np.floating[Any]]) -> str:
        """Return the watched neuron that is furthest out at a step with potentials (U,), by `outlyingness`."""
        return self.watched.names[int(self.outlyingness(potentials).argmax())]

    def to_dict(self) -> dict[str, Any]:
        """Return ranges, threshold and promise for audit.json."""
        return {
            "score": self.score,
            "layer": self.watched.layer,
            "neurons": list(self.watched.names),
            "low": listed(self.low),
            "high": listed(self.high),
            "threshold": finite(self.threshold),
            "alpha": self.alpha,
            "n_fit": self.n_fit,
            "n_calibration": self.n_calibration,
        }


def fit_box(circuit: Circuit, episodes: Sequence[Episode], *, margin: float = 0.1) -> Envelope:
    """Fit each watched neuron's range over clean episodes, widened on both sides by `margin` times half its width."""
    return _widened(_fit(circuit, episodes, "box"), episodes, margin)


def fit_mahalanobis(circuit: Circuit, episodes: Sequence[Episode], *, margin: float = 0.1) -> Envelope:
    """Fit an ellipsoid around the potentials of clean episodes, at 1 + margin times the largest distance."""
    return _widened(_fit(circuit, episodes, "mahalanobis"), episodes, margin)


def fit_conformal(
    circuit: Circuit,
    episodes: Sequence[Episode],
    *,
    alpha: float = 0.05,
    score: Score = "mahalanobis",
    profiled: bool = True,
    seed: int = 0,
) -> Envelope:
    """Fit an envelope with a promised false-alarm rate per episode; the module's docstring defines the promise.

    Half of the episodes, chosen at random, calibrate the threshold, more where alpha needs more; the others fit the
    score.

    Args:
        circuit: Circuit of the policy that ran.
        episodes: Clean episodes, exchangeable with those to come.
        alpha: Promised false-alarm rate per episode.
        score: Kind of the score.
        profiled: Whether to divide the score by its profile.
        seed: Seed of the split.

    Raises:
        ValueError: alpha is not between 0 and 1, or the episodes are too few for it.
    """
    n_calibration = max(episodes_needed(alpha), len(episodes) // 2)
    if len(episodes) < n_calibration + 1:
        raise ValueError(
            f"A false-alarm rate of alpha = {alpha:g} needs {n_calibration} clean episodes to calibrate and at least "
            f"one to fit, {n_calibration + 1} in all, got {len(episodes)}; record more, or take a larger alpha."
        )
    fitting, calibrating = split_episodes(len(episodes), n_calibration, seed)
    known = [episodes[i] for i in fitting]
    envelope = _fit(circuit, known, score)
    if profiled:
        envelope = replace(envelope, profile=_profile([envelope.scores_of(episode) for episode in known]))
    return calibrate(envelope, [episodes[i] for i in calibrating], alpha=alpha)


def calibrate(envelope: Envelope, episodes: Sequence[Episode], *, alpha: float) -> Envelope:
    """Return the envelope with a threshold for alpha, from clean episodes that it was not fitted on.

    Raises:
        ValueError: alpha is not between 0 and 1, or the episodes are too few for it.
    """
    n, needed = len(episodes), episodes_needed(alpha)
    if n < needed:
        raise ValueError(f"alpha = {alpha:g} needs at least {needed} episodes to calibrate, got {n}.")
    maxima = np.sort([envelope.scores_of(episode).max() for episode in episodes])
    threshold = float(maxima[conformal_rank(n, alpha) - 1])
    return replace(envelope, threshold=threshold, alpha=alpha, n_calibration=n, calibration=maxima)


def episodes_needed(alpha: float) -> int:
    """Return the fewest calibration episodes for a false-alarm rate: the smallest n with n >= 1 / alpha - 1.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha, a false-alarm rate, must be between 0 and 1, got {alpha}.")
    return max(math.ceil(1 / alpha - 1 - 1e-9), 1)  # 1e-9 undoes rounding: 1 / 0.05 - 1 is 19.


def conformal_rank(n: int, alpha: float) -> int:
    """Return the k = ceil((n + 1) (1 - alpha)) of the threshold, the k-th smallest of n calibration maxima."""
    return math.ceil((n + 1) * (1 - alpha) - 1e-9)


def _fit(circuit: Circuit, episodes: Sequence[Episode], score: Score) -> Envelope:
    watched = Watched.of(circuit.wiring)
    potentials = watched.stacked(episodes)
    low, high = potentials.min(axis=0), potentials.max(axis=0)
    if score == "box":
        centre = (low + high) / 2
        precision = np.diag(1 / np.maximum((high - low) / 2, _SMALLEST_MOVE) ** 2)
    else:
        estimate = LedoitWolf().fit(potentials)
        centre = estimate.location_
        precision = np.linalg.inv(estimate.covariance_ + _SMALLEST_MOVE**2 * np.eye(len(centre)))
    return Envelope(
        watched=watched,
        score=score,
        centre=centre,
        low=low,
        high=high,
        precision=precision,
        profile=np.ones(1),
        threshold=np.inf,
        alpha=None,
        n_fit=len(episodes),
        n_calibration=0,
        calibration=np.empty(0),
        elapsed_time=circuit.core.elapsed_time,
    )


def _profile(scores: Sequence[Array]) -> Array:
    """Return the profile (P,) from the scores (T,) of fitting episodes, each entry at least 1 % of the largest."""
    half = int(np.median([len(one) for one in scores]))
    by_step = np.zeros((len(scores), max(len(one) for one in scores)))
    for row, one in zip(by_step, scores, strict=True):
        row[: len(one)] = one
    largest = by_step.max(axis=0)
    largest = np.append(largest[: half - 1], largest[half - 1 :].max())
    around = np.pad(largest, _WINDOW, mode="edge")
    profile: Array = np.lib.stride_tricks.sliding_window_view(around, 2 * _WINDOW + 1).max(axis=1)
    return np.maximum(profile, 0.01 * profile.max()) if profile.any() else np.ones(1)


def _widened(envelope: Envelope, episodes: Sequence[Episode], margin: float) -> Envelope:
    if not margin >= 0:
        raise ValueError(f"margin must not be negative, got {margin}.")
    largest = max(float(envelope.scores_of(episode).max()) for episode in episodes)
    return replace(envelope, threshold=(1 + margin) * largest)
