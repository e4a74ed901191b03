"""Trees that must find a rule that is known, figures by hand, and real episodes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from ncp_rl.audit import audit_trees
from ncp_rl.audit.trees import modularity_score, mutual_information_gap, named_quantities
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode
from tests.audit.episodes import built, episode, pendulum, roll_out, small_model

# One motor neuron and two command neurons, 0.1 s a step.
CIRCUIT = built(np.zeros((3, 3)), np.ones((2, 3)), n_motor=1, n_command=2)


def recorded(observation: Any, command: Any, index: int = 0) -> Episode:
    """An episode of two observed quantities (T, 2) and two command neurons (T, 2)."""
    observation, command = np.array(observation, np.float32), np.array(command, np.float32)
    potentials = np.concatenate([np.zeros((len(command), 1), np.float32), command], axis=1)
    arrays = dict(observation=observation, potentials=potentials, sensory=observation)
    return episode(CIRCUIT, index, 0, arrays)


def known(n_episodes: int = 8, seed: int = 0) -> list[Episode]:
    """command_0 is 0.5 where cos_theta > 0.2, else -0.5; command_1 follows the direction of sin_theta."""
    rng = np.random.default_rng(seed)
    episodes = []
    for index in range(n_episodes):
        x = rng.uniform(-1, 1, size=(200, 2)).astype(np.float32)
        x[:, 0] = x[:, 0].round(1)
        rising = np.diff(x[:, 1], prepend=x[:1, 1]) > 0
        episodes.append(recorded(x, np.stack([np.where(x[:, 0] > 0.2, 0.5, -0.5), np.where(rising, 1, -1)], 1), index))
    return episodes


def test_known_rules_are_found() -> None:
    found = audit_trees(CIRCUIT, known())
    first, second = found.trees
    assert (found.n_fit, found.n_held_out) == (6, 2)
    assert [str(rule) for rule in first.rules] == [
        "command_0 is low (-0.50) when cos_theta <= 0.25",
        "command_0 is high (0.50) when cos_theta > 0.25",
    ]
    assert first.r2 == pytest.approx(1, abs=0.02) and first.response_variance == pytest.approx(0, abs=0.02)
    (condition,) = second.rules[0].conditions
    assert condition.quantity == "d_sin_theta/dt" and second.r2 == pytest.approx(1, abs=0.05)
    # Each logic lives in a neuron of its own.
    assert found.mutual_information_gap > 0.9 and found.modularity > 0.95
    verdict = found.verdict()
    assert verdict.passed and verdict.figures["trees_r2"] == found.r2
    assert "Rules with at most 2 cases a neuron tell" in verdict.sentence


def test_without_differences_motion_is_not_seen() -> None:
    found = audit_trees(CIRCUIT, known(), differences=False)
    assert found.trees[0].r2 > 0.98 and found.trees[1].r2 < 0.7


def test_rules_of_noise_do_not_hold_on_held_out_episodes() -> None:
    rng = np.random.default_rng(0)
    episodes = [recorded(rng.normal(size=(100, 2)), rng.normal(size=(100, 2)), i) for i in range(8)]
    found = audit_trees(CIRCUIT, episodes)
    assert found.r2 < 0.05 and not found.verdict().passed


def test_two_neurons_alike_are_not_told_apart() -> None:
    episodes = [replace(known_one, potentials=known_one.potentials[:, [0, 1, 1]].copy()) for known_one in known()]
    found = audit_trees(CIRCUIT, episodes)
    assert found.mutual_information_gap == pytest.approx(0) and found.modularity == pytest.approx(0)


def test_disentanglement_by_hand() -> None:
    # Logic 0 of entropy 2 is told by neuron 0 best (1.0) and by neuron 1 next (0.5); logic 1 of entropy 1 by neuron 1.
    information = np.array([[1.0, 0.2], [0.5, 0.8]])
    assert mutual_information_gap(information, np.array([2.0, 1.0])) == pytest.approx((0.5 / 2 + 0.6 / 1) / 2)
    assert modularity_score(information) == pytest.approx(1 - (0.2**2 / 1 + 0.5**2 / 0.8**2) / 2)
    # A logic of one path, and a neuron that tells of none, are left out.
    assert mutual_information_gap(np.array([[1.0, 0], [0.5, 0]]), np.array([2.0, 0])) == pytest.approx(0.25)
    assert modularity_score(np.array([[1.0, 0.2], [0, 0]])) == pytest.approx(1 - 0.04)
    assert mutual_information_gap(np.array([[0.3]]), np.array([0.6])) == pytest.approx(0.5)
    assert math.isnan(modularity_score(np.array([[0.3]])))
    assert math.isnan(mutual_information_gap(np.zeros((2, 2)), np.zeros(2)))


def test_neurons_that_do_not_move() -> None:
    still = [replace(one, potentials=np.zeros_like(one.potentials)) for one in known()]
    found = audit_trees(CIRCUIT, still)
    assert str(found.trees[0].rules[0]) == "command_0 is middling (0.00) always"
    assert math.isnan(found.r2) and not found.verdict().passed
    json.dumps(found.to_dict(), allow_nan=False)


def test_quantities_by_hand() -> None:
    one = recorded([[0, 1], [0.5, 1], [0.4, 3]], np.zeros((3, 2)))
    names, values = named_quantities(CIRCUIT, replace(one, elapsed_time=np.array([0.1, 0.5, 0.0], np.float32)))
    assert names == ("cos_theta", "sin_theta", "d_cos_theta/dt", "d_sin_theta/dt")
    # Nothing came before the first step; no time went by before the last.
    np.testing.assert_allclose(values[:, 2:], [[0, 0], [1, 0], [0, 0]], atol=1e-6)
    assert named_quantities(CIRCUIT, one, source="sensory", differences=False).names == ("x_0", "x_1")


def test_images_have_no_named_quantities() -> None:
    one = recorded(np.zeros((3, 2)), np.zeros((3, 2)))
    image = replace(
        one,
        observation=np.zeros((3, 100), np.uint8),
        observation_names=tuple(f"pixel_{i}" for i in range(100)),
    )
    with pytest.raises(ValueError, match=r"at most 64 observed quantities, got 100; .* source=\"sensory\""):
        audit_trees(CIRCUIT, [image, image])
    assert audit_trees(CIRCUIT, [image, image], source="sensory").n_held_out == 1
    with pytest.raises(ValueError, match="one to be scored on, got 1"):
        audit_trees(CIRCUIT, [one])


@pytest.fixture(scope="module")
def real() -> tuple[Circuit, list[Episode]]:
    venv = pendulum(n_envs=10, n_steps=100)
    model = small_model(venv)
    return Circuit.from_policy(model.policy), roll_out(model, venv, 20)  # type: ignore[arg-type]


def test_real_episodes(real: tuple[Circuit, list[Episode]]) -> None:
    found = audit_trees(*real)
    assert [tree.neuron for tree in found.trees] == list(found.watched.names)
    assert 0.3 < found.r2 <= 1
    assert 0 <= found.mutual_information_gap <= 1 and 0 <= found.modularity <= 1
    for tree in found.trees:
        assert len(tree.rules) <= 8
        assert sum(rule.share for rule in tree.rules) == pytest.approx(1)
        # What a path leaves unexplained in its own mean is no more than in the mean of the fitting steps.
        assert tree.response_variance <= 1 - tree.r2 + 1e-9
    assert len(json.dumps(found.to_dict(), allow_nan=False)) < 20_000


def test_rules_say_what_the_tree_does(real: tuple[Circuit, list[Episode]]) -> None:
    circuit, episodes = real
    values = named_quantities(circuit, episodes[0]).values.astype(np.float32)
    for tree in audit_trees(circuit, episodes).trees:
        for x in values[::10]:
            node = 0
            while tree.left[node] >= 0:
                goes_left = x[tree.feature[node]] <= tree.threshold[node]
                node = int(tree.left[node] if goes_left else tree.right[node])
            holding = [
                rule
                for rule in tree.rules
                if all(low < x[tree.quantities.index(name)] <= high for name, low, high in rule.conditions)
            ]
            assert [rule.leaf for rule in holding] == [node]
            assert holding[0].value == tree.value[node]
