"""From run folders and recordings to an `Audit`: record, verify, replay, ask, perturb."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from gymnasium import Env
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.vec_env import VecEnv

from ncp_rl.audit.audit import Audit, Subject, audit_recording
from ncp_rl.audit.perturb import Disturbance, perturb
from ncp_rl.audit.verdict import Verdict
from ncp_rl.recording import Episode, Recording, record_rollouts, replay, verify
from ncp_rl.runs import RunError, is_circuit, load_run, read_config

# Environments side by side while recording, at most.
_N_ENVS = 10
_CONDITION = re.compile(r"(?P<check>\w+)(\.(?P<figure>\w+)(?P<sign>[<>])(?P<limit>[-+.\deE]+))?")


@dataclass(frozen=True)
class Fault:
    """A fault that begins in mid-episode: a module-level wrapper, its arguments, and the step at which it begins."""

    wrapper: Callable[..., Env[Any, Any]]
    arguments: Mapping[str, Any]
    onset: int


@dataclass(frozen=True)
class Plan:
    """What an audit asks.

    Attributes:
        n_episodes: Recorded of each run.
        alpha: False-alarm rate per episode that the monitor promises.
        epsilon: By which share of its range each observation moves.
        seed: Of recorded and of perturbed episodes.
        max_episode_steps: Steps after which episodes of runs are cut; each run's own limit where None.
        images: Record what the environments of runs render, for the report.
        faults: By name, for the monitor to find in runs.
        n_fault_episodes: Recorded under each fault.
        disturbances: By name, with the levels to sweep for runs; none leaves the sweep out.
        n_perturb_episodes: Of every level.
        n_processes: Trials at a time.
        max_loss: Share of the return that a disturbance may cost.
    """

    n_episodes: int = 20
    alpha: float = 0.1
    epsilon: float = 0.01
    seed: int = 30_000
    max_episode_steps: int | None = None
    images: bool = False
    faults: Mapping[str, Fault] = field(default_factory=dict)
    n_fault_episodes: int = 10
    disturbances: Mapping[str, tuple[Disturbance, Sequence[float]]] = field(default_factory=dict)
    n_perturb_episodes: int = 10
    n_processes: int = 1
    max_loss: float = 0.5


def audit_sources(
    sources: Sequence[Path],
    out: Path,
    plan: Plan = Plan(),
    *,
    public_key: Ed25519PublicKey | None = None,
    deployed: Callable[[Recording], Verdict] | None = None,
    progress_bar: bool = False,
) -> Audit:
    """Audit run folders and recordings side by side; runs are recorded first, and perturbed.

    Args:
        sources: Run folders, of NCPs or of baselines to perturb beside them, and recordings.
        out: New folder, for recordings of runs and for audit.json.
        plan: What to ask.
        public_key: That must have signed the recordings given.
        deployed: Gives a further verdict on each recording: whether what is deployed does what was recorded. See
            `ncp_rl.export.verify_export`.
        progress_bar: Show progress.

    Raises:
        ncp_rl.runs.RunError: No such source, a damaged run, an existing `out`.
        ncp_rl.recording.RecordingError: A recording too damaged to be read.
    """
    if out.exists():
        raise RunError(f"The folder {out} exists and is left as it is; name another one for the audit.")
    named = dict(zip(_names(sources), sources, strict=True))
    runs = {name: path for name, path in named.items() if path.is_dir()}
    missing = [str(path) for path in sources if not path.exists()]
    if missing:
        raise RunError(f"There is no run folder or recording {', '.join(missing)}.")
    out.mkdir(parents=True)
    subjects = []
    for name, path in named.items():
        if name not in runs:
            recording = Recording.open(path)
            truth = [_chain(path, public_key), _replayed(recording), *_asked(deployed, recording)]
            subjects.append(_ask(recording, name, plan, truth, progress_bar))
        elif is_circuit(read_config(path).hyperparams.get("policy")):
            subjects.append(_audit_run(path, name, out, plan, deployed, progress_bar))
    perturbation, verdicts = None, tuple[Verdict, ...]()
    if runs and plan.disturbances:
        perturbation = perturb(
            runs,
            plan.disturbances,
            n_episodes=plan.n_perturb_episodes,
            seed=plan.seed,
            max_episode_steps=plan.max_episode_steps,
            n_processes=plan.n_processes,
            progress_bar=progress_bar,
        )
        verdicts = tuple(perturbation.verdict(name, max_loss=plan.max_loss) for name in runs)
    audit = Audit(tuple(subjects), perturbation, verdicts)
    (out / "audit.json").write_text(json.dumps(audit.to_dict(), indent=1, allow_nan=False) + "\n")
    return audit


def failures(audit: Audit, conditions: Sequence[str]) -> list[str]:
    """Which conditions an audit fails, each in a sentence.

    Args:
        audit: The audit.
        conditions: `check`, failed where a verdict of that check is, or `check.figure>number` (or `<`), failed where
            the figure of any verdict of that check is beyond the number. What was skipped fails nothing.

    Raises:
        ValueError: A condition that is none, or names a check or figure that the audit does not have.
    """
    found = []
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition.replace(" ", ""))
        if parts is None:
            raise ValueError(f"A condition is `check` or `check.figure>number`, got {condition!r}.")
        verdicts = [verdict for verdict in audit.verdicts if verdict.check == parts["check"]]
        if not verdicts and any(parts["check"] in subject.skipped for subject in audit.subjects):
            continue
        figure: str | None = parts["figure"]
        figures = sorted({name for verdict in verdicts for name in verdict.figures})
        if not verdicts or (figure is not None and figure not in figures):
            asked = sorted({verdict.check for verdict in audit.verdicts}) if not verdicts else figures
            raise ValueError(
                f"The condition {condition!r} asks for what was not audited; there are {', '.join(asked)}."
            )
        for verdict in verdicts:
            if figure is None:
                found += [] if verdict.passed else [f"{condition}: {verdict.sentence}"]
            elif figure in verdict.figures and _beyond(verdict.figures[figure], parts["sign"], float(parts["limit"])):
                found.append(f"{condition}: it is {verdict.figures[figure]:.4g}")
    return found


def _audit_run(
    run: Path, name: str, out: Path, plan: Plan, deployed: Callable[[Recording], Verdict] | None, progress_bar: bool
) -> Subject:
    """Record a run, replay it with its model and environments, and ask."""
    path = out / f"{name}.mcap"
    limit = plan.max_episode_steps
    _record(run, path, plan.n_episodes, plan.seed, progress_bar, images=plan.images, max_episode_steps=limit)
    # The replay's model and environments are loaded anew: it shares nothing with the recording but the files.
    model, venv = load_run(run, n_envs=min(plan.n_episodes, _N_ENVS), max_episode_steps=limit)
    assert isinstance(model, RecurrentPPO)
    recording = Recording.open(path)
    truth = [_chain(path, None), _replayed(recording, model, venv), *_asked(deployed, recording)]
    venv.close()
    faults: dict[str, tuple[Sequence[Episode], Sequence[int]]] = {}
    for fault_name, fault in plan.faults.items():
        fault_path = out / f"{name}__{fault_name}.mcap"
        wrap: dict[str, Any] = dict(wrapper_class=fault.wrapper, wrapper_kwargs=dict(fault.arguments))
        wrap |= dict(max_episode_steps=limit)
        _record(run, fault_path, plan.n_fault_episodes, plan.seed + plan.n_episodes, progress_bar, **wrap)
        faulty = [episode for episode in Recording.open(fault_path) if len(episode) >= fault.onset]
        if faulty:
            faults[fault_name] = (faulty, [fault.onset] * len(faulty))
    return _ask(recording, name, plan, truth, progress_bar, faults)


def _record(
    run: Path, path: Path, n_episodes: int, seed: int, progress_bar: bool, *, images: bool = False, **wrap: Any
) -> None:
    render: dict[str, Any] = dict(env_kwargs=dict(render_mode="rgb_array")) if images else {}
    model, venv = load_run(run, n_envs=min(n_episodes, _N_ENVS), **render, **wrap)
    assert isinstance(model, RecurrentPPO)
    record_rollouts(model, venv, path, n_episodes=n_episodes, seed=seed, images=images, progress_bar=progress_bar)
    venv.close()


def _ask(
    recording: Recording,
    name: str,
    plan: Plan,
    truth: Sequence[Verdict],
    progress_bar: bool,
    faults: dict[str, tuple[Sequence[Episode], Sequence[int]]] | None = None,
) -> Subject:
    return audit_recording(
        recording,
        name,
        alpha=plan.alpha,
        epsilon=plan.epsilon,
        truth=truth,
        faults=faults,
        progress_bar=progress_bar,
    )


def _asked(deployed: Callable[[Recording], Verdict] | None, recording: Recording) -> list[Verdict]:
    return [] if deployed is None else [deployed(recording)]


def _chain(path: Path, public_key: Ed25519PublicKey | None) -> Verdict:
    found = verify(path, public_key)
    return Verdict("chain", found.passed, _sentence(found), {"n_messages": float(found.n_messages)})


def _replayed(recording: Recording, model: RecurrentPPO | None = None, env: VecEnv | None = None) -> Verdict:
    found = replay(recording, model, env)
    largest = max((comparison.max_difference for comparison in found.comparisons), default=0.0)
    return Verdict("replay", found.passed, _sentence(found), {"max_difference": float(largest)})


def _sentence(answer: object) -> str:
    text = str(answer).rstrip(".")
    return f"{text[0].upper()}{text[1:]}."


def _names(sources: Sequence[Path]) -> list[str]:
    """Stems, made different where they are not."""
    stems = [path.name if path.is_dir() else path.stem for path in map(Path.absolute, sources)]
    return [stem if stems.count(stem) == 1 else f"{stem}_{i}" for i, stem in enumerate(stems)]


def _beyond(value: float, sign: str, limit: float) -> bool:
    return value > limit if sign == ">" else value < limit
