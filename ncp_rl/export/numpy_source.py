"""`to_numpy`: writes a controller as JSON, with the Python file that runs it with NumPy only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.export.spec import Spec, find_source, write_new

#: The file that runs exported controllers; its copy beside them has the same name.
RUNTIME = Path(__file__).with_name("controller.py")


def to_numpy(
    source: Path | str | OnPolicyAlgorithm,
    folder: Path | str,
    *,
    env: VecEnv | None = None,
    min_seconds: float | None = None,
) -> Path:
    """Write controller.json and controller.py, whose `Controller.load` runs it and needs NumPy only.

    Arguments and errors are those of `to_c`.

    Returns:
        The folder.
    """
    spec = Spec.of(find_source(source, env), min_seconds=min_seconds)
    write_new(Path(folder), numpy_texts(spec))
    return Path(folder)


def numpy_texts(spec: Spec) -> dict[str, str]:
    """Return names and texts of the files."""
    return {"controller.json": json_text(spec.vector_dict()), RUNTIME.name: RUNTIME.read_text()}


def write_runtime(folder: Path) -> Path:
    """Write controller.py, which runs what is exported into `folder`."""
    write_new(folder, {RUNTIME.name: RUNTIME.read_text()})
    return folder / RUNTIME.name


def json_text(description: dict[str, Any]) -> str:
    """Return JSON with an entry per line."""
    entries = (f"{json.dumps(name)}: {json.dumps(value, allow_nan=False)}" for name, value in description.items())
    return "{\n" + ",\n".join(entries) + "\n}\n"
