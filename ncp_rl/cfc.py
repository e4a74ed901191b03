"""`CfC`: a recurrent layer of closed-form continuous-time neurons over a `Wiring`, as a `torch.nn.Module`.

    cfc = CfC(AutoNCP(units=32).build(n_sensory=16, n_motor=4))
    potentials, state = cfc(inputs)        # (T, N, 16) -> (T, N, 32), (N, 32)

These neurons need no solver of a differential equation: Hasani et al., "Closed-form continuous-time neural networks",
Nature Machine Intelligence 4 (2022), https://doi.org/10.1038/s42256-022-00556-7, give the potential at the end of a
step in closed form. With the sources x of a neuron, its layer's potentials included, and t the step's length,

    v <- (1 - s) tanh(f(x)) + s tanh(g(x)),   s = sigmoid(a(x) t + b(x)),

where f, g, a and b are affine. Within a step the layers act one after the other: inter neurons, command neurons, motor
neurons, as in ncps' `WiredCfCCell` (`ncps/torch/wired_cfc_cell.py`), whose conventions are used. By the wiring, f and g
read some neurons of the layer before. Every neuron reads all potentials of its own layer, and a and b read the whole
layer before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncp_rl.cell import Floats, MotorMap, checked_seconds, checked_settings
from ncp_rl.fingerprint import Fingerprinted, fingerprint
from ncp_rl.kernels import exporting, tracing
from ncp_rl.wiring import Wiring

#: "default" is as above. "no_gate" is v <- tanh(f(x)) + s tanh(g(x)). "pure" is v <- A (1 - exp(-t (|w| + |f(x)|))
#: f(x)) with A and w of each neuron, the closed form of the differential equation itself.
Mode = Literal["default", "no_gate", "pure"]

# The affine maps of a neuron, by mode, in the order of a layer's rows; and the maps that read by the wiring.
_MAPS = {"default": ("ff1", "ff2", "time_a", "time_b"), "no_gate": ("ff1", "ff2", "time_a", "time_b"), "pure": ("ff1",)}
_WIRED = ("ff1", "ff2")

_SETTINGS = ("mode", "elapsed_time")
_NO_CONDUCTANCES = "CfC neurons have no conductances, so their potentials are not weighted means of their inputs"


class _StepTiming(NamedTuple):
    """Operands that all layers of a step share, (T, N, 1) each, or None."""

    starts: Tensor | None
    """bool, whether an episode starts"""
    elapsed: Tensor | None
    """Length of the steps in units of the layer's `elapsed_time`; None stands for one"""
    held: Tensor | None
    """bool, whether potentials stay unchanged"""


class CfCLayer(nn.Module):
    """A layer of n neurons that act at the same time, with I sources in the layers before.

    Attributes:
        weight: (K n, I + n), the K affine maps of the mode one below the other, over sources and own potentials.
        bias: (K n,), offsets of the maps.
        mask: (K n, I + n), 0 where the wiring has no synapse and 1 elsewhere.
        time_constant, amplitude: (n,), w and A of the mode "pure"; None in other modes.
    """

    mask: Tensor

    def __init__(self, synapses: npt.NDArray[np.bool_], mode: Mode) -> None:
        """Draw new parameters as ncps does: each map by Glorot and Bengio (2010), offsets as `nn.Linear` does.

        Args:
            synapses: (I, n) bool, whether a source reaches a neuron.
            mode: See `Mode`.
        """
        super().__init__()
        n_sources, n = synapses.shape
        self.mode, self.n_sources = mode, n_sources
        maps = _MAPS[mode]
        bound, limit = math.sqrt(6 / (n_sources + 2 * n)), 1 / math.sqrt(n_sources + n)
        self.weight = nn.Parameter(torch.empty(len(maps) * n, n_sources + n).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(len(maps) * n).uniform_(-limit, limit))
        wired = np.concatenate([synapses.T, np.ones((n, n), np.bool_)], axis=1)
        mask = np.concatenate([wired if name in _WIRED else np.ones_like(wired) for name in maps])
        self.register_buffer("mask", torch.from_numpy(mask.astype(np.float32)), persistent=False)
        span = math.sqrt(6 / (n + 1))
        pure = mode == "pure"
        self.time_constant = nn.Parameter(torch.empty(n).uniform_(-span, span)) if pure else None
        self.amplitude = nn.Parameter(torch.empty(n).uniform_(-span, span)) if pure else None

    def forward(self, sources: Tensor, v: Tensor, step: _StepTiming) -> Tensor:
        """Return potentials (T, N, n) after each step, from sources (T, N, I) and potentials v (N, n) at first."""
        weight = self.weight * self.mask
        driven = F.linear(sources, weight[:, : self.n_sources], self.bias)
        operands = (driven, v, weight[:, self.n_sources :].T, *step, self.time_constant, self.amplitude)
        if not torch.is_grad_enabled() or torch.compiler.is_compiling() or exporting():
            return _scan_layer(self.mode, *operands)[0]
        potentials: Tensor = _CfCScan.apply(self.mode, *operands)  # type: ignore[no-untyped-call]
        return potentials


