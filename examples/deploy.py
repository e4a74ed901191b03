"""Drive an environment with an exported controller, and show its neurons while it acts.

    ncp-rl export runs/mine --out controller --to numpy      # or c, or onnx
    python examples/deploy.py controller ncp_envs:ncp/PendulumNoVel-v1

The controller runs from the folder alone: of ncp_rl nothing is imported. Your robot takes the environment's place.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

import gymnasium as gym


def main(folder: Path, env_id: str, n_steps: int, seed: int, every: int) -> float:
    """Run one episode; gives its return."""
    # controller.py stands beside what it runs.
    sys.path.insert(0, str(folder))
    runtime: Any = importlib.import_module("controller")
    controller = runtime.Controller.load(folder)
    controller.on_bad_input = "hold"
    if (folder / "monitor.json").exists():
        controller.observers.append(runtime.Monitor.load(folder / "monitor.json"))

    env = gym.make(env_id)
    observation, _ = env.reset(seed=seed)
    controller.reset()
    total = 0.0
    for step in range(n_steps):
        action = controller.step(observation)
        if controller.problem:
            print(f"step {step}: held, since {controller.problem}")
        if step % every == 0:
            print(f"step {step}: action {action}, {strongest(controller)}")
        observation, reward, terminated, truncated, _ = env.step(action)
        total += float(reward)
        if terminated or truncated:
            break
    env.close()
    for alarm in (alarm for watch in controller.observers for alarm in watch.alarms):
        print(f"step {alarm.step}: {alarm.neuron} leaves known territory, {alarm.score:.3g} > {alarm.threshold:.3g}")
    print(f"return {total:.1f}")
    return total


def strongest(controller: Any, n: int = 4) -> str:
    """The neurons with the potentials furthest from zero."""
    named = sorted(zip(controller.potentials, controller.neuron_names, strict=True), key=lambda pair: -abs(pair[0]))
    return ", ".join(f"{name} {potential:+.2f}" for potential, name in named[:n])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="with controller.json or controller.onnx, and controller.py")
    parser.add_argument("env", help="Gymnasium id; module:id imports the module first")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=20, help="show the neurons every so many steps")
    args = parser.parse_args()
    main(args.folder, args.env, args.steps, args.seed, args.every)
