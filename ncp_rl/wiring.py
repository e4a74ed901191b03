"""Wirings: which neuron reaches which, and with what sign.

A recipe (`NCP`, `AutoNCP`, `FullyConnected`, `Random`) says how to wire; `recipe.build(n_sensory, n_motor)` gives a
finished `Wiring`. Recipes and wirings are immutable values. With the same sizes and seed they give the matrices of
`ncps.wirings` (https://github.com/mlech26l/ncps), so that published circuits can be rebuilt.

Neurons are numbered as in ncps: motor neurons first, then command, then inter neurons. Sensory neurons are counted
apart. Neural circuit policies are due to Lechner et al., "Neural circuit policies enabling auditable autonomy",
Nature Machine Intelligence 2 (2020), https://doi.org/10.1038/s42256-020-00237-3.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ncp_rl.synapses import SynapseList, synapse_list

if TYPE_CHECKING:
    import networkx as nx
    from matplotlib.axes import Axes

#: Polarity of a synapse: +1 excitatory, -1 inhibitory, 0 no synapse.
Adjacency = npt.NDArray[np.int8]

# Colours and line styles that stay apart under colour-vision deficiency (Okabe and Ito's palette).
_EXCITATORY = {"edge_color": "#0072B2", "style": "solid"}
_INHIBITORY = {"edge_color": "#D55E00", "style": "dashed"}
_LAYER_COLORS = {"sensory": "#999999", "inter": "#56B4E9", "command": "#F0E442", "motor": "#CC79A7"}


@dataclass(frozen=True, eq=False)
class Wiring:
    """A finished, immutable wiring of S sensory inputs and U neurons.

    Attributes:
        adjacency: (U, U) int8, polarity of the synapse [source, destination], 0 where there is none.
        sensory_adjacency: (S, U) int8, the same for synapses from sensory inputs.
        n_motor: Motor neurons, neurons 0 to n_motor - 1.
        n_command: Command neurons, the next n_command; the rest are inter neurons.

    Raises:
        ValueError: Matrices of the wrong shape or with other values than -1, 0, 1; counts that do not fit.
    """

    adjacency: Adjacency
    sensory_adjacency: Adjacency
    n_motor: int
    n_command: int = 0

    def __post_init__(self) -> None:
        """Check the matrices and make them read-only."""
        for name in ("adjacency", "sensory_adjacency"):
            object.__setattr__(self, name, _polarities(getattr(self, name), name))
        if self.adjacency.shape[0] != self.units or self.units == 0:
            raise ValueError(f"adjacency must be (U, U) with U >= 1, got {self.adjacency.shape}.")
        if self.sensory_adjacency.shape[1] != self.units or self.n_sensory == 0:
            raise ValueError(
                f"sensory_adjacency must be (S, U) = (S, {self.units}) with S >= 1, got {self.sensory_adjacency.shape}."
            )
        _check_range("n_motor", self.n_motor, 1, self.units)
        _check_range("n_command", self.n_command, 0, self.units - self.n_motor)

    @property
    def units(self) -> int:
        """Number of neurons U: motor, command and inter."""
        return int(self.adjacency.shape[1])

    @property
    def n_sensory(self) -> int:
        """Number of sensory inputs S."""
        return int(self.sensory_adjacency.shape[0])

    @property
    def motor(self) -> slice:
        """Motor neurons."""
        return slice(0, self.n_motor)

    @property
    def command(self) -> slice:
        """Command neurons."""
        return slice(self.n_motor, self.n_motor + self.n_command)

    @property
    def inter(self) -> slice:
        """Inter neurons."""
        return slice(self.n_motor + self.n_command, self.units)

    @cached_property
    def synapses(self) -> SynapseList:
        """Synapses between neurons."""
        return synapse_list(self.adjacency)

    @cached_property
    def sensory_synapses(self) -> SynapseList:
        """Synapses from sensory inputs to neurons."""
        return synapse_list(self.sensory_adjacency)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the neurons in order: motor_0, ..., command_0, ..., inter_0, ..."""
        layers = {"motor": self.motor, "command": self.command, "inter": self.inter}
        return tuple(f"{layer}_{i}" for layer, part in layers.items() for i in range(part.stop - part.start))

    @cached_property
    def sensory_names(self) -> tuple[str, ...]:
        """Names of the sensory inputs: sensory_0, ..."""
        return tuple(f"sensory_{i}" for i in range(self.n_sensory))

    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """The wiring itself, so that it stands wherever a recipe does.

        Raises:
            ValueError: The sizes asked for are not its own.
        """
        if (n_sensory, n_motor) != (self.n_sensory, self.n_motor):
            raise ValueError(
                f"This wiring has {self.n_sensory} sensory inputs and {self.n_motor} motor neurons, but {n_sensory} "
                f"and {n_motor} are needed; pass a recipe such as AutoNCP, or change the encoder or the wiring."
            )
        return self

    def __eq__(self, other: object) -> bool:
        """Equal where matrices and counts are."""
        return isinstance(other, Wiring) and self.to_dict() == other.to_dict()

    def __hash__(self) -> int:
        """Hash over matrices and counts."""
        return hash((self.adjacency.tobytes(), self.sensory_adjacency.tobytes(), self.n_motor, self.n_command))

    def to_dict(self) -> dict[str, Any]:
        """A description that JSON can carry; `from_dict` reads it back."""
        return {
            "adjacency": self.adjacency.tolist(),
            "sensory_adjacency": self.sensory_adjacency.tolist(),
            "n_motor": self.n_motor,
            "n_command": self.n_command,
        }

    @classmethod
    def from_dict(cls, description: Mapping[str, Any]) -> Wiring:
        """The wiring that `to_dict` described.

        Raises:
            ValueError: Keys are missing or unknown, or the values make no wiring.
        """
        expected = {field.name for field in fields(cls)}
        if set(description) != expected:
            raise ValueError(f"A wiring has the keys {sorted(expected)}, got {sorted(description)}.")
        return cls(**description)

    @classmethod
    def from_ncps(cls, wiring: Any) -> Wiring:
        """The wiring of a built `ncps.wirings.Wiring`.

        Raises:
            ValueError: The ncps wiring is not built, so that its sensory synapses are unknown.
        """
        if not wiring.is_built():
            raise ValueError("The ncps wiring is not built; call its build(n_sensory) once, and only once, before.")
        n_command = sum(wiring.get_type_of_neuron(neuron) == "command" for neuron in range(wiring.units))
        return cls(wiring.adjacency_matrix, wiring.sensory_adjacency_matrix, wiring.output_dim, n_command)

    def graph(self) -> nx.DiGraph:
        """Directed graph: nodes by name with attribute `layer`, edges with attribute `polarity` (+1, -1)."""
        import networkx as nx  # Only who looks at a wiring needs it; circuits run without.

        graph = nx.DiGraph()
        graph.add_nodes_from(self.sensory_names, layer="sensory")
        for layer in ("inter", "command", "motor"):
            graph.add_nodes_from(self.names[getattr(self, layer)], layer=layer)
        for sources, synapses in ((self.sensory_names, self.sensory_synapses), (self.names, self.synapses)):
            for source, destination, polarity in zip(*synapses[1:], strict=True):
                graph.add_edge(sources[source], self.names[destination], polarity=int(polarity))
        return graph

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the layers from left (sensory) to right (motor); solid edges excite, dashed ones inhibit."""
        import matplotlib.pyplot as plt
        import networkx as nx

        ax = plt.gca() if ax is None else ax
        graph = self.graph()
        layers = [layer for layer in _LAYER_COLORS if layer in set(nx.get_node_attributes(graph, "layer").values())]
        nx.set_node_attributes(
            graph, {node: layers.index(layer) for node, layer in graph.nodes(data="layer")}, name="column"
        )
        position = nx.multipartite_layout(graph, subset_key="column")
        for polarity, style in ((1, _EXCITATORY), (-1, _INHIBITORY)):
            edges = [edge for edge in graph.edges if graph.edges[edge]["polarity"] == polarity]
            nx.draw_networkx_edges(
                graph, position, edges, ax=ax, node_size=120, alpha=0.5, connectionstyle="arc3,rad=0.08", **style
            )
        for layer in layers:
            nodes = [node for node in graph if graph.nodes[node]["layer"] == layer]
            color = _LAYER_COLORS[layer]
            label = f"{layer} ({len(nodes)})"
            nx.draw_networkx_nodes(
                graph, position, nodes, ax=ax, node_size=120, node_color=color, edgecolors="black", label=label
            )
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, 1.1), ncol=len(layers), frameon=False)
        ax.set_axis_off()
        return ax


class Recipe(ABC):
    """How to wire; `build` gives the wiring for a number of inputs and motor neurons."""

    @abstractmethod
    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """Wire `n_sensory` inputs to a circuit with `n_motor` motor neurons.

        Raises:
            ValueError: No such circuit exists; the message names the argument and its range.
        """


@dataclass(frozen=True)
class NCP(Recipe):
    """Neural circuit policy in four layers: sensory -> inter -> command (recurrent) -> motor.

    Wires as `ncps.wirings.NCP` does: random targets for each source, then synapses for neurons left without any.

    Attributes:
        inter_neurons: Number of inter neurons.
        command_neurons: Number of command neurons.
        sensory_fanout: Synapses from each sensory input to inter neurons.
        inter_fanout: Synapses from each inter neuron to command neurons.
        recurrent_command_synapses: Synapses drawn among command neurons; the same one can be drawn again.
        motor_fanin: Synapses from command neurons to each motor neuron.
        seed: Seed of targets and polarities.
    """

    inter_neurons: int
    command_neurons: int
    sensory_fanout: int
    inter_fanout: int
    recurrent_command_synapses: int
    motor_fanin: int
    seed: int = 22222

    def __post_init__(self) -> None:
        """Refuse circuits that cannot be wired."""
        _check_range("inter_neurons", self.inter_neurons, 1)
        _check_range("command_neurons", self.command_neurons, 1)
        _check_range("sensory_fanout", self.sensory_fanout, 1, self.inter_neurons, "inter_neurons")
        _check_range("inter_fanout", self.inter_fanout, 1, self.command_neurons, "command_neurons")
        _check_range("recurrent_command_synapses", self.recurrent_command_synapses, 0)
        _check_range("motor_fanin", self.motor_fanin, 1, self.command_neurons, "command_neurons")

    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """Wire it; see `Recipe.build`."""
        _check_sizes(n_sensory, n_motor)
        rng = np.random.RandomState(self.seed)
        units = n_motor + self.command_neurons + self.inter_neurons
        motor, command, inter = np.split(np.arange(units), [n_motor, n_motor + self.command_neurons])
        sensory = np.arange(n_sensory)
        adjacency = np.zeros((units, units), np.int8)
        sensory_adjacency = np.zeros((n_sensory, units), np.int8)

        for source, destination in _fan_out(rng, sensory, inter, self.sensory_fanout, at_most=n_sensory):
            sensory_adjacency[source, destination] = rng.choice([-1, 1])
        # ncps clips this layer's repairs at the number of command neurons, not of inter neurons.
        for source, destination in _fan_out(rng, inter, command, self.inter_fanout, at_most=self.command_neurons):
            adjacency[source, destination] = rng.choice([-1, 1])
        for _ in range(self.recurrent_command_synapses):
            source, destination = rng.choice(command), rng.choice(command)
            adjacency[source, destination] = rng.choice([-1, 1])
        for destination, source in _fan_out(rng, motor, command, self.motor_fanin, at_most=n_motor):
            adjacency[source, destination] = rng.choice([-1, 1])
        return Wiring(adjacency, sensory_adjacency, n_motor, self.command_neurons)


@dataclass(frozen=True)
class AutoNCP(Recipe):
    """An `NCP` from its number of neurons alone; layer sizes as in `ncps.wirings.AutoNCP`.

    Attributes:
        units: Motor, command and inter neurons together; at least three more than the motor neurons.
        sparsity: From 0.0 (dense) to 0.9 (sparse).
        seed: Seed of targets and polarities.
        command_share: Of command neurons among command and inter neurons; 0.4 in ncps.
        recurrence: Synapses drawn among command neurons, by their number squared; the same one can be drawn again, so
            that 1.0 wires 63 % of all pairs. Two per command neuron in a dense circuit, as in ncps, where None.
    """

    units: int
    sparsity: float = 0.5
    seed: int = 22222
    command_share: float = 0.4
    recurrence: float | None = None

    def __post_init__(self) -> None:
        """Refuse what no number of motor neurons could make possible."""
        _check_range("units", self.units, 4)
        _check_range("sparsity", self.sparsity, 0.0, 0.9)
        _check_range("command_share", self.command_share, 0.0, 1.0)
        if self.recurrence is not None:
            _check_range("recurrence", self.recurrence, 0.0, 10.0)

    def ncp(self, n_motor: int) -> NCP:
        """The recipe with every layer's size and fan-out written out."""
        _check_range("n_motor", n_motor, 1, self.units - 3, "units - 3")
        density = 1.0 - self.sparsity
        others = self.units - n_motor
        command = min(max(int(self.command_share * others), 1), others - 1)
        recurrent = int(command * density * 2) if self.recurrence is None else round(self.recurrence * command**2)
        return NCP(
            inter_neurons=others - command,
            command_neurons=command,
            sensory_fanout=max(int((others - command) * density), 1),
            inter_fanout=max(int(command * density), 1),
            recurrent_command_synapses=max(recurrent, 1),
            motor_fanin=max(int(command * density), 1),
            seed=self.seed,
        )

    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """Wire it; see `Recipe.build`."""
        return self.ncp(n_motor).build(n_sensory, n_motor)


