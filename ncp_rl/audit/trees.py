"""When is a command neuron high? A small decision tree per neuron, over named quantities, scored on held-out episodes.

    trees = audit_trees(circuit, episodes)
    print(trees.trees[3].rules[0])       # command_3 is high (0.41) when d_sin_theta/dt > 0.2 and cos_theta <= 0.5

After Wang et al., "Measuring Interpretability of Neural Policies of Robots with Disentangled Representation" (CoRL
2023, arXiv:2210.06650): a tree from quantities to the neuron's response, whose decision paths are the neuron's
logic, and three figures of how well the neurons separate these logics. The differences are:

- The tree reads the circuit's observations, not the simulator's state. Where velocities are hidden, quantities are
  joined by finite differences, named `d_cos_theta/dt`: (x_t - x_{t-1}) / elapsed_t, 0 at the first step. They are
  not observed: the circuit can know them only by its memory.
- A tree is scikit-learn's regression tree (CART, Breiman et al. 1984, squared error) with at most 8 leaves, so that its
  rules can be read; it is not pruned to a neuron's response afterwards, nor are paths predicted back from responses.
- All figures are taken on episodes that the trees have not seen; episodes are split, not steps.

With z_i the response (potential) of neuron i and P_i the decision path (leaf) of its tree, over held-out steps:

- **Response variance** of neuron i: sum_k p(P_i = k) var(z_i | P_i = k) / var(z_i), from 0 (each path is one
  response) to 1.
- **Mutual information gap**: mean over i of (I(z_a; P_i) - I(z_b; P_i)) / H(P_i), where a and b are the two neurons
  that tell most about P_i (Chen et al., NeurIPS 2018). It is 1 where one neuron carries each logic, 0 where two neurons
  tell equally much.
- **Modularity**: mean over i of 1 - sum_{k != a} I(z_i; P_k)^2 / ((C - 1) I(z_i; P_a)^2), where P_a is the logic
  about which z_i tells most (Ridgeway and Mozer, NeurIPS 2018). It is 1 where each neuron tells about one logic, 0
  where it tells equally about all.

I is the plug-in estimate in nats, z cut at its quantiles into 16 bins of equal counts. It is biased upwards by about
15 (leaves - 1) / (2 steps) nats, more where steps depend on each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.tree import DecisionTreeRegressor

from ncp_rl.audit.cell import Array
from ncp_rl.audit.episode_split import split_episodes
from ncp_rl.audit.json_values import finite, listed
from ncp_rl.audit.verdict import Verdict
from ncp_rl.audit.watched import Watched
from ncp_rl.circuit import Circuit
from ncp_rl.encoder import ELAPSED_TIME
from ncp_rl.recording import Episode

Source = Literal["observation", "sensory"]

#: More observed quantities than this are treated as an image, whose pixels a rule cannot name.
MAX_QUANTITIES = 64

#: A tree that explains less than this share of a neuron's variance does not describe it.
MIN_R2 = 0.5

_BINS = 16


class Quantities(NamedTuple):
    """The quantities that rules name."""

    names: tuple[str, ...]
    values: Array
    """(T, Q) values at each step"""


def named_quantities(
    circuit: Circuit, episode: Episode, *, source: Source = "observation", differences: bool = True
) -> Quantities:
    """Return named quantities at each step of an episode.

    Args:
        circuit: Circuit of the policy that ran.
        episode: The episode.
        source: "observation" for what the environment gave; "sensory" for the circuit's inputs, where images are
            observed.
        differences: Whether to join the finite differences, as the module's docstring defines them.

    Raises:
        ValueError: There are more observed quantities than rules can name.
    """
    observed = source == "observation"
    names = episode.observation_names if observed else circuit.sensory_names
    values = np.asarray(episode.observation if observed else episode.sensory, np.float64)
    if observed and len(names) > MAX_QUANTITIES:
        raise ValueError(
            f"Rules can name at most {MAX_QUANTITIES} observed quantities, got {len(names)}; for images use "
            'source="sensory".'
        )
    moving = [i for i, name in enumerate(names) if name != ELAPSED_TIME] if differences else []
    if not moving:
        return Quantities(names, values)
    seconds = episode.elapsed_time[:, None].astype(np.float64)
    with np.errstate(invalid="ignore"):  # Differences of infinite readings are NaN.
        moves = np.diff(values[:, moving], axis=0, prepend=values[:1, moving])
    rates = np.divide(moves, seconds, out=np.zeros_like(moves), where=seconds > 0)
    return Quantities(names + tuple(f"d_{names[i]}/dt" for i in moving), np.concatenate([values, rates], axis=1))


class Condition(NamedTuple):
    """The condition low < quantity <= high; a bound is -inf or inf where there is none."""

    quantity: str
    low: float
    high: float

    def __str__(self) -> str:
        """Return the condition as people write it."""
        if math.isinf(self.low):
            return f"{self.quantity} <= {self.high:.3g}"
        if math.isinf(self.high):
            return f"{self.quantity} > {self.low:.3g}"
        return f"{self.low:.3g} < {self.quantity} <= {self.high:.3g}"


@dataclass(frozen=True)
class Rule:
    """A decision path of a neuron's tree, from its root to a leaf.

    Attributes:
        neuron: Name of the neuron.
        level: "high", "middling" or "low": above, within or below half a standard deviation around the neuron's mean.
        value: Mean potential at the fitting steps of this path.
        share: Share of the held-out steps that take this path.
        leaf: Number of the leaf among the tree's nodes.
        conditions: Conditions that all hold on this path; empty where the tree is a single leaf.
    """

    neuron: str
    level: str
    value: float
    share: float
    leaf: int
    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        """Return the rule as a sentence."""
        when = "when " + " and ".join(map(str, self.conditions)) if self.conditions else "always"
        value = round(self.value, 2) + 0.0  # No "-0.00".
        return f"{self.neuron} is {self.level} ({value:.2f}) {when}"


@dataclass(frozen=True, kw_only=True)
class NeuronTree:
    """The decision tree of one neuron; its K nodes as arrays, the root first, as scikit-learn numbers them.

    Attributes:
        neuron: Name of the neuron.
        quantities: (Q,) names of the quantities, which `feature` numbers.
        left, right: (K,) int, node to go on to where quantity <= threshold, or else; -1 at leaves.
        feature: (K,) int, number of the quantity; negative at leaves.
        threshold: (K,) threshold of the quantity, a float32 number.
        value: (K,) mean potential at the fitting steps that pass the node.
        rules: The decision paths, the most frequent first.
        r2: 1 - sum (z - prediction)^2 / sum (z - mean z)^2 over held-out steps, the coefficient of determination; NaN
            where the neuron does not move.
        response_variance: See the module's docstring; NaN where the neuron does not move.
    """

    neuron: str
    quantities: tuple[str, ...]
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    feature: npt.NDArray[np.int64]
    threshold: Array
    value: Array
    rules: tuple[Rule, ...]
    r2: float
    response_variance: float

    def to_dict(self) -> dict[str, Any]:
        """Return the tree for audit.json, with its rules as sentences."""
        rules = [
            {"rule": str(rule), "level": rule.level, "value": rule.value, "share": rule.share} for rule in self.rules
        ]
        figures = {"r2": finite(self.r2), "response_variance": finite(self.response_variance)}
        return {"neuron": self.neuron, "n_leaves": len(self.rules), "rules": rules} | figures


@dataclass(frozen=True, kw_only=True)
class TreeAudit:
    """Trees of the watched neurons, and how well the neurons separate their logics.

    Attributes:
        watched: The neurons, C of them.
        trees: (C,), a tree for each watched neuron.
        n_fit, n_held_out: Episodes that the trees were grown on, and scored on.
        mutual_information: (C, C) nats, I(z_i; P_k) of response i and decision path k.
        mutual_information_gap: See the module's docstring; NaN where no tree has two leaves.
        modularity: See the module's docstring; NaN with fewer than two neurons, or where no tree has two leaves.
    """

    watched: Watched
    trees: tuple[NeuronTree, ...]
    n_fit: int
    n_held_out: int
    mutual_information: Array
    mutual_information_gap: float
    modularity: float

    @property
    def r2(self) -> float:
        """Mean coefficient of determination over neurons that move; NaN where none does."""
        return _mean([tree.r2 for tree in self.trees])

    def verdict(self) -> Verdict:
        """Return the verdict, which passes where the trees explain half of the held-out variance (mean R^2 >= 0.5)."""
        figures = {
            "trees_r2": self.r2,
            "trees_response_variance": _mean([tree.response_variance for tree in self.trees]),
            "trees_mutual_information_gap": self.mutual_information_gap,
            "trees_modularity": self.modularity,
        }
        moving = [tree for tree in self.trees if not math.isnan(tree.r2)]
        if not moving:
            return Verdict("trees", False, f"No rules: none of the {self.watched} moves in held-out episodes.", {})
        worst = min(moving, key=lambda tree: tree.r2)
        most = max(len(tree.rules) for tree in self.trees)
        return Verdict(
            "trees",
            self.r2 >= MIN_R2,
            f"Rules with at most {most} cases a neuron tell {self.r2:.0%} of the variance of the {self.watched} in "
            f"held-out episodes (least: {worst.neuron}, {max(worst.r2, 0.0):.0%}).",
            {name: value for name, value in figures.items() if math.isfinite(value)},
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the trees and figures for audit.json."""
        return {
            "layer": self.watched.layer,
            "n_fit": self.n_fit,
            "n_held_out": self.n_held_out,
            "r2": finite(self.r2),
            "mutual_information_gap": finite(self.mutual_information_gap),
            "modularity": finite(self.modularity),
            "mutual_information": listed(self.mutual_information),
            "trees": [tree.to_dict() for tree in self.trees],
        }


