"""Audits of a folder of recordings: one table, worst first; damaged files end nothing; what was interrupted goes on."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ncp_rl.audit.fleet import Row, audit_fleet
from ncp_rl.audit.plan import Plan
from ncp_rl.cli import main
from ncp_rl.recording import record_rollouts
from ncp_rl.runs import RunError
from ncp_rl.tables import read_rows
from tests.recording.recordings import pendulum

POOL = """
import multiprocessing, os, time
from concurrent.futures import ProcessPoolExecutor
from ncp_rl.audit.workers import begin_worker
if __name__ == "__main__":
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), begin_worker) as pool:
        print(pool.submit(os.getpid).result(), flush=True)
        pool.submit(time.sleep, 600).result()
"""
CONDITIONS = ("chain", "replay", "certificate")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three whole recordings, one in a folder named like another, one that was tampered with, and one that is none."""
    folder = tmp_path_factory.mktemp("fleet") / "flights"
    (folder / "monday").mkdir(parents=True)
    model, venv = pendulum(2)
    record_rollouts(model, venv, folder / "a.mcap", n_episodes=4, seed=1)
    shutil.copy(folder / "a.mcap", folder / "monday" / "b & <i>c.mcap")
    data = bytearray((folder / "a.mcap").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "tampered.mcap").write_bytes(data)
    (folder / "none.mcap").write_text("no recording")
    (folder / "a").mkdir()
    shutil.copy(folder / "a.mcap", folder / "a" / "z.mcap")
    return folder


@pytest.fixture(scope="module")
def audited(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Row], Path]:
    out = tmp_path_factory.mktemp("audits") / "out"
    return audit_fleet(fleet, out, Plan(), conditions=CONDITIONS, n_processes=2), out


def test_each_recording_has_a_row_and_the_worst_come_first(audited: tuple[list[Row], Path]) -> None:
    rows, out = audited
    assert {row.recording for row in rows[:2]} == {"none.mcap", "tampered.mcap"} and all(row.bad for row in rows[:2])
    assert [row.recording for row in rows[2:]] == ["a.mcap", "a/z.mcap", "monday/b & <i>c.mcap"]
    for row in rows[2:]:
        assert not row.bad and not row.failed and row.n_episodes == 4 and row.n_steps == 4 * 200
        assert row.peak_mib > 50
    assert [row.recording for row in read_rows(out / "fleet.csv", Row)] == [row.recording for row in rows]


def test_rows_lead_to_single_reports_and_names_are_text(audited: tuple[list[Row], Path]) -> None:
    rows, out = audited
    page = (out / "index.html").read_text()
    for row in rows:
        assert not row.report or (out / row.report).read_text().startswith("<!doctype html>")
    assert '<a href="reports/a.mcap/report.html">a.mcap</a>' in page
    assert "<i>" not in page and "b &amp; &lt;i&gt;c.mcap" in page
    assert 'href="reports/monday/b%20%26%20%3Ci%3Ec.mcap/report.html"' in page
    assert "2 of them fail" in page


def test_an_audit_that_was_interrupted_goes_on(fleet: Path, audited: tuple[list[Row], Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(audited[1], out)
    table = out / "fleet.csv"
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith("a.mcap")))
    (out / "reports" / "a.mcap" / "report.html").unlink()
    other = out / "reports" / "monday" / "b & <i>c.mcap" / "report.html"
    before = other.stat().st_mtime_ns
    rows = audit_fleet(fleet, out, Plan(), conditions=CONDITIONS)
    assert [row.recording for row in rows] == [row.recording for row in audited[0]]
    assert (out / "reports" / "a.mcap" / "report.html").exists() and other.stat().st_mtime_ns == before


def test_the_command_audits_a_folder(
    fleet: Path, audited: tuple[list[Row], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--fail-on", *CONDITIONS, "--no-progress-bar"]
    assert main(["audit", str(fleet), "--out", str(audited[1]), *arguments]) == 1
    said = capsys.readouterr().out
    assert "2 of 5 recordings fail; 2,400 steps, at most" in said or "2 of 5 recordings fail; 3,200 steps" in said
    assert f"page: {audited[1] / 'index.html'}" in said


def test_recordings_of_a_folder_are_not_asked_about_their_circuit_alone(fleet: Path, tmp_path: Path) -> None:
    arguments = ["audit", str(fleet / "monday"), "--out", str(tmp_path / "out"), "--no-progress-bar"]
    assert main(arguments) == 0
    (written,) = (tmp_path / "out" / "reports").glob("*/audit.json")
    (subject,) = json.loads(written.read_text())["subjects"]
    left_out = {name for name, why in subject["skipped"].items() if why == "It was left out by choice."}
    assert left_out == {"sensitivity", "trees", "ablation"}
    assert main([*arguments[:3], str(tmp_path / "few"), "--questions", "chain", "--no-progress-bar"]) == 0
    (few,) = (tmp_path / "few" / "reports").glob("*/audit.json")
    assert [verdict["check"] for verdict in json.loads(few.read_text())["subjects"][0]["verdicts"]] == ["chain"]
    assert main([*arguments[:3], str(tmp_path / "none"), "--questions", "change"]) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="it looks into /proc")
def test_processes_end_with_the_audit_that_started_them() -> None:
    """Which was killed, so that it could not end them."""
    with subprocess.Popen(
        [sys.executable, "-c", POOL], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        worker = Path(f"/proc/{int(process.stdout.readline())}")
        assert worker.exists()
        process.kill()
    deadline = time.monotonic() + 60
    while worker.exists() and "Z" not in (worker / "stat").read_text().rpartition(")")[2]:
        assert time.monotonic() < deadline, "It waits for work that nobody will give it."
        time.sleep(0.1)


def test_what_cannot_be_audited_is_told(fleet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds a recording"):
        audit_fleet(tmp_path / "empty", tmp_path / "out", conditions=CONDITIONS)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    with pytest.raises(RunError, match="is left as it is"):
        audit_fleet(fleet, tmp_path / "full", conditions=CONDITIONS)
    with pytest.raises(ValueError, match="asks for what no recording is asked; there are ablation, certificate"):
        audit_fleet(fleet, tmp_path / "out", conditions=["perturbation.loss>0.3"])
    assert main(["audit", str(fleet), "--out", str(tmp_path / "out"), "--deployed", "controller"]) == 2
    assert "--deployed names the export of one policy" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
