"""The command line as one tree: help, completion, exit statuses, and that help needs nothing heavy."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
import tyro

import ncp_rl
from ncp_rl.audit import QUESTIONS
from ncp_rl.cli import audit, bench, main, tree
from ncp_rl.cli.evaluate import Args
from ncp_rl.recording import MAX_MEMORY

#: What no help needs.
HEAVY = ("torch", "stable_baselines3", "gymnasium", "numba", "numpy", "matplotlib", "mcap", "sklearn", "ray", "optuna")
#: Commands with commands of their own.
NESTED = {"teach": ["clone", "dagger", "distil"], "monitor": ["fit", "check", "run"]}


def printed(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """What a command line that ends the process prints."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == status
    said = capsys.readouterr()
    return said.out + said.err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ncp-rl {ncp_rl.__version__}\n"


def test_help_names_every_command_with_a_line_and_the_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, "--help")
    names = "train sweep evaluate teach record verify replay convert export audit monitor envs keygen bench".split()
    assert list(tree.COMMANDS) == names
    for name in names:
        assert f"• {name} " in said
    assert "Exit statuses:\n    0  all is well\n    1  a verdict failed" in said and "ncp-rl train --help" in said
    assert "ncp-rl monitor check" not in said  # The examples of a command are in its own help.


@pytest.mark.parametrize("name", tree.COMMANDS)
def test_the_help_of_a_command_has_examples_and_arguments(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = printed(capsys, name, "--help")
    assert f"Examples:\n    ncp-rl {name}" in said or f"\n    ncp-rl {name} " in said
    if name in NESTED:
        assert all(f"• {part} " in said for part in NESTED[name])
        for part in NESTED[name]:
            assert "--out" in (said := printed(capsys, name, part, "--help")) or "--monitor" in said


def test_every_example_of_help_is_a_command_line_that_parses() -> None:
    lines = [line.strip() for module in tree.COMMANDS.values() for line in tree.description(module).splitlines()]
    examples = [line.partition("  #")[0].split() for line in lines if line.startswith("ncp-rl ")]
    assert len(examples) > 30
    for _, *arguments in examples:
        assert tree.parse([argument.strip('"') for argument in arguments]) is not None


def test_wrong_arguments_are_told_with_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Available subcommands" in printed(capsys, "trian", status=2)
    assert "--unitz" in printed(capsys, "train", "--unitz", "3", status=2)


def test_what_cannot_be_done_is_told_in_a_line_with_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (
        ["evaluate", str(tmp_path)],
        ["verify", str(tmp_path / "none.mcap")],
        ["audit", str(tmp_path / "none")],
        ["monitor", "check", str(tmp_path / "none.mcap"), "--monitor", str(tmp_path / "none.json")],
        ["replay", str(tmp_path / "none.mcap"), "--deployed", str(tmp_path), "--env"],
    ):
        assert main(command) == 2
        said = capsys.readouterr()
        assert said.err.startswith("error: ") and said.err.count("\n") == 1 and not said.out


def test_an_error_of_the_program_is_not_taken_for_a_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: Args) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr("ncp_rl.cli.evaluate.main", broken)
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", "runs/mine"])


def test_help_and_version_import_nothing_heavy() -> None:
    script = f"""
import sys
from ncp_rl.cli import main
main(["--version"])
helped = (["--help"], ["train", "--help"], ["sweep", "--help"], ["teach", "dagger", "--help"], ["audit", "--help"])
for command in helped:
    try:
        main(command)
    except SystemExit as end:
        assert end.code == 0
print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


def test_bash_completes_the_whole_tree(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ncp_rl", "--tyro-print-completion", "bash"], capture_output=True, text=True, check=True
    )
    (tmp_path / "ncp-rl").write_text(done.stdout)
    (tmp_path / "ask").write_text("""
source ./ncp-rl
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
_tyro_ncp_rl
echo "${COMPREPLY[@]}"
""")

    def completions(*words: str) -> list[str]:
        done = subprocess.run(["bash", "ask", "ncp-rl", *words], cwd=tmp_path, capture_output=True, text=True)
        return done.stdout.split()

    assert set(completions("")) >= set(tree.COMMANDS)
    assert completions("te") == ["teach"]
    assert completions("teach", "") == ["-h", "--help", *NESTED["teach"]]
    assert completions("monitor", "run", "--ep") == ["--episodes"]
    assert sorted(completions("train", "--critic", "l")) == ["lstm", "ltc"]


def test_defaults_that_help_tells_are_the_librarys() -> None:
    must_pass = [question.name for question in QUESTIONS if question.must_pass]
    source = Path(audit.__file__).read_text()
    assert f"Default: {', '.join(must_pass[:-1])} and {must_pass[-1]}." in " ".join(source.split())
    assert MAX_MEMORY == 512 * 2**20  # As the help of verify, replay, convert and monitor check says.
    assert set(bench.PARTS) == set(get_args(bench.Part)) > {"scan", "step", "loop"}


def test_scripts_take_what_they_took(capsys: pytest.CaptureFixture[str]) -> None:
    from scripts import export, record

    def parsed(command: Any, *arguments: str) -> Any:
        return tyro.cli(command, args=arguments)

    assert parsed(record.Command, "export", "a.mcap", "--minari", "a/b-v0").minari == "a/b-v0"
    for form in ("c", "numpy", "onnx"):
        found = parsed(export.Command, form, "runs/a", "--out", "b", "--which", "last", "--min-seconds", "0.1")
        assert (found.to, found.which, found.min_seconds) == (form, "last", 0.1)
    assert parsed(export.Command, "monitor", "a.mcap", "--out", "b", "--kind", "box", "--onnx").kind == "box"
    assert parsed(export.Command, "verify", "controller", "a.mcap", "--json").export == Path("controller")
    assert parsed(record.Command, "replay", "a.mcap", "--run", "runs/a", "--env").env


def test_environments_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["envs", "--json"]) == 0
    entries = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert len(entries) == 20 and all(entry["hidden"] and not entry["missing"] for entry in entries.values())
    pendulum = entries["ncp/PendulumNoVel-v1"]
    assert pendulum["observation_space"] == "Box(2) float32" and pendulum["action_space"] == "Box(1) float32"
    assert pendulum["hidden"] == "velocities: 1 of the 3 numbers of Pendulum-v1"
    assert main(["envs"]) == 0
    assert capsys.readouterr().out.count("\n") == 21
