"""`Spec`: everything between an observation and an action as numbers and names, which every export writes.

    observation -> normalisation (VecNormalize) -> one-hot codes -> standardisation -> receptors -> S sensory inputs
    -> LTC neurons -> action means (or logits) -> squashing, clipping, unscaling or argmax -> action

`Spec.to_dict` is the description that JSON carries: controllers in C, in NumPy and in ONNX are made from it.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_normalize
from torch import nn

from ncp_rl.audit.certify import Certificate, certify
from ncp_rl.circuit import Circuit
from ncp_rl.encoder import ELAPSED_TIME, KeyFilter, MultiInputReceptors, Receptors, Standardize, observed_names
from ncp_rl.errors import NCPError
from ncp_rl.ltc import LTC
from ncp_rl.policy import NCPPolicy
from ncp_rl.recording.manifest import policy_digest
from ncp_rl.runs import load_run

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Kind = Literal["box", "discrete", "multidiscrete", "multibinary"]

#: Version of the descriptions that `Spec.to_dict` gives.
FORMAT = "ncp_rl controller 1"

#: Share of the policy's step; the certified ranges hold for steps at least as long, unless another length is given.
SHORTEST_STEP = 0.1

_KINDS: dict[type, Kind] = {
    spaces.Box: "box",
    spaces.Discrete: "discrete",
    spaces.MultiDiscrete: "multidiscrete",
    spaces.MultiBinary: "multibinary",
}


class ExportError(NCPError):
    """Raised where a controller cannot be exported, or an export cannot be used; the message says what to do."""


class Source(NamedTuple):
    """A policy to export, and the wrappers of its environments that observations pass."""

    policy: NCPPolicy
    normalize: VecNormalize | None
    observation_space: spaces.Space[Any]
    """Space of the environment's observations: before normalisation, with images as they come and frames stacked"""


@dataclass(frozen=True)
class InputPart:
    """A part of the observation: all of it, or one key of a Dict.

    Attributes:
        key: Key of the Dict, or None.
        space: Space of the part, as the environment gives it.
        names: (D,), names of its numbers; empty for an image.
        mean, std, clip: Statistics of VecNormalize, (D,) each, and its largest output; None where it leaves this
            part unchanged.
    """

    key: str | None
    space: spaces.Space[Any]
    names: tuple[str, ...]
    mean: Doubles | None = None
    std: Doubles | None = None
    clip: float | None = None

    @property
    def image(self) -> bool:
        """Whether it is an image."""
        return not self.names

    @property
    def n_values(self) -> tuple[int, ...]:
        """(D,), number of values of each of its discrete numbers, which count from 0; 0 for real numbers."""
        if isinstance(self.space, spaces.Discrete):
            return (int(self.space.n),)
        if isinstance(self.space, spaces.MultiDiscrete):
            return tuple(int(n) for n in self.space.nvec.flat)
        return ((2 if isinstance(self.space, spaces.MultiBinary) else 0),) * len(self.names)

    @property
    def one_hot(self) -> bool:
        """Whether each of its numbers reaches the encoder as a one-hot code."""
        return isinstance(self.space, (spaces.Discrete, spaces.MultiDiscrete))

    def to_dict(self) -> dict[str, Any]:
        """Return the part for JSON."""
        normalize = None
        if self.mean is not None and self.std is not None:
            normalize = {"mean": self.mean.tolist(), "std": self.std.tolist(), "clip": self.clip}
        return {
            "key": self.key,
            "kind": _kind(self.space),
            "shape": list(self.space.shape or ()),
            "dtype": str(self.space.dtype),
            "names": list(self.names),
            "n_values": list(self.n_values),
            "one_hot": self.one_hot,
            "normalize": normalize,
        }


@dataclass(frozen=True)
class Receptive:
    """An encoder of vectors, from D quantities, one-hot codes included, to S sensory inputs.

    Sensory input s is `gain_s * (q - mean) / std + offset_s` with q the quantity `source_s`, mean and std its own.

    Attributes:
        mean, std: (D,) float32, mean and standard deviation of each quantity.
        source: (S,), number of the quantity that each sensory input reads.
        gain, offset: (S,) float32, gain and offset of each sensory input.
    """

    mean: Floats
    std: Floats
    source: npt.NDArray[np.int64]
    gain: Floats
    offset: Floats


