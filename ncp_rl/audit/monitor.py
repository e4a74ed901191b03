"""Is the policy in known territory now? A pass over recordings, a live monitor, and the accuracy of both.

    envelope = fit_conformal(circuit, clean, alpha=0.05)
    monitor = LiveMonitor(envelope)
    action, state = model.predict(observation, state, episode_start)
    alarms = monitor.observe(state, episode_start)      # at most one per environment and episode

`ncp_rl.audit.envelope` defines an envelope and the promise of its false-alarm rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats
from stable_baselines3.common.type_aliases import PolicyPredictor

from ncp_rl.audit.cell import Array
from ncp_rl.audit.envelope import (
    Alarm,
    Envelope,
    Score,
    conformal_rank,
    episodes_needed,
    fit_box,
    fit_conformal,
    fit_mahalanobis,
)
from ncp_rl.audit.episode_split import split_episodes
from ncp_rl.audit.json_values import finite
from ncp_rl.audit.verdict import Verdict
from ncp_rl.circuit import Circuit
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.policy import NCPPolicy
from ncp_rl.readings import BadInput
from ncp_rl.recording import Episode

# A rate of false alarms contradicts its promise where the probability of that rate or a higher one is below this.
_SIGNIFICANCE = 0.01


@dataclass(frozen=True)
class Watch:
    """An episode under an envelope.

    Attributes:
        episode: Number of the episode.
        time: (T,) seconds since the episode's start.
        scores: (T,) score of each step.
        alarm: Alarm of the first step that is outside, or held for a bad reading; None without one.
    """

    episode: int
    time: Array
    scores: Array
    alarm: Alarm | None


def watch(envelope: Envelope, episodes: Sequence[Episode]) -> list[Watch]:
    """Compute the scores of all steps of recorded episodes, and each episode's first alarm."""
    watches = []
    for episode in episodes:
        scores = envelope.scores_of(episode)
        step = _first((scores > envelope.threshold) | episode.held)
        alarm = None if step is None else _alarm(envelope, episode, step, float(scores[step]))
        watches.append(Watch(episode.index, episode.time, scores, alarm))
    return watches


def _alarm(envelope: Envelope, episode: Episode, step: int, score: float) -> Alarm:
    bad_input = ""
    if episode.held[step]:
        readings = zip(episode.observation_names, episode.observation[step], strict=True)
        bad = next((f"{name!r} is {value:g}" for name, value in readings if not np.isfinite(value)), "a reading is bad")
        bad_input = f"the observation {bad}"
    return Alarm(
        episode=episode.index,
        env_index=episode.env_index,
        step=step,
        time=float(episode.time[step]),
        neuron=envelope.blame(episode.potentials[step]),
        score=score,
        threshold=envelope.threshold,
        bad_input=bad_input,
    )


def _first(flags: npt.NDArray[np.bool_]) -> int | None:
    return int(flags.argmax()) if flags.any() else None


