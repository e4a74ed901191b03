"""Compiled kernels are kept, found again, and never outlive their sources."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import pytest
from numba.core import caching

from ncp_rl import jit
from ncp_rl.jit import kernel
from ncp_rl.kernels.numba import sources
from ncp_rl.kernels.numba.backward import backward_kernel
from ncp_rl.kernels.numba.forward import forward_kernel
from ncp_rl.kernels.numba.tables import fill_kernel
from ncp_rl.kernels.numba.vectors import WIDTHS


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path))


def announcement(capsys: pytest.CaptureFixture[str], sources: str = "") -> str:
    """What a fresh process would print while it compiles and calls a kernel."""

    def add_one(x: int) -> int:
        return x + 1

    jit.announce_compilation.cache_clear()
    assert kernel(add_one, sources=sources)(1) == 2
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


def test_edited_sources_are_compiled_again(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    callee = tmp_path / "callee.py"
    for source, compiled in (("y = 1", True), ("y = 2", True), ("y = 1", False)):
        callee.write_text(source)
        assert ("compiling" in announcement(capsys, jit.digest_of([callee]))) == compiled


def test_an_edited_kernel_from_elsewhere_is_compiled_again(tmp_path: Path) -> None:
    """Not even an edit that keeps the file's size and time, which is all that Numba looks at."""
    module, found = tmp_path / "elsewhere.py", []
    environment = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path / "cache"), PYTHONPATH=os.pathsep.join(sys.path))
    for amount in (1, 2):
        module.write_text(f"from ncp_rl.jit import kernel\nprint(kernel(lambda x: x + {amount})(40))\n")
        os.utime(module, (0, 0))
        done = subprocess.run([sys.executable, module], env=environment, check=True, stdout=subprocess.PIPE, text=True)
        found.append(done.stdout)
    assert found == ["41\n", "42\n"]


def imports_of(path: Path) -> set[str]:
    """Modules of this library that a file imports."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    return {
        f"ncp_rl.{alias.name}" if node.module == "ncp_rl" else str(node.module)
        for node in nodes
        for alias in node.names
        if str(node.module).split(".")[0] == "ncp_rl"
    }


def test_the_scan_is_compiled_from_no_other_files_than_its_digest_covers() -> None:
    modules = {f"ncp_rl.kernels.numba.{path.stem}" for path in Path(sources.__file__).parent.glob("*.py")}
    assert {f"ncp_rl.kernels.numba.{path.stem}" for path in sources.SOURCES[1:]} == modules and len(modules) >= 10
    # The first two are in every digest; the others run in Python alone.
    others = {"ncp_rl.jit", "ncp_rl.kernels.contract", "ncp_rl.kernels.threads", "ncp_rl.synapses"}
    assert set().union(*map(imports_of, sources.SOURCES)) <= modules | others


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("factory", [forward_kernel, backward_kernel, fill_kernel])
def test_kernels_of_the_scan_carry_its_digest(factory: Callable[[int], Any], width: int) -> None:
    assert sources.DIGEST in factory(width).py_func.__qualname__


def test_runs_where_nothing_can_be_written(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object) -> None:
        raise PermissionError

    monkeypatch.setattr(caching._CacheLocator, "ensure_cache_path", refuse)
    assert "compiling" in announcement(capsys)
    assert "compiling" in announcement(capsys)


def test_processes_may_compile_at_once(tmp_path: Path) -> None:
    module = tmp_path / "worker.py"
    module.write_text("from ncp_rl.jit import kernel\nprint(kernel(lambda x: x + 1)(41))\n")
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
