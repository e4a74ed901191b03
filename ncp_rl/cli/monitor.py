"""Tell known territory from new: fit an envelope around the neurons of clean episodes, and watch by it.

Examples:
    ncp-rl record runs/mine --out clean.mcap --episodes 40
    ncp-rl monitor fit clean.mcap --out controller        # monitor.json; for the robot: monitor.h and monitor.c
    ncp-rl monitor check flight.mcap --monitor controller/monitor.json
    ncp-rl monitor run runs/mine --monitor controller/monitor.json --disturb sensor_bias=0.2

`check` and `run` print every alarm, and exit with status 1 where there is one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tyro.conf import Positional

from ncp_rl.cli.status import FINE, reports_errors, verdict
from ncp_rl.extras import require

if TYPE_CHECKING:
    from ncp_rl.audit import Alarm


@dataclass(frozen=True)
class Fit:
    """Fit an envelope around the neurons of recorded clean episodes; write it as C and JSON, or as ONNX."""

    file: Positional[Path]
    """The recording."""
    out: Path
    """Folder for the files."""
    kind: Literal["conformal", "box"] = "conformal"
    """conformal: an envelope with a promised false-alarm rate; box: the range of each neuron."""
    alpha: float = 0.1
    """False-alarm rate per episode that a conformal envelope promises."""
    onnx: bool = False
    """Write monitor.onnx in place of monitor.h, monitor.c and monitor.json."""


@dataclass(frozen=True)
class Check:
    """Print the first step of each recorded episode that lies outside the envelope."""

    file: Positional[Path]
    """The recording."""
    monitor: Path
    """monitor.json, as ncp-rl monitor fit writes it."""
    json: bool = False
    """Print JSON."""
    max_memory: int | None = None
    """Bytes that reading may take; what would take more is refused. Default: 512 MiB."""


@dataclass(frozen=True)
class Run:
    """Run the policy of a run folder, and print each alarm as it comes."""

    run_folder: Positional[Path]
    """Run folder, as ncp-rl train makes it."""
    monitor: Path
    """monitor.json, as ncp-rl monitor fit writes it."""
    episodes: int = 10
    """Episodes, one after the other."""
    seed: int = 0
    """Seed of environment and policy."""
    which: Literal["best", "last"] = "best"
    """The best model by periodic evaluation, or the last."""
    max_episode_steps: int | None = None
    """Cut episodes after so many steps. Default: as the run was trained with."""
    disturb: tuple[str, ...] = ()
    """Disturb the environment, as --disturb of ncp-rl train does."""


Args = Fit | Check | Run


@reports_errors(ValueError)
def main(args: Args) -> int:
    """Fit, check or run."""
    require("export", "sklearn", "scipy", "networkx", "jinja2", "plotly", "mcap", by="ncp-rl monitor")
    if isinstance(args, Fit):
        return fit(args)
    return check(args) if isinstance(args, Check) else run(args)


def fit(args: Fit) -> int:
    """Fit, write, say where."""
    from ncp_rl.audit import fit_box, fit_conformal
    from ncp_rl.cli.reading import opened
    from ncp_rl.export import monitor_to_c, monitor_to_json, monitor_to_onnx

    recording = opened(args.file)
    episodes = list(recording)
    if args.kind == "box":
        envelope = fit_box(recording.circuit, episodes)
    else:
        envelope = fit_conformal(recording.circuit, episodes, alpha=args.alpha)
    if args.onnx:
        print(monitor_to_onnx(envelope, args.out / "monitor.onnx"))
        return FINE
    monitor_to_c(envelope, args.out)
    print(monitor_to_json(envelope, args.out / "monitor.json"))
    return FINE


def check(args: Check) -> int:
    """Print the alarms of a recording; 1 where there is one."""
    from ncp_rl.audit import watch
    from ncp_rl.cli.reading import opened
    from ncp_rl.export import read_monitor

    recording = opened(args.file, args.max_memory)
    envelope = read_monitor(args.monitor, recording.circuit.wiring)
    # One episode is in memory at a time.
    alarms = [seen.alarm for episode in recording for seen in watch(envelope, [episode]) if seen.alarm is not None]
    if args.json:
        found = dict(n_episodes=len(recording), alarms=[asdict(alarm) for alarm in alarms])
        print(json.dumps(found, indent=2))
    else:
        print("\n".join([*map(str, alarms), _summary(alarms, len(recording))]))
    return verdict(not alarms)


def run(args: Run) -> int:
    """Run, print alarms as they come; 1 where there is one."""
    import torch

    from ncp_rl.audit import MonitoredModel
    from ncp_rl.cli.worlds import disturbing
    from ncp_rl.export import ExportError, read_monitor
    from ncp_rl.policy import NCPPolicy
    from ncp_rl.runs import evaluate, load_run

    torch.set_num_threads(1)
    limit, disturb = args.max_episode_steps, disturbing(args.disturb)
    model, venv = load_run(
        args.run_folder, which=args.which, device="cpu", max_episode_steps=limit, wrapper_class=disturb
    )
    if not isinstance(model.policy, NCPPolicy):
        raise ExportError(f"A monitor watches the neurons of an NCP policy; {args.run_folder} holds none.")
    watched = MonitoredModel(model, read_monitor(args.monitor, model.policy.wiring), on_alarm=print)
    evaluation = evaluate(model, venv, n_episodes=args.episodes, seed=args.seed, acting=watched)
    venv.close()
    print(evaluation)
    print(_summary(watched.monitor.alarms, args.episodes))
    return verdict(not watched.monitor.alarms)


def _summary(alarms: Sequence[Alarm], n_episodes: int) -> str:
    n_alarmed = len({(alarm.env_index, alarm.episode) for alarm in alarms})
    return f"{n_alarmed} of {n_episodes} episodes raised an alarm."
