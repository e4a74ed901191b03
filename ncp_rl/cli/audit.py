"""Audit run folders and recordings: is it true, why, what never, what if. A verdict a line, audit.json and report.html.

Examples:
    ncp-rl audit runs/mine
    ncp-rl audit runs/ncp runs/lstm --disturbances sensor_noise action_delay --processes 2
    ncp-rl audit flight.mcap --fail-on chain replay "certificate.width>2" --public-key key.pub.pem
    ncp-rl audit flights --processes 8 --out audits/flights     # a folder of recordings: one table, worst first

Runs are recorded first, and perturbed; recordings answer for themselves.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ncp_rl.cli.status import reports_errors, verdict

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from ncp_rl.audit import Plan
    from ncp_rl.audit.audit import Questions

#: Name -> level of the faults that the monitor must find.
FAULTS = {"sensor_bias": 0.2, "sensor_dropout": 0.5, "sensor_noise": 0.2, "action_gain_error": 0.5}


@dataclass(frozen=True)
class Args:
    """What to audit."""

    sources: Positional[tuple[Path, ...]]
    """Run folders of ncp-rl train, and recordings (.mcap); or one folder of many recordings, each of which is audited
    alone, into one table. Where that is interrupted, the same command with the same --out goes on."""
    out: Path | None = None
    """New folder for audit.json, report.html and the recordings of runs. Default: audits/NAME__TIME."""
    episodes: int = 20
    """Episodes to record of each run."""
    seed: int = 30_000
    """Seed of recorded and perturbed episodes."""
    max_episode_steps: int | None = None
    """Cut the episodes of runs after so many steps. Default: as each run was trained with."""
    images: bool = False
    """Record what the environments of runs render, and show it in the report."""
    alpha: float = 0.1
    """False-alarm rate per episode that the monitor promises."""
    epsilon: float = 0.01
    """Share of its range by which each observation moves, for the bound on how far the action can move."""
    disturbances: tuple[str, ...] | None = None
    """Disturbances to sweep for runs; --disturbances without a name leaves the sweep out. Default: all that train
    --disturb knows."""
    perturb_episodes: int = 10
    """Episodes of each level."""
    faults: tuple[str, ...] = tuple(FAULTS)
    """Faults that begin in mid-episode, for the monitor to find in runs."""
    onset: int = 100
    """Step at which faults begin."""
    max_loss: float = 0.5
    """Share of the return that a disturbance may cost before its verdict fails."""
    processes: int = 1
    """Trials of the sweep at a time, or recordings of a folder."""
    public_key: Path | None = None
    """PEM file of the key that must have signed the recordings given."""
    deployed: Path | None = None
    """Export of the one source's policy (ncp-rl export), which must do what was recorded: a folder with
    controller.c, or controller.json or controller.onnx."""
    questions: tuple[str, ...] | None = None
    """Questions to ask, the others are skipped. Default: all; of a folder of recordings all but sensitivity, trees and
    ablation, which say much the same of every recording of a policy."""
    max_steps: int = 100_000
    """Steps of a recording that are held in memory. Of a longer one every step is checked, while statistics are of
    episodes drawn at random."""
    fail_on: tuple[str, ...] | None = None
    """Exit with status 1 where one of these verdicts fails, or a figure is beyond a limit: "perturbation.loss>0.3".
    Default: chain, replay, explain, certificate, sensitivity, monitor and dynamics."""
    threads: int = 1
    """Threads of torch; small circuits are fastest with one."""
    progress_bar: bool = True
    """Show progress and remaining time."""


@reports_errors(ValueError)
def main(args: Args) -> int:
    """Audit, print the verdicts, and where audit.json lies."""
    import torch

    from ncp_rl.audit import QUESTIONS, audit_sources, failures, write_report
    from ncp_rl.recording import read_public_key

    torch.set_num_threads(args.threads)
    out = args.out or Path("audits") / f"{args.sources[0].stem}__{time.time():.0f}"
    key = None if args.public_key is None else read_public_key(args.public_key)
    must_pass = tuple(question.name for question in QUESTIONS if question.must_pass)
    conditions = must_pass if args.fail_on is None else args.fail_on
    if is_fleet(args.sources):
        return fleet(args, out, key, conditions)
    audit = audit_sources(
        args.sources, out, plan(args), public_key=key, questions=questions(args), progress_bar=args.progress_bar
    )
    report = write_report(audit, out / "report.html")
    failed = failures(audit, (*conditions, *(["deployed"] if args.deployed else [])))
    print("\n".join(audit.lines()))
    print(f"audit: {out / 'audit.json'}\nreport: {report}")
    for failure in failed:
        print(f"failed: {failure}", file=sys.stderr)
    return verdict(not failed)


def is_fleet(sources: tuple[Path, ...]) -> bool:
    """Whether the one source is a folder of recordings, not of a run."""
    return len(sources) == 1 and sources[0].is_dir() and not (sources[0] / "config.json").exists()


def fleet(args: Args, out: Path, key: Ed25519PublicKey | None, conditions: Sequence[str]) -> int:
    """Audit each recording of a folder, print the ten worst, and where the table lies.

    Raises:
        ValueError: --deployed is given, which is the export of one policy.
    """
    from ncp_rl.audit import QUESTIONS
    from ncp_rl.audit.fleet import audit_fleet

    if args.deployed is not None:
        raise ValueError("--deployed names the export of one policy, got a folder of recordings; audit one of them.")
    asked = plan(args)
    if asked.questions is None:
        asked = replace(asked, questions=tuple(question.name for question in QUESTIONS if question.of_fleets))
    rows = audit_fleet(
        args.sources[0],
        out,
        asked,
        conditions=conditions,
        public_key=key,
        n_processes=args.processes,
        progress_bar=args.progress_bar,
    )
    bad = [row for row in rows if row.bad]
    for row in bad[:10]:
        print(f"{row.recording}: {row.error or row.failed}")
    steps, peak = sum(row.n_steps for row in rows), max(row.peak_mib for row in rows)
    print(f"{len(bad)} of {len(rows)} recordings fail; {steps:,} steps, at most {peak:.0f} MiB a process")
    print(f"table: {out / 'fleet.csv'}\npage: {out / 'index.html'}")
    return verdict(not bad)


def questions(args: Args) -> Questions:
    """All of them, and whether the export does what was recorded where there is one.

    Raises:
        ValueError: There are several sources, of which an export can be but one.
    """
    from ncp_rl.audit import QUESTIONS

    if args.deployed is None:
        return QUESTIONS
    if len(args.sources) > 1:
        raise ValueError(f"--deployed names the export of one policy, got {len(args.sources)} sources; audit it alone.")
    from ncp_rl.export import DeployedQuestion

    return (*QUESTIONS, DeployedQuestion(args.deployed))


def plan(args: Args) -> Plan:
    """What the arguments ask for.

    Raises:
        ValueError: There is no such disturbance or fault.
    """
    from ncp_envs.disturbance import DISTURBANCES, LEVEL_UNITS, LEVELS, Fault

    from ncp_rl.audit import Plan, PlannedFault

    disturbances = tuple(DISTURBANCES) if args.disturbances is None else args.disturbances
    for name, known in [(name, DISTURBANCES) for name in disturbances] + [(name, FAULTS) for name in args.faults]:
        if name not in known:
            raise ValueError(f"There is no {name!r}; there are {', '.join(known)}.")
    return Plan(
        n_episodes=args.episodes,
        alpha=args.alpha,
        epsilon=args.epsilon,
        seed=args.seed,
        max_episode_steps=args.max_episode_steps,
        images=args.images,
        faults={
            name: PlannedFault(Fault, dict(disturbance=name, level=FAULTS[name], onset=args.onset), args.onset)
            for name in args.faults
        },
        disturbances={name: (DISTURBANCES[name], LEVELS[name]) for name in disturbances},
        level_units=LEVEL_UNITS,
        n_perturb_episodes=args.perturb_episodes,
        n_processes=args.processes,
        max_loss=args.max_loss,
        max_steps=args.max_steps,
        # What --deployed names is asked for.
        questions=None if args.questions is None else (*args.questions, *(["deployed"] if args.deployed else [])),
    )
