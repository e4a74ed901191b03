"""Pages say what is true: their code runs from top to bottom, their commands too, and the site builds without warning.

A page's fenced blocks share a folder and a namespace. That folder holds what `Getting started` has made before: the run
folder runs/pendulum (trained for 2,048 steps here) and the recording flight.mcap. A block with a title is a file: it is
written, not run. One with `data-norun` is not run, and the attribute says why: its Python is compiled, its commands are
parsed.
"""

from __future__ import annotations

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch
import yaml
from playwright.sync_api import sync_playwright

from ncp_rl.cli import main
from ncp_rl.cli.tree import COMMANDS, parse

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")])
#: Commands that pages may show beside ours: what they do to a machine is not for a test.
OTHERS = {"pip", "python3", ".", "cd", "git", "mkdir", "tensorboard"}
_FENCE = re.compile(r"^(?P<fence>```+)(?P<info>[^\n]*)\n(?P<text>.*?)^(?P=fence)[ ]*$", re.MULTILINE | re.DOTALL)
_ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')


@dataclass(frozen=True)
class Block:
    """A fenced block: where it stands, its language, title and reason not to be run, and its text."""

    page: Path
    line: int
    language: str
    title: str
    norun: str | None
    text: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for words in (shlex.split(line, comments=True) for line in lines) if words]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _FENCE.finditer(text):
        info = found["info"].strip()
        attributes = dict(_ATTRIBUTE.findall(info))
        line = text.count("\n", 0, found.start()) + 2
        language = re.split(r"[ {]", info, maxsplit=1)[0]
        yield Block(page, line, language, attributes.get("title", ""), attributes.get("data-norun"), found["text"])


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as `Getting started` leaves it."""
    folder = tmp_path_factory.mktemp("started")
    run, recording = folder / "runs" / "pendulum", folder / "flight.mcap"
    short = ["--timesteps", "2048", "--eval-episodes", "1", "--final-episodes", "1", "--no-progress-bar"]
    assert main(["train", "--env", "ncp/PendulumNoVel-v1", "--out", str(run), *short]) == 0
    assert main(["record", str(run), "--out", str(recording), "--episodes", "5", "--no-progress-bar"]) == 0
    return folder


# Stable-Baselines3 asks every environment for pictures; and the page's environment has none.
@pytest.mark.filterwarnings("ignore:.*render_mode='rgb_array':UserWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_what_a_page_shows_runs(
    page: Path, started: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not any(block.language in ("python", "bash") for block in blocks(page)):
        pytest.skip("the page shows no code")
    shutil.copytree(started, tmp_path, dirs_exist_ok=True)
    if page.stem == "getting-started":
        (tmp_path / "flight.mcap").unlink()  # This page makes it.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    matplotlib.use("agg")
    namespace: dict[str, Any] = {"__name__": f"page_{page.stem}"}
    before = set(sys.modules)
    try:
        for block in blocks(page):
            if block.title:
                Path(block.title).write_text(block.text)
            elif block.language == "bash":
                for words in block.commands:
                    run_command(words, block, capsys)
            elif block.language == "python":
                run_python(block, namespace)
    finally:
        for name in {"my_module", "my_expert", "controller"} - before:
            sys.modules.pop(name, None)
        torch.set_num_threads(1)


def run_python(block: Block, namespace: dict[str, Any]) -> None:
    # Lines of a traceback are those of the page.
    tree = ast.parse(block.text, str(block.page))
    code = compile(ast.increment_lineno(tree, block.line - 1), str(block.page), "exec")
    if block.norun is None:
        exec(code, namespace)


def run_command(words: list[str], block: Block, capsys: pytest.CaptureFixture[str]) -> None:
    where = f"{block.page.name}:{block.line}: {shlex.join(words)}"
    program, *arguments = words
    if program == "make":
        for target in (word for word in arguments if "=" not in word):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"{where}: there is no such target"
    elif program == "python" and arguments[0].endswith(".py"):
        assert (ROOT / arguments[0]).exists(), f"{where}: there is no such script"
        assert block.norun is not None, f"{where}: say by data-norun why it is not run"
    elif program != "ncp-rl":
        known = program in OTHERS or (program.endswith("python") and arguments[:1] == ["-m"])
        assert known, f"{where}: the tests do not know this program"
    elif arguments[0].startswith("--") or "--help" in arguments:
        parsed(arguments, where)
    elif block.norun is None and (shutil.which("gcc") or "--deployed" not in arguments):
        assert main(quietly(arguments)) == 0, f"{where}: {capsys.readouterr().err}"
    else:
        parsed(arguments, where)


def quietly(arguments: list[str]) -> list[str]:
    """The same without a progress bar, where there is one: it would write into the tests' output."""
    known = (COMMANDS[arguments[0]].__doc__ or "") + Path(str(COMMANDS[arguments[0]].__file__)).read_text()
    return [*arguments, "--no-progress-bar"] if "progress_bar" in known else arguments


