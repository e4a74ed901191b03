"""The fused scan over liquid time-constant neurons, and its backends, which `docs/kernels.md` explains."""

from ncp_rl.kernels.backends import BACKENDS, Backend
from ncp_rl.kernels.contract import EPSILON, FrozenParams, Params, Synapses, exporting, tracing
from ncp_rl.kernels.scan import ltc_scan

__all__ = ["BACKENDS", "EPSILON", "Backend", "FrozenParams", "Params", "Synapses", "exporting", "ltc_scan", "tracing"]
