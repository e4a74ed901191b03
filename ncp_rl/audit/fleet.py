"""The audit of a fleet: a folder of recordings, each audited alone by one of several processes, into one table.

A process holds one recording at a time, and what it found lies in files: so memory does not grow with their number, and
an audit that was interrupted goes on with the recordings that the table lacks.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import jinja2
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from tqdm import tqdm

from ncp_rl.audit.audit import check_asked, on_recordings
from ncp_rl.audit.fail_on import failures
from ncp_rl.audit.orchestrate import audit_sources
from ncp_rl.audit.plan import Plan
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.audit.report import write_report
from ncp_rl.audit.workers import begin_worker
from ncp_rl.errors import NCPError
from ncp_rl.runs import RunError
from ncp_rl.tables import append_rows, read_rows

if sys.platform != "win32":
    import resource

_INDEX = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Audits of {{ rows | length }} recordings</title>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body { font: 15px system-ui, sans-serif; margin: 2em; color-scheme: light dark; }
td, th { padding: 0.3em 0.8em; text-align: left; vertical-align: top; } td.n { text-align: right; }
</style></head><body>
<h1>Audits of {{ rows | length }} recordings, worst first</h1>
<p>{{ rows | selectattr("bad") | list | length }} of them fail.</p>
<table><tr><th>recording</th><th>failed</th><th>what</th><th>episodes</th><th>steps</th></tr>
{% for row in rows %}<tr><td>{% if row.report %}<a href="{{ row.report | url }}">{{ row.recording }}</a>
{% else %}{{ row.recording }}{% endif %}</td><td class="n">{{ "unreadable" if row.error else row.n_failed }}</td>
<td>{{ row.error or row.failed }}</td><td class="n">{{ row.n_episodes }}</td><td class="n">{{ row.n_steps }}</td></tr>
{% endfor %}</table></body></html>
"""


@dataclass(frozen=True)
class Row:
    """A recording, as a row of fleet.csv."""

    recording: str
    """Path of the recording in the folder."""
    n_failed: int
    """Number of conditions that it fails."""
    failed: str
    """The failed conditions, a sentence each."""
    error: str
    """Reason why it could not be audited, such as a damaged file; empty where it was audited."""
    n_episodes: int
    n_steps: int
    seconds: float
    """Seconds that its audit took."""
    peak_mib: float
    """Largest memory until then of the process that audited it."""
    report: str
    """Path of its report in the folder of audits."""

    @property
    def bad(self) -> bool:
        """Whether it fails or could not be audited."""
        return bool(self.error) or self.n_failed > 0


def recordings_in(folder: Path) -> list[Path]:
    """All recordings in a folder and those below it, by name."""
    return sorted(path for path in folder.rglob("*.mcap") if path.is_file())


def audit_fleet(
    folder: Path,
    out: Path,
    plan: Plan = Plan(),  # noqa: B008  (a frozen value)
    *,
    conditions: Sequence[str],
    public_key: Ed25519PublicKey | None = None,
    n_processes: int = 1,
    progress_bar: bool = False,
) -> list[Row]:
    """Audit every recording of a folder.

    Args:
        folder: Recordings, also in folders below it.
        out: Folder for fleet.csv, index.html and an audit of each recording in reports/. A folder that holds a
            fleet.csv has the recordings that it lacks added.
        plan: What to ask, and how much of it.
        conditions: What a recording must not fail; see `failures`.
        public_key: That must have signed the recordings.
        n_processes: Recordings at a time.
        progress_bar: Show progress.

    Returns:
        The rows, worst first: those that cannot be audited, then by the number of conditions that they fail.

    Raises:
        ncp_rl.runs.RunError: `out` holds something else, there is no recording, or a process was killed.
        ValueError: A condition names what is not asked of recordings, or `plan` a question that there is not.
    """
    paths, table = recordings_in(folder), out / "fleet.csv"
    if not paths:
        raise RunError(f"{folder} is no run folder, and neither it nor a folder below it holds a recording (*.mcap).")
    if out.exists() and not table.exists() and any(out.iterdir()):
        raise RunError(f"The folder {out} exists and is left as it is; name another one for the audits.")
    check_asked(QUESTIONS, plan)
    _check(conditions)
    out.mkdir(parents=True, exist_ok=True)
    done = {row.recording for row in read_rows(table, Row)}
    left = [path for path in paths if str(path.relative_to(folder)) not in done]
    key = None if public_key is None else public_key.public_bytes_raw()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(n_processes, context, begin_worker) as pool:
        futures = [pool.submit(_audited, path, folder, out, plan, conditions, key) for path in left]
        try:
            for future in tqdm(as_completed(futures), "audit", len(futures), unit="file", disable=not progress_bar):
                append_rows(table, [future.result()])
        except BrokenProcessPool as error:
            raise RunError(
                f"A process was killed, perhaps for want of memory; {table} has what is done. Run the same again, with "
                "fewer --processes."
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    rows = sorted(read_rows(table, Row), key=lambda row: (not row.error, -row.n_failed, row.recording))
    _replace(table, rows)
    environment = jinja2.Environment(autoescape=True)
    environment.filters["url"] = quote
    (out / "index.html").write_text(environment.from_string(_INDEX).render(rows=rows))
    return rows


def _check(conditions: Sequence[str]) -> None:
    names = {question.name for question in on_recordings(QUESTIONS)}
    for condition in conditions:
        check = re.split(r"\W", condition.strip())[0]
        if check not in names:
            known = ", ".join(sorted(names))
            raise ValueError(f"The condition {condition!r} asks for what no recording is asked; there are {known}.")


def _audited(
    path: Path, folder: Path, out: Path, plan: Plan, conditions: Sequence[str], public_key: bytes | None
) -> Row:
    """The audit of one recording, in a process of the pool."""
    began, name = time.perf_counter(), path.relative_to(folder)
    own = out / "reports" / name  # With its suffix, since a folder may have the name of the file without it.
    shutil.rmtree(own, ignore_errors=True)  # Of an audit that was cut off.
    key = None if public_key is None else Ed25519PublicKey.from_public_bytes(public_key)
    failed: list[str] = []
    error, report, n_episodes, n_steps = "", "", 0, 0
    try:
        audit = audit_sources([path], own, plan, public_key=key)
        failed = failures(audit, conditions)
        report = str(write_report(audit, own / "report.html").relative_to(out))
        (subject,) = audit.subjects
        n_episodes, n_steps = len(subject.recording), subject.n_steps
    except (NCPError, ValueError) as refused:  # A damaged file must not end the audit of the others.
        error = str(refused)
    return Row(
        recording=str(name),
        n_failed=len(failed),
        failed="; ".join(failed),
        error=error,
        n_episodes=n_episodes,
        n_steps=n_steps,
        seconds=time.perf_counter() - began,
        peak_mib=_peak_mib(),
        report=report,
    )


def _peak_mib() -> float:
    if sys.platform == "win32":
        return math.nan
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _replace(table: Path, rows: Sequence[Row]) -> None:
    partial = table.with_name(f"{table.name}.partial")
    partial.unlink(missing_ok=True)
    append_rows(partial, rows)
    partial.replace(table)
