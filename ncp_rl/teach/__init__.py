"""Teach a policy before reinforcement learning, or instead of it: imitation of demonstrations, experts and models.

    demonstrations = demonstrate(expert, venv, n_steps=1000)
    clone(model, demonstrations)                          # learn what the expert did
    dagger(model, venv, expert)                           # the student drives, the expert says what it would have done
    fidelity = distil(model, teacher, venv)               # learn from a trained model, and measure how closely

Students are models of `PPO` and `RecurrentPPO` with any of their policies; circuits learn over whole sequences.
"""

from ncp_rl.extras import require

require("record", "mcap", "zstandard", "safetensors", "cryptography", "PIL", "tqdm", by="ncp_rl.teach")

from ncp_rl.lessons import Lessons
from ncp_rl.teach.cloning import Taught, clone
from ncp_rl.teach.dagger import Fidelity, Round, dagger, distil, paired_episodes
from ncp_rl.teach.demonstrations import (
    Demonstration,
    Expert,
    Privilege,
    attribute_of_envs,
    demonstrate,
    from_minari,
    from_recordings,
    from_sources,
)
from ncp_rl.teach.run import teach_run

__all__ = [
    "Demonstration",
    "Expert",
    "Fidelity",
    "Lessons",
    "Privilege",
    "Round",
    "Taught",
    "attribute_of_envs",
    "clone",
    "dagger",
    "demonstrate",
    "distil",
    "from_minari",
    "from_recordings",
    "from_sources",
    "paired_episodes",
    "teach_run",
]
