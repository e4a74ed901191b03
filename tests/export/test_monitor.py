"""An exported envelope raises the alarms of the audit's, step by step, in C and in NumPy."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from ncp_rl import AutoNCP
from ncp_rl.audit import Envelope, LiveMonitor, fit_box, fit_conformal, fit_mahalanobis, watch
from ncp_rl.export import ExportError, Monitor, monitor_to_c, monitor_to_json, monitor_to_onnx, read_monitor
from ncp_rl.export.toolchain import FLAGS
from ncp_rl.recording import Episode, Recording, record_rollouts
from tests.export.policies import VECTORS, make_model

Fit = Callable[[Any, list[Episode]], Envelope]
FITS: dict[str, Fit] = {
    "box": lambda circuit, episodes: fit_box(circuit, episodes, margin=-0.0),
    "mahalanobis": fit_mahalanobis,
    "conformal": lambda circuit, episodes: fit_conformal(circuit, episodes, alpha=0.4),
    "conformal box": lambda circuit, episodes: fit_conformal(circuit, episodes, alpha=0.4, score="box"),
}

#: Reads U floats a step, after one that is not 0 where an episode starts; writes status, neuron and score.
DRIVER = """
#include "monitor.h"
#include <stdio.h>
int main(void)
{
    static monitor watch;
    float step[1 + MONITOR_N_NEURONS];
    while (fread(step, sizeof step, 1, stdin) == 1u) {
        monitor_status status;
        if (step[0] > 0.5f) {
            monitor_reset(&watch);
        }
        status = monitor_step(&watch, &step[1]);
        printf("%d %u %.17g\\n", (int)status, (unsigned)watch.neuron, watch.score);
    }
    return 0;
}
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    path = tmp_path_factory.mktemp("recordings") / "a.mcap"
    model, venv = make_model(VECTORS["box"], n_envs=2, units=16)
    record_rollouts(model, venv, path, n_episodes=20, progress_bar=False)
    return Recording.open(path)


def faulty(recording: Recording) -> list[Episode]:
    """Some episodes leave the envelope at once, some later, some never, and one holds what is not finite."""
    episodes = list(recording)
    rng = np.random.default_rng(0)
    for i in range(0, 20, 2):
        potentials = episodes[i].potentials + rng.normal(0, 0.2, episodes[i].potentials.shape).astype(np.float32)
        if i == 10:
            potentials[-1, recording.circuit.wiring.command.start] = np.nan
        episodes[i] = replace(episodes[i], potentials=potentials)
    return episodes


@pytest.mark.parametrize("name", FITS)
def test_numpy_raises_the_audits_alarms(name: str, recording: Recording, tmp_path: Path) -> None:
    envelope = FITS[name](recording.circuit, list(recording))
    monitor, live = Monitor.load(monitor_to_json(envelope, tmp_path / "monitor.json")), LiveMonitor(envelope)
    n_alarms = 0
    for episode in faulty(recording):
        for t, potentials in enumerate(episode.potentials):
            raised = monitor.observe(potentials, starts=t == 0, seconds=float(episode.elapsed_time[t]))
            expected = live.observe((potentials[None, None],), np.array([t == 0]), episode.elapsed_time[t : t + 1])
            assert monitor.score == pytest.approx(live.scores[0], rel=1e-12)
            assert (raised is None) == (not expected)
            if raised is not None:
                alarm = expected[0]
                assert raised[:2] == (alarm.episode, alarm.step) and raised.neuron == alarm.neuron
                assert raised.time == pytest.approx(alarm.time)
                n_alarms += 1
    assert 5 < n_alarms < 20 and len(monitor.alarms) == n_alarms


@pytest.mark.parametrize("name", FITS)
def test_onnx_gives_the_audits_scores(name: str, recording: Recording, tmp_path: Path) -> None:
    envelope = FITS[name](recording.circuit, list(recording))
    path = monitor_to_onnx(envelope, tmp_path / "monitor.onnx")
    session, live = onnxruntime.InferenceSession(path), LiveMonitor(envelope)
    named = json.loads(session.get_modelmeta().custom_metadata_map["ncp_rl"])["names"]
    n_alarms = 0
    for episode in faulty(recording):
        steps = np.arange(len(episode))
        scores, outside, neurons = session.run(None, {"potentials": episode.potentials, "step": steps})
        alarmed = False
        for t, potentials in enumerate(episode.potentials):
            expected = live.observe((potentials[None, None],), np.array([t == 0]), episode.elapsed_time[t : t + 1])
            assert scores[t] == pytest.approx(live.scores[0], rel=1e-9)
            assert bool(expected) == (bool(outside[t]) and not alarmed)
            alarmed |= bool(outside[t])
            if expected:
                assert named[neurons[t]] == expected[0].neuron
                n_alarms += 1
    assert 5 < n_alarms < 20
    with pytest.raises(ExportError, match="exists and is left as it is"):
        monitor_to_onnx(envelope, path)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs a C compiler: apt-get install gcc")