class LiveMonitor:
    """Watches a running policy: hand it what `model.predict` returned, step by step.

    Attributes:
        alarms: All alarms so far.
        scores: (N,) score of each environment at the last step.
    """

    def __init__(self, envelope: Envelope) -> None:
        """Watch under `envelope`; the number of environments N is that of the first step."""
        self.envelope = envelope
        self.alarms: list[Alarm] = []
        self.scores: Array = np.empty(0)
        self._step = self._episode = np.empty(0, np.int64)
        self._time: Array = np.empty(0)
        self._alarmed = self._held = np.empty(0, np.bool_)

    def observe(
        self,
        state: tuple[npt.NDArray[Any], ...],
        episode_starts: npt.NDArray[Any] | None = None,
        elapsed_time: npt.NDArray[Any] | None = None,
        bad: BadInput | None = None,
    ) -> list[Alarm]:
        """Watch one step of N environments and return the alarms that it raises.

        An environment raises at most one alarm per episode for its neurons, and one for its bad readings.

        Args:
            state: As `model.predict` returned it: (h, c), the potentials h (1, N, U).
            episode_starts: (N,), as `model.predict` was given them: where an episode began. None: nowhere.
            elapsed_time: (N,) seconds since the step before; the circuit's constant where None.
            bad: Result of `policy.find_bad(observation)`, where the policy holds bad readings.

        Raises:
            ValueError: The number of environments differs from that of the steps before.
        """
        potentials = np.asarray(state[0])[0]  # (N, U)
        self._count(len(potentials), episode_starts)
        seconds = np.asarray(self.envelope.elapsed_time if elapsed_time is None else elapsed_time).reshape(-1)
        # Where the seconds of a step are themselves the bad reading, its duration is not known.
        self._time += np.where(np.isfinite(seconds) & (seconds >= 0), seconds, 0.0)
        self._step += 1
        self.scores = self.envelope.scores(potentials, self._step)
        new = (self.scores > self.envelope.threshold) & ~self._alarmed
        self._alarmed |= new
        raised = [self._alarm(int(env), potentials[env]) for env in np.flatnonzero(new)]
        if bad is not None:
            newly_held = bad.rows & ~self._held
            self._held |= bad.rows
            held = [self._alarm(int(env), potentials[env]) for env in np.flatnonzero(newly_held)]
            raised += [replace(alarm, bad_input=str(bad.readings[alarm.env_index])) for alarm in held]
        self.alarms += raised
        return raised

    def _count(self, n_envs: int, episode_starts: npt.NDArray[Any] | None) -> None:
        """Begin steps, seconds and episodes anew where an episode starts."""
        if not len(self._step):
            self._step, self._episode = np.full(n_envs, -1), np.zeros(n_envs, np.int64)
            self._time = np.zeros(n_envs)
            self._alarmed, self._held = np.zeros(n_envs, np.bool_), np.zeros(n_envs, np.bool_)
        if len(self._step) != n_envs:
            raise ValueError(f"This monitor watches {len(self._step)} environments, got the state of {n_envs}.")
        if episode_starts is None:
            return
        starts = np.asarray(episode_starts, np.bool_).reshape(n_envs)
        self._episode += starts & (self._step >= 0)
        self._step[starts], self._time[starts] = -1, 0.0
        self._alarmed[starts] = self._held[starts] = False

    def _alarm(self, env: int, potentials: npt.NDArray[Any]) -> Alarm:
        return Alarm(
            episode=int(self._episode[env]),
            env_index=env,
            step=int(self._step[env]),
            time=float(self._time[env]),
            neuron=self.envelope.blame(potentials),
            score=float(self.scores[env]),
            threshold=self.envelope.threshold,
        )