def audit_trees(
    circuit: Circuit,
    episodes: Sequence[Episode],
    *,
    source: Source = "observation",
    differences: bool = True,
    max_leaves: int = 8,
    held_out: float = 0.25,
    seed: int = 0,
) -> TreeAudit:
    """Grow a tree for each command neuron on some episodes, and score it on the others.

    Args:
        circuit: Circuit of the policy that ran.
        episodes: At least two episodes.
        source: The quantities that rules name; see `named_quantities`.
        differences: Whether rules may name finite differences too.
        max_leaves: Largest number of leaves of a tree. A leaf holds at least 1 % of the steps.
        held_out: Share of the episodes to score on; at least one is held out.
        seed: Seed of the split.

    Raises:
        ValueError: There are fewer than two episodes, or more quantities than rules can name.
    """
    if len(episodes) < 2:
        raise ValueError(
            f"Trees need at least two episodes, one to grow on and one to be scored on, got {len(episodes)}."
        )
    watched = Watched.of(circuit.wiring)
    n_held_out = min(max(round(held_out * len(episodes)), 1), len(episodes) - 1)
    fitting, scoring = ([episodes[i] for i in part] for part in split_episodes(len(episodes), n_held_out, seed))
    parts = []
    for part in (fitting, scoring):
        quantities = [named_quantities(circuit, episode, source=source, differences=differences) for episode in part]
        values = np.concatenate([q.values for q in quantities])
        # Held steps, and the differences after them, have readings that are not finite: trees are not grown on these.
        finite_rows = np.isfinite(values).all(axis=1)
        parts.append((values[finite_rows], watched.stacked(part)[finite_rows]))
    (x, z), (x_new, z_new) = parts
    trees, paths = [], []
    for neuron, name in enumerate(watched.names):
        regressor = DecisionTreeRegressor(max_leaf_nodes=max_leaves, min_samples_leaf=0.01, random_state=seed)
        regressor.fit(x, z[:, neuron])
        path = regressor.apply(x_new)
        trees.append(_neuron_tree(name, quantities[0].names, regressor.tree_, z[:, neuron], z_new[:, neuron], path))
        paths.append(path)
    information, entropy = _mutual_information(z_new, paths)
    return TreeAudit(
        watched=watched,
        trees=tuple(trees),
        n_fit=len(fitting),
        n_held_out=n_held_out,
        mutual_information=information,
        mutual_information_gap=mutual_information_gap(information, entropy),
        modularity=modularity_score(information),
    )