@pytest.mark.parametrize("name", FITS)
def test_c_raises_the_audits_alarms(name: str, recording: Recording, tmp_path: Path) -> None:
    envelope = FITS[name](recording.circuit, list(recording))
    monitor_to_c(envelope, tmp_path)
    (tmp_path / "driver.c").write_text(DRIVER)
    sources = [str(tmp_path / code) for code in ("driver.c", "monitor.c")]
    subprocess.run(["gcc", "-std=c99", *FLAGS, *sources, "-o", str(tmp_path / "driver"), "-lm"], check=True)
    if shutil.which("g++"):
        cpp = ["g++", "-std=c++17", "-x", "c++", *FLAGS, "-c", sources[1], "-o", str(tmp_path / "cpp.o")]
        subprocess.run(cpp, check=True)
    width = int(envelope.watched.index.max()) + 1
    live, rows, expected = LiveMonitor(envelope), [], []
    for episode in faulty(recording):
        for t, potentials in enumerate(episode.potentials):
            rows.append(np.concatenate([[t == 0], potentials[:width]]))
            alarms = live.observe((potentials[None, None],), np.array([t == 0]))
            outside = live.scores[0] > envelope.threshold
            expected.append((1 if alarms else 2 if outside else 0, envelope.blame(potentials), live.scores[0]))
    given = np.array(rows, np.float32).tobytes()
    lines = subprocess.run([tmp_path / "driver"], input=given, capture_output=True, check=True).stdout.split(b"\n")
    assert {status for status, _, _ in expected} == {0, 1, 2}
    for line, (status, neuron, score) in zip(lines[:-1], expected, strict=True):
        found, furthest, value = line.split()
        assert int(found) == status and float(value) == pytest.approx(score, rel=1e-12)
        assert not status or envelope.watched.names[int(furthest)] == neuron


@pytest.mark.parametrize("name", FITS)
def test_an_envelope_is_read_again(name: str, recording: Recording, tmp_path: Path) -> None:
    envelope = FITS[name](recording.circuit, list(recording))
    read = read_monitor(monitor_to_json(envelope, tmp_path / "monitor.json"), recording.circuit.wiring)
    assert read.to_dict() == envelope.to_dict() and read.elapsed_time == envelope.elapsed_time
    episodes = faulty(recording)
    for again, first in zip(watch(read, episodes), watch(envelope, episodes), strict=True):
        assert again.alarm == first.alarm and np.array_equal(again.scores, first.scores)


def test_what_is_no_monitor_of_this_circuit_is_refused(recording: Recording, tmp_path: Path) -> None:
    path = monitor_to_json(fit_box(recording.circuit, list(recording)), tmp_path / "monitor.json")
    other = AutoNCP(20).build(recording.circuit.wiring.n_sensory, 1)
    with pytest.raises(ExportError, match="fit a monitor for this circuit"):
        read_monitor(path, other)
    described = json.loads(path.read_text())
    for name, value in (("centre", [1.0]), ("precision", "x"), ("score", "guess"), ("profile", []), ("format", "")):
        path.write_text(json.dumps(described | {name: value}))
        with pytest.raises(ExportError, match=r"cannot be read: .*ncp-rl monitor fit"):
            read_monitor(path, recording.circuit.wiring)
    with pytest.raises(ExportError, match="cannot be read"):
        read_monitor(tmp_path / "none.json", recording.circuit.wiring)


def test_an_envelope_that_never_alarms(recording: Recording, tmp_path: Path) -> None:
    envelope = replace(fit_box(recording.circuit, list(recording)), threshold=np.inf)
    monitor = Monitor.load(monitor_to_json(envelope, tmp_path / "monitor.json"))
    assert monitor.observe(np.full(16, 9, np.float32), starts=True, seconds=0.1) is None and not monitor.outside
    assert "HUGE_VAL" in (monitor_to_c(envelope, tmp_path) / "monitor.c").read_text()
    with pytest.raises(ExportError, match="exists and is left"):
        monitor_to_c(envelope, tmp_path)
