"""Building and driving an exported controller: with this machine's compiler, or for a Cortex-M4F in QEMU."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ncp_rl.export.spec import ExportError

Floats = npt.NDArray[np.float32]

HARNESS = Path(__file__).with_name("harness.c")
BOARD = Path(__file__).with_name("cortex_m4")

#: Flags under which the code compiles without warnings. Contraction to fused operations would give other bits.
FLAGS = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror", "-ffp-contract=off")

# Seconds after which a build or a run is given up.
_TIMEOUT = 600

#: The ways in which a step begins.
GO_ON, RESET, SET = 0.0, 1.0, 2.0


class ControllerRun(NamedTuple):
    """Results of a controller in T steps."""

    status: npt.NDArray[np.int64]
    """(T,), 0 where a step was taken, else the reason for its refusal as numbered in controller.h"""
    action: Floats
    """(T, A) actions"""
    action_mean: Floats
    """(T, O) action means, or logits"""
    potentials: Floats
    """(T, U) potentials"""

    @property
    def held(self) -> npt.NDArray[np.bool_]:
        """(T,) bool, whether a step was refused."""
        refused: npt.NDArray[np.bool_] = self.status != 0
        return refused


@dataclass(frozen=True)
class Program:
    """A built controller with the harness around it.

    Attributes:
        command: Command that runs it in a folder with `steps.bin`.
        n_observations, n_neurons, n_outputs, n_actions: Sizes of the controller, from its header.
        state_bytes: Size of the struct `controller` in bytes.
        sha256: SHA-256 of its policy, from its header.
    """

    command: tuple[str, ...]
    n_observations: int
    n_neurons: int
    n_outputs: int
    n_actions: int
    state_bytes: int
    sha256: str

    def run(
        self,
        begin: npt.ArrayLike,
        seconds: npt.ArrayLike,
        observation: npt.ArrayLike,
        potentials: npt.ArrayLike | None = None,
    ) -> tuple[ControllerRun, str]:
        """Run T steps.

        Args:
            begin: (T,), GO_ON, RESET, or SET to begin with the given potentials.
            seconds: (T,), seconds that each step lasts.
            observation: (T, D), observations.
            potentials: (T, U), potentials for steps with SET; None stands for zeros.

        Returns:
            The results, and the text that the program printed.

        Raises:
            ExportError: The observation has another size than the controller's, or the program fails.
        """
        seen = np.asarray(observation, np.float32)
        n_steps = len(seen)
        if seen.shape != (n_steps, self.n_observations):
            raise ExportError(f"observation must be (T, D) = (T, {self.n_observations}), got {seen.shape}.")
        before = np.zeros((n_steps, self.n_neurons)) if potentials is None else potentials
        rows = np.column_stack([begin, seconds, seen, before]).astype(np.float32)
        numbers, printed = _drive(self.command, rows)
        sizes = (1, self.n_actions, self.n_outputs, self.n_neurons)
        if numbers.size != _HEADER + n_steps * sum(sizes):
            raise ExportError(
                f"The program must answer {n_steps} steps, got {numbers.size} numbers, which are no whole steps."
            )
        table = numbers[_HEADER:].reshape(n_steps, sum(sizes))
        status, action, mean, after = np.split(table, np.cumsum(sizes)[:-1], axis=1)
        return ControllerRun(status[:, 0].astype(np.int64), action, mean, after), printed


# Length of the header of the results: sizes, and the bytes of the hash.
_HEADER = 5 + 64


def build_here(folder: Path, out: Path, *, options: Sequence[str] = ("-O2",)) -> Program:
    """Build controller.c of `folder` for this machine.

    Raises:
        ExportError: There is no C compiler or no code, or it does not compile.
    """
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise ExportError("A C compiler is needed to build the controller: apt-get install gcc (or clang).")
    program = out / "harness"
    _compile((compiler, "-std=c99", *FLAGS, *options), folder, (HARNESS,), program)
    return _described((str(program),))


class Size(NamedTuple):
    """Memory of a controller on a Cortex-M4F, in bytes."""

    flash: int
    """Code and tables"""
    ram: int
    """The struct `controller` and the stack of a step, an upper bound"""


def missing_cross_tools() -> str:
    """Return a sentence on what is missing to build and run for a Cortex-M4F; empty where nothing is."""
    tools = {"arm-none-eabi-gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi", "qemu-system-arm": "qemu-system-arm"}
    missing = [package for tool, package in tools.items() if shutil.which(tool) is None]
    return f"Tools for a Cortex-M4F are missing; run `apt-get install {' '.join(missing)}`" if missing else ""


def build_cortex_m4(folder: Path, out: Path) -> tuple[Program, Size]:
    """Build controller.c of `folder` for a Cortex-M4F, to be run by QEMU's board mps2-an386.

    The program prints the instructions of a step: with `-icount shift=0` an instruction of the virtual processor takes
    a nanosecond, and the board's SysTick counts them in steps of 40.

    Raises:
        ExportError: Tools are missing, or it does not compile.
    """
    missing = missing_cross_tools()
    if missing:
        raise ExportError(f"{missing}.")
    processor = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-O2")
    compiler = ("arm-none-eabi-gcc", "-std=c99", *FLAGS, *processor)
    objects = out / "controller.o"
    _call((*compiler, "-fstack-usage", "-c", str(folder / "controller.c"), "-o", str(objects)))
    flash = int(_call(("arm-none-eabi-size", str(objects))).splitlines()[1].split()[0])
    program = out / "harness.elf"
    board = ("--specs=rdimon.specs", f"-T{BOARD / 'mps2.ld'}", "-DHARNESS_COUNT", "-Wno-pedantic")
    _compile((*compiler, *board), folder, (HARNESS, BOARD / "board.c"), program)
    machine = ("qemu-system-arm", "-machine", "mps2-an386", "-nographic", "-monitor", "none", "-serial", "none")
    count = ("-icount", "shift=0", "-semihosting-config", "enable=on,target=native")
    built = _described((*machine, *count, "-kernel", str(program)))
    return built, Size(flash, built.state_bytes + _stack(objects.with_suffix(".su")))


def _stack(usage: Path) -> int:
    """Return an upper bound of a step's stack: the bytes of all functions together, none of which is recursive."""
    return sum(int(line.split("\t")[1]) for line in usage.read_text().splitlines())


