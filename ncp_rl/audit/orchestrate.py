"""`audit_sources`: records runs, audits run folders and recordings, and writes audit.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from sb3_contrib import RecurrentPPO

from ncp_rl.audit.audit import Audit, Questions, audit_recording, audit_runs
from ncp_rl.audit.plan import N_ENVS, Plan
from ncp_rl.audit.questions import QUESTIONS
from ncp_rl.recording import Episode, Recording, record_rollouts
from ncp_rl.runs import RunError, is_circuit, load_run, read_config


def audit_sources(
    sources: Sequence[Path],
    out: Path,
    plan: Plan = Plan(),  # noqa: B008  (a frozen value)
    *,
    public_key: Ed25519PublicKey | None = None,
    questions: Questions = QUESTIONS,
    progress_bar: bool = False,
) -> Audit:
    """Audit run folders and recordings side by side; runs are recorded first, and perturbed.

    Args:
        sources: Run folders of NCPs, or of baselines that are perturbed beside them, and recordings.
        out: New folder for recordings of runs and for audit.json.
        plan: Settings of the questions.
        public_key: Key that must have signed the recordings given; None where no signature is required.
        questions: The questions, in the order of the answers.
        progress_bar: Show progress.

    Raises:
        ncp_rl.runs.RunError: A source does not exist, a run is damaged, or `out` exists.
        ncp_rl.recording.RecordingError: A recording is too damaged to be read.
    """
    if out.exists():
        raise RunError(f"The folder {out} exists and is left as it is; name another one for the audit.")
    named = dict(zip(_names(sources), sources, strict=True))
    runs = {name: path for name, path in named.items() if path.is_dir()}
    missing = [str(path) for path in sources if not path.exists()]
    if missing:
        raise RunError(f"Each source must be a run folder or a recording; these do not exist: {', '.join(missing)}.")
    out.mkdir(parents=True)
    subjects = []
    for name, path in named.items():
        if name not in runs:
            how: dict[str, Any] = dict(public_key=public_key)
            recording = Recording.open(path)
        elif is_circuit(read_config(path).hyperparams.get("policy")):
            recording = _recorded(path, out / f"{name}.mcap", plan, progress_bar)
            how = dict(run=path, faults=_record_faults(path, name, out, plan, progress_bar))
        else:
            continue
        subjects.append(audit_recording(recording, name, plan, questions=questions, progress_bar=progress_bar, **how))
    of_runs = audit_runs(runs, plan, questions=questions, progress_bar=progress_bar)
    audit = Audit(tuple(subjects), of_runs, questions)
    (out / "audit.json").write_text(json.dumps(audit.to_dict(), indent=1, allow_nan=False) + "\n")
    return audit


def _recorded(run: Path, path: Path, plan: Plan, progress_bar: bool) -> Recording:
    limit = plan.max_episode_steps
    _record(run, path, plan.n_episodes, plan.seed, progress_bar, images=plan.images, max_episode_steps=limit)
    return Recording.open(path)


def _record_faults(
    run: Path, name: str, out: Path, plan: Plan, progress_bar: bool
) -> dict[str, tuple[list[Episode], list[int]]]:
    """Record episodes with each fault; keep those that last until it begins, with the step at which it does."""
    faults = {}
    for fault_name, fault in plan.faults.items():
        path = out / f"{name}__{fault_name}.mcap"
        wrap: dict[str, Any] = dict(wrapper_class=fault.wrapper, wrapper_kwargs=dict(fault.arguments))
        wrap |= dict(max_episode_steps=plan.max_episode_steps)
        _record(run, path, plan.n_fault_episodes, plan.seed + plan.n_episodes, progress_bar, **wrap)
        faulty = [episode for episode in Recording.open(path) if len(episode) >= fault.onset]
        if faulty:
            faults[fault_name] = (faulty, [fault.onset] * len(faulty))
    return faults


def _record(
    run: Path, path: Path, n_episodes: int, seed: int, progress_bar: bool, *, images: bool = False, **wrap: Any
) -> None:
    render: dict[str, Any] = dict(env_kwargs=dict(render_mode="rgb_array")) if images else {}
    model, venv = load_run(run, n_envs=min(n_episodes, N_ENVS), **render, **wrap)
    assert isinstance(model, RecurrentPPO)
    record_rollouts(model, venv, path, n_episodes=n_episodes, seed=seed, images=images, progress_bar=progress_bar)
    venv.close()


def _names(sources: Sequence[Path]) -> list[str]:
    """Return the sources' file names without suffix, numbered where they are equal."""
    stems = [path.name if path.is_dir() else path.stem for path in map(Path.absolute, sources)]
    return [stem if stems.count(stem) == 1 else f"{stem}_{i}" for i, stem in enumerate(stems)]
