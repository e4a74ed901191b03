"""Work on PyTorch's threads and on a pool's: all of it is done, however many there are, and nothing is swallowed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

from ncp_rl.kernels import threads
from ncp_rl.kernels.threads import run_in_threads


@pytest.fixture(params=["openmp", "pool"], autouse=True)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "pool":
        monkeypatch.setattr(threads, "_gomp_parallel", None)
    elif threads._gomp_parallel is None:
        pytest.skip("PyTorch does without OpenMP here")
    return str(request.param)


def test_threads_run_at_once() -> None:
    together = threading.Barrier(3)
    idents = set()

    def task() -> None:
        together.wait(timeout=60)
        idents.add(threading.get_ident())

    for _ in range(3):
        run_in_threads(task, 3)
    assert len(idents) >= 3 and threading.get_ident() in idents


@pytest.mark.parametrize("in_caller", [True, False])
def test_a_failure_is_raised_after_all_have_finished(in_caller: bool) -> None:
    caller, together, finished = threading.get_ident(), threading.Barrier(2), []

    def task() -> None:
        together.wait(timeout=60)
        if (threading.get_ident() == caller) == in_caller:
            raise KeyboardInterrupt("pressed")
        finished.append(1)

    with pytest.raises(KeyboardInterrupt, match="pressed"):
        run_in_threads(task, 2)
    assert finished


def test_pytorch_goes_on_with_its_threads() -> None:
    numbers = torch.arange(1 << 20, dtype=torch.float32)
    before = numbers.sum()
    run_in_threads(lambda: None, torch.get_num_threads())
    assert torch.equal(numbers.sum(), before)


SCRIPT = """
import torch
from ncp_rl.kernels.numba import backend
from tests.kernels.circuits import Sizes, draw_case
torch.set_num_threads(3)
done = []
backend.SIGMOIDS_PER_THREAD = 1
backend._run_blocks(lambda *span: done.append(span), 7, draw_case(Sizes(2, 100, 3, 5)), ())
assert sorted(done) == [(block, block + 1) for block in range(7)], done
"""


def test_fewer_threads_than_asked_for_do_all_the_work(kind: str) -> None:
    if kind == "pool":
        pytest.skip("a pool has as many as it is asked for")
    environment = {"OMP_THREAD_LIMIT": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", SCRIPT], env=environment, check=True, timeout=120)
