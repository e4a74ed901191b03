"""Episodes of small circuits in real environments, rolled out by the policy's own calls; circuits to check by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl import LTC, AutoNCP, NCPPolicy
from ncp_rl.circuit import Circuit
from ncp_rl.kernels import EPSILON
from ncp_rl.ltc import inverse_softplus
from ncp_rl.recording import Episode
from ncp_rl.wiring import Recipe, Wiring

Observations = npt.NDArray[np.float32]
#: (observations (N, D), step of the episode) -> what the policy sees instead.
Fault = Callable[[Observations, int], Observations]

NAMES = ("cos_theta", "sin_theta")


def pendulum(n_envs: int, n_steps: int, seed: int = 0) -> VecEnv:
    return make_vec_env("ncp_envs:ncp/PendulumNoVel-v1", n_envs, seed=seed, env_kwargs=dict(max_episode_steps=n_steps))


def small_model(venv: VecEnv, wiring: Recipe | Wiring = AutoNCP(12)) -> RecurrentPPO:  # noqa: B008  (a frozen value)
    """Untrained, 2 command neurons or more, 3 receptors per observation."""
    kwargs = dict(
        wiring=wiring,
        critic="mlp",
        elapsed_time=0.05,
        features_extractor_kwargs=dict(receptors=3, names=NAMES),
    )
    return RecurrentPPO(NCPPolicy, venv, seed=0, policy_kwargs=kwargs)


def roll_out(
    model: RecurrentPPO, venv: VecEnv, n_episodes: int, fault: Fault | None = None, seed: int = 0
) -> list[Episode]:
    """Episodes of one length, `venv.num_envs` side by side, actions sampled."""
    venv.seed(seed)
    model.set_random_seed(seed)
    episodes: list[Episode] = []
    while len(episodes) < n_episodes:
        episodes += _roll_out_once(model, venv, len(episodes), fault)
    return episodes[:n_episodes]


def _roll_out_once(model: RecurrentPPO, venv: VecEnv, first: int, fault: Fault | None) -> list[Episode]:
    policy: Any = model.policy
    policy.set_training_mode(False)
    circuit = Circuit.from_policy(policy)
    n, dones = venv.num_envs, np.zeros(venv.num_envs, bool)
    h = torch.zeros(1, n, circuit.wiring.units)
    rows: dict[str, list[npt.NDArray[Any]]] = {}
    observation = np.asarray(venv.reset())
    while not dones.any():
        if fault is not None:
            observation = fault(observation, len(rows.get("reward", ())))
        seen = torch.as_tensor(observation)
        with torch.no_grad():
            states = RNNStates((h, torch.zeros_like(h)), (h, torch.zeros_like(h)))
            action, value, log_prob, after = policy.forward(seen, states, torch.zeros(n))
            sensory = policy.extract_features(seen, policy.pi_features_extractor)
            std = policy.log_std.exp().expand(n, -1)
        h = after.pi[0]
        clipped = np.clip(action.numpy(), venv.action_space.low, venv.action_space.high)  # type: ignore[attr-defined]
        following, reward, dones, _ = venv.step(clipped)
        row = dict(observation=observation, action=clipped, reward=reward, sensory=sensory.numpy())
        row |= dict(
            potentials=h[0].numpy(), value=value[:, 0].numpy(), log_prob=log_prob.numpy(), action_std=std.numpy()
        )
        for name, array in row.items():
            rows.setdefault(name, []).append(array)
        observation = np.asarray(following)
    stacked = {name: np.stack(arrays, axis=1) for name, arrays in rows.items()}  # (N, T, ...)
    return [episode(circuit, first + i, i, {name: array[i] for name, array in stacked.items()}) for i in range(n)]


def episode(circuit: Circuit, index: int, env_index: int, arrays: dict[str, npt.NDArray[Any]]) -> Episode:
    """With what follows from the other arrays."""
    potentials, n_steps = arrays["potentials"], len(arrays["potentials"])
    blank = np.zeros(n_steps, np.float32)
    given: dict[str, Any] = dict(
        observation=np.zeros((n_steps, 1), np.float32),
        observation_names=NAMES if "observation" in arrays else ("x",),
        action=np.zeros((n_steps, 1), np.float32),
        action_std=np.ones((n_steps, 1), np.float32),
        elapsed_time=np.full(n_steps, circuit.ltc.elapsed_time, np.float32),
        action_mean=circuit.action_means(potentials),
        start=np.zeros(potentials.shape[1], np.float32),
        tau=time_constants(circuit, arrays["sensory"], potentials),
    ) | dict.fromkeys(("reward", "value", "log_prob"), blank)
    return Episode(index, env_index, terminated=False, truncated=True, **(given | arrays))


def run_episode(circuit: Circuit, sensory: npt.NDArray[np.float32], index: int = 0) -> Episode:
    """The circuit alone from zero potentials, sensory inputs (T, S); the first sensory input is the observation."""
    elapsed = np.full(len(sensory), circuit.ltc.elapsed_time, np.float32)
    potentials = circuit.run(sensory, np.zeros(circuit.wiring.units, np.float32), elapsed)
    arrays = dict(sensory=sensory, potentials=potentials, observation=sensory[:, :1], observation_names=("x",))
    return episode(circuit, index, 0, arrays)  # type: ignore[arg-type]


def time_constants(
    circuit: Circuit, sensory: npt.NDArray[np.float32], potentials: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """(T, U) seconds, synapse by synapse."""
    params, wiring = circuit.ltc.packed().params, circuit.wiring
    cm, gleak, _ = params.neuronal.detach().numpy()
    conductance = np.tile(gleak + EPSILON, (len(potentials), 1)).astype(np.float64)
    for synapses, parameters, v in (
        (wiring.synapses, params.synaptic, potentials),
        (wiring.sensory_synapses, params.sensory, sensory),
    ):
        for i, j, (w, sigma, mu, _) in zip(
            synapses.source, synapses.destination, parameters.detach().numpy().T, strict=True
        ):
            conductance[:, j] += w * (1 + np.tanh(sigma * (v[:, i] - mu) / 2)) / 2
    tau: npt.NDArray[np.float32] = (cm / conductance).astype(np.float32)
    return tau


def built(
    adjacency: npt.ArrayLike, sensory_adjacency: npt.ArrayLike, n_motor: int = 1, n_command: int = 0, **values: Any
) -> Circuit:
    """A circuit of given matrices [source, destination]; all parameters of a name have the value given."""
    wiring = Wiring(np.array(adjacency, np.int8), np.array(sensory_adjacency, np.int8), n_motor, n_command)
    unfolds = values.pop("ode_unfolds", 6)
    ltc = LTC(wiring, input_map=False, elapsed_time=values.pop("elapsed_time", 0.1), ode_unfolds=unfolds)
    with torch.no_grad():
        for name, value in values.items():
            tensor = torch.as_tensor(value, dtype=torch.float32).expand_as(getattr(ltc, name))
            if name.removeprefix("sensory_") in ("w", "cm", "gleak"):
                tensor = inverse_softplus(tensor)
            getattr(ltc, name).copy_(tensor)
    actions = tuple(f"action_{i}" for i in range(n_motor))
    senses = tuple(f"x_{i}" for i in range(wiring.n_sensory))
    return Circuit(ltc, np.eye(n_motor, dtype=np.float32), np.zeros(n_motor, np.float32), senses, actions)
