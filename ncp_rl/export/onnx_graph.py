"""`to_onnx`: writes one step of a controller as an ONNX graph, for every encoder and action space of policies.

    observation (or observation.KEY, ...), state (N, U), elapsed_time (N,) seconds, reset (N,) bool
    -> action (N, ...), action_mean (N, A), new_state (N, U), sensory (N, S)

Observations are as the environment gives them, actions as it takes them. The number of controllers side by side,
N, may be any. The file's metadata entry `ncp_rl` holds, as JSON, the circuit with its
wiring, names and units, and the policy's hash.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor, nn

from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.export.controller import METADATA, input_name
from ncp_rl.export.spec import ExportError, InputPart, Source, Spec, find_source
from ncp_rl.extras import require

# Version of the graph's operators, which ONNX Runtime reads since its version 1.14.
_OPSET = 18


def to_onnx(
    source: Path | str | OnPolicyAlgorithm,
    path: Path | str,
    *,
    env: VecEnv | None = None,
    min_seconds: float | None = None,
) -> Path:
    """Write a controller as an ONNX file.

    Args:
        source: A run folder, whose best model is taken, or a model.
        path: New file, .onnx.
        env: Environments of a model, whose normalisation is exported and which tell how images come; None takes the
            model's own.
        min_seconds: The shortest step that the certified ranges in the metadata hold for; see `to_c`.

    Returns:
        The path.

    Raises:
        ExportError: No NCP policy, a broken one, or the file exists.
        ncp_rl.extras.MissingExtraError: The package onnx is not installed.
        ncp_rl.runs.RunError: The run folder is damaged.
    """
    found = find_source(source, env)
    spec = Spec.of(found, min_seconds=min_seconds)
    found.policy.set_training_mode(False)
    inputs = [input_name(part.key) for part in spec.observed] + ["state", "elapsed_time", "reset"]
    outputs = ["action", "action_mean", "new_state", "sensory"]
    axes = {name: {0: "controllers"} for name in (*inputs, *outputs)}
    example = _example(spec, found.policy.device)
    return write_graph(_StepGraph(found, spec), example, Path(path), (inputs, outputs, axes), spec.to_dict())


def write_graph(
    module: nn.Module,
    example: tuple[Tensor, ...],
    path: Path,
    names: tuple[list[str], list[str], dict[str, dict[int, str]]],
    description: dict[str, Any],
) -> Path:
    """Write a module as a checked ONNX graph.

    Args:
        module: Module that the graph computes.
        example: Example of its operands.
        path: New file.
        names: Names of the inputs, names of the outputs, and names of axes of any size by input or output and number.
        description: JSON of the metadata entry `ncp_rl`.

    Raises:
        ExportError: The file exists.
        ncp_rl.extras.MissingExtraError: The package onnx is not installed.
    """
    onnx = _onnx()
    if path.exists():
        raise ExportError(f"The file {path} exists and is left as it is; name another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    inputs, outputs, axes = names
    with warnings.catch_warnings():
        # PyTorch warns that a newer exporter replaces this one; the newer one takes minutes for some substeps.
        warnings.simplefilter("ignore", DeprecationWarning)
        # Stable-Baselines3 branches on shapes, which are fixed here.
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            dynamo=False,
            opset_version=_OPSET,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, {METADATA: json.dumps(description, allow_nan=False)})
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, str(path))
    return path


def _onnx() -> Any:
    require("export", "onnx", by="Writing ONNX")
    import onnx

    return onnx


class _StepGraph(nn.Module):
    """One step as `predict` takes it with `deterministic=True`, normalisation and resets included."""

    def __init__(self, source: Source, spec: Spec) -> None:
        super().__init__()
        self.policy, self.spec = source.policy, spec
        self.statistics = {part.key: _statistics(part, source.policy.device) for part in spec.observed}

    def forward(self, *operands: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        *given, state, elapsed_time, reset = operands
        parts = {part.key: self._part(part, x) for part, x in zip(self.spec.observed, given, strict=True)}
        observation: Any = parts[None] if None in parts else dict(parts)
        if self.spec.timed:
            observation[ELAPSED_TIME] = elapsed_time[:, None]
        features = self.policy.pi_features_extractor(observation)
        sensory = features[:, : self.policy.wiring.n_sensory]
        starts = torch.where(reset[:, None], torch.zeros_like(state), state)
        _, potentials = self.policy.lstm_actor(sensory[None], starts, None, elapsed_time[None])
        mean = self.policy.action_net(potentials)
        return self._action(mean), mean, potentials, sensory

    def _part(self, part: InputPart, given: Tensor) -> Tensor:
        """Return the encoder's input: normalised, transposed, scaled or one-hot."""
        statistics = self.statistics[part.key]
        if statistics is not None:
            mean, std, clip = statistics
            given = ((given.double() - mean) / std).clip(-clip, clip).float()
        space = self.policy.observation_space
        inner = space.spaces[part.key] if isinstance(space, spaces.Dict) and part.key is not None else space
        if part.image and inner.shape != part.space.shape:
            given = given.permute(0, 3, 1, 2)
        read = preprocess_obs(given, inner, normalize_images=self.policy.normalize_images)
        assert isinstance(read, Tensor)
        return read

    def _action(self, mean: Tensor) -> Tensor:
        space = self.policy.action_space
        shape = (-1, *(space.shape or ()))
        if isinstance(space, spaces.Box):
            low, high = (torch.from_numpy(end).float().flatten().to(mean) for end in (space.low, space.high))
            squashed = low + 0.5 * (torch.tanh(mean) + 1.0) * (high - low)
            return (squashed if self.spec.squash else torch.minimum(torch.maximum(mean, low), high)).reshape(shape)
        if isinstance(space, spaces.MultiBinary):
            return (mean > 0).to(torch.int8).reshape(shape)
        if isinstance(space, spaces.Discrete):
            return mean.argmax(1)
        assert isinstance(space, spaces.MultiDiscrete)
        return torch.stack([part.argmax(1) for part in mean.split(space.nvec.tolist(), 1)], 1)


def _statistics(part: InputPart, device: torch.device) -> tuple[Tensor, Tensor, float] | None:
    if part.mean is None or part.std is None or part.clip is None:
        return None
    shape = part.space.shape or ()
    mean, std = (torch.from_numpy(array).reshape(shape).to(device) for array in (part.mean, part.std))
    return mean, std, part.clip


def _example(spec: Spec, device: torch.device) -> tuple[Tensor, ...]:
    """Return operands of two controllers side by side."""
    observed = [
        torch.zeros((2, *(part.space.shape or ())), dtype=_dtype(part.space), device=device) for part in spec.observed
    ]
    state = torch.zeros(2, spec.circuit.wiring.units, device=device)
    seconds = torch.full((2,), spec.circuit.ltc.elapsed_time, device=device)
    return (*observed, state, seconds, torch.zeros(2, dtype=torch.bool, device=device))


def _dtype(space: spaces.Space[Any]) -> torch.dtype:
    return torch.from_numpy(np.zeros(1, space.dtype)).dtype