@dataclass(frozen=True)
class Spec:
    """The specification of a controller, from observation to action.

    Attributes:
        circuit: The circuit, from sensory inputs to action means.
        observed: Parts of the observation in their order, without the elapsed time and the parts that only the critic
            sees.
        timed: Whether the observation has a key `elapsed_time`.
        encoder: The encoder, if it reads only vectors, with or without receptors; None for images and other encoders.
        action_space: The environment's action space.
        squash: Whether action means pass through tanh and are unscaled to the action space.
        certificate: Certificate of the circuit.
        sha256: SHA-256 of the policy with its normalisation, as in recordings.
    """

    circuit: Circuit
    observed: tuple[InputPart, ...]
    timed: bool
    encoder: Receptive | None
    action_space: spaces.Space[Any]
    squash: bool
    certificate: Certificate
    sha256: str

    @classmethod
    def of(cls, source: Source, *, min_seconds: float | None = None) -> Spec:
        """Make the specification of a policy.

        Args:
            source: See `find_source`.
            min_seconds: The shortest step that the certified ranges hold for; a tenth of the policy's step where
                None.

        Raises:
            ExportError: The policy cannot be exported.
        """
        policy = source.policy
        circuit = _circuit(policy)
        shortest = SHORTEST_STEP * circuit.ltc.elapsed_time if min_seconds is None else min_seconds
        certificate = certify(circuit, min_elapsed_time=shortest)
        if certificate.violations:
            raise ExportError(
                f"The policy cannot be exported, since its parameters are wrong: {certificate.violations[0]}."
            )
        observed = tuple(_observed(source))
        _check_finite(policy, observed)
        timed = isinstance(policy.pi_features_extractor, KeyFilter) and policy.pi_features_extractor.timed
        encoder = None if any(part.image for part in observed) else _receptive(policy.pi_features_extractor, observed)
        digest = policy_digest(policy, source.normalize)
        squash = bool(policy.squash_output)
        return cls(circuit, observed, timed, encoder, policy.action_space, squash, certificate, digest)

    def to_dict(self) -> dict[str, Any]:
        """Return the description for JSON; float32 numbers come back bit for bit."""
        wiring, ltc = self.circuit.wiring, self.circuit.ltc
        tensors, settings = self.circuit.save()
        (synaptic, sensory, (cm, gleak, vleak)) = (rows.detach().cpu().numpy() for rows in ltc.packed().params)
        inside, action = self.certificate.range, self.certificate.action
        return {
            "format": FORMAT,
            "policy_sha256": self.sha256,
            "observation": [part.to_dict() for part in self.observed],
            "timed": self.timed,
            "units": {"elapsed_time": "s", "seconds": "s", "potentials": "1", "observation, action": "environment's"},
            "seconds": ltc.elapsed_time,
            "ode_unfolds": ltc.ode_unfolds,
            "sensory_names": list(self.circuit.sensory_names),
            "neuron_names": list(wiring.names),
            "wiring": wiring.to_dict(),
            "output_names": list(self.circuit.action_names),
            "action": self._action(),
            "certified": {
                "min_seconds": self.certificate.min_elapsed_time,
                "potentials": {"low": _below(inside.low).tolist(), "high": _above(inside.high).tolist()},
                "action_means": {"low": _below(action.low).tolist(), "high": _above(action.high).tolist()},
            },
            "encoder": self.encoder and {name: values.tolist() for name, values in vars(self.encoder).items()},
            "neurons": {"cm": cm.tolist(), "gleak": gleak.tolist(), "vleak": vleak.tolist()},
            "synapses": _synapses(wiring.synapses, synaptic),
            "sensory_synapses": _synapses(wiring.sensory_synapses, sensory),
            "readout": {"weight": self.circuit.readout.tolist(), "bias": self.circuit.bias.tolist()},
            # The wiring is written as in recordings, so that the controller's own recordings can hold it.
            "circuit": {"tensors": base64.b64encode(tensors).decode(), "settings": settings.decode()},
        }

    def _action(self) -> dict[str, Any]:
        space = self.action_space
        found: dict[str, Any] = {
            "kind": _kind(space),
            "shape": list(space.shape or ()),
            "dtype": str(space.dtype),
            "squash": self.squash,
        }
        if isinstance(space, spaces.Box):
            bounds = {name: getattr(space, name).flatten().tolist() for name in ("low", "high")}
            # JSON has no infinity.
            return found | {name: [x if np.isfinite(x) else None for x in ends] for name, ends in bounds.items()}
        if isinstance(space, spaces.Discrete):
            return found | {"n_values": [int(space.n)]}
        if isinstance(space, spaces.MultiDiscrete):
            return found | {"n_values": space.nvec.tolist()}
        return found

    def vector_dict(self) -> dict[str, Any]:
        """Return `to_dict` of a policy that observes only vectors.

        Raises:
            ExportError: The policy observes images, or through an encoder of another kind.
        """
        if self.encoder is None:
            images = ", ".join(part.key or "an image" for part in self.observed if part.image)
            raise ExportError(
                "C and NumPy exports need vectors, read by receptors or flattened; this policy observes "
                f"{images or 'through an encoder of another kind'}. Export it by to_onnx."
            )
        return self.to_dict()


