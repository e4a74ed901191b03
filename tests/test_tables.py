"""Tables of measurements."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ncp_rl.tables import append_rows, read_rows


@dataclass(frozen=True)
class Row:
    name: str
    count: int
    figure: float


def test_rows_come_back_and_more_come_behind(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    assert read_rows(path, Row) == []
    append_rows(path, [Row('with "quotes", and commas', 1, 0.123), Row("b", -2, 1e9)])
    append_rows(path, [Row("c", 3, float("inf"))])
    found = read_rows(path, Row)
    assert found == [Row('with "quotes", and commas', 1, 0.12), Row("b", -2, 1e9), Row("c", 3, float("inf"))]
    assert path.read_text().count("name,count,figure") == 1
