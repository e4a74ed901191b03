"""What a question shows in the report: texts, tables and plots. The page lays them out and escapes what they say."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from markupsafe import Markup

from ncp_rl.audit.plots import Figure

#: Plots are drawn of this many actions; tables have all of them.
MAX_PLOTTED_ACTIONS = 4


class Paragraph(NamedTuple):
    """A paragraph of text; a "notice" stands out, a "hint" steps back."""

    text: str
    kind: Literal["", "notice", "hint"] = ""


class Heading(NamedTuple):
    """A heading inside a section."""

    text: str
    level: Literal[3, 4] = 4


class Plot(NamedTuple):
    """A plot, and what it is called where it cannot be seen."""

    label: str
    figure: Figure


class Table(NamedTuple):
    """A table that opens under its caption; a row begins with its name, numbers get four digits."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Grid(NamedTuple):
    """Plots under headings of their own, side by side where there is room."""

    plots: Sequence[tuple[str, Plot]]


# Markup is for what none of these can say; whoever makes it escapes what it holds, as `Markup.format` does.
Part = Paragraph | Heading | Plot | Table | Grid | Markup


def number(value: Any) -> str:
    """A number with four digits, as tables show it, "none" where it is not finite; text as it is."""
    if value is None or isinstance(value, str):
        return value or "none"
    return f"{value:.4g}" if math.isfinite(value) else "none"


def named_rows(names: Sequence[str], *columns: Any) -> list[list[Any]]:
    """Rows of a table from its columns, each as long as `names`."""
    return [[name, *values] for name, *values in zip(names, *columns, strict=True)]


def notice_of_plotted(n_actions: int) -> Iterator[Paragraph]:
    """Where plots leave actions out, a notice."""
    if n_actions > MAX_PLOTTED_ACTIONS:
        text = f"Plotted for {MAX_PLOTTED_ACTIONS} of {n_actions} actions; the table has all."
        yield Paragraph(text, "notice")
