"""Compiled kernels are kept, found again, and never outlive their sources."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numba
import pytest
from numba.core import caching

from ncp_rl.kernels import numba_cache
from ncp_rl.kernels.numba_cache import kernel


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def add_one(x: int) -> int:
    return x + 1


def announcement(capsys: pytest.CaptureFixture[str]) -> str:
    """What a fresh process would print while it compiles and calls a kernel."""
    numba_cache.announce_compilation.cache_clear()
    assert kernel(add_one)(1) == 2
    return capsys.readouterr().err


def test_compiles_once_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert "compiling" in announcement(capsys)
    assert announcement(capsys) == ""


def test_edited_sources_are_compiled_again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    announcement(capsys)
    monkeypatch.setattr(numba_cache, "sources_digest", lambda: "edited")
    assert "compiling" in announcement(capsys)


def test_digest_covers_every_compiled_source() -> None:
    folder = Path(numba_cache.__file__).parent
    assert len(list(folder.glob("numba_*.py"))) >= 5
    assert len(numba_cache.sources_digest()) == 16


def test_runs_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise PermissionError

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    assert "compiling" in announcement(capsys)
    assert "compiling" in announcement(capsys)


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    module = tmp_path / "worker.py"
    module.write_text("from ncp_rl.kernels.numba_cache import kernel\nprint(kernel(lambda x: x + 1)(41))\n")
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=os.pathsep.join(sys.path))
    workers = [
        subprocess.Popen([sys.executable, module], stdout=subprocess.PIPE, env=environment, text=True) for _ in range(3)
    ]
    assert [worker.communicate(timeout=120)[0] for worker in workers] == ["42\n"] * 3
    assert not list(tmp_path.rglob("*.tmp.*"))
