"""The LSTM baselines learn what upstream's learn."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.policies import ActorCriticPolicy

from ncp_rl.lstm import FastMlpLstmPolicy, FastMultiInputLstmPolicy


class SeenTwice(gym.wrappers.TransformObservation[Any, Any, Any]):
    """CartPole whose observation is a Dict."""

    def __init__(self) -> None:
        env = gym.make("CartPole-v1", max_episode_steps=9)  # Some episodes end by time, some by falling.
        space = gym.spaces.Dict({"a": env.observation_space, "b": env.observation_space})
        super().__init__(env, lambda seen: {"a": seen, "b": -seen}, space)


@pytest.mark.parametrize(
    ("env", "ours", "upstream"),
    [
        (lambda: gym.make("CartPole-v1"), FastMlpLstmPolicy, "MlpLstmPolicy"),
        (SeenTwice, FastMultiInputLstmPolicy, "MultiInputLstmPolicy"),
    ],
)
@pytest.mark.parametrize("kwargs", [{}, dict(shared_lstm=True, enable_critic_lstm=False), dict(n_lstm_layers=2)])
def test_learns_the_same_weights_as_upstream(
    env: Callable[[], gym.Env[Any, Any]], ours: type[ActorCriticPolicy], upstream: str, kwargs: dict[str, Any]
) -> None:
    def learned(policy: Any) -> ActorCriticPolicy:
        settings: dict[str, Any] = dict(n_steps=64, batch_size=32, n_epochs=3, seed=3)
        model = RecurrentPPO(policy, env(), policy_kwargs=dict(lstm_hidden_size=8) | kwargs, **settings)
        return model.learn(256).policy

    mine, theirs = learned(ours), learned(upstream)
    assert type(mine).__mro__[1] is type(theirs)
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(mine.get_parameter(name), parameter, rtol=1e-4, atol=1e-5)
