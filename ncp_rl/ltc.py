"""`LTC`: a recurrent layer of liquid time-constant neurons over a `Wiring`, as a `torch.nn.Module`.

    wiring = AutoNCP(units=32).build(n_sensory=16, n_motor=4)
    ltc = LTC(wiring)
    potentials, state = ltc(inputs)        # (T, N, 16) -> (T, N, 32), (N, 32)
    motor = ltc.motor_map(potentials)      # (T, N, 4)

`ncp_rl.kernels.reference` has the equations. Parameters exist only where synapses are. Those that must not be
negative (w, cm, gleak) are stored before a softplus, as in ncps' implicit mode, so that no optimizer step can break
the constraint.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ncp_rl import equations
from ncp_rl.cell import Floats, MotorMap, checked_seconds, checked_settings
from ncp_rl.fingerprint import Fingerprinted, fingerprint
from ncp_rl.kernels import BACKENDS, EPSILON, Backend, FrozenParams, Params, Synapses, exporting, ltc_scan, tracing
from ncp_rl.kernels.numba.vectors import WIDTHS
from ncp_rl.synapses import SynapseList
from ncp_rl.wiring import Wiring

Bounds = tuple[float, float]

# The parameters in the order of `_constrain`, and the buffers that hold the synapse lists of the scan.
_RAW = ("w", "sigma", "mu", "erev", "sensory_w", "sensory_sigma", "sensory_mu", "sensory_erev", "cm", "gleak", "vleak")
_LISTS = tuple(f"synapse_{name}" for name in Synapses._fields)
# The settings from which, with wiring and weights, a layer is built again.
_SETTINGS = ("ode_unfolds", "elapsed_time", "backend")


@dataclass(frozen=True)
class LTCInit:
    """Ranges from which the parameters of a new `LTC` are drawn uniformly (tau: log-uniformly).

    All ranges but those of tau and mu are those of ncps (`ncps/torch/ltc_cell.py`), whose mu from 0.3 to 0.8 shuts most
    synapses at first. ncps draws cm from (0.4, 0.6), which for a step of one second makes a neuron forget within a
    step. Here every neuron draws a time constant, and cm follows from it as cm = tau (gleak + sum w / 2), the
    conductance of half-open synapses; with `cm` given it is drawn as in ncps.
    """

    tau: Bounds = (0.1, 2.0)
    """Time constants, in steps of the layer's `elapsed_time`."""
    cm: Bounds | None = None
    gleak: Bounds = (0.001, 1.0)
    vleak: Bounds = (-0.2, 0.2)
    w: Bounds = (0.001, 1.0)
    sigma: Bounds = (3.0, 8.0)
    mu: Bounds = (-0.3, 0.3)
    sensory_w: Bounds = (0.001, 1.0)
    sensory_sigma: Bounds = (3.0, 8.0)
    sensory_mu: Bounds = (0.3, 0.8)

    def __post_init__(self) -> None:
        """Check that ranges are ranges, and allow only values that the cell can have."""
        positive = {"tau", "cm", "gleak", "w", "sensory_w"}
        for name, bounds in vars(self).items():
            if bounds is None:
                continue
            low, high = bounds
            if low > high or (name in positive and low <= 0):
                kind = "positive (low, high)" if name in positive else "(low, high)"
                raise ValueError(f"{name} must be a range {kind} with low <= high, got {bounds}.")


class PackedLTC(NamedTuple):
    """The operands that an `LTC` passes to the scan."""

    params: Params
    synapses: Synapses
    input_w: Tensor | None
    input_b: Tensor | None


class _FrozenValues(NamedTuple):
    """Frozen parameters of the scan, and a copy of the values that they were computed from."""

    values: Tensor
    params: FrozenParams


