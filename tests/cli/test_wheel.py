"""What pip installs: the wheel is built, installed into an environment of its own, and its commands are run there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Runs command lines in one process, since each would import torch; prints status and output of each as JSON.
SESSION = """
import contextlib, io, json, sys
from ncp_rl.cli import main
found = []
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(command)
    found.append([status, out.getvalue(), err.getvalue()])
print(json.dumps(found))
"""


def clean_environment() -> dict[str, str]:
    """Without the paths through which the checkout would be imported."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network: hatchling is one of the packages that tests need."""
    folder = tmp_path_factory.mktemp("wheel")
    how = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *how, str(ROOT)], check=True, timeout=120)
    (built,) = folder.glob("ncp_rl-*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of a new environment that has the wheel; all else it finds where these tests do."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    how = ["--no-deps", "--no-index", "--quiet", "--no-compile"]
    subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", *how, str(wheel)], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    # Files .pth of a folder that is named in one are not read, so that an editable ncp_rl stays unseen.
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))
    return python


def run(python: Path, *command: str, cwd: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(python.parent / command[0]), *command[1:]],
        cwd=cwd,
        env=clean_environment(),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=900,  # Only what hangs takes so long, on a busy machine too.
        check=False,
    )


def test_the_wheel_holds_what_is_needed_and_no_more(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        (metadata,) = (archive.read(name).decode() for name in names if name.endswith("METADATA"))
    for path in (ROOT / "hyperparams").iterdir():
        assert f"ncp_rl/hyperparams/{path.name}" in names
    for name in ("ncp_rl/py.typed", "ncp_rl/cli/train.py", "ncp_envs/__init__.py", "ncp_rl/audit/report/page.js"):
        assert name in names
    assert "ncp_rl/export/templates/controller.c.jinja" in names and "ncp_rl/export/cortex_m4/board.c" in names
    assert {name.partition("/")[0] for name in names if ".dist-info" not in name} == {"ncp_rl", "ncp_envs"}
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    packages = {line.split()[1].partition(">")[0] for line in needed}
    assert packages == {"gymnasium", "numba", "numpy", "sb3-contrib", "stable-baselines3", "torch"}


def test_everything_comes_from_the_wheel(python: Path, tmp_path: Path) -> None:
    script = """
import ncp_envs, ncp_rl
from importlib.metadata import version
from ncp_rl.runs import tuned_file
print(ncp_rl.__file__, ncp_envs.__file__, tuned_file(), sep="\\n")
assert ncp_rl.__version__ == version("ncp-rl")
"""
    done = run(python, "python", "-c", script, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    *modules, settings = done.stdout.split()
    for path in (*modules, settings):
        assert path.startswith(f"{python.parents[1]}{os.sep}"), path
    assert Path(settings).read_bytes() == (ROOT / "hyperparams" / "ncp_ppo.yml").read_bytes()


def test_commands_of_a_fresh_environment(python: Path, tmp_path: Path) -> None:
    """From an empty folder to a trained, recorded, verified, audited, watched and deployed policy."""
    done = run(python, "ncp-rl", "--version", cwd=tmp_path)
    assert done.stdout.startswith("ncp-rl ") and run(python, "python", "-m", "ncp_rl", "--version", cwd=tmp_path)
    few = ["--timesteps", "512", "--n-envs", "2", "--units", "12", "--eval-episodes", "1", "--final-episodes", "2"]
    quiet, taught = "--no-progress-bar", ["--env", "ncp/PendulumNoVel-v1", "--lessons.n-epochs", "1", "--out", "taught"]
    audited = ["--episodes", "3", "--alpha", "0.5", "--disturbances", "--faults", "--fail-on", "chain", "replay"]
    session: list[tuple[list[str], int, str]] = [
        (["train", *few, quiet, "--out", "run"], 0, "run folder: run"),
        (["evaluate", "run", "--episodes", "2"], 0, "over 2 episodes"),
        (["keygen", "key.pem"], 0, "key.pub.pem"),
        (["record", "run", "--out", "a.mcap", "--episodes", "10", "--sign", "key.pem", quiet], 0, "2000 steps"),
        (["verify", "a.mcap", "--public-key", "key.pub.pem"], 0, "signature valid"),
        (["replay", "a.mcap", "--run", "run", "--env"], 0, "the rollout run again"),
        (["convert", "a.mcap", "--parquet", "a.parquet"], 0, "a.parquet"),
        (["export", "run", "--out", "controller", "--to", "numpy"], 0, "controller.json"),
        (["replay", "a.mcap", "--deployed", "controller/controller.json"], 0, "does what was recorded"),
        (["audit", "run", "--out", "audit", *audited, quiet], 0, "report: audit/report.html"),
        (["monitor", "fit", "a.mcap", "--out", "controller", "--alpha", "0.2"], 0, "monitor.json"),
        (["monitor", "check", "a.mcap", "--monitor", "controller/monitor.json"], 0, "of 10 episodes raised an alarm"),
        (["teach", "clone", "a.mcap", "--final-episodes", "2", quiet, *taught], 0, "run folder: taught"),
        (["evaluate", "nothing"], 2, "error: nothing is no run folder"),
    ]
    stdin = json.dumps([command for command, *_ in session])
    done = run(python, "python", "-c", SESSION, cwd=tmp_path, stdin=stdin)
    assert done.returncode == 0, done.stderr
    for (command, status, said), (got, out, err) in zip(session, json.loads(done.stdout), strict=True):
        assert said in out + err and "Traceback" not in err, (command, out, err)
        # Few episodes may raise an alarm where all is well, which is what alpha says.
        assert got == status or (command[:2] == ["monitor", "check"] and got == 1), (command, out, err)
    # The tuned settings of the wheel were found.
    assert json.loads((tmp_path / "run" / "config.json").read_text())["hyperparams"]["gamma"] == 0.9
    data = bytearray((tmp_path / "a.mcap").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "a.mcap").write_bytes(data)
    done = run(python, "ncp-rl", "verify", "a.mcap", cwd=tmp_path)
    assert done.returncode == 1 and "damaged" in done.stdout
