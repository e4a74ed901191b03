"""`Controller` from JSON and ONNX against `predict`: every encoder, every action space, resets, irregular time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from ncp_rl.export import Controller, ControllerError, ExportError, to_numpy, to_onnx
from ncp_rl.export.controller import METADATA, Taken
from tests.export.policies import IMAGES, VECTORS, make_model, predicted

ATOL = 1e-5


def assert_as_predicted(controller: Controller, steps: Any) -> None:
    for t, observation in enumerate(steps.observations):
        if steps.starts[t]:
            controller.reset()
        action = controller.step(observation, steps.seconds[t])
        expected = steps.actions[t]
        assert action.shape == np.shape(expected)
        np.testing.assert_allclose(controller.potentials, steps.potentials[t], rtol=0, atol=ATOL, err_msg=f"step {t}")
        np.testing.assert_allclose(action, expected, rtol=0, atol=ATOL * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("name", VECTORS)
def test_numpy_gives_the_numbers_of_predict(name: str, tmp_path: Path) -> None:
    model, venv = make_model(VECTORS[name])
    controller = Controller.load(to_numpy(model, tmp_path))
    assert_as_predicted(controller, predicted(model, venv, 300))
    assert venv.action_space.contains(controller.action)


@pytest.mark.parametrize("name", [*VECTORS, *IMAGES])
def test_onnx_gives_the_numbers_of_predict_over_a_thousand_steps(name: str, tmp_path: Path) -> None:
    model, venv = make_model((VECTORS | IMAGES)[name])
    path = to_onnx(model, tmp_path / "controller.onnx")
    assert {node.domain for node in onnx.load(str(path)).graph.node} == {""}
    assert_as_predicted(Controller.load(tmp_path), predicted(model, venv, 1000))


@pytest.mark.parametrize("name", ["timed dict", "image"])
def test_the_graph_serves_any_number_of_controllers_and_resets_each(name: str, tmp_path: Path) -> None:
    model, venv = make_model((VECTORS | IMAGES)[name])
    session = onnxruntime.InferenceSession(str(to_onnx(model, tmp_path / "a.onnx")))
    steps = predicted(model, venv, 5)
    described = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    feed: dict[str, Any] = {}
    for part in described["observation"]:
        values = [one if part["key"] is None else one[part["key"]] for one in steps.observations]
        feed["observation" if part["key"] is None else f"observation.{part['key']}"] = np.stack(values)
    state = np.random.default_rng(0).normal(size=(5, 12)).astype(np.float32)
    more = dict(state=state, elapsed_time=steps.seconds.astype(np.float32), reset=np.arange(5) % 2 == 0)
    action, mean, new_state, _ = session.run(None, feed | more)
    for n in range(5):
        alone = {k: v[n : n + 1] for k, v in (feed | more).items()}
        zeroed = dict(state=np.where(more["reset"][n], 0, alone["state"]), reset=np.zeros(1, np.bool_))
        for found, expected in zip((action, mean, new_state), session.run(None, alone | zeroed), strict=False):
            np.testing.assert_allclose(found[n : n + 1], expected, rtol=0, atol=1e-6)


def test_metadata_of_the_graph(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["timed dict"])
    written = onnx.load(str(to_onnx(model, tmp_path / "a.onnx"))).metadata_props
    described = json.loads(next(entry.value for entry in written if entry.key == METADATA))
    numbers = json.loads((to_numpy(model, tmp_path / "n") / "controller.json").read_text())
    assert described == numbers
    assert {"policy_sha256", "wiring", "neuron_names", "sensory_names", "output_names", "seconds"} <= set(described)


def test_bad_readings_are_refused_by_name_and_change_nothing(tmp_path: Path) -> None:
    model, venv = make_model(VECTORS["timed dict"])
    controller = Controller.load(to_numpy(model, tmp_path))
    good = predicted(model, venv, 1).observations[0]
    controller.step(good)
    before, action = controller.potentials.copy(), controller.action.copy()
    for key, value, clause in (
        ("speed", [0, np.nan, 0], r"'speed_1' is nan and must be a finite number"),
        ("speed", [1e39, 0, 0], r"'speed_0' is 1e\+39"),
        ("gear", 4, r"'gear' is 4 and must be a whole number"),
        ("switch", [0, 2], r"'switch_1' is 2"),
        ("elapsed_time", [-1], r"lasts -1 s"),
    ):
        bad = {**good, key: np.array(value, good[key].dtype)}
        controller.on_bad_input = "raise"
        with pytest.raises(ControllerError, match=clause):
            controller.step(bad)
        controller.on_bad_input = "hold"
        np.testing.assert_array_equal(controller.step(bad), action)
        np.testing.assert_array_equal(controller.potentials, before)
        assert controller.problem
    controller.step(good)
    assert not controller.problem


def test_seconds_default_to_what_the_policy_was_trained_with(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["box"])
    controller = Controller.load(to_numpy(model, tmp_path))
    seen: list[Taken] = []
    controller.observers.append(seen.append)
    controller.step(np.zeros(3))
    controller.step([0, 0, 0], 0.3)
    assert [(one.seconds, one.starts) for one in seen] == [(0.1, True), (0.3, False)]
    np.testing.assert_array_equal(seen[1].before, seen[0].potentials)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "synapses": 1}'])
def test_files_that_are_no_controllers(text: str, tmp_path: Path) -> None:
    (tmp_path / "controller.json").write_text(text)
    (tmp_path / "controller.onnx").write_text(text)
    for path in (tmp_path, tmp_path / "controller.onnx", tmp_path / "nothing.json", tmp_path.parent):
        with pytest.raises(ControllerError):
            Controller.load(path)


def test_observations_of_another_shape(tmp_path: Path) -> None:
    model, _ = make_model(VECTORS["timed dict"])
    controller = Controller.load(to_numpy(model, tmp_path))
    with pytest.raises(ControllerError, match="mapping with the key"):
        controller.step(np.zeros(3), 0.1)
    with pytest.raises(ControllerError, match="give the seconds"):
        controller.step({})
    with pytest.raises(ControllerError, match=r"must be of shape \(3,\), got \(2,\)"):
        controller.step(dict(speed=np.zeros(2), gear=0, switch=[0, 0]), 0.1)


def test_an_onnx_file_that_exists_is_left(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").touch()
    with pytest.raises(ExportError, match="exists and is left"):
        to_onnx(make_model(VECTORS["box"])[0], tmp_path / "a.onnx")