@dataclass(frozen=True)
class FullyConnected(Recipe):
    """Every neuron and every input reaches every neuron; two synapses in three excite (`ncps.wirings.FullyConnected`).

    Attributes:
        units: Number of neurons.
        self_connections: Whether neurons reach themselves.
        seed: Seed of the polarities.
    """

    units: int
    self_connections: bool = True
    seed: int = 1111

    def __post_init__(self) -> None:
        """Refuse a circuit without neurons."""
        _check_range("units", self.units, 1)

    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """Wire it; see `Recipe.build`."""
        _check_sizes(n_sensory, n_motor, self.units)
        rng = np.random.default_rng(self.seed)
        adjacency = np.zeros((self.units, self.units), np.int8)
        wired = np.full(adjacency.shape, True) if self.self_connections else ~np.eye(self.units, dtype=bool)
        adjacency[wired] = _polarity(rng, int(wired.sum()))
        sensory = _polarity(rng, n_sensory * self.units).reshape(n_sensory, self.units)
        return Wiring(adjacency, sensory, n_motor)


@dataclass(frozen=True)
class Random(Recipe):
    """Synapses drawn at random among all possible ones; two in three excite (`ncps.wirings.Random`).

    Attributes:
        units: Number of neurons.
        sparsity: Share of possible synapses left out, from 0.0 to below 1.0.
        seed: Seed of synapses and polarities.
        sensory_sparsity: The same for synapses of sensory inputs; `sparsity` where None.
    """

    units: int
    sparsity: float = 0.0
    seed: int = 1111
    sensory_sparsity: float | None = None

    def __post_init__(self) -> None:
        """Refuse a circuit without neurons or with an impossible share."""
        _check_range("units", self.units, 1)
        for name in ("sparsity", "sensory_sparsity"):
            share = getattr(self, name)
            if share is not None and not 0.0 <= share < 1.0:
                raise ValueError(f"{name} must be at least 0.0 and below 1.0, got {share}.")

    def build(self, n_sensory: int, n_motor: int) -> Wiring:
        """Wire it; see `Recipe.build`."""
        _check_sizes(n_sensory, n_motor, self.units)
        rng = np.random.default_rng(self.seed)
        adjacency = self._draw(rng, self.units, self.sparsity, draws_per_synapse=1)
        sensory_sparsity = self.sparsity if self.sensory_sparsity is None else self.sensory_sparsity
        # ncps draws the polarity of a sensory synapse twice and keeps the second.
        sensory_adjacency = self._draw(rng, n_sensory, sensory_sparsity, draws_per_synapse=2)
        return Wiring(adjacency, sensory_adjacency, n_motor)

    def _draw(self, rng: np.random.Generator, n_sources: int, sparsity: float, *, draws_per_synapse: int) -> Adjacency:
        possible = n_sources * self.units
        n_synapses = int(np.round(possible * (1 - sparsity)))
        adjacency = np.zeros(possible, np.int8)
        chosen = rng.choice(possible, size=n_synapses, replace=False)
        adjacency[chosen] = _polarity(rng, n_synapses * draws_per_synapse)[draws_per_synapse - 1 :: draws_per_synapse]
        return adjacency.reshape(n_sources, self.units)


