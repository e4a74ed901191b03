"""Explain one decision of a recording: what the action was made of, now and back through time.

    python examples/explain_decision.py flight.mcap --episode 0 --step 100

Recordings come from `ncp-rl record` and from examples/train_and_audit.py. Nothing of the file is executed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from ncp_rl.audit import certify, explain
from ncp_rl.recording import Recording


def main(path: Path, episode: int, step: int, action: int, n_back: int) -> None:
    """Explain an action of a step."""
    recording = Recording.open(path)
    circuit = recording.circuit
    explanation = explain(circuit, recording[episode])
    print(explanation.sentence(step, action))

    # The same in numbers: contributions of neurons, senses, memory and leak add up to the action mean.
    drivers = explanation.of_action(action)
    parts = dict(zip(circuit.wiring.names, drivers.neurons[step], strict=True))
    parts |= dict(zip(circuit.sensory_names, drivers.sensory[step], strict=True))
    parts |= dict(memory=drivers.memory[step], leak=drivers.leak[step], offset=drivers.offset)
    for name, part in sorted(parts.items(), key=lambda item: -abs(item[1]))[:5]:
        print(f"  {name:<12} {part:+.4f}")
    print(f"  all together {sum(parts.values()):+.4f}, recorded {explanation.episode.action_mean[step, action]:+.4f}")

    # Back through time: which observation, how many steps ago, brought how much.
    history = explanation.history(step, n_steps=n_back, action=action)
    ago, sense = np.unravel_index(np.abs(history.sensory).argmax(), history.sensory.shape)
    strongest = history.sensory[ago, sense]
    print(f"most came from {circuit.sensory_names[sense]}, seen {ago} steps before: {strongest:+.4f}")
    print(f"older than {len(history.sensory)} steps: {history.before:+.4f}")

    # What the action could have been at all, whatever was seen.
    low, high = certify(circuit).action
    print(
        f"for every input and for ever, {circuit.action_names[action]} lies in [{low[action]:.3f}, {high[action]:.3f}]"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", type=Path)
    parser.add_argument("--episode", type=int, default=0)
    parser.add_argument("--step", type=int, default=-1, help="-1 is the last")
    parser.add_argument("--action", type=int, default=0, help="its number; discrete actions are logits")
    parser.add_argument("--back", type=int, default=20, help="steps to go back")
    args = parser.parse_args()
    main(args.recording, args.episode, args.step, args.action, args.back)
