"""Taps of a policy leave no trace in it."""

from __future__ import annotations

import pytest
import torch

from ncp_rl.recording.manifest import ncp_policy
from ncp_rl.recording.trace import PolicyTap
from tests.recording.recordings import pendulum


@pytest.mark.parametrize("first", [0, 1])
def test_taps_close_in_any_order(first: int) -> None:
    model, venv = pendulum()
    model._setup_learn(1)
    policy = ncp_policy(model)
    modules = [policy, policy.lstm_actor, policy.action_net]
    taps = [PolicyTap(policy), PolicyTap(policy)]
    taps[first].close()
    observation = torch.as_tensor(venv.reset())
    policy(observation, model._last_lstm_states, torch.ones(model.n_envs))
    assert taps[first].seen is None and taps[1 - first].seen is not None
    taps[1 - first].close()
    assert not any("forward" in vars(module) for module in modules)
