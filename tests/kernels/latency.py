"""How many cycles a warp takes that is alone: a model of one scheduler that issues instructions in order.

An instruction is issued when what it reads is there and its unit is free, one a cycle at most. The cycles are those
that others measured on GPUs of this kind, rounded. Branches are taken to be free.
"""

from __future__ import annotations

import re
from collections import defaultdict

from tests.kernels.machine_code import Code, Instruction, Loop, Times

#: Cycles from the issue to the result; a load is one from L2.
_RESULT = {"MUFU": 20, "SHFL": 24, "LDS": 24, "LDG": 250, "ISETP": 5, "FSETP": 5, "LOP3": 5}
_OTHER_RESULT, _UNIFORM_RESULT = 4, 6
#: Unit of an instruction, and the cycles for which one of a warp keeps it.
_UNITS = {
    "MUFU": ("special", 8),
    **dict.fromkeys(("SHFL", "LDS", "STS", "LDG", "STG"), ("memory", 2)),
    **dict.fromkeys(("SEL", "FSEL", "ISETP", "FSETP", "LOP3", "FMNMX", "PLOP3", "LEA", "IADD3", "MOV"), ("integer", 2)),
}
_FLOAT, _UNIFORM = ("float", 1), ("uniform", 2)
_BARRIER = 20
#: A loop is taken to be in its stride after so many rounds.
_ROUNDS = 8

_WITHOUT_RESULT = {"STG", "STS", "STL", "BRA", "BAR", "EXIT", "BSYNC", "BSSY", "WARPSYNC", "NOP", "DEPBAR"}
_COMPARES = {"ISETP", "FSETP", "UISETP", "PLOP3", "UPLOP3"}
_REGISTER = re.compile(r"\b(?:UR|R|UP|P)\d+\b")
_PREDICATE = re.compile(r"U?P[\dT]")


def cycles(code: Code, times: Times) -> float:
    """Cycles that a warp takes in its loops, which run so many times."""
    return sum(repeats * _once(code, loop, inner) for loop, (repeats, inner) in zip(code.loops, times, strict=True))


def _once(code: Code, loop: Loop, inner: Times) -> float:
    own = _stride(code.instructions[loop.first : loop.last + 1])
    if len(loop.inner) != len(inner):
        raise ValueError(f"The machine code has {len(loop.inner)} loops where {len(inner)} are expected.")
    for part, (repeats, deeper) in zip(loop.inner, inner, strict=True):
        # One round of it is within the loop's own.
        own += repeats * _once(code, part, deeper) - _stride(code.instructions[part.first : part.last + 1])
    return own


def _stride(body: list[Instruction]) -> float:
    """Cycles of a round of a loop, once it is in its stride."""
    ready: dict[str, int] = defaultdict(int)
    free: dict[str, int] = defaultdict(int)
    now, ends = 0, []
    for _ in range(_ROUNDS):
        for instruction in body:
            kind = instruction.opcode.partition(".")[0]
            results, sources = _registers(instruction, kind)
            unit, kept = _UNITS.get(kind, _UNIFORM if kind.startswith("U") else _FLOAT)
            issued = max([now, free[unit], *(ready[register] for register in sources)])
            free[unit], now = issued + kept, issued + (_BARRIER if kind == "BAR" else 1)
            after = _RESULT.get(kind, _UNIFORM_RESULT if kind.startswith("U") else _OTHER_RESULT)
            ready.update(dict.fromkeys(results, issued + after))
        ends.append(now)
    return ends[-1] - ends[-2]


def _registers(instruction: Instruction, kind: str) -> tuple[list[str], list[str]]:
    """Registers and predicates that an instruction writes, and those that it reads."""
    parts = [part.strip() for part in instruction.operands.split(",")]
    n_results = 0
    if kind not in _WITHOUT_RESULT:
        while n_results < len(parts) - 1 and _PREDICATE.fullmatch(parts[n_results]):
            n_results += 1
        n_results = min(n_results, 2) if kind in _COMPARES else n_results + 1
    results = [name for part in parts[:n_results] for name in _REGISTER.findall(part)]
    sources = [name for part in parts[n_results:] for name in _REGISTER.findall(part)]
    if instruction.guard is not None:
        # Where the guard says no, the old value stays.
        sources += [instruction.guard, *results]
    if re.search(r"\.(WIDE|64)\b", instruction.opcode):
        results += [_next(name) for name in results if "P" not in name]
    return results, sources


def _next(register: str) -> str:
    name, number = re.fullmatch(r"(U?R)(\d+)", register).groups()  # type: ignore[union-attr]
    return f"{name}{int(number) + 1}"
