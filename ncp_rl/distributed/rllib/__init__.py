"""One training on many machines: RLlib's PPO trains the policy that `RecurrentPPO` trains elsewhere.

`NCPModule` is an RLModule of RLlib's current API stack around an `NCPPolicy`. Env runners collect rollouts with it, and
learners update it with `NCPLearner`. `train` runs all of this on Ray and leaves the run folder that `ncp_rl.runs.train`
leaves, so that everything which reads run folders goes on from there.
"""

from ncp_rl.extras import require

require("rllib", "tree", "scipy", by="A training with RLlib")

from ncp_rl.distributed.rllib.environment import RunEnvironment
from ncp_rl.distributed.rllib.learner import NCPLearner
from ncp_rl.distributed.rllib.module import NCPModule
from ncp_rl.distributed.rllib.settings import Workers, algorithm_config
from ncp_rl.distributed.rllib.training import built, resume, train

__all__ = ["NCPLearner", "NCPModule", "RunEnvironment", "Workers", "algorithm_config", "built", "resume", "train"]
