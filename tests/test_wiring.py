"""Wirings: the matrices of ncps, the figures of the paper, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from itertools import product

import matplotlib.figure
import networkx as nx
import numpy as np
import pytest
from ncps import wirings as ncps_wirings

from ncp_rl import NCP, AutoNCP, FullyConnected, Random, Wiring
from ncp_rl.wiring import Adjacency

matplotlib.use("Agg")


def ones(*shape: int) -> Adjacency:
    return np.ones(shape, np.int8)


@pytest.mark.parametrize("units", [4, 8, 19, 33, 64])
def test_auto_ncp_has_the_matrices_of_ncps(units: int) -> None:
    for n_motor, sparsity, seed, n_sensory in product([1, 2, 5], [0.1, 0.5, 0.9], [0, 22222], [1, 3, 16, 32]):
        if n_motor > units - 3:
            continue
        theirs = ncps_wirings.AutoNCP(units, n_motor, sparsity, seed)
        theirs.build(n_sensory)
        assert AutoNCP(units, sparsity, seed).build(n_sensory, n_motor) == Wiring.from_ncps(theirs)


@pytest.mark.parametrize("sizes", [(12, 6, 4, 4, 6, 4), (3, 5, 1, 1, 20, 2), (1, 1, 1, 1, 0, 1), (10, 2, 10, 2, 3, 1)])
def test_ncp_has_the_matrices_of_ncps(sizes: tuple[int, ...]) -> None:
    inter, command, *fans = sizes
    for n_motor, n_sensory in product([1, 3], [1, 2, 30]):
        theirs = ncps_wirings.NCP(inter, command, n_motor, *fans)
        theirs.build(n_sensory)
        assert NCP(inter, command, *fans).build(n_sensory, n_motor) == Wiring.from_ncps(theirs)


@pytest.mark.parametrize("units", [1, 5, 32])
def test_fully_connected_and_random_have_the_matrices_of_ncps(units: int) -> None:
    for n_sensory, seed in product([1, 3, 16], [1111, 5]):
        for self_connections in (True, False):
            theirs = ncps_wirings.FullyConnected(units, 1, seed, self_connections)
            theirs.build(n_sensory)
            assert FullyConnected(units, self_connections, seed).build(n_sensory, 1) == Wiring.from_ncps(theirs)
        for sparsity in (0.0, 0.25, 0.9):
            theirs = ncps_wirings.Random(units, 1, sparsity, seed)
            theirs.build(n_sensory)
            assert Random(units, sparsity, seed).build(n_sensory, 1) == Wiring.from_ncps(theirs)


def test_the_lane_keeping_circuit_of_the_paper() -> None:
    """Lechner et al. 2020: 32 inputs, 12 inter, 6 command and 1 motor neuron, 253 synapses."""
    recipe = NCP(12, 6, sensory_fanout=6, inter_fanout=4, recurrent_command_synapses=10, motor_fanin=6)
    wiring = recipe.build(n_sensory=32, n_motor=1)
    assert wiring.units == 19
    assert len(wiring.synapses.source) + len(wiring.sensory_synapses.source) == 253
    assert (wiring.motor, wiring.command, wiring.inter) == (slice(0, 1), slice(1, 7), slice(7, 19))
    assert wiring.names[0] == "motor_0" and wiring.names[6] == "command_5" and wiring.names[18] == "inter_11"


def test_an_ncp_has_four_layers_and_no_short_cuts() -> None:
    wiring = AutoNCP(32).build(16, 4)
    adjacency = wiring.adjacency != 0
    assert not wiring.sensory_adjacency[:, : wiring.inter.start].any()
    assert not adjacency[wiring.motor].any()
    assert not adjacency[wiring.inter][:, wiring.motor].any() and not adjacency[:, wiring.inter].any()
    assert adjacency[wiring.command][:, wiring.command].any()
    assert adjacency[:, wiring.motor].any(axis=0).all() and adjacency[wiring.command][:, wiring.motor].any(axis=1).all()


def test_building_twice_gives_the_same_wiring() -> None:
    recipe = AutoNCP(32)
    assert recipe.build(16, 4) == recipe.build(16, 4)
    assert hash(recipe.build(16, 4)) == hash(recipe.build(16, 4))
    assert recipe.build(16, 4) != AutoNCP(32, seed=1).build(16, 4)


def test_synapse_lists_are_sorted_by_destination() -> None:
    wiring = Random(7, sparsity=0.6).build(3, 2)
    for synapses, adjacency in (
        (wiring.synapses, wiring.adjacency),
        (wiring.sensory_synapses, wiring.sensory_adjacency),
    ):
        rebuilt = np.zeros_like(adjacency)
        for neuron in range(7):
            part = slice(synapses.pointer[neuron], synapses.pointer[neuron + 1])
            assert (synapses.destination[part] == neuron).all() and (np.diff(synapses.source[part]) > 0).all()
            rebuilt[synapses.source[part], neuron] = synapses.polarity[part]
        np.testing.assert_array_equal(rebuilt, adjacency)


def test_wirings_are_immutable() -> None:
    wiring = AutoNCP(8).build(2, 1)
    with pytest.raises(ValueError, match="read-only"):
        wiring.adjacency[0, 0] = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        wiring.n_motor = 2  # type: ignore[misc]


def test_dict_goes_through_json_and_back() -> None:
    wiring = AutoNCP(16).build(5, 2)
    assert Wiring.from_dict(json.loads(json.dumps(wiring.to_dict()))) == wiring
    with pytest.raises(ValueError, match="has the keys"):
        Wiring.from_dict({"adjacency": [[0]]})


def test_a_built_wiring_stands_for_a_recipe_of_its_own_sizes() -> None:
    wiring = AutoNCP(8).build(2, 1)
    assert wiring.build(2, 1) is wiring
    with pytest.raises(ValueError, match="2 sensory inputs and 1 motor neurons, but 3 and 1 are needed"):
        wiring.build(3, 1)


def test_graph_names_layers_and_polarities() -> None:
    wiring = AutoNCP(8).build(3, 1)
    graph = wiring.graph()
    assert graph.number_of_nodes() == 11
    assert graph.number_of_edges() == len(wiring.synapses.source) + len(wiring.sensory_synapses.source)
    source, destination = wiring.synapses.source[0], wiring.synapses.destination[0]
    edge = graph.edges[wiring.names[source], wiring.names[destination]]
    assert edge["polarity"] == wiring.adjacency[source, destination]
    assert nx.get_node_attributes(graph, "layer")["command_0"] == "command"


@pytest.mark.parametrize("recipe", [AutoNCP(16), FullyConnected(4)])
def test_plot_draws_every_synapse(recipe: AutoNCP | FullyConnected) -> None:
    figure = matplotlib.figure.Figure()
    axes = recipe.build(3, 2).plot(figure.add_subplot())
    assert len(axes.patches) == recipe.build(3, 2).graph().number_of_edges()
    assert axes.get_legend() is not None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NCP(12, 6, 4, 4, 6, motor_fanin=7), "motor_fanin must be from 1 to command_neurons = 6, got 7"),
        (lambda: NCP(12, 6, 13, 4, 6, 4), "sensory_fanout must be from 1 to inter_neurons = 12, got 13"),
        (lambda: NCP(12, 6, 4, 7, 6, 4), "inter_fanout must be from 1 to command_neurons = 6, got 7"),
        (lambda: NCP(0, 6, 4, 4, 6, 4), "inter_neurons must be at least 1, got 0"),
        (lambda: AutoNCP(16, sparsity=1.0), "sparsity must be from 0.0 to 0.9, got 1.0"),
        (lambda: AutoNCP(16, sparsity=-0.1), "sparsity must be from 0.0 to 0.9"),
        (lambda: AutoNCP(3), "units must be at least 4, got 3"),
        (lambda: AutoNCP(8).build(2, 6), "n_motor must be from 1 to units - 3 = 5, got 6"),
        (lambda: AutoNCP(8).build(0, 1), "n_sensory must be at least 1, got 0"),
        (lambda: FullyConnected(0), "units must be at least 1, got 0"),
        (lambda: FullyConnected(4).build(2, 5), "n_motor must be from 1 to units = 4, got 5"),
        (lambda: Random(4, sparsity=1.0), "sparsity must be at least 0.0 and below 1.0, got 1.0"),
        (lambda: Wiring(np.full((2, 2), 2, np.int8), ones(1, 2), 1), "adjacency must be a matrix of -1, 0 and 1"),
        (lambda: Wiring(ones(2, 3), ones(1, 3), 1), r"adjacency must be \(U, U\)"),
        (lambda: Wiring(ones(2, 2), ones(1, 3), 1), r"sensory_adjacency must be \(S, U\) = \(S, 2\)"),
        (lambda: Wiring(ones(2, 2), ones(1, 2), 1, n_command=2), "n_command must be from 0 to 1, got 2"),
        (lambda: Wiring.from_ncps(ncps_wirings.AutoNCP(8, 1)), "is not built"),
    ],
)
def test_impossible_sizes_are_refused_with_argument_and_range(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