def _neuron_tree(
    name: str, quantities: tuple[str, ...], tree: Any, z: Array, z_new: Array, path: npt.NDArray[np.int64]
) -> NeuronTree:
    value = tree.value[:, 0, 0].astype(np.float64)
    variance = float(z_new.var()) if np.ptp(z_new) > 0 else math.nan
    within = sum(z_new[path == leaf].var() * np.mean(path == leaf) for leaf in np.unique(path))
    rules = [
        Rule(
            neuron=name,
            level=_level(value[leaf], z),
            value=float(value[leaf]),
            share=float(np.mean(path == leaf)),
            leaf=leaf,
            conditions=conditions,
        )
        for leaf, conditions in _paths(tree, quantities)
    ]
    return NeuronTree(
        neuron=name,
        quantities=quantities,
        left=tree.children_left,
        right=tree.children_right,
        feature=tree.feature,
        threshold=tree.threshold,
        value=value,
        rules=tuple(sorted(rules, key=lambda rule: -rule.share)),
        r2=1 - float(np.mean((z_new - value[path]) ** 2)) / variance,
        response_variance=float(within) / variance,
    )


def _level(value: float, z: Array) -> str:
    offset, half = value - z.mean(), z.std() / 2
    return "high" if offset > half else "low" if offset < -half else "middling"


