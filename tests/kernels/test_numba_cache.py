"""Compiled kernels are kept, found again, and never outlive their sources."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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


def test_variants_never_share_an_index(tmp_path: Path) -> None:
    """Processes that write one index at once could pair the key of one variant with the code of another."""

    def adder(amount: int) -> Callable[[int], int]:
        def add(x: int) -> int:
            return x + amount

        return kernel(add, variant=amount)  # type: ignore[no-any-return]

    assert [adder(amount)(1) for amount in (1, 2, 1, 2)] == [2, 3, 2, 3]
    assert len(list(tmp_path.rglob("*.nbi"))) == 2
    assert all(path.name.endswith(".1.nbc") for path in tmp_path.rglob("*.nbc"))


def test_edited_sources_are_compiled_again(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    announcement(capsys)
    monkeypatch.setattr(numba_cache, "sources_digest", lambda: "edited")
    assert "compiling" in announcement(capsys)


def test_an_edited_kernel_from_elsewhere_is_compiled_again(tmp_path: Path) -> None:
    """Not even an edit that keeps the file's size and time, which is all that Numba looks at."""
    module, found = tmp_path / "elsewhere.py", []
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=os.pathsep.join(sys.path))
    for amount in (1, 2):
        module.write_text(f"from ncp_rl.kernels.numba_cache import kernel\nprint(kernel(lambda x: x + {amount})(40))\n")
        os.utime(module, (0, 0))
        done = subprocess.run([sys.executable, module], env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found.append(done.stdout)
    assert found == ["41\n", "42\n"]


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


def test_kernels_compiled_apart_run_together(tmp_path: Path) -> None:
    """Blocks of eight and of sixteen sequences, each compiled by a process of its own, taken from the cache by a third.

    Their helpers must not share symbols: the linker would let one serve both.
    """
    module = tmp_path / "worker.py"
    module.write_text(
        "import sys, torch\n"
        "from ncp_rl import LTC, AutoNCP\n"
        "torch.manual_seed(0)\n"
        "ltc = LTC(AutoNCP(16).build(8, 2))\n"
        "for n_sequences in map(int, sys.argv[1:]):\n"
        "    inputs = torch.randn(3, n_sequences, 8)\n"
        "    potentials = []\n"
        "    for ltc.backend in ('numba', 'reference'):\n"
        "        with torch.no_grad():\n"
        "            potentials.append(ltc(inputs)[0])\n"
        "    torch.testing.assert_close(*potentials, atol=2e-6, rtol=0)\n"
    )
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=os.pathsep.join(sys.path))
    for n_sequences in (["16"], ["5"], ["16", "5"]):
        subprocess.run([sys.executable, module, *n_sequences], env=environment, check=True, timeout=120)
