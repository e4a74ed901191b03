"""Is a recording true? `replay` computes it again and names the first step that comes out otherwise.

From the file alone: the circuit, rebuilt, computes potentials and action means from the recorded sensory inputs. With
the model: the policy computes everything from the recorded observations. With the environment too: the whole rollout is
run again from its seeds. On the platform of the recording every bit must come back; elsewhere 1e-5 is allowed.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.manifest import describe_platform, ncp_policy, policy_digest
from ncp_rl.recording.reader import Recording, observation_parts
from ncp_rl.recording.recorder import record_rollouts, to_environment
from ncp_rl.recording.trace import PolicyTap

Array = npt.NDArray[Any]

# Before the names of quantities of a rollout that was run again.
_AGAIN = "run again: "

#: Allowed on another platform, absolute up to 1 and relative beyond.
TOLERANCE = 1e-5


@dataclass(frozen=True)
class Divergence:
    """The first value that came out otherwise."""

    episode: int
    step: int
    name: str
    """Of the neuron, action or quantity."""
    recorded: float
    replayed: float

    def __str__(self) -> str:
        """In a clause."""
        return (
            f"{self.name} in step {self.step} of episode {self.episode}: recorded {self.recorded:.9g}, "
            f"replayed {self.replayed:.9g}"
        )


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


@dataclass(frozen=True)
class Replay:
    """What `replay` found.

    Attributes:
        n_episodes: Episodes replayed.
        n_steps: Their steps.
        same_platform: Whether this is the platform of the recording, so that every bit must come back.
        tolerance: What was allowed.
        comparisons: By quantity.
        notes: What could not be replayed, and why.
    """

    n_episodes: int
    n_steps: int
    same_platform: bool
    tolerance: float
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all came out as recorded."""
        return all(comparison.first is None for comparison in self.comparisons)

    @property
    def first(self) -> Divergence | None:
        """The earliest value that came out otherwise."""
        found = [comparison.first for comparison in self.comparisons if comparison.first is not None]
        return min(found, key=lambda divergence: (divergence.episode, divergence.step), default=None)

    def __str__(self) -> str:
        """The verdict in a line."""
        notes = "".join(f"; {note}" for note in self.notes)
        if self.first is not None:
            return f"replay differs, first {self.first}{notes}"
        bitwise = all(comparison.bitwise for comparison in self.comparisons)
        greatest = max((comparison.max_difference for comparison in self.comparisons), default=0.0)
        how = "bit for bit" if bitwise else f"within {greatest:.1e}"
        whats = [comparison.what for comparison in self.comparisons]
        what = ", ".join(what for what in whats if not what.startswith(_AGAIN))
        what += ", the rollout run again" if any(what.startswith(_AGAIN) for what in whats) else ""
        return f"replay equal {how}, {self.n_episodes} episodes, {self.n_steps} steps: {what}{notes}"

    def to_dict(self) -> dict[str, Any]:
        """All attributes and `passed`, for JSON."""
        return asdict(self) | {"passed": self.passed}


def replay(
    recording: Recording | Path | str, model: OnPolicyAlgorithm | None = None, env: VecEnv | None = None
) -> Replay:
    """Compute a recording again.

    Args:
        recording: The recording.
        model: The model that acted: encoder, distribution and value are replayed too.
        env: With the model: environments made as those of the recording were, and as many; the rollout is run again
            from its seeds. Where the model was trained on normalised observations, the statistics are this
            `VecNormalize`'s, or those of the model's own environments where none are given.

    Raises:
        RecordingError: The recording cannot be read, or model and environments are not those that it names.
    """
    recording = recording if isinstance(recording, Recording) else Recording.open(recording)
    if env is not None and model is None:
        raise RecordingError("The environment is replayed with the model that acted in it; give the model too.")
    on_cpu = model is None or model.policy.device.type == "cpu"
    same = on_cpu and recording.manifest.get("platform") == describe_platform(torch.device("cpu"))
    tally = _Tally(0.0 if same else TOLERANCE)
    policy_replay = None if model is None else _PolicyReplay(recording, model, env)
    for episode in recording:
        _replay_circuit(recording, episode, tally)
        if policy_replay is not None:
            policy_replay.add(episode, tally)
    if model is not None and env is not None:
        _run_again(recording, model, env, tally)
    notes = () if policy_replay is None else tuple(policy_replay.notes)
    return Replay(len(recording), sum(recording.lengths), same, tally.tolerance, tally.comparisons(), notes)


