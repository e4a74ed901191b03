"""The core works where optional packages are missing, and whoever asks for more is told the pip command."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from ncp_rl.extras import MissingExtraError, require

#: What only extras bring. PyTorch brings NetworkX and Jinja2 too, and Numba takes SciPy where it is.
OPTIONAL = {
    "cli": ["tyro", "yaml", "tensorboard", "tqdm", "rich"],
    "plot": ["matplotlib", "networkx"],
    "record": ["mcap", "zstandard", "safetensors", "cryptography", "PIL"],
    "audit": ["sklearn", "scipy", "jinja2", "plotly"],
    "envs": ["pygame", "mujoco", "Box2D"],
    "export": ["pandas", "pyarrow", "onnx", "onnxruntime"],
    "ray": ["ray", "optuna"],
    "rllib": ["tree"],
    "minari": ["minari"],
    "video": ["moviepy"],
    "bench": ["ncps"],
}
#: What stands before a script so that packages are not found, as where pip has not installed them.
ABSENT = """
import json, sys
from importlib.machinery import PathFinder
absent, find_spec = set(json.loads(sys.argv[1])), PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in absent else find_spec(name, path, target)
)
"""


def without(absent: list[str], script: str) -> Any:
    """What a script prints as JSON, in a process that cannot import some packages."""
    command = [sys.executable, "-c", ABSENT + script, json.dumps(absent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def names(*extras: str) -> list[str]:
    return [name for extra in extras for name in OPTIONAL[extra]]


def test_the_core_trains_and_names_what_is_missing() -> None:
    found = without(
        names(*OPTIONAL),
        """
from sb3_contrib import RecurrentPPO
from ncp_rl import NCPPolicy
from ncp_rl.errors import NCPError
model = RecurrentPPO(NCPPolicy, "ncp_envs:ncp/PendulumNoVel-v1", n_steps=32, batch_size=32, n_epochs=1, seed=0)
model.learn(64)
model.save("/dev/null")
import gymnasium
env = gymnasium.make("ncp/LaneKeepingCamera-v0")
env.reset(seed=0)
env.step(env.action_space.sample())
said = {"steps": model.num_timesteps}

def ask(name, call):
    try:
        call()
    except (ImportError, NCPError, gymnasium.error.DependencyNotInstalled) as error:
        said[name] = str(error)

def run_folder(progress_bar):
    from ncp_rl.runs import RunConfig, train
    import pathlib, tempfile
    with tempfile.TemporaryDirectory() as folder:
        try:
            config = RunConfig("Pendulum-v1", dict(n_timesteps=8))
            train(config, pathlib.Path(folder) / "run", progress_bar=progress_bar)
        finally:
            assert not any(pathlib.Path(folder).iterdir())

def settings():
    from ncp_rl.runs import read_hyperparams, tuned_file
    read_hyperparams(tuned_file(), "Pendulum-v1")

ask("graph", model.policy.wiring.graph)
ask("plot", model.policy.wiring.plot)
for part in ("recording", "audit", "teach", "export", "distributed"):
    ask(part, lambda: __import__(f"ncp_rl.{part}"))
ask("run folder", lambda: run_folder(False))
ask("progress", lambda: run_folder(True))
ask("settings", settings)
ask("drawing", lambda: gymnasium.make("ncp/LaneKeeping-v0", render_mode="rgb_array"))
ask("ncp/HopperNoVel-v5", lambda: gymnasium.make("ncp/HopperNoVel-v5"))
from ncp_rl.cli import main
import contextlib, io
with contextlib.redirect_stderr(io.StringIO()) as told:
    said["status"] = main(["train"])
said["command"] = told.getvalue()
print(json.dumps(said))
""",
    )
    assert found.pop("steps") == 64 and found.pop("status") == 2
    extras = {"graph": "plot", "plot": "plot", "recording": "record", "audit": "audit", "teach": "record"}
    extras |= {"export": "export", "run folder": "cli", "progress": "cli", "settings": "cli", "command": "cli"}
    extras |= {"drawing": "envs", "ncp/HopperNoVel-v5": "mujoco", "distributed": "ray"}
    assert found.keys() == extras.keys()
    assert "needs tensorboard, tqdm, rich, which are" in found["progress"]
    for name, extra in extras.items():
        assert f'pip install "ncp-rl[{extra}]"' in found[name], (name, found[name])


def test_each_command_names_its_extra() -> None:
    """Where the command itself and the core are there."""
    commands = {
        "record runs/a --out a.mcap": "record",
        "verify a.mcap": "record",
        "replay a.mcap": "record",
        "convert a.mcap --parquet a": "record",
        "keygen a.pem": "record",
        "teach clone a.mcap --out b --env A-v0": "record",
        "audit a.mcap": "audit",
        "export runs/a --out b": "export",
        "monitor fit a.mcap --out b": "export",
        "monitor check a.mcap --monitor b": "export",
        "monitor run a --monitor b": "export",
        "evaluate runs/a --video b": "video",
        "bench --parts recording --seconds 0": "record",
        "sweep --envs A-v0 --out b": "ray",
        "train --rllib-runners 2 --out b": "rllib",
    }
    found = without(
        names("plot", "record", "audit", "envs", "export", "ray", "rllib", "minari", "video", "bench"),
        f"""
import contextlib, io
from ncp_rl.cli import main
said = {{}}
for command in {list(commands)!r}:
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(io.StringIO()):
        said[command] = [main(command.split()), err.getvalue()]
with contextlib.redirect_stdout(io.StringIO()) as out:
    said["envs"] = [main(["envs"]), ""]
said["envs"][1] = out.getvalue()
print(json.dumps(said))
""",
    )
    status, listed = found.pop("envs")
    assert status == 0 and "ncp/HopperNoVel-v5" in listed and 'pip install "ncp-rl[mujoco]"' in listed
    assert found.keys() == commands.keys()
    for command, extra in commands.items():
        status, said = found[command]
        assert status == 2 and f'pip install "ncp-rl[{extra}]"' in said.splitlines()[-1], (command, said)
    assert "left out: The comparison with ncps needs ncps" in found["bench --parts recording --seconds 0"][1]


def test_the_message_names_all_that_is_missing() -> None:
    with pytest.raises(MissingExtraError) as error:
        require("audit", "numpy", "no_such_module", "nor_this", by="The audit")
    assert str(error.value) == (
        'The audit needs no_such_module, nor_this, which are not installed; run: pip install "ncp-rl[audit]"'
    )


def test_the_import_takes_no_plotting_along() -> None:
    found = without(
        [],
        """
from ncp_rl import NCPPolicy, Wiring
names = ("matplotlib.pyplot", "networkx", "sklearn", "mcap", "tyro")
print(json.dumps([name for name in names if name in sys.modules]))
""",
    )
    assert found == []
