"""`RecurrentCell`: the interface of a layer of neurons over a wiring, used by policy, circuit, recordings and audit.

`ncp_rl.ltc.LTC` and `ncp_rl.cfc.CfC` are such layers, each a `torch.nn.Module`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ncp_rl.kernels import exporting
from ncp_rl.wiring import Wiring

Floats = npt.NDArray[np.float32]


class MotorMap(nn.Module):
    """A layer that maps each motor neuron's potential by a gain and an offset of its own."""

    def __init__(self, n_motor: int) -> None:
        """Start as the identity on `n_motor` neurons."""
        super().__init__()
        self.n_motor = n_motor
        self.weight = nn.Parameter(torch.ones(n_motor))
        self.bias = nn.Parameter(torch.zeros(n_motor))

    def forward(self, potentials: Tensor) -> Tensor:
        """Map potentials (..., U) of all neurons to motor outputs (..., M)."""
        return torch.addcmul(self.bias, potentials[..., : self.n_motor], self.weight)


@runtime_checkable
class RecurrentCell(Protocol):
    """A `torch.nn.Module` of U neurons wired to S sensory inputs; the state of a neuron is one number, its potential.

    A cell is made by `Class(wiring, motor_map=..., elapsed_time=..., **settings)`: `motor_map` says whether motor
    neurons get a learned gain and offset each, `elapsed_time` is the seconds of a step where `forward` gets none. Its
    parameters are drawn from torch's random generator, and its state dict refuses weights of another circuit
    (`ncp_rl.fingerprint`).

    Attributes:
        cell: Name of the kind of neurons, as recordings store it.
        lr_scale: Factor of the learning rate in `ncp_rl.learning.ScaledAdam` that suits its parameters.
        has_time_constants: Whether neurons have time constants, which `time_constants` computes.
        scan_keeps_bits: Whether one call over T steps gives the bits of T calls of one step each.
        unanswered: Questions of the audit that have no answer for these neurons: a sentence on why, by the question's
            name in audit.json.
        wiring: The synapses and the neurons' names.
        elapsed_time: Seconds of a step where `forward` gets none.
        input_size, hidden_size, num_layers: S, U and 1, the names under which RecurrentPPO reads an `nn.LSTM`.
        motor_map: Layer from potentials (..., U) to motor outputs (..., M).
    """

    cell: ClassVar[str]
    lr_scale: ClassVar[float]
    has_time_constants: ClassVar[bool]
    scan_keeps_bits: ClassVar[bool]
    unanswered: ClassVar[Mapping[str, str]]
    wiring: Wiring
    elapsed_time: float
    input_size: int
    hidden_size: int
    num_layers: int
    motor_map: MotorMap | nn.Identity

    def forward(
        self,
        inputs: Tensor,
        state: Tensor | None = None,
        episode_starts: Tensor | None = None,
        elapsed_time: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run N sequences over T steps.

        Args:
            inputs: (T, N, S), sensory inputs.
            state: (N, U), potentials before the first step; zero where None.
            episode_starts: (T, N), bool or 0 and 1; where set, a sequence's potentials are zero before that step.
            elapsed_time: (T, N), seconds since the step before, not negative; `self.elapsed_time` where None. Where it
                is -0.0 the step is held: potentials stay as they are, whatever the inputs.

        Returns:
            (T, N, U), potentials after each step; (N, U), the last of them, to go on from.

        Raises:
            ValueError: Operands do not fit, or elapsed times are negative or not finite.
        """

    def settings(self) -> dict[str, Any]:
        """Return the settings that, with wiring and weights, build the layer again, as JSON can hold them."""

    @classmethod
    def from_settings(cls, wiring: Wiring, settings: Mapping[str, Any]) -> RecurrentCell:
        """Build the layer that `settings` describe, on the CPU, with random weights.

        Raises:
            ValueError: The settings are not those of such a layer; they may come from a file that is not trusted.
        """

    def equal_bits_width(self, width: int) -> int:
        """Return the smallest number of sequences that gives the same bits as `width` sequences side by side."""

    def time_constants(self, sensory: Floats, potentials: Floats) -> Floats:
        """Return the time constants of all neurons, (..., U) float32 seconds.

        Args:
            sensory: (..., S) float32, sensory inputs.
            potentials: (..., U) float32.

        Raises:
            ValueError: These neurons have no time constants.
        """

    # Methods of torch.nn.Module that are used here.
    __call__: Callable[..., Any]
    """Runs `forward`."""

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """See `torch.nn.Module`."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """See `torch.nn.Module`."""

    def state_dict(self) -> dict[str, Any]:
        """See `torch.nn.Module`."""

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> Any:
        """See `torch.nn.Module`."""

    def register_forward_hook(self, hook: Any) -> Any:
        """See `torch.nn.Module`."""


def checked_settings(settings: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return the settings, `elapsed_time` among them, after checking that they have exactly these names.

    Raises:
        ValueError: The names differ, or the elapsed time is not a positive float32.
    """
    if set(settings) != set(names):
        raise ValueError(f"the settings must be {', '.join(names)}, got {', '.join(map(str, settings))}")
    seconds = settings["elapsed_time"]
    least, most = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if type(seconds) not in (int, float) or not least <= seconds <= most:
        raise ValueError(f"elapsed_time must be positive seconds of a float32, got {seconds!r:.40}")
    return dict(settings)


def checked_seconds(elapsed_time: Tensor) -> Tensor:
    """Return the elapsed times after checking that they are finite and not negative; on a GPU others become NaN.

    Raises:
        ValueError: They are not finite, or negative. Only those on the CPU are checked, since a check would wait for a
            GPU.
    """
    wrong = ~(elapsed_time >= 0) | torch.isinf(elapsed_time)
    if not elapsed_time.is_cpu or torch.compiler.is_compiling() or exporting():
        return elapsed_time.masked_fill(wrong, float("nan"))
    if wrong.any():
        at = tuple(int(i) for i in wrong.nonzero()[0])
        raise ValueError(
            f"elapsed_time must be finite seconds, not negative, got {elapsed_time[at].item()} at (t, n) = {at}; if it "
            "is an observation, keep it out of normalisation (VecNormalize: norm_obs_keys)."
        )
    return elapsed_time
