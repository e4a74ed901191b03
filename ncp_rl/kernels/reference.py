"""The scan in plain PyTorch: any device, any dtype, gradients by autograd. Every other backend is tested against it.

The cell is the liquid time-constant network of Hasani et al., "Liquid Time-constant Networks", AAAI 2021
(https://arxiv.org/abs/2006.04439), equation 1 with conductance-based synapses,

    cm dv_j/dt = gleak (vleak - v_j) + sum_i w_ij s_ij (erev_ij - v_j),   s_ij = sigmoid(sigma_ij (v_i - mu_ij)),

stepped by its fused semi-implicit solver (algorithm 1; `ncps/torch/ltc_cell.py` solves the same). With
delta = elapsed_time / ode_unfolds, one substep is

    v_j <- (cm v_j + delta (gleak vleak + sum_i w_ij s_ij erev_ij)) / (cm + delta (gleak + sum_i w_ij s_ij + epsilon)).

ncps writes it divided by delta; in this form an elapsed time of 0 seconds leaves the potentials unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncp_rl.kernels.contract import EPSILON, Operands, exporting


def scan(operands: Operands) -> Tensor:
    """Run the cell over whole sequences and return the potentials (T, N, U) after each step."""
    params, synapses, inputs, state, episode_starts, elapsed_time, ode_unfolds = operands
    cm, gleak, vleak = params.neuronal.unbind()
    between = _destinations(synapses.pointer, synapses.source, n_sources=state.shape[1])
    senses = _destinations(synapses.sensory_pointer, synapses.sensory_source, n_sources=inputs.shape[2])
    potentials = []
    v = state
    for t, x in enumerate(inputs.unbind()):
        if episode_starts is not None:
            v = torch.where(episode_starts[t][:, None], 0.0, v)
        delta = (1.0 if elapsed_time is None else elapsed_time[t][:, None]) / ode_unfolds
        # Sensory currents and conductances are constant within a step.
        sensory_current, sensory_conductance = _synaptic_sums(x, params.sensory, synapses.sensory_source, senses, v)
        for _ in range(ode_unfolds):
            current, conductance = _synaptic_sums(v, params.synaptic, synapses.source, between, v)
            numerator = cm * v + delta * (gleak * vleak + current + sensory_current)
            denominator = cm + delta * (gleak + conductance + sensory_conductance + EPSILON)
            v = numerator / denominator
        potentials.append(v)
    return torch.stack(potentials)


def _synaptic_sums(
    v: Tensor, params: Tensor, source: Tensor, destinations: Tensor, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Sum w s erev and w s for each destination neuron, each as `like` (N, U), for presynaptic `v` (N, I)."""
    w, sigma, mu, erev = params.unbind()
    ws = w * torch.sigmoid(sigma * (v.index_select(1, source) - mu))  # (N, E)
    return _sum_at(destinations, ws * erev, like), _sum_at(destinations, ws, like)


def _destinations(pointer: Tensor, source: Tensor, n_sources: int) -> Tensor:
    """Return the indices by which `_sum_at` sums values of synapses.

    They are the neuron (E,) in which each synapse ends. Exchange formats for graphs cannot add at repeated indices, and
    no shape in them may depend on numbers: for these they are (U, n_sources), one plus the number of the synapse from
    each neuron's first, second, ... source, and 0 where a neuron has no more sources.
    """
    if not exporting():
        neurons = torch.arange(len(pointer) - 1, device=pointer.device)
        return torch.repeat_interleave(neurons, pointer.diff(), output_size=len(source))
    synapse = pointer[:-1, None].long() + torch.arange(n_sources, device=pointer.device)
    return torch.where(synapse < pointer[1:, None], synapse + 1, 0)


def _sum_at(destinations: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """Sum the `values` (N, E) of each neuron's synapses, as `like` (N, U)."""
    if not exporting():
        return torch.zeros_like(like).index_add(1, destinations, values)
    padded = torch.cat([torch.zeros_like(like[:, :1]), values], dim=1)
    sums: Tensor = padded.index_select(1, destinations.flatten()).unflatten(1, destinations.shape).sum(-1)
    return sums