def find_source(source: Path | str | OnPolicyAlgorithm, env: VecEnv | None = None) -> Source:
    """Find the policy to export, and the wrappers of its environments.

    Args:
        source: A run folder, whose best model is taken, or a model.
        env: Environments of a model, whose normalisation is exported; None takes the model's own.

    Raises:
        ExportError: The policy cannot be exported, or the model has no environments.
        ncp_rl.runs.RunError: The run folder is damaged.
    """
    if isinstance(source, (str, Path)):
        source, env = load_run(Path(source), device="cpu")
    policy, venv = source.policy, env or source.get_env()
    if not isinstance(policy, NCPPolicy):
        raise ExportError(f"Only NCP policies can be exported, got a {type(policy).__name__}.")
    if venv is None:
        raise ExportError(
            "The model has no environments, which tell how observations are normalised and how images come; give "
            "them: env=venv, as for evaluation."
        )
    normalize = unwrap_vec_normalize(venv)
    inner = venv if normalize is None else normalize.venv
    while isinstance(inner, VecTransposeImage):
        inner = inner.venv
    return Source(policy, normalize, inner.observation_space)


def _circuit(policy: NCPPolicy) -> Circuit:
    """Return the actor, if its cell can be exported.

    Raises:
        ExportError: The actor has another cell.
    """
    if type(policy.lstm_actor) is not LTC:
        raise ExportError(
            f"Only policies of LTC neurons can be exported, this one has {type(policy.lstm_actor).__name__} neurons."
        )
    return Circuit.from_policy(policy)


def _check_finite(policy: NCPPolicy, observed: tuple[InputPart, ...]) -> None:
    numbers = {
        f"{name} of the encoder": x.cpu().numpy() for name, x in policy.pi_features_extractor.state_dict().items()
    }
    for part in observed:
        for name in ("mean", "std"):
            values = getattr(part, name)
            numbers |= {} if values is None else {f"VecNormalize's {name} of {part.key or 'the observation'}": values}
    for name, values in numbers.items():
        if not np.isfinite(values).all():
            raise ExportError(f"The policy cannot be exported: {name} holds numbers that are not finite.")


def _observed(source: Source) -> Iterator[InputPart]:
    policy, space, normalize = source.policy, source.observation_space, source.normalize
    names = observed_names(policy.pi_features_extractor)
    if not isinstance(space, spaces.Dict):
        yield _part(None, space, names.get(None, ()), normalize)
        return
    if ELAPSED_TIME in space.spaces and normalize is not None and _statistics(normalize, ELAPSED_TIME) is not None:
        raise ExportError(f"VecNormalize must not normalise {ELAPSED_TIME!r}; leave it out of norm_obs_keys.")
    for key in _keys(policy, space):
        yield _part(key, space.spaces[key], names.get(key, ()), normalize)


def _keys(policy: NCPPolicy, space: spaces.Dict) -> tuple[str, ...]:
    """Return the keys that the actor reads, in the order of its encoder."""
    encoder = policy.pi_features_extractor
    inner = encoder.extractor if isinstance(encoder, KeyFilter) else encoder
    if isinstance(inner, MultiInputReceptors):
        return inner.keys
    shown = inner.extractors if isinstance(inner, CombinedExtractor) else space.spaces
    return tuple(key for key in shown if key != ELAPSED_TIME and key not in policy.privileged_keys)


