"""Neural circuit policies for reinforcement learning that can be audited."""

from ncp_rl.cfc import CfC
from ncp_rl.encoder import MultiInputReceptors, Receptors
from ncp_rl.kernels import ltc_scan
from ncp_rl.ltc import LTC, LTCInit
from ncp_rl.policy import CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
from ncp_rl.wiring import NCP, AutoNCP, FullyConnected, Random, Wiring

__all__ = [
    "LTC",
    "NCP",
    "AutoNCP",
    "CfC",
    "CnnNCPPolicy",
    "FullyConnected",
    "LTCInit",
    "MultiInputNCPPolicy",
    "MultiInputReceptors",
    "NCPPolicy",
    "Random",
    "Receptors",
    "Wiring",
    "ltc_scan",
]