def _after(mode: Mode, maps: Tensor, elapsed: Tensor | None, w: Tensor | None, amplitude: Tensor | None) -> Tensor:
    """Return the potentials (..., n) after a step from the maps (..., K n); see `Mode`."""
    if w is not None and amplitude is not None:
        rate = w.abs() + maps.abs()
        gone = torch.exp(-(rate if elapsed is None else rate * elapsed))
        return amplitude - amplitude * gone * maps
    heads, gates = maps.chunk(2, dim=-1)
    f, g = heads.tanh().chunk(2, dim=-1)
    a, b = gates.chunk(2, dim=-1)
    gate = torch.sigmoid(a + b if elapsed is None else torch.addcmul(b, a, elapsed))
    return torch.lerp(f, g, gate) if mode == "default" else torch.addcmul(f, gate, g)


def _scan_layer(
    mode: Mode,
    driven: Tensor,
    v: Tensor,
    own: Tensor,
    starts: Tensor | None,
    elapsed: Tensor | None,
    held: Tensor | None,
    w: Tensor | None,
    amplitude: Tensor | None,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Return the potentials (T, N, n) after each step, and each step's maps (N, K n) and potentials before (N, n).

    Args:
        mode: See `Mode`.
        driven: (T, N, K n), share of the sources in the maps.
        v: (N, n), potentials before the first step.
        own: (n, K n), weights of the maps over the layer's own potentials.
        starts: As in `_StepTiming`.
        elapsed: As in `_StepTiming`.
        held: As in `_StepTiming`.
        w: As `CfCLayer.time_constant`.
        amplitude: As in `CfCLayer`.
    """
    potentials, maps, before = [], [], []
    for t, drive in enumerate(driven.unbind()):
        if starts is not None:
            v = torch.where(starts[t], 0.0, v)
        maps.append(torch.addmm(drive, v, own))
        before.append(v)
        after = _after(mode, maps[-1], None if elapsed is None else elapsed[t], w, amplitude)
        v = after if held is None else torch.where(held[t], v, after)
        potentials.append(v)
    return torch.stack(potentials), maps, before


class _CfCScan(torch.autograd.Function):
    """`_scan_layer` as one node of autograd's graph, which would otherwise have ten nodes for each step.

    A potential after a step depends on its own neuron's maps only, element by element. So all derivatives of a step
    except one product with `own` are computed at once for all steps.
    """

    @staticmethod
    def forward(ctx: Any, mode: Mode, driven: Tensor, v: Tensor, own: Tensor, *others: Any) -> Tensor:
        potentials, maps, before = _scan_layer(mode, driven, v, own, *others)
        ctx.mode = mode
        ctx.save_for_backward(torch.stack(maps), torch.stack(before), own, *others)
        return potentials

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        maps, before, own, starts, elapsed, held, *parameters = ctx.saved_tensors
        maps = maps.detach().requires_grad_()
        others: list[Tensor | None] = [
            None if x is None else x.detach().requires_grad_() for x in (elapsed, *parameters)
        ]
        with torch.enable_grad():
            after = _after(ctx.mode, maps, *others)
            (slopes,) = torch.autograd.grad(after.sum(), maps, retain_graph=True)
        if held is not None:
            slopes = slopes.masked_fill(held, 0.0)
        slopes = slopes.unflatten(-1, (-1, after.shape[-1]))  # (T, N, K, n)
        of_after, of_maps, of_v = torch.empty_like(before), torch.empty_like(maps), torch.zeros_like(before[0])
        back = own.T
        for t in reversed(range(len(gradient))):
            of_after[t] = gradient[t] + of_v
            of_maps[t] = (slopes[t] * of_after[t, :, None]).flatten(1)
            of_v = of_maps[t] @ back if held is None else torch.where(held[t], of_after[t], of_maps[t] @ back)
            if starts is not None:
                of_v = of_v.masked_fill(starts[t], 0.0)
        wanted = [x for x in others if x is not None]
        reached = of_after if held is None else of_after.masked_fill(held, 0.0)
        found = iter(torch.autograd.grad(after, wanted, reached) if wanted else ())
        of_elapsed, *of_parameters = (None if x is None else next(found) for x in others)
        of_own = before.flatten(0, 1).T @ of_maps.flatten(0, 1)
        return None, of_maps, of_v, of_own, None, of_elapsed, None, *of_parameters


class CfC(Fingerprinted):
    """Closed-form continuous-time neurons with the wiring of a neural circuit policy; a `ncp_rl.cell.RecurrentCell`.

    Neurons, names and order are the wiring's, as in an `LTC`. Without command neurons all neurons form one
    layer. Time is counted in steps of `elapsed_time`, so that weights of the order of one suit every task.

    Attributes:
        wiring: The wiring, immutable.
        mode: See `Mode`.
        layers: The `CfCLayer`s of inter, command and motor neurons, where a wiring has them.
        motor_map: Gain and offset of each motor neuron, or the identity.
        elapsed_time: Seconds that a step lasts where no elapsed times are given.
    """

    cell: ClassVar[str] = "cfc"
    lr_scale: ClassVar[float] = 3.0
    has_time_constants: ClassVar[bool] = False
    # A product of matrices adds up in another order for other sizes.
    scan_keeps_bits: ClassVar[bool] = False
    unanswered: ClassVar[Mapping[str, str]] = {
        "explain": f"{_NO_CONDUCTANCES}: no contributions add up to an action.",
        "certificate": f"{_NO_CONDUCTANCES}, from which certified ranges would follow.",
        "sensitivity": f"{_NO_CONDUCTANCES}, from which a bound on the actions' moves would follow.",
        "dynamics": "CfC neurons have no time constants, and no synapses that saturate.",
        "ablation": "Each CfC neuron reads all neurons of its layer, so that none can be clamped and no synapse cut.",
    }

    def __init__(
        self, wiring: Wiring, *, motor_map: bool = True, elapsed_time: float = 1.0, mode: Mode = "default"
    ) -> None:
        """Draw new parameters from torch's random generator.

        Args:
            wiring: A built wiring.
            motor_map: Whether `motor_map` gives motor neurons a learned gain and offset each.
            elapsed_time: Seconds that a step lasts where `forward` is given no elapsed times, and the unit of time.
            mode: See `Mode`.

        Raises:
            ValueError: elapsed_time is not positive, mode is unknown, or the wiring has synapses that lead
                neither within a layer nor from one to the next.
        """
        super().__init__()
        if not elapsed_time > 0:
            raise ValueError(f"elapsed_time must be positive seconds, got {elapsed_time}.")
        if mode not in get_args(Mode):
            raise ValueError(f"mode must be one of {', '.join(get_args(Mode))}, got {mode!r}.")
        self.wiring, self.elapsed_time, self.mode = wiring, elapsed_time, mode
        # The names of nn.LSTM, which RecurrentPPO reads from a policy's recurrent core.
        self.input_size, self.hidden_size, self.num_layers = wiring.n_sensory, wiring.units, 1
        self._parts = _layers(wiring)
        self.layers = nn.ModuleList(CfCLayer(synapses, mode) for synapses in _between(wiring, self._parts))
        self.motor_map: MotorMap | nn.Identity = MotorMap(wiring.n_motor) if motor_map else nn.Identity()

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
            potentials: (T, N, U), after each step.
            state: (N, U), the last potentials, to go on from.

        Raises:
            ValueError: Operands do not fit, or elapsed times are negative or not finite (checked on the CPU only).
        """
        if not tracing() and (inputs.dim() != 3 or inputs.shape[-1] != self.input_size):
            raise ValueError(f"inputs must be (T, N, S) with S = {self.input_size}, got {tuple(inputs.shape)}.")
        if state is None:
            state = inputs.new_zeros(inputs.shape[1], self.hidden_size)
        if not tracing() and state.shape != (inputs.shape[1], self.hidden_size):
            expected = (inputs.shape[1], self.hidden_size)
            raise ValueError(f"state must be (N, U) = {expected}, got {tuple(state.shape)}.")
        step = self._step(inputs, episode_starts, elapsed_time)
        # Operands are copied, since those of other strides or addresses are multiplied in another order.
        reached, state = (operand.clone(memory_format=torch.contiguous_format) for operand in (inputs, state))
        found: dict[int, Tensor] = {}
        for layer, part in zip(self.layers, self._parts, strict=True):
            found[part.start] = reached = layer(reached, state[:, part].contiguous(), step)
        potentials = torch.cat([found[start] for start in sorted(found)], dim=-1)
        return potentials, potentials[-1]

    def _step(self, inputs: Tensor, episode_starts: Tensor | None, elapsed_time: Tensor | None) -> _StepTiming:
        for name, operand in (("episode_starts", episode_starts), ("elapsed_time", elapsed_time)):
            if operand is not None and not tracing() and operand.shape != inputs.shape[:2]:
                expected, came = tuple(inputs.shape[:2]), tuple(operand.shape)
                raise ValueError(f"{name} must be (T, N) = {expected}, got {came}.")
        starts = None if episode_starts is None else (episode_starts != 0)[..., None]
        if elapsed_time is None:
            return _StepTiming(starts, None, None)
        elapsed = checked_seconds(elapsed_time)[..., None]
        # In an exported graph no step is held, since it cannot tell -0.0 from 0.0.
        held = None if exporting() else torch.signbit(elapsed)
        # The divisor is a tensor, so that a step of `elapsed_time` seconds gives exactly one.
        return _StepTiming(starts, elapsed / elapsed.new_full((), self.elapsed_time), held)

    def fingerprint(self) -> Tensor:
        """Return the fingerprint of wiring, `elapsed_time` and `mode`; see `ncp_rl.fingerprint`."""
        return fingerprint(self.wiring, self.elapsed_time, self.mode)

    def settings(self) -> dict[str, Any]:
        """Return the settings beside wiring and weights; see `RecurrentCell`."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def from_settings(cls, wiring: Wiring, settings: Mapping[str, Any]) -> CfC:
        """Build the layer that `settings` describe; see `RecurrentCell`."""
        return cls(wiring, **checked_settings(settings, _SETTINGS))

    def equal_bits_width(self, width: int) -> int:
        """Return `width`: fewer sequences side by side give other bits."""
        return width

    def time_constants(self, sensory: Floats, potentials: Floats) -> Floats:
        """Refuse, since CfC neurons have no time constants; see `RecurrentCell`.

        Raises:
            ValueError: Always.
        """
        raise ValueError(
            "CfC neurons have no time constants; their gates decide anew in each step how much they remember."
        )

    @classmethod
    def from_ncps(cls, module: Any) -> CfC:
        """Build the layer with the wiring and weights of a wired `ncps.torch.CfC`, or of an `ncps.torch.WiredCfCCell`.

        Raises:
            ValueError: The module has no wiring, or has a mixed memory (an LSTM beside it) or a layer behind its
                neurons.
        """
        cell = getattr(module, "rnn_cell", module)
        if not hasattr(cell, "_wiring"):
            raise ValueError(
                "from_ncps reads wired CfCs only, this one has no wiring; give ncps.torch.CfC a wiring in place of "
                "units."
            )
        if getattr(module, "use_mixed", False):
            raise ValueError("from_ncps reads CfC weights only; this CfC has an LSTM beside them (mixed_memory=True).")
        if not isinstance(getattr(module, "fc", nn.Identity()), nn.Identity):
            raise ValueError("from_ncps reads CfC weights only; this CfC has a layer behind its neurons (proj_size).")
        cfc = cls(Wiring.from_ncps(cell._wiring), mode=cell._layers[0].mode, motor_map=False)
        with torch.no_grad():
            for layer, theirs in zip(cfc.layers, cell._layers, strict=True):
                assert isinstance(layer, CfCLayer)
                maps = [getattr(theirs, name) for name in _MAPS[cfc.mode]]
                layer.weight.copy_(torch.cat([linear.weight for linear in maps]))
                layer.bias.copy_(torch.cat([linear.bias for linear in maps]))
                if layer.time_constant is not None and layer.amplitude is not None:
                    layer.time_constant.copy_(theirs.w_tau[0])
                    layer.amplitude.copy_(theirs.A[0])
        return cfc.to(cell._layers[0].ff1.weight.device)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(cfc)`."""
        w = self.wiring
        return (
            f"n_sensory={w.n_sensory}, n_inter={w.units - w.n_command - w.n_motor}, n_command={w.n_command}, "
            f"n_motor={w.n_motor}, elapsed_time={self.elapsed_time}, mode={self.mode!r}"
        )


def _layers(wiring: Wiring) -> tuple[slice, ...]:
    """Return slices of the neurons that act at the same time, in the order in which the layers act."""
    if not wiring.n_command:
        return (slice(0, wiring.units),)
    return tuple(part for part in (wiring.inter, wiring.command, wiring.motor) if part.stop > part.start)


def _between(wiring: Wiring, parts: tuple[slice, ...]) -> list[npt.NDArray[np.bool_]]:
    """Return for every layer whether each source reaches each of its neurons, (I, n) bool.

    Raises:
        ValueError: A synapse leads neither within a layer nor from one to the next.
    """
    between, senses = wiring.adjacency != 0, wiring.sensory_adjacency != 0
    known, known_senses = np.zeros_like(between), np.zeros_like(senses)
    known_senses[:, parts[0]] = True
    for part, before in zip(parts, (None, *parts), strict=False):
        known[part, part] = True
        if before is not None:
            known[before, part] = True
    for adjacency, expected, sources in ((between, known, wiring.names), (senses, known_senses, wiring.sensory_names)):
        wrong = np.argwhere(adjacency & ~expected)
        if len(wrong):
            source, destination = wrong[0]
            raise ValueError(
                f"The layers of a CfC act in the order inter, command, motor neurons, and each reads only the layer "
                f"before it, but the wiring has a synapse from {sources[source]} to {wiring.names[destination]}. "
                "Use NCP, "
                "AutoNCP, or a wiring without command neurons, whose neurons form one layer."
            )
    return [senses[:, parts[0]], *(between[before, part] for before, part in pairwise(parts))]