class LTC(Fingerprinted):
    """Liquid time-constant neurons (Hasani et al., AAAI 2021) with the wiring of a neural circuit policy.

    Attributes:
        wiring: The wiring, immutable.
        w, sigma, mu, erev: (E,), synapses between neurons in the order of `wiring.synapses`; w before softplus.
        sensory_w, sensory_sigma, sensory_mu, sensory_erev: (E_s,), the same for `wiring.sensory_synapses`.
        cm, gleak, vleak: (U,), membrane capacitance and leak conductance before softplus, leak potential.
        input_w, input_b: (S,), gain and offset of each sensory input; None without an input map.
        motor_map: Gain and offset of each motor neuron, or the identity.
        elapsed_time: Seconds that a step lasts where no elapsed times are given.
    """

    cell: ClassVar[str] = "ltc"
    lr_scale: ClassVar[float] = 5.0
    has_time_constants: ClassVar[bool] = True
    scan_keeps_bits: ClassVar[bool] = True
    unanswered: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        wiring: Wiring,
        *,
        input_map: bool = True,
        motor_map: bool = True,
        elapsed_time: float = 1.0,
        ode_unfolds: int = 6,
        init: LTCInit | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Draw new parameters from torch's random generator.

        Args:
            wiring: A built wiring.
            input_map: Whether inputs pass through a learned gain and offset each.
            motor_map: Whether `motor_map` gives motor neurons a learned gain and offset each.
            elapsed_time: Seconds that a step lasts where `forward` is given no elapsed times.
            ode_unfolds: Solver substeps per step.
            init: Ranges of the initial parameters.
            backend: Backend of the scan; see `ltc_scan`.

        Raises:
            ValueError: elapsed_time is not positive.
        """
        super().__init__()
        if not elapsed_time > 0:
            raise ValueError(f"elapsed_time must be positive seconds, got {elapsed_time}.")
        init = init or LTCInit()
        self.wiring = wiring
        self.elapsed_time = elapsed_time
        self.ode_unfolds = ode_unfolds
        self.backend: Backend = backend
        # The names of nn.LSTM, which RecurrentPPO reads from a policy's recurrent core.
        self.input_size, self.hidden_size, self.num_layers = wiring.n_sensory, wiring.units, 1

        synapses, sensory = wiring.synapses, wiring.sensory_synapses
        for name, tensor in zip(_LISTS, Synapses.from_lists(synapses, sensory), strict=True):
            self.register_buffer(name, tensor, persistent=False)

        w = _uniform(init.w, len(synapses.source))
        sensory_w = _uniform(init.sensory_w, len(sensory.source))
        gleak = _uniform(init.gleak, wiring.units)
        self.w = nn.Parameter(inverse_softplus(w))
        self.sigma = nn.Parameter(_uniform(init.sigma, len(w)))
        self.mu = nn.Parameter(_uniform(init.mu, len(w)))
        self.erev = nn.Parameter(torch.tensor(synapses.polarity, dtype=torch.float32))
        self.sensory_w = nn.Parameter(inverse_softplus(sensory_w))
        self.sensory_sigma = nn.Parameter(_uniform(init.sensory_sigma, len(sensory_w)))
        self.sensory_mu = nn.Parameter(_uniform(init.sensory_mu, len(sensory_w)))
        self.sensory_erev = nn.Parameter(torch.tensor(sensory.polarity, dtype=torch.float32))
        self.gleak = nn.Parameter(inverse_softplus(gleak))
        self.vleak = nn.Parameter(_uniform(init.vleak, wiring.units))
        if init.cm is None:
            half_open = (
                gleak + _incoming(w, synapses, wiring.units) / 2 + _incoming(sensory_w, sensory, wiring.units) / 2
            )
            cm = elapsed_time * _log_uniform(init.tau, wiring.units) * half_open
        else:
            cm = _uniform(init.cm, wiring.units)
        self.cm = nn.Parameter(inverse_softplus(cm))

        self.input_w = nn.Parameter(torch.ones(wiring.n_sensory)) if input_map else None
        self.input_b = nn.Parameter(torch.zeros(wiring.n_sensory)) if input_map else None
        self.motor_map: MotorMap | nn.Identity = MotorMap(wiring.n_motor) if motor_map else nn.Identity()
        self._synapses: Synapses | None = None
        self._frozen: _FrozenValues | None = None

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
            state: (N, U), membrane potentials before the first step; zero where None.
            episode_starts: (T, N), bool or 0 and 1; where set, a sequence's potentials are zero before that step.
            elapsed_time: (T, N), seconds since the step before, not negative; `self.elapsed_time` where None.

        Returns:
            potentials: (T, N, U), after each step.
            state: (N, U), the last potentials, to go on from.

        Raises:
            ValueError: Operands do not fit, or elapsed times are negative or not finite (checked on the CPU only; on a
                GPU, where a check would wait for the device, they give NaN).
        """
        if not tracing() and (inputs.dim() != 3 or inputs.shape[-1] != self.input_size):
            raise ValueError(f"inputs must be (T, N, S) with S = {self.input_size}, got {tuple(inputs.shape)}.")
        if state is None:
            state = inputs.new_zeros(inputs.shape[1], self.hidden_size)
        if episode_starts is not None and episode_starts.dtype != torch.bool:
            episode_starts = episode_starts != 0
        if elapsed_time is not None:
            elapsed_time = checked_seconds(elapsed_time)
        elif self.elapsed_time != 1.0:
            elapsed_time = inputs.new_full(inputs.shape[:2], self.elapsed_time)
        packed = self.packed()
        if packed.input_w is not None and packed.input_b is not None:
            inputs = torch.addcmul(packed.input_b, inputs, packed.input_w)
        potentials = ltc_scan(
            packed.params,
            packed.synapses,
            inputs,
            state,
            episode_starts,
            elapsed_time,
            ode_unfolds=self.ode_unfolds,
            backend=self.backend,
        )
        return potentials, potentials[-1]

    def packed(self) -> PackedLTC:
        """Return constrained parameters and synapse lists as the scan takes them.

        Without gradients, on the CPU, the result is kept until a parameter has another value, since packing costs more
        than one step does. Values are compared, since there is no cheaper sign of a change: versions do not count edits
        through `parameter.data`, and addresses are reused.
        """
        own = self._parameters
        # A look-up in `own` is ten times as fast; a parameter that is computed from others is found as an attribute
        # only.
        raw: list[Tensor] = [cast(Tensor, own[name]) if name in own else getattr(self, name) for name in _RAW]
        capturing = torch.compiler.is_compiling() or exporting()
        if torch.is_grad_enabled() or capturing:
            params = Params(*(_constrain if capturing else _Constrain.apply)(*raw))
        elif not raw[0].is_cpu:
            params = Params(*_constrain(*raw))  # A comparison of values would wait for the device.
        else:
            params = self._frozen_params(raw)
        return PackedLTC(params, self._synapse_lists(), self.input_w, self.input_b)

    def _frozen_params(self, raw: list[Tensor]) -> FrozenParams:
        """Return the parameters of the `raw` values, computed where these are new."""
        values, frozen = torch.cat(raw), self._frozen
        if frozen is None or frozen.values.dtype is not values.dtype or not torch.equal(frozen.values, values):
            frozen = self._frozen = _FrozenValues(values, FrozenParams(*_constrain(*raw)))
        return frozen.params

    def _synapse_lists(self) -> Synapses:
        """Return the same object until the module moves to another device, since the scan checks each object once."""
        buffers, kept = self._buffers, self._synapses
        lists = Synapses(*[cast(Tensor, buffers[name]) for name in _LISTS])
        if torch.compiler.is_compiling():
            return lists  # A graph keeps no attributes.
        if kept is None or not all(map(operator.is_, kept, lists)):
            kept = self._synapses = lists
        return kept

    def __prepare_scriptable__(self) -> None:
        """Refuse torch.jit.script, which calls this method first.

        Raises:
            TypeError: Always.
        """
        raise TypeError(
            "torch.jit.script cannot compile this layer, which uses more of Python than it knows; export it by "
            "torch.export.export or torch.onnx.export, or trace it with torch.jit.trace."
        )

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of copies what is kept for speed: each copy computes it for itself."""
        return self.__dict__ | {"_frozen": None, "_synapses": None}

    def fingerprint(self) -> Tensor:
        """Return the fingerprint of wiring, `elapsed_time` and `ode_unfolds`; see `ncp_rl.fingerprint`."""
        return fingerprint(self.wiring, self.elapsed_time, self.ode_unfolds)

    def settings(self) -> dict[str, Any]:
        """Return the settings of a layer without an input map beside wiring and weights; see `RecurrentCell`."""
        return {name: getattr(self, name) for name in _SETTINGS}

    @classmethod
    def from_settings(cls, wiring: Wiring, settings: Mapping[str, Any]) -> LTC:
        """Build the layer that `settings` describe; see `RecurrentCell`."""
        found = checked_settings(settings, _SETTINGS)
        unfolds, backend = found["ode_unfolds"], found["backend"]
        if type(unfolds) is not int or not 0 < unfolds <= 1000:
            raise ValueError(f"ode_unfolds must be an integer from 1 to 1000, got {unfolds!r}")
        if backend not in ("auto", *BACKENDS):
            raise ValueError(f"backend must be one of {', '.join(('auto', *BACKENDS))}, got {backend!r}")
        # A layer that ran on a GPU is built on the CPU; its fused backend is what "auto" chooses there.
        found["backend"] = "auto" if backend == "triton" else backend
        return cls(wiring, input_map=False, **found)

    def equal_bits_width(self, width: int) -> int:
        """Return the smallest number of sequences side by side that gives the bits of `width`; see `RecurrentCell`.

        Args:
            width: Number of sequences.
        """
        return min(width, max(WIDTHS)) if self.backend != "reference" and self.cm.is_cpu else width

    def time_constants(self, sensory: Floats, potentials: Floats) -> Floats:
        """Return the time constants of all neurons, (..., U) float32 seconds; see `ncp_rl.equations`.

        Args:
            sensory: (..., S) float32, sensory inputs.
            potentials: (..., U) float32.
        """
        between, senses = self.wiring.synapses, self.wiring.sensory_synapses
        with torch.no_grad():
            synaptic, sensory_rows, (cm, gleak, _) = (rows.cpu().numpy() for rows in self.packed().params)
        source = np.concatenate([between.source, self.wiring.units + senses.source])
        destination = np.concatenate([between.destination, senses.destination])
        values = np.concatenate([potentials, sensory], axis=-1, dtype=np.float32)
        rows = np.concatenate([synaptic, sensory_rows], axis=1)
        table = values.reshape(math.prod(potentials.shape[:-1]), values.shape[-1])
        found = equations.time_constants(table, rows, source, destination, cm, gleak)
        return found.reshape(potentials.shape)

    @classmethod
    def from_ncps(cls, module: Any, *, backend: Backend = "auto") -> LTC:
        """Build the layer with the wiring and weights of an `ncps.torch.LTC` or `ncps.torch.LTCCell`.

        Both constraint modes of ncps are read: with implicit constraints its weights precede a softplus, as they
        do here; with explicit ones they are read as `apply_weight_constraints` leaves them.

        Raises:
            ValueError: The module has a mixed memory (an LSTM beside the LTC), or another epsilon than ncps' default.
        """
        if getattr(module, "use_mixed", False):
            raise ValueError("from_ncps reads LTC weights only; this LTC has an LSTM beside them (mixed_memory=True).")
        cell = getattr(module, "rnn_cell", module)
        if cell._epsilon != EPSILON:
            raise ValueError(f"epsilon of the ncps cell must be {EPSILON}, got {cell._epsilon}.")
        input_map = cell._input_mapping is not None
        wiring = Wiring.from_ncps(cell._wiring)
        ltc = cls(wiring, input_map=input_map, ode_unfolds=cell._ode_unfolds, backend=backend)
        ltc.load_state_dict(_ncps_weights(cell, wiring) | {"_extra_state": ltc.get_extra_state()})
        return ltc.to(cell.cm.device)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(ltc)`."""
        w = self.wiring
        return (
            f"n_sensory={w.n_sensory}, n_inter={w.units - w.n_command - w.n_motor}, n_command={w.n_command}, "
            f"n_motor={w.n_motor}, n_synapses={len(self.w) + len(self.sensory_w)}, elapsed_time={self.elapsed_time}, "
            f"ode_unfolds={self.ode_unfolds}, backend={self.backend}"
        )


