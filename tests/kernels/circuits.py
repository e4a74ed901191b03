"""Random circuits and operands for the tests of the scan."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ncp_rl.kernels import Params, Synapses
from ncp_rl.kernels.contract import Operands

#: Against float64 autograd of the reference: potentials absolutely, gradients by the norm of each row.
TOLERANCES = {
    torch.float32: {"potentials": 2e-6, "gradient": 1e-5},
    torch.float64: {"potentials": 1e-14, "gradient": 1e-12},
}


class Sizes(NamedTuple):
    """Sizes of a case: N sequences of T steps, S inputs, U neurons; how many of the possible synapses there are."""

    n_steps: int
    n_sequences: int
    n_inputs: int
    n_neurons: int
    density: float = 0.4


class Case(Operands):
    """Operands of the scan, float64; `with_dtype` gives leaves of another dtype with the same float32 values."""

    def with_dtype(self, dtype: torch.dtype, *, requires_grad: bool = True) -> Case:
        def leaf(tensor: Tensor) -> Tensor:
            return tensor.detach().to(dtype, copy=True).requires_grad_(requires_grad)

        return self._replace(
            params=Params(*map(leaf, self.params)),
            inputs=leaf(self.inputs),
            state=leaf(self.state),
            elapsed_time=None if self.elapsed_time is None else leaf(self.elapsed_time),
        )

    def to(self, device: str) -> Case:
        """The same operands on `device`, gradients cut."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device).requires_grad_(tensor.requires_grad)

        return self._replace(
            params=Params(*map(move, self.params)),
            synapses=self.synapses.to(device),
            inputs=move(self.inputs),
            state=move(self.state),
            episode_starts=None if self.episode_starts is None else move(self.episode_starts),
            elapsed_time=None if self.elapsed_time is None else move(self.elapsed_time),
        )

    @property
    def differentiable(self) -> dict[str, Tensor]:
        leaves = dict(zip(self.params._fields, self.params, strict=True), inputs=self.inputs, state=self.state)
        return leaves if self.elapsed_time is None else leaves | {"elapsed_time": self.elapsed_time}


def draw_case(
    sizes: Sizes,
    *,
    resets: bool = True,
    irregular_time: bool = True,
    saturated: bool = False,
    ode_unfolds: int = 6,
    seed: int = 0,
) -> Case:
    """Draw operands in the ranges that ncps initialises with; the first neuron gets no synapses at all.

    With `irregular_time` some steps last 0 seconds; with `saturated` the sigmoids are steep enough to be flat.
    """
    random = np.random.default_rng(seed)
    n_steps, n_sequences, n_inputs, n_neurons, density = sizes
    adjacency = random.random((n_neurons, n_neurons)) < density
    sensory_adjacency = random.random((n_inputs, n_neurons)) < density
    adjacency[:, 0] = sensory_adjacency[:, 0] = False
    synapses = Synapses.from_adjacency(adjacency.astype(np.int8), sensory_adjacency.astype(np.int8))

    def float32(array: np.ndarray[tuple[int, ...], np.dtype[np.float64]]) -> Tensor:
        return torch.from_numpy(array.astype(np.float32).astype(np.float64))

    def synapse_rows(n_synapses: int) -> Tensor:
        sigma = random.uniform(3, 8, n_synapses) * (100 if saturated else 1)
        w, mu = random.uniform(0.001, 1, n_synapses), random.uniform(0.3, 0.8, n_synapses)
        return float32(np.stack([w, sigma, mu, random.choice([-1.0, 1.0], n_synapses)]))

    neuronal = [random.uniform(0.4, 0.6, n_neurons), random.uniform(0.001, 1, n_neurons)]
    params = Params(
        synapse_rows(len(synapses.source)),
        synapse_rows(len(synapses.sensory_source)),
        float32(np.stack([*neuronal, random.uniform(-0.2, 0.2, n_neurons)])),
    )
    elapsed_time = random.uniform(0.01, 2, (n_steps, n_sequences)) * (random.random((n_steps, n_sequences)) > 0.2)
    return Case(
        params,
        synapses,
        float32(random.normal(size=(n_steps, n_sequences, n_inputs))),
        float32(random.normal(size=(n_sequences, n_neurons))),
        torch.from_numpy(random.random((n_steps, n_sequences)) < 0.2) if resets else None,
        float32(elapsed_time) if irregular_time else None,
        ode_unfolds,
    )