def _paths(tree: Any, quantities: tuple[str, ...]) -> list[tuple[int, tuple[Condition, ...]]]:
    """Return leaves with their conditions; the conditions on one quantity are joined."""
    leaves = []
    open_nodes: list[tuple[int, dict[int, tuple[float, float]]]] = [(0, {})]
    while open_nodes:
        node, bounds = open_nodes.pop()
        feature = int(tree.feature[node])
        if feature < 0:
            conditions = tuple(Condition(quantities[i], *bounds[i]) for i in bounds)
            leaves.append((node, conditions))
            continue
        low, high = bounds.get(feature, (-math.inf, math.inf))
        threshold = float(tree.threshold[node])
        open_nodes.append((int(tree.children_right[node]), bounds | {feature: (max(low, threshold), high)}))
        open_nodes.append((int(tree.children_left[node]), bounds | {feature: (low, min(high, threshold))}))
    return leaves


def _mutual_information(z: Array, paths: Sequence[npt.NDArray[np.int64]]) -> tuple[Array, Array]:
    """Return I(z_i; P_k) (C, C) and H(P_k) (C,), in nats."""
    n_neurons = z.shape[1]
    information, entropy = np.zeros((n_neurons, n_neurons)), np.zeros(n_neurons)
    bins = [_binned(z[:, i]) for i in range(n_neurons)]
    for k, path in enumerate(paths):
        leaf = np.unique(path, return_inverse=True)[1]
        entropy[k] = _entropy(np.bincount(leaf))
        for i in range(n_neurons):
            joint = np.bincount(bins[i] * (leaf.max() + 1) + leaf)
            # Rounding can make it slightly negative.
            information[i, k] = max(_entropy(np.bincount(bins[i])) + entropy[k] - _entropy(joint), 0.0)
    return information, entropy


def _binned(z: Array) -> npt.NDArray[np.int64]:
    edges = np.unique(np.quantile(z, np.arange(1, _BINS) / _BINS))
    return np.searchsorted(edges, z, side="right").astype(np.int64)


def _entropy(counts: npt.NDArray[np.int64]) -> float:
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


def mutual_information_gap(information: Array, entropy: Array) -> float:
    """Return the gap from I(z_i; P_k) (C, C) and H(P_k) (C,); with one neuron, the second one counts as 0.

    Logics of one path are left out.
    """
    ordered = np.sort(np.vstack([information, np.zeros(information.shape[1])]), axis=0)
    varied = entropy > 0
    return _mean(((ordered[-1] - ordered[-2])[varied] / entropy[varied]).tolist())


def modularity_score(information: Array) -> float:
    """Return the modularity from I(z_i; P_k) (C, C); neurons that tell about no logic are left out."""
    n_neurons = len(information)
    best = information.max(axis=1)
    telling = best > 0
    if n_neurons < 2:
        return math.nan
    others = (information[telling] ** 2).sum(axis=1) - best[telling] ** 2
    return _mean((1 - others / ((n_neurons - 1) * best[telling] ** 2)).tolist())


def _mean(values: Sequence[float]) -> float:
    """Return the mean over the entries that are not NaN; NaN where all are."""
    present = [value for value in values if not math.isnan(value)]
    return sum(present) / len(present) if present else math.nan
