"""`to_c`: writes a controller as C99, which compiles as C++17 too.

The code has constant tables and one struct of state, and calls nothing of libc but `memcpy`.

Floating point is IEEE 754 binary32 without contraction, and the exponential is part of the code, so that processors
that conform to the standard give the same bits.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.export.numpy_source import numpy_texts
from ncp_rl.export.spec import ExportError, Spec, find_source, write_new

TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,
    undefined=jinja2.StrictUndefined,
    keep_trailing_newline=True,
)

# Tables are indexed by uint16_t.
_LARGEST_TABLE = 2**16 - 1


class TableRow(NamedTuple):
    """A line of a table."""

    values: str
    name: str
    """Name for the comment behind the line."""


def to_c(
    source: Path | str | OnPolicyAlgorithm,
    folder: Path | str,
    *,
    env: VecEnv | None = None,
    min_seconds: float | None = None,
) -> Path:
    """Write controller.h, controller.c and main.c, an example that reads observations and prints actions.

    The files of `to_numpy`, the same controller for Python, are written beside them.

    Args:
        source: A run folder, whose best model is taken, or a model.
        folder: Folder for the files, which is created if it is missing.
        env: Environments of a model, whose normalisation is exported; None takes the model's own.
        min_seconds: The shortest step that the certified ranges hold for; a tenth of the policy's step where
            None. Shorter steps are computed too, and checked as all are.

    Returns:
        The folder.

    Raises:
        ExportError: The policy is not an NCP, observes images or through another encoder, has wrong parameters, or
        files exist. ncp_rl.runs.RunError: The run folder is damaged.
    """
    spec = Spec.of(find_source(source, env), min_seconds=min_seconds)
    # controller.json is written beside the code: verification reads names from it, and Python can run it too.
    write_new(Path(folder), c_texts(spec) | numpy_texts(spec))
    return Path(folder)


def c_texts(spec: Spec) -> dict[str, str]:
    """Return names and texts of the C files."""
    names = _names(spec)
    return {
        name: TEMPLATES.get_template(f"{name}.jinja").render(names)
        for name in ("controller.h", "controller.c", "main.c")
    }


def comment(text: str) -> str:
    """Return a name as a comment of C can hold it: printable ASCII that cannot end the comment."""
    return re.sub(r"[^ \w.,:+\-\[\]()%=>]", "_", text, flags=re.ASCII)


def literal(value: Any) -> str:
    """Return a float32 as a literal of C with nine digits, from which the same number is read."""
    number = np.float32(value)
    if abs(number) == np.finfo(np.float32).max:
        return "FLT_MAX" if number > 0 else "-FLT_MAX"
    text = f"{number:.9g}"
    return f"{text}f" if any(mark in text for mark in ".e") else f"{text}.0f"


def literals(*values: Any) -> str:
    """Return several literals, separated by commas."""
    return ", ".join(map(literal, values))


def _names(spec: Spec) -> dict[str, Any]:
    """Return the values that the templates use."""
    found = spec.vector_dict()
    action, synapses, senses = found["action"], found["synapses"], found["sensory_synapses"]
    neurons = [comment(name) for name in found["neuron_names"]]
    sensory = [comment(name) for name in found["sensory_names"]]
    outputs = [comment(name) for name in found["output_names"]]
    quantities = list(_quantity_names(found["observation"]))
    if max(map(len, (quantities, sensory, neurons, synapses["w"], senses["w"]))) > _LARGEST_TABLE:
        raise ExportError(
            f"A table of the C code can have {_LARGEST_TABLE} entries, and this policy needs more; use fewer neurons."
        )
    observed = [row for part in found["observation"] for row in _observed_rows(part)]
    box = action["kind"] == "box"
    bounds = list(_bounds(action)) if box else []
    encoder, certified = found["encoder"], found["certified"]
    return {
        "sha256": found["policy_sha256"],
        "n_observations": len(observed),
        "n_quantities": len(quantities),
        "n_sensory": len(sensory),
        "n_neurons": len(neurons),
        "n_motor": found["wiring"]["n_motor"],
        "n_outputs": len(outputs),
        "n_actions": max(1, int(np.prod(action["shape"]))),
        "ode_unfolds": found["ode_unfolds"],
        "seconds": literal(found["seconds"]),
        "seconds_comment": _seconds_comment(found["timed"]),
        "min_seconds": f"{certified['min_seconds']:.6g}",
        "outputs": "action means" if box else "logits",
        "output": "an action mean" if box else "a logit",
        "outputs_title": "Action means" if box else "Logits",
        "kind": action["kind"],
        "squash": action["squash"],
        "affine": spec.circuit.is_affine,
        "act_comment": _ACTS[action["kind"]] if not action["squash"] else "tanh, from [-1, 1] to the action's bounds.",
        "choices": ", ".join(f"{n}u" for n in action.get("n_values", ())),
        "example": " ".join("0" for _ in observed),
        "observed": observed,
        "quantities": [
            TableRow(literals(mean, std), name)
            for mean, std, name in zip(encoder["mean"], encoder["std"], quantities, strict=True)
        ],
        "receptors": [
            TableRow(f"{source}u, {literals(gain, offset)}", f"{name} <- {quantities[source]}")
            for source, gain, offset, name in zip(
                encoder["source"], encoder["gain"], encoder["offset"], sensory, strict=True
            )
        ],
        "sensory_synapses": _synapse_rows(senses, sensory, neurons),
        "synapses": _synapse_rows(synapses, neurons, neurons),
        "neurons": list(_neuron_rows(found, neurons)),
        "output_rows": list(_output_rows(spec, found, outputs)),
        "actions": [TableRow(literals(*pair), f"action {i}") for i, pair in enumerate(bounds)],
        "observation_lines": [f"[{i}] {row.name}" for i, row in enumerate(observed)],
        "action_lines": list(_action_lines(action, outputs, bounds)),
        "range_lines": list(_range_lines(certified, neurons, outputs)),
    }


_ACTS = {
    "box": "Clipped to the action's bounds.",
    "discrete": "The choice with the highest logit.",
    "multidiscrete": "Of each part, the choice with the highest logit.",
    "multibinary": "On where the logit is positive.",
}


def _seconds_comment(timed: bool) -> str:
    if timed:
        return "Where time is not measured. The policy was trained with the seconds that its environment gave."
    return "The step that the policy was trained with. Others may be given: the neurons' equations are in seconds."


def _observed_rows(part: dict[str, Any]) -> Iterator[TableRow]:
    normalize = part["normalize"]
    largest = np.finfo(np.float32).max
    for i, (name, n_values) in enumerate(zip(part["names"], part["n_values"], strict=True)):
        mean, std, limit = (0.0, 1.0, largest) if normalize is None else (*_entry(normalize, i), normalize["clip"])
        kind = f"{n_values}u, {int(part['one_hot'])}u"
        numbers = literals(mean, mean - np.float64(np.float32(mean)), 1.0 / std, min(limit, largest))
        shown = comment(name if part["key"] in (None, name) else f"{part['key']}: {name}")
        choices = f", a whole number from 0 to {n_values - 1}" if n_values else ""
        yield TableRow(f"{kind}, {numbers}", shown + choices)


def _entry(normalize: dict[str, Any], i: int) -> tuple[float, float]:
    return normalize["mean"][i], normalize["std"][i]


def _quantity_names(parts: Sequence[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        for name, n_values in zip(part["names"], part["n_values"], strict=True):
            if part["one_hot"]:
                yield from (comment(f"{name} = {value}") for value in range(n_values))
            else:
                yield comment(name)


def _synapse_rows(synapses: dict[str, Any], sources: list[str], neurons: list[str]) -> list[TableRow]:
    rows = [
        TableRow(f"{source}u, {literals(*numbers)}", f"{sources[source]} -> {neurons[destination]}")
        for source, destination, *numbers in zip(
            *(synapses[name] for name in ("source", "destination", "w", "sigma", "mu", "erev")), strict=True
        )
    ]
    # A dummy row is written, since C has no empty arrays.
    return rows or [TableRow(f"0u, {literals(0, 0, 0, 0)}", "There is no synapse; no neuron reads this line.")]


def _neuron_rows(found: dict[str, Any], neurons: list[str]) -> Iterator[TableRow]:
    counts = [
        np.bincount(np.array(found[kind]["destination"], np.int64), minlength=len(neurons)).tolist()
        for kind in ("sensory_synapses", "synapses")
    ]
    cell, inside = found["neurons"], found["certified"]["potentials"]
    columns = cell["cm"], cell["gleak"], cell["vleak"], inside["low"], inside["high"]
    for j, (name, *numbers) in enumerate(zip(neurons, *columns, strict=True)):
        yield TableRow(f"{counts[0][j]}u, {counts[1][j]}u, {literals(*numbers)}", f"{j}: {name}")


def _output_rows(spec: Spec, found: dict[str, Any], outputs: list[str]) -> Iterator[TableRow]:
    readout, inside = found["readout"], found["certified"]["action_means"]
    for i, name in enumerate(outputs):
        weight = readout["weight"][i]
        weights = literal(weight[i]) if spec.circuit.is_affine else f"{{ {literals(*weight)} }}"
        yield TableRow(f"{literals(readout['bias'][i], inside['low'][i], inside['high'][i])}, {weights}", name)


def _bounds(action: dict[str, Any]) -> Iterator[tuple[float, float]]:
    largest = float(np.finfo(np.float32).max)
    for low, high in zip(action["low"], action["high"], strict=True):
        yield -largest if low is None else max(low, -largest), largest if high is None else min(high, largest)


def _action_lines(action: dict[str, Any], outputs: list[str], bounds: list[tuple[float, float]]) -> Iterator[str]:
    if action["kind"] == "box":
        for i, (name, (low, high)) in enumerate(zip(outputs, bounds, strict=True)):
            yield f"[{i}] {name}, from {low:.6g} to {high:.6g}"
    elif action["kind"] == "multibinary":
        for i, name in enumerate(outputs):
            yield f"[{i}] {name}, 0 or 1"
    else:
        first = 0
        for i, n in enumerate(action["n_values"]):
            yield f"[{i}] a whole number from 0 to {n - 1}: {', '.join(outputs[first : first + n])}"
            first += n


def _range_lines(certified: dict[str, Any], neurons: list[str], outputs: list[str]) -> Iterator[str]:
    for names, kind in ((neurons, "potentials"), (outputs, "action_means")):
        for name, low, high in zip(names, certified[kind]["low"], certified[kind]["high"], strict=True):
            yield f"{name:<14} [{low:.6g}, {high:.6g}]"