def _compile(compiler: Sequence[str], folder: Path, sources: Sequence[Path], program: Path) -> None:
    code = folder / "controller.c"
    if not code.exists():
        raise ExportError(f"The folder {folder} must hold controller.c; export one by to_c.")
    _call((*compiler, f"-I{folder}", *map(str, sources), str(code), "-o", str(program)))


def _described(command: tuple[str, ...]) -> Program:
    """Return the program with the sizes that it prints about itself."""
    header, _ = _drive(command, np.empty((0, 1), np.float32))
    if len(header) != _HEADER:
        raise ExportError(f"The program must begin with {_HEADER} numbers about itself, got {len(header)}.")
    n_observations, n_neurons, n_outputs, n_actions, state_bytes = (int(x) for x in header[:5])
    sha256 = bytes(header[5:].astype(np.uint8)).decode("ascii", "replace")
    return Program(command, n_observations, n_neurons, n_outputs, n_actions, state_bytes, sha256)


def _drive(command: tuple[str, ...], rows: Floats) -> tuple[Floats, str]:
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "steps.bin").write_bytes(rows.tobytes())
        printed = _call(command, cwd=scratch)
        return np.fromfile(Path(scratch) / "outcome.bin", np.float32), printed


def _call(command: Sequence[str], cwd: str | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=_TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ExportError(f"The command {command[0]} cannot be run: {error}") from error
    if done.returncode:
        raise ExportError(
            f"The command `{' '.join(command)}` failed with status {done.returncode}: {done.stderr[-2000:]}"
        )
    return done.stdout
