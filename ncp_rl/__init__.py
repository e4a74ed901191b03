"""Neural circuit policies for reinforcement learning that can be audited.

A name is imported when it is first asked for, so that the scan and its layers work where neither Gymnasium nor
Stable-Baselines3 is installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "CfC": "cfc",
    "CnnNCPPolicy": "policy",
    "MultiInputNCPPolicy": "policy",
    "NCPPolicy": "policy",
    "MultiInputReceptors": "encoder",
    "Receptors": "encoder",
    "LTC": "ltc",
    "LTCInit": "ltc",
    "ltc_scan": "kernels",
    "AutoNCP": "wiring",
    "FullyConnected": "wiring",
    "NCP": "wiring",
    "Random": "wiring",
    "Wiring": "wiring",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
