"""What mkdocs does with these pages beyond its settings: formulas, help texts, and files that lie outside docs/.

Formulas are TeX in `math` fences, as GitHub shows them; here they become MathML when the site is built, which browsers
show without a script. A `help` fence names a command, whose help takes its place. Pictures of results/, examples and
the pages at the top of the repository are copied into the site, so that a link such as ../results/driver.png works on
both.
"""

from __future__ import annotations

import html
import io
import os
import re
from contextlib import redirect_stdout, suppress
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
#: What pages may link to outside docs/.
SHOWN = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "results/*", "examples/*.py", "hyperparams/*.yml")
_OUTSIDE = re.compile(r"(\]\(|src=\")\.\./(?=[\w/]+)")


def formula(source: str, *_: Any, **__: Any) -> str:
    """MathML of a `math` fence: a formula a line; a paragraph of its own each."""
    return "".join(f"<p>{convert(line, display='block')}</p>" for line in source.splitlines() if line.strip())


def help_text(source: str, *_: Any, **__: Any) -> str:
    """What a command of a `help` fence prints for --help."""
    from ncp_rl.cli.tree import parse

    os.environ["COLUMNS"] = "96"
    with redirect_stdout(io.StringIO()) as printed, suppress(SystemExit):
        parse([*source.split()[1:], "--help"])
    return f"<pre><code>{html.escape(printed.getvalue())}</code></pre>"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Let `math` fences be formulas, and `help` fences what a command prints."""
    fences = config.mdx_configs.setdefault("pymdownx.superfences", {}).setdefault("custom_fences", [])
    fences += [dict(name="math", format=formula), dict(name="help", format=help_text)]
    for fence in fences:
        fence["class"] = fence["name"]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is shown from outside docs/."""
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links out of docs/ go to the copies in it; links of pages from the top go the other way."""
    if page.file.src_uri in SHOWN:
        return re.sub(r"\]\(docs/", "](", markdown)
    return _OUTSIDE.sub(r"\1", markdown)
