"""`scripts/gpu_check.py` as far as it goes without a GPU, and the kernels where little else is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from packaging.requirements import Requirement

from scripts import gpu_check

ROOT = Path(__file__).parents[1]
#: What the kernels and their tests need, with what these need.
NEEDED = ("torch", "numpy", "numba", "triton", "pytest")


def passes() -> dict[str, Any]:
    return {"figure": 1.5}


def fails() -> dict[str, Any]:
    raise ValueError("no such kernel")


def dies() -> dict[str, Any]:
    os._exit(7)


def hangs() -> dict[str, Any]:
    import time

    time.sleep(600)
    return {}


def test_parts_fail_alone_and_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gpu.json"
    parts = {"first": fails, "second": dies, "third": passes}
    assert gpu_check.run_parts(parts, {"gpu": "none"}, out, seconds=300) == 1
    written = json.loads(out.read_text())
    assert written["machine"] == {"gpu": "none"}
    assert "ValueError: no such kernel" in written["parts"]["first"]["error"]
    assert "BrokenProcessPool" in written["parts"]["second"]["error"]
    assert written["parts"]["third"]["figure"] == 1.5
    assert "failed: first, second" in capsys.readouterr().out
    assert gpu_check.run_parts({"third": passes}, {}, out, seconds=300) == 0


def test_parts_that_hang_are_given_up() -> None:
    assert gpu_check.run_alone(hangs, seconds=3) == {"error": "given up after 3 s"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_says_so_without_a_gpu(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check.py", "--out", tmp_path / "gpu.json"], cwd=ROOT, capture_output=True,
        text=True, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 2
    assert "finds no CUDA device" in done.stderr and "make gpu-compile" in done.stderr
    assert not (tmp_path / "gpu.json").exists()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What was timed has returned; the clock is CUDA's, and says 2 ms of each."""
    found = []

    def run_once(run: Any) -> float:
        found.append(run())
        return 2.0

    monkeypatch.setattr(gpu_check, "DEVICE", "cpu")
    monkeypatch.setattr(gpu_check, "milliseconds", run_once)
    return found


@pytest.mark.parametrize("resets", [False, True], ids=["whole", "resets"])
def test_contenders_run(monkeypatch: pytest.MonkeyPatch, runs: list[Any], resets: bool) -> None:
    """All but the clock, which is CUDA's, and the GPU's own speed."""
    monkeypatch.setattr(gpu_check, "peak_mebibytes", lambda run: 3.0)
    monkeypatch.setattr(gpu_check, "sigmoids_per_second", lambda: 1e6)
    shape = gpu_check.Shape(units=12, n_inputs=3, n_sequences=2, n_steps=4)
    result = gpu_check.time_scan(shape, torch.rand(4, 2) < 0.5 if resets else None)
    contenders = ["ours", "cudnn_lstm"] if resets else ["ours", "cudnn_lstm", "ncps"]
    assert [name for name in result if name not in ("share_of_ceiling", "times_as_fast_as")] == contenders
    assert len(runs) == 2 * len(contenders)
    evaluations = gpu_check.evaluations(gpu_check.ltc(shape), shape)
    assert result["share_of_ceiling"]["forward"] == pytest.approx(1e3 * evaluations / 1e6 / 2.0)
    assert result["times_as_fast_as"]["cudnn_lstm"] == {"forward_ms": 1.0, "both_ms": 1.0}


def test_a_policys_step_runs(runs: list[Any]) -> None:
    """All but the clock and the capture."""
    result = gpu_check.time_policy(gpu_check.Shape(units=12, n_inputs=3, n_sequences=2, n_steps=1))
    assert result == {"forward_us": 2e3, "usual_us": 2e3, "graph_us": 2e3}
    assert [tuple(run[0].shape) for run in runs] == [(2, gpu_check.N_MOTOR)] * 3


def closure(names: tuple[str, ...]) -> dict[str, Distribution]:
    """The distributions that are needed for these, theirs included, without extras."""
    found: dict[str, Distribution] = {}
    queue = list(names)
    while queue:
        name = queue.pop()
        try:
            here = distribution(name)
        except PackageNotFoundError:
            continue  # Such as CUDA's libraries, for another platform.
        if here.metadata["Name"] not in found:
            found[here.metadata["Name"]] = here
            requirements = map(Requirement, here.requires or ())
            queue += [each.name for each in requirements if each.marker is None or each.marker.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment variables under which nothing is installed but `NEEDED`."""
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("site-packages")
    for needed in closure(NEEDED).values():
        for file in needed.files or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (folder / top).exists():
                (folder / top).symlink_to(Path(str(needed.locate_file(top))))
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run_bare(bare: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # -S leaves site-packages out, as if they were empty.
    return subprocess.run([sys.executable, "-S", *arguments], cwd=ROOT, env=bare, capture_output=True, text=True)


class TestBareEnvironment:
    def test_nothing_else_is_there(self, bare: dict[str, str]) -> None:
        script = """
import importlib.util
names = ("gymnasium", "stable_baselines3", "sb3_contrib", "mcap", "pygame", "matplotlib", "tyro")
print([name for name in names if importlib.util.find_spec(name)])
"""
        assert run_bare(bare, "-c", script).stdout == "[]\n"

    def test_layer_runs(self, bare: dict[str, str]) -> None:
        script = """
import torch
from ncp_rl import LTC, AutoNCP
layer = LTC(AutoNCP(8).build(3, 1), backend="reference")
layer(torch.ones(2, 1, 3))[0].sum().backward()
print(layer.w.grad is not None)
"""
        done = run_bare(bare, "-c", script)
        assert done.stdout == "True\n", done.stderr

    def test_interpreted_kernels_pass(self, bare: dict[str, str]) -> None:
        test = "tests/kernels/test_triton.py::TestInterpreted::test_one_unfold"
        done = run_bare(bare, "-m", "pytest", "-q", "-p", "no:cacheprovider", test)
        assert "1 passed" in done.stdout, done.stdout + done.stderr

    def test_tests_of_the_gpu_are_collected(self, bare: dict[str, str]) -> None:
        done = run_bare(bare, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--collect-only", *gpu_check.TESTS)
        assert done.returncode == 0 and "test_captured_in_a_graph" in done.stdout, done.stdout + done.stderr

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
    def test_check_says_that_there_is_no_gpu(self, bare: dict[str, str]) -> None:
        done = run_bare(bare, "scripts/gpu_check.py")
        assert done.returncode == 2 and "finds no CUDA device" in done.stderr, done.stderr
