"""Teach 16 LTC neurons a sine of double frequency: the cell alone, in plain PyTorch.

python examples/sine.py
"""

from __future__ import annotations

import argparse

import torch

from ncp_rl import LTC, AutoNCP


def main(seed: int, n_steps: int) -> float:
    """Fit the sine; gives the last loss."""
    torch.manual_seed(seed)
    # The inputs are sine and cosine of time; layout is time first.
    t = torch.linspace(0, 3 * torch.pi, 48)
    inputs = torch.stack([t.sin(), t.cos()], dim=-1)[:, None]  # (T, N, S) = (48, 1, 2)
    target = (2 * t).sin()[:, None, None]  # (T, N, M)

    # A recipe and the numbers of inputs and outputs make a wiring; the wiring makes a layer.
    ltc = LTC(AutoNCP(units=16).build(n_sensory=2, n_motor=1))
    optimizer = torch.optim.Adam(ltc.parameters(), lr=0.01)
    for step in range(n_steps):
        # All potentials come out; a gain and an offset turn those of the motor neurons into outputs.
        potentials, _ = ltc(inputs)  # (T, N, U)
        loss = torch.nn.functional.mse_loss(ltc.motor_map(potentials), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 0:
            print(f"step {step}: mean squared error {loss.item():.4f}")
    print(f"at the end: {loss.item():.4f}")
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    main(args.seed, args.steps)