_RECIPES: dict[str, type[Recipe]] = {recipe.__name__: recipe for recipe in (NCP, AutoNCP, FullyConnected, Random)}


def read_recipe(value: object, name: str = "wiring") -> Recipe | Wiring:
    """A recipe or wiring as it is, and a mapping, which a yml file can hold, as the recipe that it describes.

        read_recipe({"recipe": "AutoNCP", "units": 32})  # AutoNCP(units=32)

    Args:
        value: A recipe, a wiring, or a mapping of a recipe's name (AutoNCP where there is none) and its arguments.
        name: Of the argument, for the error.

    Raises:
        ValueError: The value is none of these, or describes no recipe.
    """
    if isinstance(value, (Recipe, Wiring)):
        return value
    if not isinstance(value, Mapping):
        raise ValueError(
            f"{name} must be a recipe such as AutoNCP(units=32), a Wiring, or a mapping such as "
            f'{{"recipe": "AutoNCP", "units": 32}}, got {value!r}.'
        )
    arguments = dict(value)
    recipe = _RECIPES.get(str(arguments.pop("recipe", "AutoNCP")))
    if recipe is None:
        raise ValueError(f"The recipe of {name} must be one of {', '.join(_RECIPES)}, got {value['recipe']!r}.")
    parameters = fields(recipe)  # type: ignore[arg-type]  # Each of them is a dataclass.
    required = {parameter.name for parameter in parameters if parameter.default is MISSING}
    if not required <= set(arguments) <= {parameter.name for parameter in parameters}:
        taken = ", ".join(parameter.name for parameter in parameters)
        raise ValueError(
            f"{recipe.__name__}, the recipe of {name}, takes {taken} and needs {', '.join(sorted(required))}, "
            f"got {arguments}."
        )
    return recipe(**arguments)


