"""`verify_export`: checks that an exported controller does what was recorded, and so is the one that was audited.

The export is driven with the recording's observations, each episode from its start without corrections: every
potential and every action must agree within 1e-5, absolute up to 1 and relative beyond.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.export.controller import Controller, ControllerError
from ncp_rl.export.spec import ExportError
from ncp_rl.export.toolchain import GO_ON, RESET, SET, ControllerRun, Program, build_here
from ncp_rl.recording import Divergence, Episode, Recording
from ncp_rl.recording.compare import TOLERANCE, Tally
from ncp_rl.recording.reader import observation_parts

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class EpisodeDifference:
    """The differences between an export and the recording in one episode.

    Attributes:
        episode: Number of the episode.
        n_steps: Number of its steps.
        potentials, action_means, actions: The greatest difference of each, absolute up to 1 and relative beyond;
            actions are compared only where the recording took the most likely ones.
    """

    episode: int
    n_steps: int
    potentials: float
    action_means: float
    actions: float | None

    @property
    def largest(self) -> float:
        """The largest of all differences."""
        return max(self.potentials, self.action_means, self.actions or 0.0)


@dataclass(frozen=True)
class ExportCheck:
    """The result of `verify_export`.

    Attributes:
        export: The folder or file.
        form: "C99", "NumPy" or "ONNX".
        recording: Path of the recording.
        sha256: SHA-256 of the exported policy, and of the recorded one.
        episodes: Differences of each episode.
        first: The first value that differs by more than the tolerance, or None.
        rounding: Whether every single step, begun with the recorded potentials, agrees within the tolerance: the
            difference is then rounding that grows from step to step. None where nothing differs, or it is not known.
    """

    export: str
    form: str
    recording: str
    sha256: tuple[str, str]
    episodes: tuple[EpisodeDifference, ...]
    first: Divergence | None
    rounding: bool | None = None

    @property
    def largest(self) -> float:
        """The greatest difference of all episodes."""
        return max((one.largest for one in self.episodes), default=0.0)

    @property
    def passed(self) -> bool:
        """Whether the export is of the recorded policy, and all values agree."""
        return self.first is None and self.sha256[0] == self.sha256[1]

    def __str__(self) -> str:
        """Return the verdict in a line."""
        if self.sha256[0] != self.sha256[1]:
            return (
                f"The {self.form} controller is of another policy than the recording: its SHA-256 is {self.sha256[0]}, "
                f"that of the recorded one {self.sha256[1]}."
            )
        if self.first is not None:
            grown = " Each step alone comes out as recorded: rounding grows in this circuit." if self.rounding else ""
            return f"The {self.form} controller differs, first {_deployed(self.first)}.{grown}"
        n_steps = sum(one.n_steps for one in self.episodes)
        return (
            f"The {self.form} controller does what was recorded: {len(self.episodes)} episodes, {n_steps} steps, "
            f"largest difference {self.largest:.1e}."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all attributes and `passed`, for JSON."""
        return asdict(self) | {"passed": self.passed}


def verify_export(export: Path | str, recording: Recording | Path | str) -> ExportCheck:
    """Drive an exported controller with the observations of a recording.

    Args:
        export: A folder of `to_c`, whose C code is built and run by this machine's compiler; or a file of `to_numpy`
            or `to_onnx`.
        recording: The recording. Where the policy observes images, they must have been recorded too.

    Raises:
        ExportError: The export cannot be built or read, or needs observations that the recording lacks.
        ncp_rl.recording.RecordingError: The recording cannot be read.
    """
    export = Path(export)
    recording = recording if isinstance(recording, Recording) else Recording.open(recording)
    if export.is_dir() and (export / "controller.c").exists():
        with tempfile.TemporaryDirectory() as scratch:
            program = build_here(export, Path(scratch))
            return check_program(program, read_description(export), recording, export)
    controller = _load(export)
    controller.on_bad_input = "hold"
    sha256 = str(controller.description["policy_sha256"])
    return _check(
        recording,
        lambda episode, alone: _live(controller, recording, episode, alone),
        str(export),
        controller.form,
        sha256,
    )


