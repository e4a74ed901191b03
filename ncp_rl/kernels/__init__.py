"""The fused scan over liquid time-constant neurons, and its backends."""

from ncp_rl.kernels.contract import EPSILON, Params, Synapses
from ncp_rl.kernels.scan import Backend, ltc_scan

__all__ = ["EPSILON", "Backend", "Params", "Synapses", "ltc_scan"]
