"""`ControllerRecorder`: records a deployed controller in an MCAP file like those of training."""

from __future__ import annotations

import base64
import json
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from gymnasium import spaces
from torch import Tensor

from ncp_rl.circuit import Circuit
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.export.controller import Controller, Taken
from ncp_rl.recording.errors import RecordingError
from ncp_rl.recording.layout import Layout, Observed
from ncp_rl.recording.manifest import FORMAT, describe_platform, describe_space
from ncp_rl.recording.steps import Step
from ncp_rl.recording.trace import Seen
from ncp_rl.recording.writer import RecordingWriter
from ncp_rl.wiring import Wiring


class ControllerRecorder:
    """Records a controller. It needs ncp_rl, not only NumPy.

        with ControllerRecorder(controller, "flight.mcap") as recorder:
            action = controller.step(observation, seconds)
            recorder.tell(reward)      # where anybody knows it

    Replay, verification and the audit read the file like any other. Values, deviations and log-probabilities, which
    only training has, are NaN; rewards are zero unless `tell` gives them.
    """

    def __init__(self, controller: Controller, path: Path | str, *, sign_key: Ed25519PrivateKey | None = None) -> None:
        """Begin a file, and record `controller` until `close`.

        Args:
            controller: The controller.
            path: New file.
            sign_key: Key that signs the recording; see `ncp_rl.recording.read_private_key`.

        Raises:
            ncp_rl.recording.RecordingError: The file exists or cannot be written, or the controller's file is damaged.
        """
        self._controller = controller
        self._layout = _layout(controller.description)
        manifest = json.dumps(_manifest(controller, self._layout), indent=1, allow_nan=False).encode()
        circuit = _circuit(controller.description)
        self._writer = RecordingWriter(Path(path), circuit, self._layout, manifest, sign_key=sign_key)
        # A step is written when the next one, or the end, shows whether its episode went on.
        self._last: Taken | None = None
        self._outcome = (0.0, False, False)
        controller.observers.append(self._observe)

    def tell(self, reward: float, *, terminated: bool = False, truncated: bool = False) -> None:
        """Give the outcome of the controller's last step."""
        self._outcome = (reward, terminated, truncated)

    def close(self) -> None:
        """Write the last step and the end of the file.

        Raises:
            ncp_rl.recording.RecordingError: Something could not be written.
        """
        if self._observe in self._controller.observers:
            self._controller.observers.remove(self._observe)
            self._write(ends=True)
        self._writer.close()

    def __enter__(self) -> ControllerRecorder:
        """Return the recorder."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the recording."""
        self.close()

    def _observe(self, taken: Taken) -> None:
        self._write(ends=taken.starts)
        # Observations are copied, since their owner may write into them again.
        seen = taken.observation
        copied = {k: np.array(v) for k, v in seen.items()} if isinstance(seen, dict) else np.array(seen)
        self._last, self._outcome = taken._replace(observation=copied), (0.0, False, False)

    def _write(self, *, ends: bool) -> None:
        last = self._last
        if last is None:
            return
        reward, terminated, truncated = self._outcome
        self._last = None
        action = last.action.astype(np.float32).reshape(1, -1)
        self._writer.append(
            Step(
                self._observation(last),
                _seen(last, self._layout.discrete),
                sample=action,
                action=action,
                reward=np.array([reward], np.float32),
                terminated=np.array([terminated]),
                truncated=np.array([truncated or (ends and not terminated)]),
                keep=np.array([True]),
                final={},
                images={},
            )
        )

    def _observation(self, last: Taken) -> Any:
        parts = {part.key: part for part in self._layout.observed}
        if None in parts:
            return np.asarray(last.observation).reshape(1, *parts[None].shape)
        given = {**last.observation, ELAPSED_TIME: [last.seconds]}
        return {key: np.asarray(given[key]).reshape(1, *part.shape) for key, part in parts.items() if key is not None}


def _seen(last: Taken, discrete: bool) -> Seen:
    seconds = -0.0 if last.problem else last.seconds
    unknown = torch.full((1, 1), torch.nan)
    return Seen(
        before=_tensor(last.before)[None],
        sensory=_tensor(last.sensory)[None, None],
        episode_starts=torch.tensor([[float(last.starts)]]),
        elapsed_time=torch.tensor([[seconds]]),
        potentials=_tensor(last.potentials)[None, None],
        action_mean=_tensor(last.action_mean)[None],
        action_std=None if discrete else torch.full((1, len(last.action_mean)), torch.nan),
        value=unknown,
        log_prob=unknown[0],
    )


def _circuit(description: Any) -> Circuit:
    """Return the circuit of an exported controller, bit for bit the one that was trained."""
    kept = description["circuit"]
    try:
        return Circuit.load(base64.b64decode(kept["tensors"]), kept["settings"].encode())
    except ValueError as error:
        raise RecordingError(f"The circuit in the controller's file cannot be read: {error}") from error


def _layout(description: Any) -> Layout:
    wiring = Wiring.from_dict(description["wiring"])
    action = description["action"]
    observed = [
        Observed(part["key"], tuple(part["shape"]), part["dtype"], tuple(part["names"]))
        for part in description["observation"]
    ]
    if description["timed"]:
        observed.append(Observed(ELAPSED_TIME, (1,), "float32", (ELAPSED_TIME,)))
    return Layout(
        n_envs=1,
        observed=tuple(observed),
        n_actions=int(np.prod(action["shape"])),
        n_outputs=len(description["output_names"]),
        discrete=action["kind"] != "box",
        n_sensory=wiring.n_sensory,
        n_motor=wiring.n_motor,
        n_command=wiring.n_command,
        n_inter=wiring.units - wiring.n_motor - wiring.n_command,
    )


def _manifest(controller: Controller, layout: Layout) -> dict[str, Any]:
    description = controller.description
    # The controller adds in another order than the kernels of ncp_rl, so replay must allow for rounding.
    platform = describe_platform(torch.device("cpu")) | {"device": f"exported controller, {controller.form}"}
    return {
        "format": FORMAT,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "kind": "rollouts",
        "deterministic": True,
        "environment": {"id": None, "description": "an exported controller"},
        "action_space": describe_space(_action_space(description["action"])),
        "policy": {
            "sha256": description["policy_sha256"],
            "class": f"exported controller, {controller.form}",
            "squash_output": description["action"]["squash"],
        },
        "platform": platform,
        "threads": torch.get_num_threads(),
        "layout": layout.to_dict(),
    }


def _action_space(action: Any) -> spaces.Space[Any]:
    shape = tuple(action["shape"])
    if action["kind"] == "box":
        low, high = (
            np.array([end if x is None else x for x in action[name]], action["dtype"]).reshape(shape)
            for name, end in (("low", -np.inf), ("high", np.inf))
        )
        return spaces.Box(low, high, shape, np.dtype(action["dtype"]).type)
    if action["kind"] == "discrete":
        return spaces.Discrete(action["n_values"][0])
    return spaces.MultiBinary(shape) if action["kind"] == "multibinary" else spaces.MultiDiscrete(action["n_values"])


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))
