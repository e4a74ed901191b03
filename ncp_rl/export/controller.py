"""`Controller`: runs a trained circuit from its exported file. This file needs NumPy and nothing else.

    controller = Controller.load("folder")        # controller.json, or controller.onnx with ONNX Runtime
    controller.reset()
    action = controller.step(observation, seconds=0.05)
    controller.potentials                         # (U,), by controller.neuron_names

Copy it beside the exported file, or import it from ncp_rl.export. It was written by ncp_rl, which trains such circuits.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

FORMAT = "ncp_rl controller 1"
MONITOR_FORMAT = "ncp_rl monitor 1"

#: The entry of an ONNX file's metadata that holds the description.
METADATA = "ncp_rl"

# Keeps the solver's denominator away from zero, as in training.
_EPSILON = np.float32(1e-8)
_LARGEST = float(np.finfo(np.float32).max)


class ControllerError(ValueError):
    """Raised for a file that is not a controller, or a bad reading; the message says what to do."""


class Taken(NamedTuple):
    """One step of a controller, as its observers get it."""

    observation: Any
    """The observation as it came"""
    seconds: float
    starts: bool
    """Whether this is the first step after a reset"""
    before: Floats
    """(U,) potentials before the step"""
    sensory: Floats
    """(S,) sensory inputs, with zeros in place of bad readings"""
    potentials: Floats
    """(U,)"""
    action_mean: Floats
    """(A,) action means, or logits"""
    action: npt.NDArray[Any]
    problem: str
    """Clause on why the step was held; empty where it was not"""


class _Computed(NamedTuple):
    action: npt.NDArray[Any]
    action_mean: Floats
    potentials: Floats
    sensory: Floats


class _Circuit(Protocol):
    """An implementation of a step, from parts of the observation by key, potentials (U,) and seconds."""

    def step(
        self, observation: Mapping[str | None, npt.NDArray[Any]], potentials: Floats, seconds: float
    ) -> _Computed: ...

    def read_out(self, potentials: Floats) -> tuple[npt.NDArray[Any], Floats]: ...


class Controller:
    """A circuit with its state in one environment.

    Attributes:
        description: Description of the controller, as in its file.
        form: Implementation of the step, "NumPy" or "ONNX".
        neuron_names: (U,), names of the neurons.
        sensory_names: (S,), names of the sensory inputs.
        output_names: (A,), names of the action means, or logits.
        potentials: (U,) float32, potentials of all neurons.
        action_mean: (A,) float32, action means of the last step that was not held; logits where actions are discrete.
        action: The last action; after a reset, the action of neurons at rest.
        problem: Clause on why the last step was held; empty where it was not.
        on_bad_input: "raise" an error at a bad reading, or "hold"; in both cases neurons and action do not change.
        observers: Functions that are called with every step as `Taken`, such as a monitor or a recorder.
    """

    def __init__(self, description: Mapping[str, Any], circuit: _Circuit, form: Literal["NumPy", "ONNX"]) -> None:
        """Make a controller of a description; see `Controller.load`."""
        self.form = form
        self.description = description
        self.neuron_names = tuple(description["neuron_names"])
        self.sensory_names = tuple(description["sensory_names"])
        self.output_names = tuple(description["output_names"])
        self.on_bad_input: Literal["raise", "hold"] = "raise"
        self.observers: list[Callable[[Taken], object]] = []
        self._circuit = circuit
        certified = description["certified"]
        self._low, self._high = (np.array(certified["potentials"][end], np.float32) for end in ("low", "high"))
        self.reset()

    @classmethod
    def load(cls, path: Path | str) -> Controller:
        """Load controller.json or controller.onnx, or the one in a folder.

        Raises:
            ControllerError: The controller is missing or damaged, or ONNX Runtime is missing.
        """
        path = Path(path)
        if path.is_dir():
            found = [path / name for name in ("controller.json", "controller.onnx") if (path / name).exists()]
            if not found:
                raise ControllerError(
                    f"The folder {path} must hold controller.json or controller.onnx; export a controller into it."
                )
            path = found[0]
        try:
            if path.suffix == ".onnx":
                network = _Onnx(path)
                return cls(network.description, network, "ONNX")
            description = _described(path.read_text(), FORMAT)
            return cls(description, _Numbers(description), "NumPy")
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ControllerError(f"The controller {path} cannot be read: {error}") from error

    def reset(self) -> None:
        """Begin an episode: set all potentials to zero."""
        self.potentials = np.zeros(len(self.neuron_names), np.float32)
        self.action, self.action_mean = self._circuit.read_out(self.potentials)
        self.problem = ""
        self._starts = True

    def step(
        self, observation: npt.ArrayLike | Mapping[str, npt.ArrayLike], seconds: float | None = None
    ) -> npt.NDArray[Any]:
        """Return the action for an observation, both as the environment gives and takes them.

        Args:
            observation: An array, or a mapping of arrays by key. Keys that the controller does not read are ignored.
            seconds: Seconds since the step before. None takes the observation's `elapsed_time`, where the policy was
                trained with one; else the constant step of the training.

        Raises:
            ControllerError: A reading is not finite or not a value of a discrete observation, or seconds are not finite
                or negative, and `on_bad_input` is "raise". Neurons and action do not change.
        """
        elapsed = self._seconds(observation, seconds)
        parts = self._parts(observation)
        before, starts = self.potentials, self._starts
        admitted, self.problem = self._admit(parts, elapsed)
        # In a refused step, observers get sensory inputs computed from the replacements of bad readings, as in
        # training.
        after = self._circuit.step(admitted, before, 0.0 if self.problem else elapsed)
        # The comparison is False for NaN too.
        if not np.all((after.potentials >= self._low) & (after.potentials <= self._high)):
            self.problem = self.problem or "a potential would leave its certified range"
        if not self.problem:
            self.potentials, self.action, self.action_mean = after.potentials, after.action, after.action_mean
        self._starts = False
        taken = Taken(
            observation,
            elapsed,
            starts,
            before,
            after.sensory,
            self.potentials,
            self.action_mean,
            self.action,
            self.problem,
        )
        for observe in self.observers:
            observe(taken)
        if self.problem and self.on_bad_input == "raise":
            raise ControllerError(
                f"The step was not taken: {self.problem}. Neurons and action are as they were; set "
                'controller.on_bad_input = "hold" to go on with the last action.'
            )
        return self.action

    def _seconds(self, observation: Any, seconds: float | None) -> float:
        if seconds is not None:
            return float(seconds)
        if not self.description["timed"]:
            return float(self.description["seconds"])
        if not isinstance(observation, Mapping) or "elapsed_time" not in observation:
            raise ControllerError(
                "The policy was trained with elapsed times, and none came; give the seconds since the last step."
            )
        return float(np.asarray(observation["elapsed_time"]).reshape(()))

    def _parts(self, observation: Any) -> dict[str | None, npt.NDArray[Any]]:
        """Return parts of the observation by key, each (D,) or in its image's shape."""
        found: dict[str | None, npt.NDArray[Any]] = {}
        for part in self.description["observation"]:
            key, shape = part["key"], tuple(part["shape"])
            if key is not None and (not isinstance(observation, Mapping) or key not in observation):
                raise ControllerError(
                    f"The observation must be a mapping with the key {key!r}, got {type(observation).__name__}."
                )
            value = np.asarray(observation if key is None else observation[key])
            if value.size != math.prod(shape):
                raise ControllerError(f"The observation {key or ''} must be of shape {shape}, got {value.shape}.")
            found[key] = value.reshape(shape)
        return found

    def _admit(
        self, parts: dict[str | None, npt.NDArray[Any]], seconds: float
    ) -> tuple[dict[str | None, npt.NDArray[Any]], str]:
        """Return the parts with neutral numbers in place of bad readings, and a clause on what is wrong."""
        problem, admitted = "", dict(parts)
        for part in self.description["observation"]:
            values = parts[part["key"]].reshape(-1)
            wrong = ~(np.abs(values) <= _LARGEST) if values.dtype.kind == "f" else np.zeros(len(values), np.bool_)
            expected = "a finite number"
            if any(part["n_values"]):
                wrong = wrong | ~((values >= 0) & (values < part["n_values"]) & (values == np.floor(values)))
                expected = "a whole number that the observation space has"
            if wrong.any():
                at = int(wrong.argmax())
                name = part["names"][at] if part["names"] else f"{part['key'] or 'image'}[{at}]"
                problem = problem or f"the observation {name!r} is {values[at]:g} and must be {expected}"
                # The number that the normalisation maps to zero.
                neutral = 0 if part["normalize"] is None else part["normalize"]["mean"]
                admitted[part["key"]] = np.where(wrong, neutral, values).astype(values.dtype).reshape(part["shape"])
        if not 0 <= seconds <= _LARGEST:
            problem = problem or f"the step lasts {seconds:g} s and must last finite seconds, not negative"
        return admitted, problem


