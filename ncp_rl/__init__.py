"""Neural circuit policies for reinforcement learning that can be audited.

Names are imported when they are first asked for, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ncp_rl.cfc import CfC
    from ncp_rl.encoder import MultiInputReceptors, Receptors
    from ncp_rl.kernels import ltc_scan
    from ncp_rl.ltc import LTC, LTCInit
    from ncp_rl.policy import CnnNCPPolicy, MultiInputNCPPolicy, NCPPolicy
    from ncp_rl.policy_step import PolicyStep
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
    "PolicyStep",
    "Random",
    "Receptors",
    "Wiring",
    "__version__",
    "ltc_scan",
]

__version__ = "0.1.0"

if not TYPE_CHECKING:
    _MODULES = {
        "cfc": ("CfC",),
        "encoder": ("MultiInputReceptors", "Receptors"),
        "kernels": ("ltc_scan",),
        "ltc": ("LTC", "LTCInit"),
        "policy": ("CnnNCPPolicy", "MultiInputNCPPolicy", "NCPPolicy"),
        "policy_step": ("PolicyStep",),
        "wiring": ("NCP", "AutoNCP", "FullyConnected", "Random", "Wiring"),
    }

    def __getattr__(name: str) -> Any:
        """Import what a public name stands for, once (PEP 562)."""
        for module, names in _MODULES.items():
            if name in names:
                found = getattr(import_module(f"{__name__}.{module}"), name)
                globals()[name] = found
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__() -> list[str]:
        """Public names, imported or not, beside what is there."""
        return sorted({*globals(), *__all__})
