"""Parts of the report's plots, as JSON for plotly.js; colours are names of the page's CSS variables."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Figure = dict[str, Any]

#: Markers and dashes that distinguish lines besides their colours.
COLORS = ("--pos", "--neg", "--third", "--fourth")
SYMBOLS = ("circle", "square", "diamond", "triangle-up")
DASHES = ("solid", "dash", "dot", "dashdot")


def packed(values: npt.ArrayLike) -> Figure:
    """Return an array as plotly.js reads it, float32 in base64."""
    array = np.ascontiguousarray(values, "<f4")
    return {"dtype": "f4", "bdata": base64.b64encode(array.tobytes()).decode()}


def plain(text: str) -> str:
    """Escape text that plotly.js would otherwise read as formatting and links."""
    return html.escape(text, quote=False)


def line(x: npt.ArrayLike, y: npt.ArrayLike, name: str, color: str, *, dash: str = "solid") -> Figure:
    """Return a line through points (T,) and (T,)."""
    style = {"color": color, "dash": dash, "width": 2}
    return {"type": "scatter", "mode": "lines", "x": packed(x), "y": packed(y), "name": name, "line": style}


def diamonds(x: npt.ArrayLike, y: npt.ArrayLike, name: str) -> Figure:
    """Return a diamond at each point."""
    marker = {"color": "--pos", "symbol": "diamond", "size": 7}
    return line(x, y, name, "--pos") | {"mode": "markers", "marker": marker}


def ranges(names: Sequence[str], bands: Sequence[tuple[str, Any, str, int]], title: str) -> Figure:
    """Return ranges as bars, each with a name.

    Args:
        names: (N,) names of the bars.
        bands: Name, (low, high) of (N,) each, colour and width of each kind of range, the widest range first.
        title: Title of the axis, with the unit.
    """
    data = []
    for name, (low, high), color, width in bands:
        gap = np.full(len(names), np.nan)
        x = np.stack([low, high, gap], 1).ravel()
        bar = line(x, np.repeat(np.arange(len(names)), 3), name, color)
        data.append(bar | {"line": {"color": color, "width": width}, "connectgaps": False})
    layout, (low, high) = row_layout(names, title), bands[0][1]
    margin = 0.02 * float(np.max(high) - np.min(low))
    layout["xaxis"]["range"] = [float(np.min(low)) - margin, float(np.max(high)) + margin]
    return {"data": data, "layout": layout}


def row_layout(names: Sequence[str], title: str) -> Figure:
    """Return a layout with a row for each name, the first on top."""
    ticks = {"tickvals": list(range(len(names))), "ticktext": [plain(name) for name in names]}
    # The height leaves room for ticks, title and legend besides the rows.
    height, axis = 130 + 20 * len(names), {"range": [len(names) - 0.5, -0.5], "zeroline": False}
    return {"xaxis": {"title": {"text": title}}, "yaxis": {**axis, **ticks}, "height": height}


def axes(x: str, y: str) -> Figure:
    """Return the titles of both axes, with their units."""
    return {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