class _Numbers:
    """The circuit in NumPy, which reads vectors by receptors."""

    def __init__(self, description: Mapping[str, Any]) -> None:
        self._parts = description["observation"]
        self._normalize = [part["normalize"] and _arrays(part["normalize"], np.float64) for part in self._parts]
        self._action = description["action"]
        encoder = description["encoder"]
        self._source = np.array(encoder["source"], np.int64)
        self._encoder = _arrays({name: encoder[name] for name in ("mean", "std", "gain", "offset")}, np.float32)
        self._cell = _arrays(description["neurons"], np.float32)
        units = len(self._cell["cm"])
        self._between = _Synapses(description["synapses"], units)
        self._senses = _Synapses(description["sensory_synapses"], units)
        self._readout = _arrays(description["readout"], np.float32)
        self._unfolds = int(description["ode_unfolds"])
        self._at_rest = self._cell["gleak"] * self._cell["vleak"]

    def step(self, observation: Mapping[str | None, npt.NDArray[Any]], potentials: Floats, seconds: float) -> _Computed:
        sensory = self._sense(observation)
        v, cell = potentials, self._cell
        delta = np.float32(seconds) / np.float32(self._unfolds)
        current, conductance = self._senses.sums(sensory)
        current, conductance = current + self._at_rest, conductance + cell["gleak"] + _EPSILON
        with np.errstate(over="ignore", invalid="ignore"):
            for _ in range(self._unfolds):
                more_current, more_conductance = self._between.sums(v)
                numerator = cell["cm"] * v + delta * (current + more_current)
                v = numerator / (cell["cm"] + delta * (conductance + more_conductance))
        action, mean = self.read_out(v)
        return _Computed(action, mean, v, sensory)

    def _sense(self, observation: Mapping[str | None, npt.NDArray[Any]]) -> Floats:
        """Return the sensory inputs (S,), which are finite for every finite observation."""
        quantities = np.concatenate(
            [
                _quantities(observation[part["key"]].reshape(-1), part, normalize)
                for part, normalize in zip(self._parts, self._normalize, strict=True)
            ]
        )
        encoder = self._encoder
        with np.errstate(over="ignore"):
            standard = ((quantities - encoder["mean"]) / encoder["std"]).clip(-_LARGEST, _LARGEST)
            sensory = standard[self._source] * encoder["gain"] + encoder["offset"]
        found: Floats = sensory.clip(-_LARGEST, _LARGEST)
        return found

    def read_out(self, potentials: Floats) -> tuple[npt.NDArray[Any], Floats]:
        n_motor = self._readout["weight"].shape[1]
        mean = self._readout["weight"] @ potentials[:n_motor] + self._readout["bias"]
        return to_action(mean, self._action), mean


