"""`Verdict`: the audit's judgement on an answer, as a sentence with its figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """A verdict on the answer to a question.

    Attributes:
        check: Name of the question, one word: "chain", "replay", "explain", "certificate", ...
        passed: Whether the answer is as it should be.
        sentence: The answer, for people, with its most important figure.
        figures: The figures of the verdict by name, for thresholds; finite Python numbers.
    """

    check: str
    passed: bool
    sentence: str
    figures: Mapping[str, float]

    def __str__(self) -> str:
        """Return a line: pass or FAIL, the check and its sentence."""
        return f"{'pass' if self.passed else 'FAIL'}  {self.check:<12}  {self.sentence}"


def sentence_of(answer: object) -> str:
    """Return the text of an answer as a sentence, with a capital and a full stop."""
    text = str(answer).rstrip(".")
    return f"{text[0].upper()}{text[1:]}."