class MonitoredModel:
    """A model that is watched wherever `predict` is called, as by `evaluate_policy(MonitoredModel(...), venv)`.

    Where the policy holds bad readings (`policy.on_bad_input = "hold"`), each raises an alarm that names the reading.

    Attributes:
        monitor: The monitor, which holds all alarms so far.
    """

    def __init__(
        self, model: PolicyPredictor, envelope: Envelope, on_alarm: Callable[[Alarm], None] | None = None
    ) -> None:
        """Watch `model`, a `RecurrentPPO` with an NCP policy; `on_alarm` is called with each alarm, and may raise."""
        self.model = model
        self.monitor = LiveMonitor(envelope)
        self.on_alarm = on_alarm

    def predict(
        self,
        observation: npt.NDArray[Any] | dict[str, npt.NDArray[Any]],
        state: tuple[npt.NDArray[Any], ...] | None = None,
        episode_start: npt.NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[npt.NDArray[Any], tuple[npt.NDArray[Any], ...] | None]:
        """Predict and watch the step; see `stable_baselines3.common.base_class.BaseAlgorithm.predict`."""
        action, new_state = self.model.predict(observation, state, episode_start, deterministic)
        if new_state is None:
            raise TypeError(f"{type(self.model).__name__} has no recurrent state to watch; NCP policies have.")
        elapsed = observation.get(ELAPSED_TIME) if isinstance(observation, dict) else None
        # Without a state the model starts from zero potentials, as at an episode's start.
        starts = np.ones(new_state[0].shape[1]) if state is None else episode_start
        policy = getattr(self.model, "policy", self.model)
        bad = None
        if isinstance(policy, NCPPolicy) and policy.on_bad_input == "hold":
            bad = policy.find_bad(observation)
        for alarm in self.monitor.observe(new_state, starts, elapsed, bad):
            if self.on_alarm is not None:
                self.on_alarm(alarm)
        return action, new_state


@dataclass(frozen=True)
class FalseAlarms:
    """How often held-out clean episodes raised an alarm, against the promise.

    Attributes:
        n_episodes: Held-out episodes, neither fitted on nor calibrated with.
        n_alarms: How many of them raised an alarm.
        rate: n_alarms / n_episodes.
        alpha: The promised rate, or None.
        p_value: Probability of as many alarms or more if the promise holds: under the beta-binomial distribution with
            n_episodes trials and Beta(n + 1 - k, k), since n calibration episodes leave the rate itself uncertain; the
            binomial distribution is its limit for many of them. NaN without a promise.
    """

    n_episodes: int
    n_alarms: int
    rate: float
    alpha: float | None
    p_value: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for audit.json."""
        return vars(self) | {"rate": finite(self.rate), "p_value": finite(self.p_value)}


def false_alarms(envelope: Envelope, episodes: Sequence[Episode]) -> FalseAlarms:
    """Count the alarms of clean episodes that the envelope has not seen."""
    n_alarms = sum(watched.alarm is not None for watched in watch(envelope, episodes))
    n, p_value = len(episodes), math.nan
    if envelope.alpha is not None:
        k = conformal_rank(envelope.n_calibration, envelope.alpha)
        p_value = float(stats.betabinom.sf(n_alarms - 1, n, envelope.n_calibration + 1 - k, k))
    return FalseAlarms(n, n_alarms, n_alarms / n if n else math.nan, envelope.alpha, p_value)


@dataclass(frozen=True)
class Detection:
    """Which injected faults were found, and how soon.

    Attributes:
        n_episodes: Episodes with a fault, F of them.
        early: (F,) bool, whether the alarm came before the fault's onset and so is false; such a fault does not count
            as found.
        found: (F,) bool, whether the first alarm came at the onset or later.
        delay: (F,) steps from onset to alarm, 0 where the alarm is at the onset; NaN where not found.
        lead: (F,) steps from alarm to failure, negative where the failure came first; NaN where either is missing.
        failed: (F,) bool, whether a failure is known.
        watches: (F,), the scores of each episode.
    """

    n_episodes: int
    early: npt.NDArray[np.bool_]
    found: npt.NDArray[np.bool_]
    delay: Array
    lead: Array
    failed: npt.NDArray[np.bool_]
    watches: tuple[Watch, ...]

    @property
    def rate(self) -> float:
        """Share of all F episodes in which the fault was found."""
        return float(self.found.mean())

    @property
    def in_time(self) -> float:
        """Share of the failed episodes with an alarm, not an early one, before the failure; NaN where none failed."""
        return float((self.lead[self.failed] > 0).mean()) if self.failed.any() else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for audit.json; delay and lead are medians over the episodes that have them."""
        return {
            "n_episodes": self.n_episodes,
            "early": int(self.early.sum()),
            "rate": self.rate,
            "median_delay_steps": finite(_median(self.delay)),
            "failed": int(self.failed.sum()),
            "in_time": finite(self.in_time),
            "median_lead_steps": finite(_median(self.lead)),
        }


def detect(
    envelope: Envelope, episodes: Sequence[Episode], onsets: Sequence[int], failures: Sequence[int | None] | None = None
) -> Detection:
    """Find the alarms of episodes with an injected fault.

    Args:
        envelope: Fitted on clean episodes.
        episodes: F episodes with a fault each.
        onsets: F numbers, the first step that the fault touches in each episode.
        failures: F numbers, the step at which each episode failed, or None where it did not; None where nothing is
            known.

    Raises:
        ValueError: There are no episodes, or the numbers of onsets or failures differ from theirs.
    """
    n = len(episodes)
    failures = [None] * n if failures is None else failures
    if not n or len(onsets) != n or len(failures) != n:
        raise ValueError(
            f"Each episode needs an onset and a failure (or None): got {n} episodes, {len(onsets)} onsets, "
            f"{len(failures)} failures."
        )
    watches = tuple(watch(envelope, episodes))
    alarms = [watched.alarm for watched in watches]
    step = np.array([math.nan if alarm is None else alarm.step for alarm in alarms])
    delay = step - np.array(onsets)
    found = delay >= 0
    failure = np.array([math.nan if at is None else at for at in failures])
    return Detection(
        n,
        early=delay < 0,
        found=found,
        delay=np.where(found, delay, np.nan),
        lead=np.where(found, failure - step, np.nan),
        failed=np.isfinite(failure),
        watches=watches,
    )


@dataclass(frozen=True, kw_only=True)
class MonitorAudit:
    """The false-alarm rate against the promised one, and the faults that the envelopes find.

    Attributes:
        conformal, box, mahalanobis: The envelopes; the last two are fitted on all episodes that are not held out.
        held_out: Held-out clean episodes under the conformal envelope, with their scores.
        false_alarms: False alarms of the conformal envelope.
        box_false_alarms, mahalanobis_false_alarms: False alarms of the envelopes that promise nothing.
        detection: Detection of faults by their names, under the conformal envelope.
    """

    conformal: Envelope
    box: Envelope
    mahalanobis: Envelope
    held_out: tuple[Watch, ...]
    false_alarms: FalseAlarms
    box_false_alarms: FalseAlarms
    mahalanobis_false_alarms: FalseAlarms
    detection: dict[str, Detection]

    def verdict(self) -> Verdict:
        """Return the verdict, which fails where held-out clean episodes raise too many alarms (p < 0.01, one-sided)."""
        counted = self.false_alarms
        assert counted.alpha is not None
        found = ""
        for name, detection in self.detection.items():
            found += f"; {name}: {detection.rate:.0%} found"
            found += f", median delay {_median(detection.delay):.0f} steps" if detection.found.any() else ""
        return Verdict(
            "monitor",
            counted.p_value >= _SIGNIFICANCE,
            f"{counted.n_alarms} of {counted.n_episodes} held-out clean episodes raise an alarm over the "
            f"{self.conformal.watched}, at most {counted.alpha:.1%} promised (p = {counted.p_value:.2g}){found}.",
            {
                "monitor_alpha": counted.alpha,
                "monitor_false_alarm_rate": counted.rate,
                "monitor_p_value": counted.p_value,
            }
            | {f"monitor_detection_{name}": detection.rate for name, detection in self.detection.items()},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the summary for audit.json; scores of single steps are left out."""
        return {
            "envelope": self.conformal.to_dict(),
            "false_alarms": self.false_alarms.to_dict(),
            "box_false_alarms": self.box_false_alarms.to_dict(),
            "mahalanobis_false_alarms": self.mahalanobis_false_alarms.to_dict(),
            "detection": {name: detection.to_dict() for name, detection in self.detection.items()},
            "alarms": [
                vars(watched.alarm) | {"score": finite(watched.alarm.score)}
                for watched in self.held_out
                if watched.alarm is not None
            ],
        }


def audit_monitor(
    circuit: Circuit,
    clean: Sequence[Episode],
    *,
    alpha: float = 0.1,
    score: Score = "mahalanobis",
    faults: Mapping[str, tuple[Sequence[Episode], Sequence[int]]] | None = None,
    seed: int = 0,
) -> MonitorAudit:
    """Fit envelopes on some clean episodes, count the alarms of the others, and those of faults.

    A quarter of the episodes is held out, one at least; of the rest, half or more calibrate.

    Args:
        circuit: Circuit of the policy that ran.
        clean: Episodes without faults, exchangeable.
        alpha: Promised false-alarm rate per episode.
        score: Kind of score of the conformal envelope.
        faults: Episodes with a fault, and the step at which it begins in each, by the fault's name.
        seed: Seed of the splits.

    Raises:
        ValueError: There are too few episodes for alpha; the message says how many are needed.
    """
    if (missing := missing_episodes(len(clean), alpha)) is not None:
        raise ValueError(missing)
    known, held_out = ([clean[i] for i in part] for part in split_episodes(len(clean), _n_held_out(len(clean)), seed))
    conformal = fit_conformal(circuit, known, alpha=alpha, score=score, seed=seed + 1)
    box, mahalanobis = fit_box(circuit, known), fit_mahalanobis(circuit, known)
    return MonitorAudit(
        conformal=conformal,
        box=box,
        mahalanobis=mahalanobis,
        held_out=tuple(watch(conformal, held_out)),
        false_alarms=false_alarms(conformal, held_out),
        box_false_alarms=false_alarms(box, held_out),
        mahalanobis_false_alarms=false_alarms(mahalanobis, held_out),
        detection={name: detect(conformal, *fault) for name, fault in (faults or {}).items()},
    )


def missing_episodes(n_clean: int, alpha: float) -> str | None:
    """Return a sentence on how many clean episodes `audit_monitor` needs, where it has too few; else None.

    Raises:
        ValueError: alpha is not between 0 and 1.
    """
    needed = episodes_needed(alpha) + 1
    if n_clean - _n_held_out(n_clean) >= needed:
        return None
    most = next(n for n in range(needed, 2 * needed + 2) if n - _n_held_out(n) >= needed)
    return (
        f"An audit of a false-alarm rate of alpha = {alpha:g} needs {most} clean episodes, got {n_clean}: a quarter "
        f"held out, {needed - 1} to calibrate, one to fit; record more, or take a larger alpha."
    )


def _n_held_out(n_clean: int) -> int:
    return max(n_clean // 4, 1)


def _median(values: Array) -> float:
    """Return the median over the entries that are not NaN; NaN where all are."""
    present = values[~np.isnan(values)]
    return float(np.median(present)) if len(present) else math.nan
