"""The scripts that show what scale costs, for a short while and on few recordings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ncp_rl.audit.fleet import Row
from ncp_rl.tables import read_rows
from scripts import fleet, soak


def test_a_soak_loses_no_step_and_reports_the_slope_of_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "soak.json"
    assert soak.main(soak.Args(minutes=0.05, cars=8, hertz=0, out=out, folder=tmp_path)) == 0
    found = json.loads(out.read_text())
    assert found["steps_recorded"] == found["steps_taken"] > 8 * 20 and found["steps_taken"] % 8 == 0
    assert found["episodes_ended"] > 0 and found["intact"] and found["mib_at_the_end"] > 50
    assert "0 not recorded" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == [out]


def test_the_slope_is_that_of_a_line_after_the_warm_up() -> None:
    """2 MiB an hour, after memory has risen by 100 MiB in the warm-up."""
    samples = [(s, int((200 + 2 * s / 3600 - (100 if s < 300 else 0)) * 2**20)) for s in range(0, 3600, 10)]
    found = soak.slope([(float(s), n) for s, n in samples])
    assert found["slope_mib_per_hour"] == pytest.approx(2.0, abs=0.01) and found["slope_standard_error"] < 0.01
    assert found["mib_at_the_beginning"] == 100.0 and found["mib_at_the_end"] == pytest.approx(202.0, abs=0.1)


def test_a_fleet_is_recorded_broken_and_audited(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "fleet", tmp_path / "fleet.json"
    arguments = fleet.Args(recordings=2, folder=folder, out=out, audit=("--fail-on", "chain", "--no-progress-bar"))
    assert fleet.main(arguments) == 0
    found = json.loads(out.read_text())
    assert found["recordings"] == 5 and found["steps"] > 4 * 200
    # Half of a recording has episodes or none, as fast as the machine wrote it.
    broken = ["broken_changed.mcap", "broken_cut.mcap", "broken_text.mcap"]
    assert sorted(found["unreadable"] + found["failed"]) == broken
    assert found["parent_peak_mib"] > 50 and found["worker_peak_mib"] > 50
    first = folder / "recordings" / "flight_0001.mcap"
    before = first.stat().st_mtime_ns
    capsys.readouterr()
    assert fleet.main(arguments) == 0  # Nothing is left to record or to audit.
    assert first.stat().st_mtime_ns == before
    assert len(read_rows(folder / "audits" / "fleet.csv", Row)) == 5