class _Synapses:
    """E synapses of one kind, with sums over the synapses that end in each of U neurons."""

    def __init__(self, described: Mapping[str, Any], units: int) -> None:
        self._source = np.array(described["source"], np.int64)
        self._sigma, self._mu, w, erev = (np.array(described[n], np.float32) for n in ("sigma", "mu", "w", "erev"))
        self._units = units
        # (E, 2 U): a synapse adds w s erev to the current of its neuron, and w s to its conductance.
        self._gives = np.zeros((len(w), 2 * units), np.float32)
        destination, rows = np.array(described["destination"], np.int64), np.arange(len(w))
        self._gives[rows, destination], self._gives[rows, units + destination] = w * erev, w

    def sums(self, potentials: Floats) -> tuple[Floats, Floats]:
        """Return current and conductance, (U,) each, from the sources' potentials."""
        with np.errstate(over="ignore"):
            drive: Floats = self._sigma * (potentials[self._source] - self._mu)
        openness = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * drive))
        given: Floats = openness @ self._gives
        return given[: self._units], given[self._units :]


def _quantities(values: npt.NDArray[Any], part: Mapping[str, Any], normalize: Mapping[str, Doubles] | None) -> Floats:
    """Return the numbers that the encoder reads of a part of the observation."""
    if part["one_hot"]:
        codes = [np.arange(n) == value for value, n in zip(values, part["n_values"], strict=True)]
        return np.concatenate(codes).astype(np.float32)
    if normalize is None:
        return values.astype(np.float32)
    limit = float(normalize["clip"])
    return ((values - normalize["mean"]) / normalize["std"]).clip(-limit, limit).astype(np.float32)


