"""How do the neurons behave? Time constants, activity, saturation, dead neurons, principal components, slopes.

    dynamics = audit_dynamics(circuit, episodes)

`ncp_rl.equations` defines the time constant, which lies between two bounds whatever the input.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import networkx as nx
import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from ncp_rl import equations
from ncp_rl.audit.cell import Array, Cell
from ncp_rl.audit.certify import invariant_box
from ncp_rl.audit.intervals import Range
from ncp_rl.audit.json_values import listed
from ncp_rl.audit.verdict import Verdict
from ncp_rl.audit.watched import Watched
from ncp_rl.circuit import Circuit
from ncp_rl.recording.episode import Episode
from ncp_rl.wiring import Wiring

#: A synapse is saturated where its activation s is below this, or above 1 minus this.
SATURATED = 0.02

#: A neuron is silent where the standard deviation of its potential is below this share of its box.
SILENT = 1e-3

# Relative rounding error of a time constant in float32.
_ROUNDING = 1e-5


def tau_bounds(circuit: Circuit) -> Range:
    """Return (U,) seconds, least and greatest time constant for any input: all synapses open, and all shut."""
    cell = Cell.of(circuit)
    shut, opened = (
        cell.conductance(np.full(len(cell.synapses.w), s), np.full(len(cell.sensory.w), s)) for s in (0.0, 1.0)
    )
    return Range(equations.time_constant(cell.cm, opened), equations.time_constant(cell.cm, shut))


def disconnected(wiring: Wiring) -> npt.NDArray[np.bool_]:
    """Return (U,) whether a neuron is no motor neuron and no path of synapses leads from it to one."""
    graph = wiring.graph()
    reaching = set(wiring.names[wiring.motor])
    for motor in wiring.names[wiring.motor]:
        reaching |= nx.ancestors(graph, motor)
    return np.array([name not in reaching for name in wiring.names])


def saturation(circuit: Circuit, episodes: Sequence[Episode]) -> Array:
    """Return (U,) share of a neuron's outgoing activations s that are saturated, over its synapses and all steps.

    s = sigmoid(sigma (v - mu)) is saturated below `SATURATED` or above 1 - `SATURATED`, where its slope is below 8 % of
    the steepest. A neuron that always saturates acts as a switch, or not at all. NaN without outgoing synapses.
    """
    synapses = Cell.of(circuit).synapses
    potentials = np.concatenate([episode.potentials for episode in episodes])
    logit = math.log((1 - SATURATED) / SATURATED)
    share = np.full(circuit.wiring.units, np.nan)
    for neuron in np.unique(synapses.source):
        own = synapses.source == neuron
        drive = synapses.sigma[own] * (potentials[:, neuron, None] - synapses.mu[own])
        share[neuron] = np.mean(np.abs(drive) > logit)
    return share


@dataclass(frozen=True, kw_only=True)
class Components:
    """Principal components of the watched neurons' potentials over all steps (scikit-learn's `PCA`).

    Attributes:
        watched: The neurons, C of them.
        explained: (C,) share of the variance along each component, descending; NaN where no neuron moves.
        axes: (K, C), unit vectors of the first K = min(3, C) components.
        projections: (steps, K), potentials less their mean, along these.
        episode: (steps,), number of the episode of each row.
        step: (steps,), step of that episode.
        action_mean: (steps, A), action means at each row, to colour by.
    """

    watched: Watched
    explained: Array
    axes: Array
    projections: Array
    episode: npt.NDArray[np.int64]
    step: npt.NDArray[np.int64]
    action_mean: Array

    @property
    def n_for_95_percent(self) -> int:
        """How many components hold 95 % of the variance; 0 where no neuron moves."""
        cumulated = np.cumsum(self.explained)
        return 0 if np.isnan(cumulated).any() else int(np.argmax(cumulated >= 0.95 - 1e-12)) + 1


def principal_components(circuit: Circuit, episodes: Sequence[Episode]) -> Components:
    """Compute the few directions along which the command neurons move."""
    watched = Watched.of(circuit.wiring)
    potentials = watched.stacked(episodes)
    n_components = min(potentials.shape)
    n_kept = min(3, n_components)
    explained, axes = np.full(potentials.shape[1], np.nan), np.eye(potentials.shape[1])[:n_kept]
    if potentials.std(axis=0).any():
        pca = PCA(n_components, svd_solver="covariance_eigh").fit(potentials)
        explained[:] = 0.0
        explained[:n_components], axes = pca.explained_variance_ratio_, pca.components_[:n_kept]
    return Components(
        watched=watched,
        explained=explained,
        axes=axes,
        projections=(potentials - potentials.mean(axis=0)) @ axes.T,
        episode=np.repeat([episode.index for episode in episodes], [len(episode) for episode in episodes]),
        step=np.concatenate([np.arange(len(episode)) for episode in episodes]),
        action_mean=_action_means(episodes),
    )


@dataclass(frozen=True)
class Slopes:
    """Least-squares lines of each action mean over each watched neuron's potential, over all steps.

    Attributes:
        watched: The neurons, C of them.
        action_names: (A,)
        slope: (A, C), cov(v, a) / var(v); NaN where the neuron never moves.
        r2: (A, C), share of the action mean's variance on the line, cov^2 / (var(v) var(a)); NaN where either never
            moves.
    """

    watched: Watched
    action_names: tuple[str, ...]
    slope: Array
    r2: Array


def action_slopes(circuit: Circuit, episodes: Sequence[Episode]) -> Slopes:
    """Fit each action to each command neuron alone. This shows correlation, not cause; for causes see ablation."""
    watched = Watched.of(circuit.wiring)
    v, a = watched.stacked(episodes), _action_means(episodes)
    moving_v, moving_a = np.ptp(v, axis=0) > 0, np.ptp(a, axis=0) > 0
    v, a = v - v.mean(axis=0), a - a.mean(axis=0)
    covariance = a.T @ v / len(v)
    var_v = np.where(moving_v, (v**2).mean(axis=0), np.nan)
    var_a = np.where(moving_a, (a**2).mean(axis=0), np.nan)
    return Slopes(watched, circuit.action_names, covariance / var_v, covariance**2 / (var_v * var_a[:, None]))


@dataclass(frozen=True, kw_only=True)
class Dynamics:
    """How the U neurons behaved in a recording.

    Attributes:
        names: (U,)
        tau_bounds: (U,), least and greatest possible time constants, seconds; see `tau_bounds`.
        tau_low, tau_median, tau_high: (U,) seconds, smallest, median and largest recorded time constant.
        box: (U,), range that no potential leaves; see `ncp_rl.audit.certify`.
        mean, std, low, high: (U,), mean, standard deviation and range of the potentials over all steps.
        saturation: (U,); see `saturation`.
        silent: (U,) bool, std below `SILENT` times the width of the box.
        disconnected: (U,) bool; see `disconnected`.
        components: Principal components of the command neurons.
        slopes: Slopes of the actions over the command neurons.
    """

    names: tuple[str, ...]
    tau_bounds: Range
    tau_low: Array
    tau_median: Array
    tau_high: Array
    box: Range
    mean: Array
    std: Array
    low: Array
    high: Array
    saturation: Array
    silent: npt.NDArray[np.bool_]
    disconnected: npt.NDArray[np.bool_]
    components: Components
    slopes: Slopes

    @property
    def dead(self) -> npt.NDArray[np.bool_]:
        """(U,) bool, whether a neuron does nothing: it is silent, or has no path to a motor neuron."""
        return self.silent | self.disconnected

    @property
    def tau_violations(self) -> npt.NDArray[np.bool_]:
        """(U,) whether a recorded tau is NaN or leaves its bounds by more than rounding, 1e-5 relative."""
        low, high = self.tau_bounds
        inside: npt.NDArray[np.bool_] = (self.tau_low >= low * (1 - _ROUNDING)) & (
            self.tau_high <= high * (1 + _ROUNDING)
        )
        return ~inside

    def verdict(self) -> Verdict:
        """Return the verdict, which passes where no time constant leaves its bounds; dead neurons are only counted."""
        wrong, dead = self._named(self.tau_violations), self._named(self.dead)
        where = f"outside the bounds in {', '.join(wrong)}" if wrong else "within their bounds"
        idle = f"{len(dead)} of {len(self.names)} neurons do nothing" + (f" ({', '.join(dead)})" if dead else "")
        moving, n_directions = self.components.n_for_95_percent, len(self.components.explained)
        return Verdict(
            "dynamics",
            not wrong,
            f"Time constants from {self.tau_low.min():.3g} to {self.tau_high.max():.3g} s, {where}; {idle}; {moving} "
            f"of {n_directions} directions hold 95 % of the variance of the {self.components.watched}.",
            {
                "dynamics_tau_violations": float(len(wrong)),
                "dynamics_dead_neurons": float(len(dead)),
                "dynamics_components_95": float(moving),
            },
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the figures of each neuron and component for audit.json."""
        arrays = dict(tau_bound_low=self.tau_bounds.low, tau_bound_high=self.tau_bounds.high)
        arrays |= dict(tau_low=self.tau_low, tau_median=self.tau_median, tau_high=self.tau_high)
        arrays |= dict(mean=self.mean, std=self.std, low=self.low, high=self.high, saturation=self.saturation)
        columns = {name: listed(array) for name, array in arrays.items()}
        neurons = [
            {name: column[i] for name, column in columns.items()}
            | {"name": self.names[i], "silent": bool(self.silent[i]), "disconnected": bool(self.disconnected[i])}
            for i in range(len(self.names))
        ]
        return {
            "neurons": neurons,
            "components": {
                "layer": self.components.watched.layer,
                "neurons": list(self.components.watched.names),
                "explained": listed(self.components.explained),
                "axes": listed(self.components.axes),
            },
            "slopes": {
                "actions": list(self.slopes.action_names),
                "slope": listed(self.slopes.slope),
                "r2": listed(self.slopes.r2),
            },
        }

    def _named(self, flags: npt.NDArray[np.bool_]) -> list[str]:
        return [self.names[i] for i in np.flatnonzero(flags)]


