"""Train a neural circuit policy with PPO on any Gymnasium environment.

Examples:
    python scripts/train.py --env ncp/PendulumNoVel-v1
    python scripts/train.py --env my_module:MyEnv-v0 --units 48 --timesteps 500000
    python scripts/train.py --disturb observation_delay=0..2 sensor_noise=0.05
    python scripts/train.py --resume runs/mine
    python scripts/train.py --init runs/taught

Hyperparameters come from --hyperparams where it names the environment; arguments given here come before them.
"""

from ncp_rl.cli.train import Args, main
from ncp_rl.cli.tree import door

if __name__ == "__main__":
    door(Args, main, __doc__)
