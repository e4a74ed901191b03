"""The table of backends: what is in it is tested and can be asked for, and nothing is imported that is not needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import torch

from ncp_rl.kernels import BACKENDS, Backend
from ncp_rl.kernels.backends import choose, load_backend
from tests.kernels import toy_backend

ROOT = Path(__file__).parents[2]


def run_python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path), **variables)
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def test_type_checkers_know_the_names_of_the_table() -> None:
    assert get_args(Backend) == ("auto", *BACKENDS)


def test_names_that_are_not_in_the_table() -> None:
    with pytest.raises(ValueError, match="one of the fused backends, numba, triton, got 'cuda'"):
        load_backend("cuda")
    with pytest.raises(ValueError, match="one of the fused backends, numba, triton, got 'reference'"):
        load_backend("reference")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_auto_is_the_fused_backend_of_a_device(dtype: torch.dtype, device: str) -> None:
    fused = {"cpu": "numba", "cuda": "triton"}
    expected = fused.get(device, "reference") if dtype is torch.float32 else "reference"
    assert choose("auto", dtype, device).name == expected


def run_toy_tests(error: float) -> str:
    tests = ("test_potentials_and_all_gradients", "test_deterministic")
    paths = [f"tests/kernels/test_scan.py::{test}" for test in tests]
    options = ["-q", "-k", "toy", "-p", toy_backend.__name__, "-p", "no:cacheprovider"]
    return run_python("-m", "pytest", *options, *paths, TOY_ERROR=str(error)).stdout


def test_a_new_backend_is_tested_on_arrival() -> None:
    """One more row runs through the tests of the scan; where it is wrong, those of equality fail and no others."""
    assert "13 passed" in run_toy_tests(0.0)
    wrong = run_toy_tests(1e-3)
    assert "12 failed, 1 passed" in wrong and "test_potentials_and_all_gradients[T1-N1-S4-U5-0.4-toy]" in wrong, wrong


def test_triton_is_not_imported_on_the_cpu() -> None:
    script = """
import sys
import torch
from ncp_rl import LTC, AutoNCP
ltc = LTC(AutoNCP(8).build(3, 1))
ltc(torch.ones(2, 1, 3))[0].sum().backward()
assert "ncp_rl.kernels.numba.backend" in sys.modules
print([name for name in sys.modules if name.startswith(("triton", "ncp_rl.kernels.triton"))])
"""
    done = run_python("-c", script)
    assert done.stdout == "[]\n", done.stderr


def test_missing_triton_names_the_command() -> None:
    script = """
import sys
sys.modules["triton"] = None
from ncp_rl.kernels.backends import load_backend
load_backend("triton")
"""
    done = run_python("-c", script)
    assert "pip install" in done.stderr and 'backend="reference"' in done.stderr
