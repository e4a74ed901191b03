"""Parts of a question's section in the report: texts, tables and plots. The page lays them out and escapes texts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from ncp_rl.audit.plots import Figure

#: Plots are drawn of this many actions; tables have all of them.
MAX_PLOTTED_ACTIONS = 4


class Paragraph(NamedTuple):
    """A paragraph of text; a "notice" is emphasised, a "hint" is small."""

    text: str
    kind: Literal["", "notice", "hint"] = ""


class Heading(NamedTuple):
    """A heading inside a section."""

    text: str
    level: Literal[3, 4] = 4


class Plot(NamedTuple):
    """A plot, with a label for readers who cannot see it."""

    label: str
    figure: Figure


class Table(NamedTuple):
    """A table that opens under its caption; a row begins with its name, and numbers are shown with four digits."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Grid(NamedTuple):
    """Plots under headings of their own, side by side where there is room."""

    plots: Sequence[tuple[str, Plot]]


# Markup is for content that no other part can show; its author escapes texts in it, as `Markup.format` does.
Part = Paragraph | Heading | Plot | Table | Grid | Markup


def number(value: Any) -> str:
    """Return a number with four digits, "none" where it is not finite; text is returned unchanged."""
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:.4g}" if math.isfinite(value) else "none"


def named_rows(names: Sequence[str], *columns: Any) -> list[list[Any]]:
    """Return the rows of a table from its columns, each as long as `names`."""
    return [[name, *values] for name, *values in zip(names, *columns, strict=True)]


def notice_of_plotted(n_actions: int) -> Iterator[Paragraph]:
    """Yield a notice where plots leave actions out."""
    if n_actions > MAX_PLOTTED_ACTIONS:
        text = f"Plotted for {MAX_PLOTTED_ACTIONS} of {n_actions} actions; the table has all."
        yield Paragraph(text, "notice")