def check_program(program: Program, description: dict[str, Any], recording: Recording, export: Path) -> ExportCheck:
    """Drive a program that is built already, and compare it with the recording."""
    expected = (len(description["neuron_names"]), len(description["output_names"]))
    if (program.n_neurons, program.n_outputs) != expected:
        raise ExportError(
            f"controller.h and controller.json of {export} belong to different controllers; export one anew."
        )
    return _check(
        recording,
        lambda episode, alone: _driven(program, description, recording, episode, alone),
        str(export),
        "C99",
        program.sha256,
    )


def read_description(folder: Path) -> dict[str, Any]:
    """Read controller.json of a folder.

    Raises:
        ExportError: The file is missing or damaged.
    """
    return dict(_load(folder / "controller.json").description)


def _load(path: Path) -> Controller:
    try:
        return Controller.load(path)
    except (ControllerError, KeyError, TypeError) as error:
        raise ExportError(f"The exported controller {path} cannot be read: {error}") from error


def _check(
    recording: Recording, run: Callable[[Episode, bool], ControllerRun], export: str, form: str, sha256: str
) -> ExportCheck:
    recorded = str(recording.manifest["policy"]["sha256"])
    if sha256 != recorded:
        return ExportCheck(export, form, str(recording.path), (sha256, recorded), (), None)
    found, first, rounding = [], None, None
    for episode in recording:
        outcome = run(episode, False)
        tally = _compare(recording, episode, outcome)
        found.append(_difference(episode, tally))
        if first is None:
            first = _first(tally, recording, episode, outcome)
            if first is not None:
                alone = run(episode, True)
                rounding = _first(_compare(recording, episode, alone), recording, episode, alone) is None
    return ExportCheck(export, form, str(recording.path), (sha256, recorded), tuple(found), first, rounding)


def _compare(recording: Recording, episode: Episode, outcome: ControllerRun) -> Tally:
    circuit, tally = recording.circuit, Tally(TOLERANCE)
    tally.add(episode, "refused steps", episode.held, outcome.held, ["whether the step is refused"])
    tally.add(episode, "potentials", episode.potentials, outcome.potentials, circuit.wiring.names)
    tally.add(episode, "action means", episode.action_mean, outcome.action_mean, circuit.action_names)
    if recording.manifest.get("deterministic"):
        taken = outcome.action.reshape(episode.action.shape)
        if recording.layout.discrete:
            # Where choices are equally likely up to rounding, either is the most likely one.
            taken = np.where(_tied(recording, episode)[:, None], episode.action, taken)
        tally.add(episode, "actions", episode.action, taken)
    return tally


def _tied(recording: Recording, episode: Episode) -> npt.NDArray[np.bool_]:
    """Return where rounding could decide which action is the most likely, (T,) bool."""
    space = recording.manifest["action_space"]
    logits = episode.action_mean
    if space["type"] == "MultiBinary":
        return np.asarray((np.abs(logits) <= TOLERANCE).any(axis=1))
    sizes = [space["n"]] if space["type"] == "Discrete" else space["nvec"]
    parts = np.split(logits, np.cumsum(sizes)[:-1], axis=1)
    margins = [np.diff(np.sort(part, axis=1)[:, -2:], axis=1).reshape(len(part), -1) for part in parts]
    return np.asarray((np.concatenate(margins, axis=1) <= 2 * TOLERANCE).any(axis=1))


def _difference(episode: Episode, tally: Tally) -> EpisodeDifference:
    largest = {comparison.what: comparison.max_difference for comparison in tally.comparisons()}
    return EpisodeDifference(
        episode.index, len(episode), largest["potentials"], largest["action means"], largest.get("actions")
    )


