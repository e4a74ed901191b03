"""Is a recording true? `replay` computes it again and names the first step that differs.

From the file alone: the circuit, rebuilt, computes potentials and action means from the recorded sensory inputs. With
the model: the policy computes everything from the recorded observations. With the environment too: the whole rollout is
run again from its seeds.

On the platform of the recording every bit must come back. Another platform rounds otherwise; there each step begins
with what was recorded of the step before, so that differences stay those of single steps and do not grow through the
dynamics: 1e-5 is enough for them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize

from ncp_rl.circuit import Circuit
from ncp_rl.policy import bad_readings_held, frozen_standardization
from ncp_rl.recording.compare import TOLERANCE, Comparison, Divergence, Tally
from ncp_rl.recording.episode import Episode
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.manifest import describe_platform, ncp_policy, policy_digest
from ncp_rl.recording.reader import Recording
from ncp_rl.recording.recorder import to_environment
from ncp_rl.recording.rerun import AGAIN, run_again
from ncp_rl.recording.trace import PolicyTap

Array = npt.NDArray[Any]

# Bytes of memory for each number of the environments side by side while a step is replayed.
_NUMBER_BYTES = 32


@dataclass(frozen=True)
class Replay:
    """The result of `replay`.

    Attributes:
        n_episodes: Number of episodes that were replayed.
        n_steps: Number of their steps.
        same_platform: Whether this is the platform of the recording, so that every bit must come back.
        tolerance: Difference that was allowed.
        comparisons: The comparison of each quantity.
        notes: Sentences on what could not be replayed, and why.
    """

    n_episodes: int
    n_steps: int
    same_platform: bool
    tolerance: float
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all values came out as recorded."""
        return all(comparison.first is None for comparison in self.comparisons)

    @property
    def first(self) -> Divergence | None:
        """The earliest value that differed."""
        found = [comparison.first for comparison in self.comparisons if comparison.first is not None]
        return min(found, key=_place, default=None)

    @property
    def worth(self) -> str:
        """The meaning of a passed replay, in a clause."""
        if self.same_platform:
            return "on the platform of the recording, where every bit must come back"
        return (
            f"on another platform than the recording's, where edits also pass if they change each step by at most "
            f"{self.tolerance:.0e}: replay it on its own platform to compare every bit, or check its signature"
        )

    def __str__(self) -> str:
        """Return the verdict in a line."""
        notes = "".join(f"; {note}" for note in self.notes)
        if self.first is not None:
            return f"replay differs, first {self.first}{notes}"
        bitwise = all(comparison.bitwise for comparison in self.comparisons)
        greatest = max((comparison.max_difference for comparison in self.comparisons), default=0.0)
        how = "bit for bit" if bitwise else f"within {greatest:.1e}"
        whats = [comparison.what for comparison in self.comparisons]
        what = ", ".join(what for what in whats if not what.startswith(AGAIN))
        what += ", the rollout run again" if any(what.startswith(AGAIN) for what in whats) else ""
        worth = "" if self.same_platform else f"; {self.worth}"
        return f"replay equal {how}, {self.n_episodes} episodes, {self.n_steps} steps: {what}{notes}{worth}"

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes, `passed` and `worth`, for JSON."""
        return asdict(self) | {"passed": self.passed, "worth": self.worth}


def _place(divergence: Divergence) -> tuple[int, int]:
    return (-1, -1) if divergence.episode is None or divergence.step is None else (divergence.episode, divergence.step)


def replay(
    recording: Recording | Path | str,
    model: OnPolicyAlgorithm | None = None,
    env: VecEnv | None = None,
    *,
    episodes: Iterable[Episode] | None = None,
) -> Replay:
    """Compute a recording again.

    Args:
        recording: The recording.
        model: The model that acted; with it, encoder, distribution and value are replayed too.
        env: Environments made like those of the recording, and as many, together with the model; the rollout is run
            again from its seeds, on another platform with the recorded actions. Where the model was trained on
            normalised observations, the statistics are this `VecNormalize`'s, or those of the model's own environments
            where none are given.
        episodes: All episodes of the recording in their order, where they have been read already; None reads them.

    Raises:
        RecordingError: The recording cannot be read, or does not name this model or these environments.
    """
    recording = recording if isinstance(recording, Recording) else Recording.open(recording)
    if env is not None and model is None:
        raise RecordingError(
            "The environment can only be replayed together with the model that acted in it; give the model too."
        )
    same = _is_same_platform(recording, model)
    tally = Tally(0.0 if same else TOLERANCE)
    layout = recording.layout
    recording.budget.need(
        _NUMBER_BYTES * layout.n_envs * (layout.n_sensory + 2 * layout.units + len(layout.observation_names)),
        f"To replay {layout.n_envs} environments side by side",
    )
    # A recording that has steps with bad readings held them, else it would have ended before.
    held = nullcontext() if model is None else bad_readings_held(ncp_policy(model))
    with held, _threads(recording.manifest["threads"] if same else torch.get_num_threads()):
        _compare_readout(recording.circuit, tally)
        policy_replay = None if model is None else _PolicyReplay(recording, model, env)
        if policy_replay is not None:
            policy_replay.compare_parameters(tally)
        for episode in recording if episodes is None else episodes:
            _replay_circuit(recording, episode, tally)
            if policy_replay is not None:
                policy_replay.add(episode, tally)
        if model is not None and env is not None:
            run_again(recording, model, env, tally)
    notes = () if policy_replay is None else tuple(policy_replay.notes)
    return Replay(len(recording), sum(recording.lengths), same, tally.tolerance, tally.comparisons(), notes)


def _is_same_platform(recording: Recording, model: OnPolicyAlgorithm | None) -> bool:
    """Return whether every bit must come back; on a GPU the order of additions varies."""
    if model is not None and model.policy.device.type != "cpu":
        return False
    n_threads: int = recording.manifest["threads"]
    here: bool = recording.manifest["platform"] == describe_platform(torch.device("cpu"))
    return here and 0 < n_threads <= (os.cpu_count() or 1)


@contextmanager
def _threads(n_threads: int) -> Iterator[None]:
    """Compute with as many threads as the recording was made with, since threads divide matrices, and so the sums."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _compare_readout(circuit: Circuit, tally: Tally) -> None:
    """Compare readout and bias, in which the circuit sums up the layers behind its neurons, with these layers."""
    readout, bias = circuit.readout_of_layers()
    names = [
        f"readout of {action} from {circuit.wiring.names[i]}"
        for action in circuit.action_names
        for i in range(circuit.wiring.n_motor)
    ]
    names += [f"bias of {action}" for action in circuit.action_names]
    recorded, replayed = (np.concatenate([r.ravel(), b]) for r, b in ((circuit.readout, circuit.bias), (readout, bias)))
    # The motor map's own numbers are copied exactly; those of a dense layer behind it are added up.
    tally.add_parameters("readout", recorded, replayed, names, tolerance=tally.tolerance if circuit.dense else 0.0)


