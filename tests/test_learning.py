"""Defaults that learn: the optimizer's steps, the critic's range, standardised senses."""

from __future__ import annotations

from typing import Any

import ncp_envs  # noqa: F401  (registers ncp/ environments)
import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import update_learning_rate

from ncp_rl import AutoNCP, CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy, Receptors
from ncp_rl.encoder import Standardize
from ncp_rl.learning import LR_SCALE, ScaledAdam, SignedSquare, scale_gradient
from ncp_rl.wiring import Recipe
from tests.random_env import RandomEnv, box

SMALL: Recipe = AutoNCP(units=10)


def one_step(lr_scale: float, schedule: float) -> float:
    """How far the first step of Adam moves a number: by its learning rate."""
    number = torch.nn.Parameter(torch.zeros(1))
    optimizer = ScaledAdam([number], lr=1.0, lr_scale=lr_scale)
    update_learning_rate(optimizer, schedule)  # As SB3 does before each update.
    number.grad = torch.ones(1)
    optimizer.step()
    assert optimizer.param_groups[0]["lr"] == schedule
    return float(number.detach().abs())


def test_steps_are_scaled_whatever_the_schedule_writes() -> None:
    assert one_step(1.0, 0.01) == pytest.approx(0.01)
    assert one_step(10.0, 0.01) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="lr_scale must be positive, got 0"):
        one_step(0.0, 0.01)


def test_the_scale_survives_save_and_load(tmp_path: object) -> None:
    model = RecurrentPPO(
        NCPPolicy, RandomEnv(box(2), box(1)), policy_kwargs=dict(wiring=SMALL), n_steps=8, batch_size=8
    )
    model.learn(16)
    model.save(f"{tmp_path}/model.zip")
    groups = RecurrentPPO.load(f"{tmp_path}/model.zip").policy.optimizer.param_groups
    assert [group["lr_scale"] for group in groups] == [LR_SCALE, 1.0]


def test_encoders_and_deviations_of_actions_keep_stock_steps() -> None:
    image = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    both = spaces.Dict(image=image, speed=box(1))
    cases: tuple[tuple[type[NCPPolicy], Any], ...] = (
        (CnnNCPPolicy, image),
        (MultiInputNCPPolicy, both),
        (NCPPolicy, box(3)),
    )
    for policy_class, space in cases:
        policy = policy_class(space, box(1), lambda _: 3e-4, wiring=SMALL)
        names = {id(p): name for name, p in policy.named_parameters()}
        fast, slow = ({names[id(p)] for p in group["params"]} for group in policy.optimizer.param_groups)
        assert fast | slow == set(names.values())
        assert slow == {name for name in names.values() if "cnn" in name or ".linear." in name or name == "log_std"}
        assert all(name.startswith(("features_extractor", "log_std")) for name in slow)


def test_another_optimizer_gets_all_parameters_in_one_group() -> None:
    policy = NCPPolicy(box(2), box(1), lambda _: 3e-4, wiring=SMALL, optimizer_class=torch.optim.AdamW)
    assert len(policy.optimizer.param_groups) == 1
    assert len(policy.optimizer.param_groups[0]["params"]) == len(list(policy.parameters()))


def test_a_scaled_gradient_is_that_of_the_same_value() -> None:
    x = torch.tensor([1.0, -2.0], requires_grad=True)
    y = scale_gradient(3.0 * x, 0.5)
    torch.testing.assert_close(y, 3.0 * x)
    y.sum().backward()
    torch.testing.assert_close(x.grad, torch.tensor([1.5, 1.5]))


def test_a_signed_square_reaches_far_and_is_the_identity_near_zero() -> None:
    x = torch.tensor([-20.0, 0.0, 1e-6, 20.0])
    torch.testing.assert_close(SignedSquare()(x), torch.tensor([-420.0, 0.0, 1e-6, 420.0]))


@pytest.mark.parametrize("sizes", [(1,), (7, 3), (2, 200, 1)])
def test_standardize_has_the_moments_of_all_it_has_seen(sizes: tuple[int, ...]) -> None:
    rng = np.random.default_rng(0)
    batches = [torch.tensor(rng.normal(1e3, 5.0, (size, 4)), dtype=torch.float32) for size in sizes]
    standardize = Standardize(4)
    for batch in batches:
        standardize.watching = True
        standardize(batch)
        standardize.watching = False
        standardize(torch.full((5, 4), 1e6))  # Is not noted.
        standardize.adapt()
    seen = torch.cat(batches).double()
    torch.testing.assert_close(standardize.mean, seen.mean(0).float(), rtol=1e-5, atol=0)
    torch.testing.assert_close(standardize.std, (seen.var(0, correction=0) + 1e-8).sqrt().float(), rtol=1e-3, atol=1e-6)
    assert standardize.count == sum(sizes)


class FirstRatios(BaseCallback):
    """How far PPO's first ratios are from 1, update by update."""

    def __init__(self) -> None:
        super().__init__()
        self.approx_kl: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        if "train/approx_kl" in self.logger.name_to_value:
            self.approx_kl.append(float(self.logger.name_to_value["train/approx_kl"]))


def test_senses_stand_still_within_a_rollout_and_an_update() -> None:
    """Else PPO's ratios would compare the probabilities of two policies that nobody has made different."""
    settings: dict[str, Any] = dict(
        policy_kwargs=dict(wiring=SMALL), n_steps=8, batch_size=8, n_epochs=1
    )  # One ratio in an update.
    model = RecurrentPPO(NCPPolicy, RandomEnv(box(2), box(1)), **settings)
    callback = FirstRatios()
    model.learn(32, callback=callback, log_interval=100)
    receptors = model.policy.features_extractor
    assert isinstance(receptors, Receptors) and isinstance(receptors.standardize, Standardize)
    assert receptors.standardize.count == 24  # The last rollout waits for the next one.
    assert not torch.equal(receptors.standardize.mean, torch.zeros(2))
    assert len(callback.approx_kl) == 3 and max(callback.approx_kl) < 1e-6