def audit_dynamics(circuit: Circuit, episodes: Sequence[Episode]) -> Dynamics:
    """Measure the dynamics of a circuit over recorded episodes.

    Raises:
        ValueError: There are no episodes, or potentials are not finite.
    """
    components = principal_components(circuit, episodes)  # Checks the episodes.
    potentials = np.concatenate([episode.potentials for episode in episodes]).astype(np.float64)
    tau = np.concatenate([episode.tau for episode in episodes]).astype(np.float64)
    box = invariant_box(Cell.of(circuit))
    std = potentials.std(axis=0)
    return Dynamics(
        names=circuit.wiring.names,
        tau_bounds=tau_bounds(circuit),
        tau_low=tau.min(axis=0),
        tau_median=np.median(tau, axis=0),
        tau_high=tau.max(axis=0),
        box=box,
        mean=potentials.mean(axis=0),
        std=std,
        low=potentials.min(axis=0),
        high=potentials.max(axis=0),
        saturation=saturation(circuit, episodes),
        silent=std < SILENT * (box.high - box.low),
        disconnected=disconnected(circuit.wiring),
        components=components,
        slopes=action_slopes(circuit, episodes),
    )


def _action_means(episodes: Sequence[Episode]) -> Array:
    return np.concatenate([episode.action_mean for episode in episodes]).astype(np.float64)
