"""What a kernel's machine code takes of a GPU: registers, and what one of its warps executes.

Read from the cubin with NVIDIA's tools, which come with Triton. A loop is known by its branch back; how often it runs
is the caller's to say. Instructions that a branch may skip are counted.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

Times = Sequence[tuple[float, "Times"]]
"""How often loops run each time that they are entered, in the order of their code: (times, those inside)."""


class Resources(NamedTuple):
    """What a kernel takes of a multiprocessor."""

    registers: int
    spilled_bytes: int


class Instruction(NamedTuple):
    """One line of the machine code."""

    opcode: str
    """With its modifiers, as MUFU.EX2"""
    target: str | None
    """Label that it branches to"""
    operands: str
    """As they are written, with commas between"""
    guard: str | None
    """Predicate without which it does nothing"""


@dataclass
class Loop:
    """A range of instructions that its last one repeats."""

    first: int
    last: int
    inner: list[Loop] = field(default_factory=list)


class Code:
    """The machine code of a kernel."""

    def __init__(self, cubin: bytes) -> None:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(cubin)
            file.flush()
            self.resources = _resources(_tool("cuobjdump", "--dump-resource-usage", file.name))
            self.instructions, self.labels = _parse(_tool("nvdisasm", "-c", file.name))
        self.loops = self._loops()

    def executed(self, times: Times) -> Counter[str]:
        """How many instructions of each kind a warp executes whose loops run so many times."""
        weights = [1.0] * len(self.instructions)
        self._weigh(weights, self.loops, times)
        counts: Counter[str] = Counter()
        for instruction, weight in zip(self.instructions, weights, strict=True):
            counts[instruction.opcode] += weight  # type: ignore[assignment]  # A float is a number too.
        return counts

    def within(self, loop: Loop) -> Counter[str]:
        """The instructions of a loop."""
        return Counter(instruction.opcode for instruction in self.instructions[loop.first : loop.last + 1])

    def _weigh(self, weights: list[float], loops: list[Loop], times: Times) -> None:
        if len(times) > 0 and len(loops) == 2 * len(times):
            loops, times = self._rolled(weights, loops, times)
        if len(loops) != len(times):
            raise ValueError(f"The machine code has {len(loops)} loops where {len(times)} are expected.")
        for loop, (repeats, inner) in zip(loops, times, strict=True):
            for at in range(loop.first, loop.last + 1):
                weights[at] *= repeats
            self._weigh(weights, loop.inner, inner)

    def _rolled(self, weights: list[float], loops: list[Loop], times: Times) -> tuple[list[Loop], Times]:
        """Of loops that the compiler unrolled those that do several rounds at once; those for the rest do nothing."""
        longer_loops, rounds = [], []
        for pair, (repeats, inner) in zip(zip(loops[::2], loops[1::2], strict=True), times, strict=True):
            longer, shorter = sorted(pair, key=lambda loop: loop.first - loop.last)
            at_once = count(self.within(longer), "MUFU") / count(self.within(shorter), "MUFU")
            longer_loops.append(longer)
            rounds.append((repeats / at_once, inner))
            weights[shorter.first : shorter.last + 1] = [0.0] * (shorter.last + 1 - shorter.first)
        return longer_loops, rounds

    def _loops(self) -> list[Loop]:
        """The outermost loops, in the order of their code."""
        last_of = {
            self.labels[instruction.target]: at
            for at, instruction in enumerate(self.instructions)
            # A branch to itself comes after the end.
            if instruction.target is not None and self.labels[instruction.target] < at
        }
        roots: list[Loop] = []
        for first, last in sorted(last_of.items(), key=lambda item: (item[0], -item[1])):
            siblings = roots
            while siblings and siblings[-1].last >= last:
                siblings = siblings[-1].inner
            siblings.append(Loop(first, last))
        return roots


def count(executed: Counter[str], *opcodes: str) -> float:
    """How many of the instructions are of these kinds, whatever their modifiers."""
    return sum(number for opcode, number in executed.items() if opcode.partition(".")[0] in opcodes)


def _tool(name: str, *arguments: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends/nvidia/bin" / name
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _resources(usage: str) -> Resources:
    registers, stack = (re.search(rf"{key}:(\d+)", usage) for key in ("REG", "STACK"))
    assert registers is not None and stack is not None
    return Resources(int(registers[1]), int(stack[1]))


def _parse(listing: str) -> tuple[list[Instruction], dict[str, int]]:
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in listing.splitlines():
        if label := re.match(r"(\.L_x_\d+):", line.strip()):
            labels[label[1]] = len(instructions)
        elif code := re.search(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?(U?P\w+)\s+)?(\S+)(.*?);", line):
            target = re.search(r"`\((\.L_x_\d+)\)", code[3]) if code[2].startswith("BRA") else None
            instructions.append(Instruction(code[2], target[1] if target else None, code[3], code[1]))
    return instructions, labels