def _part(
    key: str | None, space: spaces.Space[Any], names: tuple[str, ...], normalize: VecNormalize | None
) -> InputPart:
    size = int(np.prod(space.shape or ()))
    if is_image_space(space):
        names = ()
    elif isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)) or len(names) != size:
        names = tuple(f"{key or 'obs'}_{i}" for i in range(size)) if size > 1 or key is None else (key,)
    statistics = None if normalize is None else _statistics(normalize, key)
    if statistics is None or normalize is None:
        return InputPart(key, space, names)
    mean, variance = (np.broadcast_to(array, space.shape or ()).flatten().astype(np.float64) for array in statistics)
    return InputPart(key, space, names, mean, np.sqrt(variance + normalize.epsilon), float(normalize.clip_obs))


def _statistics(normalize: VecNormalize, key: str | None) -> tuple[Any, Any] | None:
    """Return mean and variance by which a part is normalised, or None."""
    if not normalize.norm_obs:
        return None
    found: Any = normalize.obs_rms
    if key is not None:
        found = found.get(key) if isinstance(found, Mapping) and key in (normalize.norm_obs_keys or ()) else None
    return None if found is None else (found.mean, found.var)


def _receptive(encoder: nn.Module, observed: tuple[InputPart, ...]) -> Receptive | None:
    """Return an encoder as `Receptive`, or None where it is of another kind."""
    inner = encoder.extractor if isinstance(encoder, KeyFilter) else encoder
    # Subclasses are not exported, since they may compute something else.
    if type(inner) is Receptors:
        return _receptors(inner)
    if type(inner) is MultiInputReceptors:
        receptors = [layer for layer in inner.encoders.values() if isinstance(layer, Receptors)]
        return _joined([_receptors(layer) for layer in receptors]) if len(receptors) == len(inner.encoders) else None
    flattens = type(inner) is FlattenExtractor
    if type(inner) is CombinedExtractor:
        flattens = all(isinstance(layer, nn.Flatten) for layer in inner.extractors.values())
    if flattens:
        return _joined([_plain(int(get_flattened_obs_dim(part.space))) for part in observed])
    return None


def _plain(size: int) -> Receptive:
    """Return an encoder that passes quantities unchanged."""
    zeros, ones = np.zeros(size, np.float32), np.ones(size, np.float32)
    return Receptive(zeros, ones, np.arange(size), ones, zeros)


def _receptors(layer: Receptors) -> Receptive:
    size = len(layer.observed_names)
    plain = _plain(size)
    mean, std = plain.mean, plain.std
    if isinstance(layer.standardize, Standardize):
        mean, std = (tensor.cpu().numpy() for tensor in (layer.standardize.mean, layer.standardize.std))
    gain, offset = (tensor.detach().cpu().numpy() for tensor in (layer.gain, layer.offset))
    return Receptive(mean, std, np.repeat(np.arange(size), layer.receptors), gain, offset)


def _joined(parts: list[Receptive]) -> Receptive:
    before = np.cumsum([0, *(len(part.mean) for part in parts)])
    sources = [part.source + first for part, first in zip(parts, before[:-1].tolist(), strict=True)]
    mean, std, gain, offset = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("mean", "std", "gain", "offset")
    )
    return Receptive(mean, std, np.concatenate(sources), gain, offset)


def _synapses(synapses: Any, rows: Floats) -> dict[str, Any]:
    found = {"source": synapses.source.tolist(), "destination": synapses.destination.tolist()}
    return found | {name: row.tolist() for name, row in zip(("w", "sigma", "mu", "erev"), rows, strict=True)}


def _kind(space: spaces.Space[Any]) -> Kind:
    return next(kind for known, kind in _KINDS.items() if isinstance(space, known))


def _below(bound: Doubles) -> Floats:
    """Round down to float32."""
    found = bound.astype(np.float32)
    return np.where(found > bound, np.nextafter(found, np.float32(-np.inf)), found)


def _above(bound: Doubles) -> Floats:
    """Round up to float32."""
    return -_below(-bound)


def write_new(folder: Path, texts: Mapping[str, str]) -> None:
    """Write files that do not exist yet.

    Raises:
        ExportError: One of them exists.
    """
    existing = [name for name in texts if (folder / name).exists()]
    if existing:
        raise ExportError(f"The file {folder / existing[0]} exists and is left as it is; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
