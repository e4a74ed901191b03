"""Recordings longer than `Plan.max_steps`: every step is checked, statistics are of some episodes, in flat memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from ncp_rl.audit import Audit, Plan, Subject, audit_recording, write_report
from ncp_rl.audit.question import Evidence
from ncp_rl.audit.questions.explain import explain_all
from ncp_rl.recording import Recording, record_rollouts
from tests.audit.episodes import pendulum, small_model

N_EPISODES, N_STEPS = 24, 50


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    venv = pendulum(4, N_STEPS)
    path = tmp_path_factory.mktemp("long") / "long.mcap"
    return record_rollouts(small_model(venv), venv, path, n_episodes=N_EPISODES, progress_bar=False)


@pytest.fixture(scope="module")
def whole(path: Path) -> Subject:
    return audit_recording(Recording.open(path), "whole", Plan(alpha=0.5))


@pytest.fixture(scope="module")
def sampled(path: Path) -> Subject:
    return audit_recording(Recording.open(path), "sampled", Plan(alpha=0.5, max_steps=5 * N_STEPS))


def test_every_step_is_checked_whatever_is_held_in_memory(whole: Subject, sampled: Subject) -> None:
    assert len(whole.episodes) == N_EPISODES and len(sampled.episodes) == 5 and sampled.episodes[0].index == 0
    assert len({episode.env_index for episode in sampled.episodes}) > 1
    for name in ("chain", "replay", "explain"):
        assert sampled.answers[name] == whole.answers[name]
    assert len(sampled.answers["explain"].strongest) == N_EPISODES
    for name in ("seen_actions", "seen_potentials"):
        ours, all_steps = (getattr(subject.answers["certificate"], name) for subject in (sampled, whole))
        np.testing.assert_array_equal(ours, all_steps)
    for name in ("tau_low", "tau_high", "low", "high"):
        ours, all_steps = (getattr(subject.answers["dynamics"], name) for subject in (sampled, whole))
        np.testing.assert_array_equal(ours, all_steps)
    assert not np.array_equal(sampled.answers["dynamics"].mean, whole.answers["dynamics"].mean)


def test_it_is_told_that_statistics_are_of_some_episodes(whole: Subject, sampled: Subject, tmp_path: Path) -> None:
    assert not whole.sampled
    sentence = "its statistics are of 5 episodes, drawn at random, with 250 steps together."
    assert sentence in sampled.sampled
    lines = Audit((sampled,)).lines()
    assert lines[0] == f"sampled: {N_EPISODES} episodes" and sampled.sampled in lines
    (told,) = Audit((sampled,)).to_dict()["subjects"]
    counts = (told["n_episodes"], told["n_steps"], told["n_sampled_episodes"])
    assert counts == (N_EPISODES, N_EPISODES * N_STEPS, 5)
    page = write_report(Audit((sampled,)), tmp_path / "report.html").read_text()
    assert sentence in page and f"{N_EPISODES} episodes, {N_EPISODES * N_STEPS} steps" in page


def test_the_first_episode_is_held_however_long(path: Path) -> None:
    subject = audit_recording(Recording.open(path), "one", Plan(max_steps=1))
    assert [episode.index for episode in subject.episodes] == [0]
    assert "trees" in subject.skipped and "monitor" in subject.skipped
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        Plan(max_steps=0)


def test_episodes_are_read_one_at_a_time(path: Path) -> None:
    """Four times the episodes take the memory of one more, not four times as much."""
    recording = Recording.open(path)
    evidence = Evidence(recording, (recording[0],))
    list(evidence.every_episode())  # The file's chunks are kept from here on.

    def peak(n_episodes: int) -> int:
        tracemalloc.start()
        try:
            explain_all(recording.circuit, (e for e in evidence.every_episode() if e.index < n_episodes))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(1)
    assert peak(N_EPISODES) < 1.5 * peak(N_EPISODES // 4)


def test_steps_are_explained_in_parts_with_the_same_sums(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = Recording.open(path)
    at_once = explain_all(recording.circuit, [recording[0], recording[1]])
    monkeypatch.setattr("ncp_rl.audit.questions.explain._STEPS", 7)
    assert explain_all(recording.circuit, [recording[0], recording[1]]) == at_once
    assert f"at {recording[0].time[0]:.2f} s" not in at_once.sentence