def _replay_circuit(recording: Recording, episode: Episode, tally: _Tally) -> None:
    circuit, width = recording.circuit, recording.layout.n_envs
    # The kernels' order of additions follows from how many sequences run side by side: as many as in the rollout.
    potentials = circuit.run(episode.sensory, episode.start, episode.elapsed_time, width=width)
    means = circuit.action_means(episode.potentials)
    tally.add(episode, "potentials", episode.potentials, potentials, circuit.wiring.names)
    if circuit.is_affine:
        tally.add(episode, "action means", episode.action_mean, means, circuit.action_names)
    else:
        # Readout and bias are two layers of the policy in one: the same numbers, but for the last bits.
        tally.add(episode, "action means", episode.action_mean, means, circuit.action_names, tolerance=TOLERANCE)


class _PolicyReplay:
    """Replays the steps of episodes with their policy."""

    def __init__(self, recording: Recording, model: OnPolicyAlgorithm, env: VecEnv | None) -> None:
        self.notes: list[str] = []
        self._recording, self._policy = recording, ncp_policy(model)
        venv = env or model.get_env()
        self._normalize = None if venv is None else unwrap_vec_normalize(venv)
        digest = policy_digest(self._policy, self._normalize)
        expected = recording.manifest["policy"]["sha256"]
        if digest != expected:
            raise RecordingError(
                f"The recorded policy has the SHA-256 {expected}; this one, with its normalisation, has {digest}. "
                "Load the run that was recorded, best or last, with its environments."
            )

    def add(self, episode: Episode, tally: _Tally) -> None:
        """Compare what the policy computes from the episode's observations."""
        observations = self._observations(episode)
        if observations is None:
            return
        found = self._steps(episode, observations)
        circuit = self._recording.circuit
        tally.add(episode, "sensory inputs", episode.sensory, found["sensory"], circuit.sensory_names)
        tally.add(episode, "policy's action means", episode.action_mean, found["action_mean"], circuit.action_names)
        tally.add(episode, "log-probabilities", episode.log_prob, found["log_prob"])
        if "action_std" in found:
            tally.add(episode, "standard deviations", episode.action_std, found["action_std"], circuit.action_names)
        if self._recording.manifest.get("deterministic"):
            tally.add(episode, "actions", episode.action, found["action"])
        if not episode.start.any():
            tally.add(episode, "values", episode.value, found["value"])
        else:
            self._note("values of episodes that began before the recording cannot be replayed")

    def _steps(self, episode: Episode, observations: Any) -> dict[str, Array]:
        """What the policy computes in each step, with as many environments side by side as in the rollout."""
        policy, n = self._policy, self._recording.layout.n_envs
        assert episode.sample is not None
        before = np.concatenate([episode.start[None], episode.potentials[:-1]])
        shape = (1, n, policy.wiring.units)
        zero = torch.zeros(shape, device=policy.device)
        states, starts = RNNStates((zero, zero), (zero, zero)), torch.zeros(n, device=policy.device)
        rows: dict[str, list[Array]] = {}
        tap = PolicyTap(policy)
        policy.set_training_mode(False)
        try:
            for t in range(len(episode)):
                tensors, _ = policy.obs_to_tensor(_tiled(observations, t, n))
                h = torch.from_numpy(before[t]).to(policy.device).expand(shape).contiguous()
                with torch.no_grad():
                    drawn, _, _, states = policy(tensors, RNNStates((h, zero), states.vf), starts, deterministic=True)
                    sample = _as_drawn(episode.sample[t], drawn)
                    log_prob = policy.action_dist.log_prob(sample)
                assert tap.seen is not None
                computed = tap.seen._asdict() | {"sensory": tap.seen.sensory[0], "log_prob": log_prob}
                computed["action"] = to_environment(policy, drawn.cpu().numpy())
                for name in ("sensory", "action_mean", "action_std", "value", "log_prob", "action"):
                    if computed[name] is not None:
                        rows.setdefault(name, []).append(np.asarray(computed[name])[episode.env_index])
        finally:
            tap.close()
        return {name: np.stack(found) for name, found in rows.items()}

    def _observations(self, episode: Episode) -> Any:
        """(T, ...) or a dict of such, normalised; None where images are missing."""
        layout = self._recording.layout
        if any(not part.names for part in layout.observed):
            self._note("encoder and actions are not replayed: observed images are no part of the messages")
            return None
        observations = observation_parts(layout, episode.observation, episode.index)
        return observations if self._normalize is None else self._normalize.normalize_obs(observations)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _tiled(observations: Any, t: int, n: int) -> Any:
    if isinstance(observations, dict):
        return {key: np.repeat(part[t : t + 1], n, axis=0) for key, part in observations.items()}
    return np.repeat(observations[t : t + 1], n, axis=0)


