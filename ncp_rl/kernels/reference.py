"""The scan in plain PyTorch: any device, any dtype, gradients by autograd. The oracle of every other backend.

The cell is the liquid time-constant network of Hasani et al., "Liquid Time-constant Networks", AAAI 2021
(https://arxiv.org/abs/2006.04439), equation 1 with conductance-based synapses,

    cm dv_j/dt = gleak (vleak - v_j) + sum_i w_ij s_ij (erev_ij - v_j),   s_ij = sigmoid(sigma_ij (v_i - mu_ij)),

stepped by its fused semi-implicit solver (algorithm 1; `ncps/torch/ltc_cell.py` solves the same). With
delta = elapsed_time / ode_unfolds, one substep is

    v_j <- (cm v_j + delta (gleak vleak + sum_i w_ij s_ij erev_ij)) / (cm + delta (gleak + sum_i w_ij s_ij + epsilon)).

ncps writes it divided by delta; in this form no elapsed time (0 seconds) leaves the potentials as they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ncp_rl.kernels.contract import EPSILON, Params, Synapses


def scan(
    params: Params,
    synapses: Synapses,
    inputs: Tensor,
    state: Tensor,
    episode_starts: Tensor | None,
    elapsed_time: Tensor | None,
    *,
    ode_unfolds: int,
) -> Tensor:
    """Run the cell over whole sequences; shapes as in `ncp_rl.kernels.ltc_scan`."""
    cm, gleak, vleak = params.neuronal
    potentials = []
    v = state
    for t, x in enumerate(inputs):
        if episode_starts is not None:
            v = torch.where(episode_starts[t][:, None], 0.0, v)
        delta = (1.0 if elapsed_time is None else elapsed_time[t][:, None]) / ode_unfolds
        # Sensory currents and conductances hold still within a step.
        sensory_current, sensory_conductance = _synaptic_sums(
            x, params.sensory, synapses.sensory_source, synapses.sensory_pointer
        )
        for _ in range(ode_unfolds):
            current, conductance = _synaptic_sums(v, params.synaptic, synapses.source, synapses.pointer)
            numerator = cm * v + delta * (gleak * vleak + current + sensory_current)
            denominator = cm + delta * (gleak + conductance + sensory_conductance + EPSILON)
            v = numerator / denominator
        potentials.append(v)
    return torch.stack(potentials)


def _synaptic_sums(v: Tensor, params: Tensor, source: Tensor, pointer: Tensor) -> tuple[Tensor, Tensor]:
    """Per destination neuron: sum of w s erev and sum of w s, each (N, U), for presynaptic potentials `v` (N, I)."""
    w, sigma, mu, erev = params
    n_neurons, n_synapses = len(pointer) - 1, len(source)
    neurons = torch.arange(n_neurons, device=v.device)
    destination = torch.repeat_interleave(neurons, pointer.diff(), output_size=n_synapses)
    ws = w * torch.sigmoid(sigma * (v[:, source] - mu))  # (N, E)
    zeros = v.new_zeros(len(v), n_neurons)
    return zeros.index_add(1, destination, ws * erev), zeros.index_add(1, destination, ws)
