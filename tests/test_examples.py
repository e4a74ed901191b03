"""Examples run, and come to what they say; `deploy.py` is tested with the exports that it runs."""

from __future__ import annotations

import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """Examples set the number of threads."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def example(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    return main


def test_the_cell_alone_learns_a_sine(capsys: pytest.CaptureFixture[str]) -> None:
    assert example("sine")(seed=0, n_steps=400) < 0.003
    assert "step 300" in capsys.readouterr().out


def test_a_training_is_recorded_audited_and_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("train_and_audit")(tmp_path / "out", timesteps=2048, n_episodes=16)
    printed = capsys.readouterr().out
    assert "pass  chain" in printed and "pass  replay" in printed and "push_left" in printed
    assert (tmp_path / "out" / "report.html").exists()
    example("explain_decision")(tmp_path / "out" / "flight.mcap", episode=1, step=-1, action=1, n_back=5)
    together = next(line for line in capsys.readouterr().out.splitlines() if "all together" in line)
    explained, recorded = (float(part.split()[-1]) for part in together.split(","))
    assert explained == pytest.approx(recorded, abs=2e-4)


def test_a_circuit_is_taught(capsys: pytest.CaptureFixture[str]) -> None:
    taught = example("teach")(n_rounds=3, n_steps=400, n_epochs=10, n_episodes=16)
    assert "round 1: the instructor drove 30%" in capsys.readouterr().out
    assert taught > 300  # A wheel that is held straight returns 17.