def _constrain(*raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the eleven parameters of an `LTC` as rows of `Params`; w, sensory_w, cm, gleak pass through a softplus."""
    w, sigma, mu, erev, sensory_w, sensory_sigma, sensory_mu, sensory_erev, cm, gleak, vleak = raw
    return (
        torch.stack([F.softplus(w), sigma, mu, erev]),
        torch.stack([F.softplus(sensory_w), sensory_sigma, sensory_mu, sensory_erev]),
        torch.stack([F.softplus(cm), F.softplus(gleak), vleak]),
    )


class _Constrain(torch.autograd.Function):
    """`_constrain` as one node of autograd's graph; thirty small nodes would cost as much as a short scan."""

    @staticmethod
    def forward(ctx: Any, *raw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(raw[0], raw[4], raw[8], raw[9])
        return _constrain(*raw)

    @staticmethod
    def backward(ctx: Any, synaptic: Tensor, sensory: Tensor, neuronal: Tensor) -> tuple[Tensor, ...]:
        w, sensory_w, cm, gleak = (torch.sigmoid(raw) for raw in ctx.saved_tensors)  # d softplus(x) / dx
        g_w, *g_synaptic = synaptic.unbind()
        g_sensory_w, *g_sensory = sensory.unbind()
        g_cm, g_gleak, g_vleak = neuronal.unbind()
        return g_w * w, *g_synaptic, g_sensory_w * sensory_w, *g_sensory, g_cm * cm, g_gleak * gleak, g_vleak


# Stands for 0 after a softplus. It must be small compared with the smallest denominator of the solver,
# delta times EPSILON, but not 0: a membrane without capacitance would have a potential of 0 / 0 where no time passes.
_NOTHING = 1e-20


def inverse_softplus(y: Tensor) -> Tensor:
    """Return the x with softplus(x) = y, for y >= 0; y is clamped to 1e-20 or more, so that x is finite."""
    y = y.clamp(min=_NOTHING)
    return y + torch.log(-torch.expm1(-y))


def _ncps_weights(cell: Any, wiring: Wiring) -> dict[str, Tensor]:
    """Return the state of an `LTC` that equals `cell`."""
    with torch.no_grad():
        own = {name: getattr(cell, name).detach().clone() for name in ("cm", "gleak", "vleak")}
        for prefix, synapses in (("", wiring.synapses), ("sensory_", wiring.sensory_synapses)):
            at = torch.from_numpy(synapses.source).long(), torch.from_numpy(synapses.destination).long()
            for name in ("w", "sigma", "mu", "erev"):
                own[prefix + name] = getattr(cell, prefix + name).detach()[at]
        if not cell._implicit_param_constraints:
            for name in ("cm", "gleak", "w", "sensory_w"):
                own[name] = inverse_softplus(own[name])
        # Where ncps maps by a gain only, or not at all, the missing part is the identity.
        if cell._input_mapping is not None:
            own["input_w"] = cell.input_w.detach().clone()
            own["input_b"] = getattr(cell, "input_b", torch.zeros(wiring.n_sensory)).detach().clone()
        own["motor_map.weight"] = getattr(cell, "output_w", torch.ones(wiring.n_motor)).detach().clone()
        own["motor_map.bias"] = getattr(cell, "output_b", torch.zeros(wiring.n_motor)).detach().clone()
    return own


def _uniform(bounds: Bounds, size: int) -> Tensor:
    return torch.empty(size).uniform_(*bounds)


def _log_uniform(bounds: Bounds, size: int) -> Tensor:
    return _uniform((float(np.log(bounds[0])), float(np.log(bounds[1]))), size).exp()


def _incoming(values: Tensor, synapses: SynapseList, units: int) -> Tensor:
    """Sum `values` (E,) over each neuron's incoming synapses, (U,)."""
    destination: npt.NDArray[np.int64] = synapses.destination.astype(np.int64)
    return torch.zeros(units).index_add(0, torch.from_numpy(destination), values)