def _fan_out(
    rng: np.random.RandomState, ends: npt.NDArray[np.int_], others: npt.NDArray[np.int_], fan: int, *, at_most: int
) -> Iterator[tuple[int, int]]:
    """Pairs (end, other): `fan` random others for each end, then random ends for the others that none has chosen.

    A generator, since ncps draws each pair's polarity before it draws the next pairs.
    """
    forgotten = set(others.tolist())
    for end in ends.tolist():
        for other in rng.choice(others, size=fan, replace=False).tolist():
            forgotten.discard(other)
            yield end, other
    fan_back = int(np.clip(int(len(ends) * fan / len(others)), 1, at_most))
    for other in sorted(forgotten):
        for end in rng.choice(ends, size=fan_back, replace=False).tolist():
            yield end, other


def _polarity(rng: np.random.Generator, size: int) -> Adjacency:
    return rng.choice(np.array([-1, 1, 1], np.int8), size=size)


def _polarities(matrix: npt.ArrayLike, name: str) -> Adjacency:
    matrix = np.array(matrix)
    if matrix.ndim != 2 or not np.isin(matrix, (-1, 0, 1)).all():
        found = f"shape {matrix.shape}, values {np.unique(matrix)}"
        raise ValueError(f"{name} must be a matrix of -1, 0 and 1, got {found}.")
    polarities = matrix.astype(np.int8)
    polarities.setflags(write=False)
    return polarities


def _check_sizes(n_sensory: int, n_motor: int, units: int | None = None) -> None:
    _check_range("n_sensory", n_sensory, 1)
    _check_range("n_motor", n_motor, 1, units, "units")


def _check_range(name: str, value: float, low: float, high: float | None = None, high_name: str = "") -> None:
    if value >= low and (high is None or value <= high):
        return
    if high is None:
        raise ValueError(f"{name} must be at least {low}, got {value}.")
    named = f"{high_name} = {high}" if high_name else f"{high}"
    raise ValueError(f"{name} must be from {low} to {named}, got {value}.")
