"""`failures`: conditions on an audit's verdicts and figures, as `--fail-on` of ncp-rl audit takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ncp_rl.audit.audit import Audit

_CONDITION = re.compile(r"(?P<check>\w+)(\.(?P<figure>\w+)(?P<sign>[<>])(?P<limit>[-+.\deE]+))?")


def failures(audit: Audit, conditions: Sequence[str]) -> list[str]:
    """Return a sentence for each condition that an audit fails.

    Args:
        audit: The audit.
        conditions: `check`, which fails where a verdict of that check failed, or `check.figure>number` (or `<`), which
            fails where the figure of a verdict of that check is beyond the number. Questions that were skipped fail
            nothing.

    Raises:
        ValueError: A condition has another form, or names a check or figure that the audit does not have.
    """
    found = []
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition.replace(" ", ""))
        if parts is None:
            raise ValueError(f"A condition must be `check` or `check.figure>number` (or `<`), got {condition!r}.")
        verdicts = [verdict for verdict in audit.verdicts if verdict.check == parts["check"]]
        if not verdicts and any(parts["check"] in subject.skipped for subject in audit.subjects):
            continue
        figure: str | None = parts["figure"]
        figures = sorted({name for verdict in verdicts for name in verdict.figures})
        if not verdicts or (figure is not None and figure not in figures):
            asked = sorted({verdict.check for verdict in audit.verdicts}) if not verdicts else figures
            raise ValueError(
                f"The condition {condition!r} names a check or figure that this audit lacks; it has {', '.join(asked)}."
            )
        for verdict in verdicts:
            if figure is None:
                found += [] if verdict.passed else [f"{condition}: {verdict.sentence}"]
            elif figure in verdict.figures and _beyond(verdict.figures[figure], parts["sign"], float(parts["limit"])):
                found.append(f"{condition}: it is {verdict.figures[figure]:.4g}")
    return found


def _beyond(value: float, sign: str, limit: float) -> bool:
    return value > limit if sign == ">" else value < limit
