"""Policies over every kind of space, with numbers as training leaves them, and what `predict` makes of random steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize

from ncp_rl import AutoNCP, CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy, Wiring
from tests.random_env import RandomEnv, box

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """How a model is made."""

    observation: spaces.Space[Any]
    action: spaces.Space[Any]
    policy: type[NCPPolicy] = NCPPolicy
    normalize: Mapping[str, Any] | None = None
    kwargs: Mapping[str, Any] | None = None
    use_sde: bool = False


BOX = spaces.Box(np.array([-2, -0.5], np.float32), np.array([2, 1.5], np.float32))
SECONDS = spaces.Box(0, 2, (1,), np.float32)
WIDE = spaces.Box(-1000, 5000, (3,), np.float64)
SILENT = Wiring(np.zeros((6, 6), np.int8), np.ones((8, 6), np.int8), 2, 1)
TIMED = spaces.Dict(speed=WIDE, gear=spaces.Discrete(4), switch=spaces.MultiBinary(2), elapsed_time=SECONDS)

VECTORS = {
    "box": Case(box(3), BOX),
    "normalised": Case(WIDE, BOX, normalize=dict(clip_obs=1.5)),
    "matrices": Case(box(2, 2), spaces.Box(-1, 0.5, (2, 1), np.float32)),
    "discrete": Case(spaces.Discrete(5), spaces.Discrete(3)),
    "one value": Case(spaces.Discrete(1), spaces.Discrete(1)),
    "several discrete": Case(spaces.MultiDiscrete([3, 2]), spaces.MultiDiscrete([2, 4])),
    "switches": Case(spaces.MultiBinary(3), spaces.MultiBinary(2)),
    "timed dict": Case(TIMED, BOX, MultiInputNCPPolicy, dict(norm_obs_keys=["speed"])),
    "privileged": Case(
        spaces.Dict(a=box(2), state=box(3)), BOX, MultiInputNCPPolicy, kwargs=dict(privileged_keys=("state",))
    ),
    "squashed": Case(box(3), BOX, use_sde=True, kwargs=dict(squash_output=True)),
    "dense": Case(box(3), BOX, kwargs=dict(motor_map="dense", n_motor=3)),
    "flattened": Case(box(4), BOX, kwargs=dict(features_extractor_class=FlattenExtractor)),
    "combined": Case(
        spaces.Dict(a=spaces.Discrete(3), b=box(2, 1), elapsed_time=SECONDS),
        spaces.Discrete(2),
        MultiInputNCPPolicy,
        kwargs=dict(features_extractor_class=CombinedExtractor),
    ),
    "no synapses between neurons": Case(
        box(1), BOX, kwargs=dict(wiring=SILENT, features_extractor_kwargs=dict(standardize=False))
    ),
}
IMAGE = spaces.Box(0, 255, (36, 40, 3), np.uint8)
IMAGES = {
    "image": Case(IMAGE, BOX, CnnNCPPolicy),
    "channels first": Case(spaces.Box(0, 255, (1, 36, 36), np.uint8), spaces.Discrete(3), CnnNCPPolicy),
    "image and vectors": Case(
        spaces.Dict(x=box(2), image=IMAGE, elapsed_time=SECONDS), BOX, MultiInputNCPPolicy, dict(norm_obs_keys=["x"])
    ),
}


def make_model(case: Case, *, units: int = 12, seed: int = 0, n_envs: int = 1) -> tuple[RecurrentPPO, VecEnv]:
    """A model whose every number has moved away from where it starts, and its environments."""
    venv: VecEnv = DummyVecEnv([lambda: RandomEnv(case.observation, case.action)] * n_envs)
    if case.normalize is not None:
        venv = VecNormalize(venv, **case.normalize)
    kwargs: dict[str, Any] = dict(wiring=AutoNCP(units), elapsed_time=0.1) | dict(case.kwargs or {})
    model = RecurrentPPO(
        case.policy, venv, n_steps=32, batch_size=32, n_epochs=1, seed=seed, device="cpu", policy_kwargs=kwargs,
        use_sde=case.use_sde,
    )  # fmt: skip
    venv.seed(seed)
    model.learn(64 * n_envs)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.policy.parameters():
            # Numbers of one neuron or synapse each; matrices would sum up what is added.
            scale = 0.2 if parameter.dim() == 1 else 0.1 * float(parameter.std())
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=scale)
    if isinstance(venv, VecNormalize):
        venv.training = False
    return model, venv


class Steps(NamedTuple):
    """Random steps, and what `predict` makes of them."""

    starts: Array
    """(T,) bool"""
    seconds: Array
    """(T,)"""
    observations: list[Any]
    actions: list[Array]
    potentials: Array
    """(T, U)"""


def predicted(model: RecurrentPPO, venv: VecEnv, n_steps: int, seed: int = 1) -> Steps:
    """Random observations with resets in between and, where the policy is told time, irregular time."""
    raw = venv.venv.observation_space if isinstance(venv, VecNormalize) else venv.observation_space
    raw.seed(seed)
    rng = np.random.default_rng(seed)
    starts = rng.random(n_steps) < 0.05
    starts[0] = True
    observations, actions, potentials, seconds = [], [], [], []
    state: Any = None
    for t in range(n_steps):
        observation = raw.sample()
        observations.append(observation)
        timed = isinstance(observation, dict) and "elapsed_time" in observation
        seconds.append(float(observation["elapsed_time"][0]) if timed else 0.1)
        batch: Any = observation
        batch = {k: np.asarray(v)[None] for k, v in batch.items()} if timed or isinstance(batch, dict) else batch
        batch = batch if isinstance(batch, dict) else np.asarray(batch)[None]
        if isinstance(venv, VecNormalize):
            batch = venv.normalize_obs(batch)
        action, state = model.predict(batch, state, starts[t : t + 1], deterministic=True)
        assert state is not None
        actions.append(action[0])
        potentials.append(state[0][0, 0])
    return Steps(starts, np.array(seconds), observations, actions, np.array(potentials))


def flat(observation: Any, description: Mapping[str, Any]) -> Array:
    """The numbers of an observation as C takes them."""
    parts = [observation if part["key"] is None else observation[part["key"]] for part in description["observation"]]
    return np.concatenate([np.asarray(part, np.float32).ravel() for part in parts])


Make = Callable[[], tuple[RecurrentPPO, VecEnv]]