def _first(tally: Tally, recording: Recording, episode: Episode, outcome: ControllerRun) -> Divergence | None:
    """Return the earliest value beyond the tolerance; among neurons in one step, the one that differs most."""
    found = [comparison.first for comparison in tally.comparisons() if comparison.first is not None]
    first = min(found, key=lambda divergence: divergence.step or 0, default=None)
    names = recording.circuit.wiring.names
    if first is None or first.name not in names:
        return first
    step = first.step or 0
    recorded, exported = episode.potentials[step], outcome.potentials[step]
    most = int(np.nan_to_num(np.abs(recorded - exported), nan=np.inf).argmax())
    return Divergence(episode.index, step, names[most], float(recorded[most]), float(exported[most]))


def _deployed(divergence: Divergence) -> str:
    return (
        f"{divergence.name} in step {divergence.step} of episode {divergence.episode}: recorded "
        f"{divergence.recorded:.9g}, exported {divergence.replayed:.9g}"
    )


def _driven(
    program: Program, description: dict[str, Any], recording: Recording, episode: Episode, alone: bool
) -> ControllerRun:
    parts = observation_parts(recording.layout, episode.observation, episode.index)
    columns = [_part(parts, part["key"]).reshape(len(episode), -1) for part in description["observation"]]
    seconds = _seconds(parts, episode, bool(description["timed"]))
    begin = np.full(len(episode), SET if alone else GO_ON)
    begin[0] = SET if alone or episode.start.any() else RESET
    before = np.concatenate([episode.start[None], episode.potentials[:-1]])
    with np.errstate(over="ignore"):
        outcome, _ = program.run(begin, seconds, np.concatenate(columns, axis=1).astype(np.float32), before)
    return outcome


def _live(controller: Controller, recording: Recording, episode: Episode, alone: bool) -> ControllerRun:
    steps, timed = list(_observations(controller, recording, episode)), bool(controller.description["timed"])
    parts = observation_parts(recording.layout, episode.observation, episode.index)
    seconds = _seconds(parts, episode, timed)
    rows = []
    controller.reset()
    controller.potentials = episode.start
    for t, observation in enumerate(steps):
        if alone and t:
            controller.potentials = episode.potentials[t - 1]
        action = controller.step(observation, float(seconds[t]))
        rows.append((bool(controller.problem), action.ravel(), controller.action_mean, controller.potentials))
    held, actions, means, potentials = zip(*rows, strict=True)
    return ControllerRun(np.array(held, np.int64), np.stack(actions), np.stack(means), np.stack(potentials))


def _observations(controller: Controller, recording: Recording, episode: Episode) -> Iterator[Any]:
    """Yield the observations of an episode step by step, with the images that were recorded."""
    found = recording.observations(episode)
    if found is None:
        raise ExportError(
            "The controller observes images, which the recording does not hold; record with images=True "
            "(ncp-rl record --images)."
        )
    wanted = [part["key"] for part in controller.description["observation"]]
    columns = {key: _part(found, key) for key in wanted}
    for t in range(len(episode)):
        yield columns[None][t] if None in columns else {key: column[t] for key, column in columns.items()}


def _part(parts: Any, key: str | None) -> Array:
    if key is None and not isinstance(parts, dict):
        return np.asarray(parts)
    if not isinstance(parts, dict) or key not in parts:
        raise ExportError(f"The controller observes {key!r}, which the recording does not hold.")
    return np.asarray(parts[key])


def _seconds(parts: Any, episode: Episode, timed: bool) -> Array:
    """Return the seconds for the controller, (T,); NaN in a held step with finite readings, whose seconds were bad."""
    if timed and isinstance(parts, dict) and ELAPSED_TIME in parts:
        return np.asarray(parts[ELAPSED_TIME]).reshape(-1)
    finite = np.isfinite(episode.observation).all(axis=1)
    return np.where(episode.held & finite, np.nan, np.abs(episode.elapsed_time))