def parsed(arguments: list[str], where: str) -> None:
    """Parse arguments, or show help or completion, as the command would."""
    try:
        main(arguments) if arguments == ["--version"] else parse(arguments)
    except SystemExit as end:
        assert end.code in (0, None), f"{where}: the command refuses these arguments"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_help_texts_stand_on_the_page_of_commands() -> None:
    shown = [block.text.split() for block in blocks(ROOT / "docs" / "commands.md") if block.language == "help"]
    assert {words[1] for words in shown} == set(COMMANDS)


def test_every_page_is_in_the_navigation() -> None:
    settings = (ROOT / "mkdocs.yml").read_text()
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if f": {page}\n" not in settings + "\n"} == set()


def test_layers_on_the_page_are_those_that_are_checked() -> None:
    toml = (ROOT / "pyproject.toml").read_text()
    contract = toml.partition('name = "ncp_rl imports one way"')[2].partition("\n]")[0]
    layers = re.findall(r'^    "(.*)",$', contract, re.MULTILINE)
    page = (ROOT / "docs" / "design.md").read_text().partition("## Who imports whom")[2]
    shown = page.partition("```text\n")[2].partition("```")[0].splitlines()
    names = [set(re.findall(r"ncp_rl\.(\w+)", layer)) for layer in layers]
    assert [set(re.findall(r"\w+", line.partition("  #")[0])) for line in shown] == names


def test_installation_lines_name_extras_that_there_are() -> None:
    toml = (ROOT / "pyproject.toml").read_text()
    there = set(re.findall(r"^(\w+) = \[", toml.partition("[project.optional-dependencies]")[2], re.MULTILINE))
    for page in PAGES:
        for extras in re.findall(r'pip install [^\n`]*"(?:ncp-rl|\.)\[([\w,]+)\]"', page.read_text()):
            assert set(extras.split(",")) <= there, f"{page.name}: {extras}"


def test_workflows_call_make_alone_and_only_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        for job in yaml.safe_load(path.read_text())["jobs"].values():
            for command in (step["run"] for step in job["steps"] if "run" in step):
                for line in command.strip().splitlines():
                    words = shlex.split(line)
                    assert words[0] == "make" or words[:2] == ["sudo", "apt-get"], f"{path.name}: {line}"
                    for target in (word for word in words[1:] if words[0] == "make" and "=" not in word):
                        assert f"\n{target}:" in makefile, f"{path.name}: {line}"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "<math" in (tmp_path / "site" / "mathematics.html").read_text()
    assert "--timesteps" in (tmp_path / "site" / "commands.html").read_text()
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.fail("The site is looked at in Chromium, which is missing: apt-get install -y chromium")
    asked: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 390, "height": 844})
        page.on("request", lambda request: asked.append(request.url))
        for path in sorted((tmp_path / "site").glob("*.html")):
            page.goto(path.as_uri())
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, f"{path.name} is wider than a phone"
        browser.close()
    # A reader needs no network.
    assert len(asked) > 20 and [url for url in asked if not url.startswith("file:")] == []
