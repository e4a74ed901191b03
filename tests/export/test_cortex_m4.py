"""The C code on a Cortex-M4F, as QEMU has it: the numbers of this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ncp_rl.export import to_c
from ncp_rl.export.toolchain import GO_ON, RESET, build_cortex_m4, build_here, missing_cross_tools
from tests.export.policies import VECTORS, flat, make_model, predicted

pytestmark = pytest.mark.skipif(bool(missing_cross_tools()), reason=missing_cross_tools())


@pytest.mark.parametrize("name", ["timed dict", "squashed", "several discrete", "dense"])
def test_the_chip_gives_the_numbers_of_predict_and_of_this_machine(name: str, tmp_path: Path) -> None:
    model, venv = make_model(VECTORS[name])
    folder = to_c(model, tmp_path / "c")
    steps = predicted(model, venv, 200)
    description = json.loads((folder / "controller.json").read_text())
    observation = np.stack([flat(one, description) for one in steps.observations])
    observation[50, 0] = np.nan
    begin = np.where(steps.starts, RESET, GO_ON)
    for build in ("chip", "here"):
        (tmp_path / build).mkdir()
    program, size = build_cortex_m4(folder, tmp_path / "chip")
    found, printed = program.run(begin, steps.seconds, observation)
    here, _ = build_here(folder, tmp_path / "here").run(begin, steps.seconds, observation)
    np.testing.assert_allclose(found.potentials[:50], steps.potentials[:50], rtol=0, atol=1e-5)
    assert found.held.tolist() == [t == 50 for t in range(200)]
    # The code's own arithmetic is IEEE 754 throughout: the same bits.
    for one, other in zip(found, here, strict=True):
        np.testing.assert_array_equal(one, other)
    instructions = float(printed.split()[1])
    assert 1_000 < instructions < 1_000_000
    assert 1_000 < size.flash < 50_000 and program.state_bytes < size.ram < 10_000
