"""What a camera policy looks at: asked where images are observed, and where it can be answered."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch

from ncp_rl.audit import Audit, Plan, audit_recording, audit_sources
from ncp_rl.audit.questions.gaze import NOISE, Gaze
from ncp_rl.audit.report import write_report
from ncp_rl.audit.schema import audit_schema
from ncp_rl.recording import Recording
from ncp_rl.runs import RunConfig, train
from ncp_rl.vision import visual_back_prop
from tests.audit.test_report import Tab, chromium, tab  # noqa: F401  (fixtures)

#: Few short episodes, for which the monitor would want more.
FEW = Plan(n_episodes=2, images=True, max_episode_steps=12)


def trained(folder: Path, head: str) -> Path:
    """A run folder of a camera driver that has learned next to nothing."""
    kwargs = dict(features_extractor_class=head, wiring=dict(units=12))
    if head.endswith("NatureCNN"):
        kwargs["features_extractor_kwargs"] = dict(features_dim=8)
    found = dict(n_envs=2, n_steps=8, batch_size=16, n_epochs=1, n_timesteps=16, policy_kwargs=kwargs)
    found |= dict(policy="CnnNCPPolicy", env_kwargs=dict(rows=[16, 48], pool=2) if "ConvHead" in head else {})
    config = RunConfig("ncp/LaneKeepingCamera-v0", found, max_episode_steps=12)
    train(config, folder, n_evaluations=1, n_eval_episodes=1, progress_bar=False)
    return folder


@pytest.fixture(scope="module")
def audited(tmp_path_factory: pytest.TempPathFactory) -> tuple[Audit, Path]:
    folder = tmp_path_factory.mktemp("gaze")
    return audit_sources([trained(folder / "run", "ncp_rl.vision.ConvHead")], folder / "out", FEW), folder / "out"


def test_maps_and_their_similarity_under_noise_are_told(audited: tuple[Audit, Path]) -> None:
    audit, out = audited
    answer = audit.subjects[0].answers["gaze"]
    assert answer.pictures.shape == (8, 16, 80, 3)
    assert answer.steps.tolist() == [0, 1, 3, 4, 6, 7, 9, 11]
    assert (np.diff(answer.similarity) < 0.02).all() and 0.9 < answer.similarity[0] <= 1.0
    written = json.loads((out / "audit.json").read_text())
    jsonschema.validate(written, audit_schema())
    assert written["subjects"][0]["gaze"]["noise"] == list(NOISE)
    replayed = next(verdict for verdict in audit.subjects[0].verdicts if verdict.check == "replay")
    assert replayed.passed and "sensory inputs" in replayed.sentence  # From the recorded pixels on.


def test_the_report_shows_them(tab: Tab, audited: tuple[Audit, Path], tmp_path: Path) -> None:  # noqa: F811
    page = tab.open(write_report(audited[0], tmp_path / "report.html"))
    images = page.locator("#gaze img")
    assert images.count() == 8
    assert images.first.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [80, 16]
    assert images.first.evaluate("image => image.getBoundingClientRect().width") > 150
    assert page.locator("nav a[href='#gaze']").inner_text() == "Gaze"
    # In the player, at every instant, beside what was rendered.
    environment, gaze = (page.locator(f".picture[data-kind={kind}]") for kind in ("environment", "gaze"))
    seen = set()
    for step in range(12):
        page.locator("#slider").fill(str(step))
        assert gaze.locator("figcaption").inner_text() == f"what it looks at, {0.05 * (step + 1):.2f} s"
        seen.add(gaze.locator("img").get_attribute("src"))
    assert len(seen) == 12 and environment.is_visible()
    assert gaze.locator("img").evaluate("image => [image.naturalWidth, image.naturalHeight]") == [80, 16]


def test_a_drawing_is_light_where_the_map_is_and_dark_elsewhere(audited: tuple[Audit, Path]) -> None:
    subject = audited[0].subjects[0]
    gaze: Gaze = subject.answers["gaze"]
    images = np.asarray(subject.recording.observations(subject.episodes[1]))
    for given in (images, np.moveaxis(images, -1, 1)):
        drawn = gaze.draw(given)
        maps = visual_back_prop(gaze.head, torch.from_numpy(np.moveaxis(images, -1, 1) / np.float32(255))).numpy()
        np.testing.assert_allclose(drawn[maps > 0.999].mean(0), [255, 190, 60], atol=1)
        dark = maps < 1e-3
        np.testing.assert_allclose(drawn[dark][:, 0], 0.55 * images[dark].mean(-1), atol=1.5)


def test_where_there_is_no_answer_it_says_why(audited: tuple[Audit, Path], tmp_path: Path) -> None:
    recording = Recording.open(audited[1] / "run.mcap")
    assert "does not hold: audit its run folder" in audit_recording(recording, "a").skipped["gaze"]
    unseen = audit_sources([audited[1].parent / "run"], tmp_path / "out", Plan(n_episodes=2, max_episode_steps=12))
    assert "were not recorded; audit with --images" in unseen.subjects[0].skipped["gaze"]
    other = trained(tmp_path / "run", "stable_baselines3.common.torch_layers.NatureCNN")
    found = audit_sources([other], tmp_path / "other", FEW)
    assert found.subjects[0].skipped["gaze"].endswith("the policy's encoder is NatureCNN.")