def to_action(mean: Floats, action: Mapping[str, Any]) -> npt.NDArray[Any]:
    """Return the environment's action from action means (or logits) and the description of the action space."""
    if action["kind"] == "box":
        low, high = (
            np.array([end if bound is None else bound for bound in action[name]], np.float32)
            for name, end in (("low", -np.inf), ("high", np.inf))
        )
        squashed = action["squash"]
        taken: npt.NDArray[Any] = low + 0.5 * (np.tanh(mean) + 1) * (high - low) if squashed else mean.clip(low, high)
    elif action["kind"] == "multibinary":
        taken = mean > 0
    else:
        ends = np.cumsum(action["n_values"])[:-1]
        taken = np.array([part.argmax() for part in np.split(mean, ends)])
    return np.asarray(taken).astype(action["dtype"]).reshape(action["shape"])


class _Onnx:
    """The circuit in an ONNX file, run by ONNX Runtime."""

    def __init__(self, path: Path) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise ControllerError(f"ONNX Runtime is needed to run {path}; run `pip install onnxruntime`.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            described = self._session.get_modelmeta().custom_metadata_map[METADATA]
        except Exception as error:  # The errors of ONNX Runtime have no common class.
            raise ControllerError(str(error)) from error
        self.description = _described(described, FORMAT)
        self._inputs = {given.name for given in self._session.get_inputs()}

    def step(self, observation: Mapping[str | None, npt.NDArray[Any]], potentials: Floats, seconds: float) -> _Computed:
        feed = {
            input_name(part["key"]): observation[part["key"]].astype(part["dtype"])[None]
            for part in self.description["observation"]
        }
        return self._run(feed, potentials, seconds)

    def read_out(self, potentials: Floats) -> tuple[npt.NDArray[Any], Floats]:
        # A step of 0 seconds does not change potentials.
        feed = {
            input_name(part["key"]): np.zeros((1, *part["shape"]), part["dtype"])
            for part in self.description["observation"]
        }
        after = self._run(feed, potentials, 0.0)
        return after.action, after.action_mean

    def _run(self, feed: dict[str, npt.NDArray[Any]], potentials: Floats, seconds: float) -> _Computed:
        feed["state"], feed["reset"] = potentials[None], np.zeros(1, np.bool_)
        feed["elapsed_time"] = np.array([seconds], np.float32)
        action, mean, state, sensory = self._session.run(["action", "action_mean", "new_state", "sensory"], feed)
        return _Computed(action[0], mean[0], state[0], sensory[0])


def input_name(key: str | None) -> str:
    """Return the name of the ONNX input for a part of the observation."""
    return "observation" if key is None else f"observation.{key}"


class MonitorAlarm(NamedTuple):
    """An alarm: the first step of an episode outside known territory."""

    episode: int
    """Number of the episode, from 0"""
    step: int
    """Step of the episode, from 0"""
    time: float
    """Seconds since the episode's start"""
    neuron: str
    """Name of the neuron that is furthest out"""
    score: float
    threshold: float


class Monitor:
    """Distinguishes known from unknown territory by an envelope around potentials, which ncp_rl.audit fits.

        monitor = Monitor.load("folder/monitor.json")
        controller.observers.append(monitor)

    Attributes:
        alarms: All alarms so far; at most one per episode.
        score: Score of the last step.
        outside: Whether the last step's score exceeds the threshold.
    """

    def __init__(self, description: Mapping[str, Any]) -> None:
        """Make a monitor of a description; see `Monitor.load`."""
        self.names = tuple(description["names"])
        self._index = np.array(description["index"], np.int64)
        self._box = description["score"] == "box"
        self._centre, self._profile = (np.array(description[name]) for name in ("centre", "profile"))
        self._precision = np.array(description["precision"]).reshape(len(self._index), -1)
        self.threshold = math.inf if description["threshold"] is None else float(description["threshold"])
        self.alarms: list[MonitorAlarm] = []
        self.score, self.outside = 0.0, False
        self._episode, self._step, self._time, self._alarmed = -1, -1, 0.0, False

    @classmethod
    def load(cls, path: Path | str) -> Monitor:
        """Load a file that `ncp_rl.export.monitor_to_json` wrote.

        Raises:
            ControllerError: The file is not such a monitor.
        """
        try:
            return cls(_described(Path(path).read_text(), MONITOR_FORMAT))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise ControllerError(f"The monitor {path} cannot be read: {error}") from error

    def __call__(self, taken: Taken) -> MonitorAlarm | None:
        """Watch a step of a controller."""
        return self.observe(taken.potentials, starts=taken.starts, seconds=taken.seconds)

    def observe(self, potentials: Floats, *, starts: bool, seconds: float) -> MonitorAlarm | None:
        """Watch one step and return the alarm that it raises, or None.

        Args:
            potentials: (U,), potentials of all neurons after the step.
            starts: Whether the step begins an episode.
            seconds: Seconds that the step lasted.
        """
        if starts or self._episode < 0:
            self._episode, self._step, self._time, self._alarmed = self._episode + 1, -1, 0.0, False
        self._step += 1
        self._time += seconds if 0 <= seconds < math.inf else 0.0
        self.score = self._score(potentials)
        self.outside = self.score > self.threshold
        if not self.outside or self._alarmed:
            return None
        self._alarmed = True
        neuron = self.names[int(self._shares(potentials).argmax())]
        alarm = MonitorAlarm(self._episode, self._step, self._time, neuron, self.score, self.threshold)
        self.alarms.append(alarm)
        return alarm

    def _shares(self, potentials: Floats) -> Doubles:
        """Return the squared share of each watched neuron, (C,); inf where its potential is not finite."""
        deviation = potentials[self._index] - self._centre
        known = np.isfinite(deviation)
        weighted = np.where(known, deviation, 0.0) @ self._precision
        shares: Doubles = np.where(known, weighted**2 / np.diag(self._precision), np.inf)
        return shares

    def _score(self, potentials: Floats) -> float:
        deviation = potentials[self._index] - self._centre
        if not np.isfinite(deviation).all():
            return math.inf
        squared = self._shares(potentials).max() if self._box else deviation @ self._precision @ deviation
        profile = self._profile[min(self._step, len(self._profile) - 1)]
        return float(math.sqrt(max(squared, 0.0)) / profile)


def _described(text: str, expected: str) -> dict[str, Any]:
    description = json.loads(text)
    if not isinstance(description, dict) or description.get("format") != expected:
        raise ControllerError(f"it must be a JSON object of format {expected!r}, got {str(description)[:40]}")
    return description


def _arrays(described: Mapping[str, Any], dtype: type) -> dict[str, Any]:
    return {name: np.array(values, dtype) for name, values in described.items()}