def _replay_circuit(recording: Recording, episode: Episode, tally: Tally) -> None:
    circuit, width = recording.circuit, recording.layout.n_envs
    if tally.exact:
        # The kernels' order of additions depends on the number of sequences side by side, which is that of the rollout.
        at = dict(width=width, row=episode.env_index)
        potentials = circuit.run(episode.sensory, episode.start, episode.elapsed_time, **at)
    else:
        potentials = circuit.step(episode.sensory, _before(episode), episode.elapsed_time)
    means = circuit.action_means(episode.potentials, width=width, row=episode.env_index)
    tally.add(episode, "potentials", episode.potentials, potentials, circuit.wiring.names)
    tally.add(episode, "action means", episode.action_mean, means, circuit.action_names)
    if recording.has_time_constants:
        tau = circuit.time_constants(episode.sensory, episode.potentials)
        tally.add(episode, "time constants", episode.tau, tau, circuit.wiring.names)


def _before(episode: Episode) -> Array:
    """Return the potentials with which each step begins, (T, U)."""
    return np.concatenate([episode.start[None], episode.potentials[:-1]])


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

    def compare_parameters(self, tally: Tally) -> None:
        """Compare the recorded circuit with the policy's, whose numbers must be equal on every platform."""
        recorded, own = self._recording.circuit.parameters(), Circuit.from_policy(self._policy).parameters()
        for name, values in own.items():
            found = recorded.get(name, np.empty(0))
            if found.shape != values.shape:
                raise RecordingError(f"{name} of the recorded circuit must be {values.shape}, got {found.shape}.")
            names = [f"{name}[{i}]" for i in range(values.size)]
            tally.add_parameters("parameters", found.ravel(), values.ravel(), names)

    def add(self, episode: Episode, tally: Tally) -> None:
        """Compare the values that the policy computes from the episode's observations."""
        observations = self._observations(episode)
        if observations is None:
            return
        found = self._steps(episode, observations)
        circuit = self._recording.circuit
        tally.add(episode, "sensory inputs", episode.sensory, found["sensory"], circuit.sensory_names)
        tally.add(episode, "policy's action means", episode.action_mean, found["action_mean"], circuit.action_names)
        # An exported controller records action means, but no deviations and values.
        whole = not np.isnan(episode.value).all()
        if whole:
            steepness = _steepness(episode, found.get("center"))
            tally.add(episode, "log-probabilities", episode.log_prob, found["log_prob"], magnitude=steepness)
        else:
            self._note("values and probabilities are not replayed: the recording is not of a training's policy")
        if whole and "action_std" in found:
            tally.add(episode, "standard deviations", episode.action_std, found["action_std"], circuit.action_names)
        if self._recording.manifest.get("deterministic"):
            actions = found["action"]
            if self._recording.layout.discrete and not tally.exact:
                # Where two actions are equally likely up to rounding, either is the most likely one.
                tied = found["margin"] <= tally.tolerance
                actions = np.where(tied.reshape(-1, 1), episode.action, actions.reshape(episode.action.shape))
            tally.add(episode, "actions", episode.action, actions)
        if whole and not episode.start.any():
            tally.add(episode, "values", episode.value, found["value"])
        elif whole:
            self._note("values of episodes that began before the recording cannot be replayed")

    def _steps(self, episode: Episode, observations: Any) -> dict[str, Array]:
        """Compute each step by the policy, with as many environments side by side as in the rollout."""
        policy, n = self._policy, self._recording.layout.n_envs
        assert episode.sample is not None
        before = _before(episode)
        shape = (1, n, policy.wiring.units)
        zero = torch.zeros(shape, device=policy.device)
        states, no_starts = RNNStates((zero, zero), (zero, zero)), np.zeros(n)
        rows: dict[str, list[Array]] = {}
        tap = PolicyTap(policy)
        policy.set_training_mode(False)
        try:
            for t in range(len(episode)):
                admitted, starts = policy.admit(_tiled(observations, t, n), no_starts)
                tensors, _ = policy.obs_to_tensor(admitted)
                first = torch.as_tensor(starts, dtype=torch.float32, device=policy.device)
                h = torch.from_numpy(before[t]).to(policy.device).expand(shape).contiguous()
                with torch.no_grad(), frozen_standardization(policy):
                    drawn, _, highest, states = policy(
                        tensors, RNNStates((h, zero), states.vf), first, deterministic=True
                    )
                    sample = _as_drawn(episode.sample[t], drawn)
                    log_prob = policy.action_dist.log_prob(sample)
                assert tap.seen is not None
                computed = tap.seen._asdict() | {"sensory": tap.seen.sensory[0], "log_prob": log_prob}
                computed["action"] = to_environment(policy, drawn.cpu().numpy())
                # The means as they act, clipped where they are; discrete actions have none.
                center = getattr(policy.action_dist.distribution, "loc", None)
                computed |= dict(margin=highest - log_prob, center=center)
                for name in ("sensory", "action_mean", "action_std", "value", "log_prob", "action", "margin", "center"):
                    if computed[name] is not None:
                        rows.setdefault(name, []).append(np.asarray(computed[name])[episode.env_index])
        finally:
            tap.close()
        return {name: np.stack(found) for name, found in rows.items()}

    def _observations(self, episode: Episode) -> Any:
        """Return normalised observations, (T, ...) or a dict of such; None where images are missing."""
        observations = self._recording.observations(episode)
        if observations is None:
            self._note("encoder and actions are not replayed: images were observed and none recorded (record --images)")
            return None
        return observations if self._normalize is None else self._normalize.normalize_obs(observations)

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _tiled(observations: Any, t: int, n: int) -> Any:
    if isinstance(observations, dict):
        return {key: np.repeat(part[t : t + 1], n, axis=0) for key, part in observations.items()}
    return np.repeat(observations[t : t + 1], n, axis=0)


def _as_drawn(sample: Array, drawn: torch.Tensor) -> torch.Tensor:
    """Return a recorded sample (A,), for each of N environments, in the form in which the distribution drew it."""
    return torch.from_numpy(sample).to(drawn).reshape(drawn.shape[1:]).expand_as(drawn)


def _steepness(episode: Episode, center: Array | None) -> Array | float:
    """Return how much a log-probability changes if `center`, the means with noise around, moves by a unit, (T,)."""
    if center is None or episode.sample is None:
        return 1.0
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        steepness = np.abs(episode.sample - center) / np.square(episode.action_std, dtype=np.float64)
    total: Array = np.nan_to_num(steepness, nan=1.0, posinf=1.0).sum(1)
    return total
