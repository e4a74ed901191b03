"""Circuits with random parameters, and episodes that they go through."""

from typing import Any

import numpy as np
import torch

from ncp_rl import LTC, AutoNCP, LTCInit, Wiring
from ncp_rl.circuit import Circuit
from ncp_rl.recording import Episode
from ncp_rl.wiring import Recipe
from tests.audit import episodes


def circuit(
    recipe: Recipe | Wiring = AutoNCP(20, sparsity=0.3),  # noqa: B008  (a frozen value)
    n_sensory: int = 6,
    n_motor: int = 2,
    seed: int = 0,
    **kwargs: Any,
) -> Circuit:
    """A circuit whose synapses pull towards potentials between -2 and 2, read out by a random matrix."""
    torch.manual_seed(seed)
    wiring = recipe.build(n_sensory, n_motor)
    ltc = LTC(wiring, input_map=False, init=LTCInit(mu=(-0.5, 0.8), sensory_mu=(-0.5, 0.8)), **kwargs)
    with torch.no_grad():
        ltc.erev.mul_(torch.rand_like(ltc.erev) * 1.5 + 0.5)
    rng = np.random.default_rng(seed)
    readout = rng.normal(size=(n_motor, n_motor)).astype(np.float32)
    bias = rng.normal(size=n_motor).astype(np.float32)
    senses = tuple(f"sense_{i}" for i in range(n_sensory))
    return Circuit(ltc, readout, bias, senses, tuple(f"action_{i}" for i in range(n_motor)))


def episode(circuit: Circuit, n_steps: int = 50, seed: int = 0) -> Episode:
    """What the circuit does under random, smooth inputs at irregular times."""
    rng = np.random.default_rng(seed)
    wiring = circuit.wiring
    sensory = np.cumsum(rng.normal(size=(n_steps, wiring.n_sensory)) * 0.3, axis=0).astype(np.float32)
    elapsed_time = rng.uniform(0.2, 2.0, n_steps).astype(np.float32)
    start = rng.normal(size=wiring.units).astype(np.float32) * 0.3
    return recorded(circuit, sensory, start, elapsed_time)


def recorded(circuit: Circuit, sensory: Any, start: Any, elapsed_time: Any) -> Episode:
    """The episode of a circuit that received these inputs."""
    potentials = circuit.run(sensory, start, elapsed_time)
    arrays = dict(sensory=sensory, start=start, elapsed_time=elapsed_time, potentials=potentials)
    observed = dict(observation=sensory, observation_names=circuit.sensory_names)
    return episodes.episode(circuit, 0, 0, arrays | observed | dict(action=circuit.action_means(potentials)))
