"""The fused scan over liquid time-constant neurons, and its backends."""

from ncp_rl.kernels.contract import EPSILON, HeldParams, Params, Synapses, exporting, tracing
from ncp_rl.kernels.scan import Backend, ltc_scan

__all__ = ["EPSILON", "Backend", "HeldParams", "Params", "Synapses", "exporting", "ltc_scan", "tracing"]
