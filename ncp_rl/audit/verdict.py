"""`Verdict`: what a part of the audit says in a sentence, with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """One answer of the audit.

    Attributes:
        check: What was asked, one word: "chain", "replay", "explain", "certificate", "perturbation", "monitor", ...
        passed: Whether the answer is as it should be.
        sentence: The answer, for people, with its most important figure.
        figures: The figures behind it by name, for thresholds; plain finite numbers.
    """

    check: str
    passed: bool
    sentence: str
    figures: Mapping[str, float]

    def __str__(self) -> str:
        """A line: pass or FAIL, the check and its sentence."""
        return f"{'pass' if self.passed else 'FAIL'}  {self.check:<12}  {self.sentence}"