def _as_drawn(sample: Array, drawn: torch.Tensor) -> torch.Tensor:
    """A recorded sample (A,), for each of N environments, in the form that the distribution drew it."""
    return torch.from_numpy(sample).to(drawn).reshape(drawn.shape[1:]).expand_as(drawn)


def _run_again(recording: Recording, model: OnPolicyAlgorithm, env: VecEnv, tally: _Tally) -> None:
    settings = recording.manifest
    if settings.get("kind") != "rollouts":
        raise RecordingError("Only rollouts can be run again, not what was recorded in training.")
    if env.num_envs != recording.layout.n_envs:
        raise RecordingError(f"The recording is of {recording.layout.n_envs} environments, got {env.num_envs}.")
    arguments = {name: settings[name] for name in ("n_episodes", "deterministic", "seed")}
    with tempfile.TemporaryDirectory() as folder:
        path = record_rollouts(model, env, Path(folder) / "again.mcap", **arguments, progress_bar=False)
        again = Recording.open(path)
        for i in range(len(recording)):
            _compare_episodes(recording[i], again[i] if i < len(again) else None, tally)


def _compare_episodes(episode: Episode, again: Episode | None, tally: _Tally) -> None:
    """All that was recorded of an episode, where the repetition is as long."""
    length = 0 if again is None or again.env_index != episode.env_index else len(again)
    tally.add_numbers(episode, _AGAIN + "length", len(episode), length)
    if again is None or length != len(episode):
        return
    for name in ("observation", "action", "reward", "sensory", "potentials", "value", "log_prob"):
        tally.add(episode, _AGAIN + name, getattr(episode, name), getattr(again, name))
    for name in ("terminated", "truncated"):
        tally.add_numbers(episode, _AGAIN + name, getattr(episode, name), getattr(again, name))


class _Tally:
    """Comparisons so far, by quantity."""

    def __init__(self, tolerance: float) -> None:
        self.tolerance = tolerance
        self._found: dict[str, Comparison] = {}

    def add(
        self,
        episode: Episode,
        what: str,
        recorded: Array,
        replayed: Array,
        names: Iterable[str] = (),
        *,
        tolerance: float | None = None,
    ) -> None:
        """Compare (T, ...) of an episode; values by `names`, and within the tally's tolerance unless one is given."""
        tolerance = self.tolerance if tolerance is None else tolerance
        names = tuple(names)
        recorded, replayed = (np.asarray(a, np.float64).reshape(len(episode), -1) for a in (recorded, replayed))
        before = self._found.get(what, Comparison(what, 0, True, 0.0, None))
        both_nan = np.isnan(recorded) & np.isnan(replayed)
        equal = both_nan | ((recorded == replayed) & (np.signbit(recorded) == np.signbit(replayed)))
        with np.errstate(invalid="ignore"):
            difference = np.abs(recorded - replayed) / np.maximum(1.0, np.abs(recorded))
        difference = np.where(equal, 0.0, np.nan_to_num(difference, nan=np.inf))
        beyond = ~equal & ~((difference <= tolerance) & (tolerance > 0))
        first = before.first
        if first is None and beyond.any():
            t, i = np.argwhere(beyond)[0].tolist()
            name = names[i] if i < len(names) else f"{what} {i}"
            first = Divergence(episode.index, t, name, float(recorded[t, i]), float(replayed[t, i]))
        self._found[what] = Comparison(
            what,
            before.n_values + recorded.size,
            before.bitwise and bool(equal.all()),
            max(before.max_difference, float(difference.max(initial=0.0))),
            first,
        )

    def add_numbers(self, episode: Episode, what: str, recorded: float, replayed: float) -> None:
        """Compare a number of the whole episode, as if it were the last step's."""
        values = np.full((2, len(episode)), recorded, np.float64)
        values[1, -1] = replayed
        self.add(episode, what, *values)

    def comparisons(self) -> tuple[Comparison, ...]:
        """All of them."""
        return tuple(self._found.values())
