"""Tables of measurements as CSV: a row is an instance of a dataclass of str, int and float fields."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

RowT = TypeVar("RowT")

_KINDS = {"int": int, "float": float, "str": str}


def read_rows(path: Path, kind: type[RowT]) -> list[RowT]:
    """Read the rows of a table; return [] where the file does not exist."""
    if not path.exists():
        return []
    columns: Any = fields(kind)  # type: ignore[arg-type]  # It is a dataclass.
    with path.open(newline="") as file:
        return [kind(**{f.name: _KINDS[str(f.type)](line[f.name]) for f in columns}) for line in csv.DictReader(file)]


def append_rows(path: Path, rows: Sequence[Any]) -> None:
    """Append rows, floats with two decimals; a new file gets a header."""
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(rows[0])], lineterminator="\n")
        if new:
            writer.writeheader()
        for row in rows:
            writer.writerow({name: round(v, 2) if isinstance(v, float) else v for name, v in asdict(row).items()})
