"""The documentation tells the truth: its commands run, its output is what they print, its flags and links exist.

How a page is read. Blocks run in the order of the page, in a folder of its own with links to `scripts/` and `configs/`.

- ```bash: run as a script; every command has to succeed.
- ```console: the lines after `$ ` are run, and what they print has to be what follows. `…` stands for any text within a
  line, and alone on a line for any lines. A command has to succeed, unless its exit code is shown.
- ```python: run in one namespace per page; with `>>>`, as a doctest, where `...` stands for any text.
- ```yaml: a plan that loads; with `<!-- file: NAME -->` before it, it is also written there for what follows, and with
  `<!-- file: NAME (wrong on purpose) -->` it has to be refused.
- ```text and ```json: shown only.
- `<!-- slow -->` before a block: run by `pytest -m slow` alone. `<!-- not run: REASON -->`: not run.
"""

from __future__ import annotations

import contextlib
import doctest
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from hasten.cli.main import COMMANDS, app
from hasten.errors import PlanError
from hasten.plan import Plan, load_plan
from hasten.plan.messages import dotted_keys
from hasten.plan.resolved import resolved_dict

ROOT = Path(__file__).parents[1]
PAGES = [
    page
    for page in (ROOT / "README.md", ROOT / "README_zh.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md")))
    if page.is_file()
]
# README_zh.md has README.md's code, see below: it is run once.
RUN_PAGES = [page for page in PAGES if page.name not in ("CONTRIBUTING.md", "README_zh.md")]
LANGUAGES = {"bash", "console", "python", "yaml", "text", "json"}
SHOWN_ONLY = {"text", "json"}


@dataclass(frozen=True)
class Block:
    """A fenced block and the comment right before it.

    Attributes:
        line: of its first line of text, from 1.
        comment: what stands in the HTML comment, or nothing.
    """

    page: Path
    line: int
    language: str
    text: str
    comment: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_slow(self) -> bool:
        return self.comment == "slow"

    @property
    def runs(self) -> bool:
        return self.language not in SHOWN_ONLY and not self.comment.startswith("not run")


@cache
def blocks_of(page: Path) -> tuple[Block, ...]:
    found, comment, inside, start, lines = [], "", "", 0, []
    for number, line in enumerate(page.read_text("utf-8").splitlines(), start=1):
        if inside:
            if line.strip() == "```":
                found.append(Block(page, start, inside, "\n".join(lines) + "\n", comment))
                inside, comment = "", ""
            else:
                lines.append(line)
        elif (fence := re.fullmatch(r"```(\S*)\s*", line)) is not None:
            inside, start, lines = fence[1] or "(none)", number + 1, []
        elif (remark := re.fullmatch(r"<!-- (.+) -->", line)) is not None:
            comment = remark[1]
        elif line.strip():
            comment = ""
    assert not inside, f"{page}:{start}: this block has no end"
    return tuple(found)


ALL_BLOCKS = [block for page in PAGES for block in blocks_of(page)]


# --- what can be told without running anything


@pytest.mark.parametrize("block", ALL_BLOCKS, ids=str)
def test_a_block_says_what_it_is_and_why_it_is_not_run(block: Block) -> None:
    assert block.language in LANGUAGES, f"language {block.language!r}: a test cannot tell what to do with it"
    if block.comment.startswith("not run"):
        assert re.fullmatch(r"not run: \S.{8,}", block.comment), "say why it is not run"
    if block.language == "console":
        assert block.text.startswith("$ ")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", _prose(page)) + re.findall(r'(?:src|href)="([^"]+)"', _prose(page)):
        if re.match(r"\w+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name}: {target} leads nowhere"
        if anchor:
            assert anchor in _anchors(file), f"{page.name}: {target}: no such heading"


def test_every_page_is_in_the_list_of_pages() -> None:
    listed = re.findall(r"\]\((\w+\.md)\)", (ROOT / "docs" / "index.md").read_text("utf-8"))
    assert {*listed, "index.md"} == {page.name for page in ROOT.glob("docs/*.md")}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_option_that_is_named_exists(page: Path) -> None:
    everywhere = {option for options in _options().values() for option in options}
    for line in _commands(page):
        known = _options().get(_command(line))
        for option in re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", _unquoted(line)):
            plain = option.replace("_", "-")
            assert plain in (everywhere if known is None else known), f"{page.name}: {line!r} names {option}"


def test_the_page_of_a_command_names_all_its_options() -> None:
    text = (ROOT / "docs" / "generate.md").read_text("utf-8")
    named = set(re.findall(r"`(--?[a-z][\w-]*)", text))
    assert _options()["hasten generate"] <= named
    assert _options()["hasten metadata"] - {"-h"} <= named
    plans = (ROOT / "docs" / "plans.md").read_text("utf-8")
    assert set(re.findall(r"--[a-z][\w-]*", plans)) >= {"--set", "--as-written"}


def test_the_complete_plan_has_every_key_and_is_the_default_preset() -> None:
    (complete,) = (block for block in blocks_of(ROOT / "docs" / "plans.md") if block.comment == "file: complete.yaml")
    written = {m[1]: bool(m[2]) for m in re.finditer(r"^ *(\w+):(?=.*?(#)|)", complete.text, re.MULTILINE)}
    assert set(written) == {key.rpartition(".")[2] for key in dotted_keys(Plan)}
    sections = {"precision", "sampler", "quantization", "attention", "compile", "memory", "tokens", "generation", "io"}
    assert {key for key, explained in written.items() if not explained} == sections
    import yaml

    assert resolved_dict(load_plan(yaml.safe_load(complete.text))) == resolved_dict(load_plan("taylorseer"))


def test_the_chinese_readme_has_the_code_of_the_english_one() -> None:
    def code(name: str) -> list[str]:
        blocks = [block for block in ALL_BLOCKS if block.page.name == name and block.runs]
        return [re.sub(r"\s*#.*", "", block.text) for block in blocks]

    assert code("README_zh.md") == code("README.md")


def test_the_measured_tables_have_their_places() -> None:
    pages = "".join(page.read_text("utf-8") for page in (ROOT / "docs").glob("*.md"))
    begun = re.findall(r"<!-- table:(\S+) -->", pages)
    assert sorted(begun) == sorted(set(begun)) == sorted(re.findall(r"<!-- /table:(\S+) -->", pages))
    assert {name.partition(":")[0] for name in begun} >= {"step-cost", "predictors", "bench", "bench-overhead"}


# --- running


@pytest.mark.parametrize("page", [page for page in RUN_PAGES if blocks_of(page)], ids=lambda page: page.name)
def test_a_page_runs_as_it_is_printed(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch, slow=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in RUN_PAGES if any(block.is_slow for block in blocks_of(page))], ids=lambda page: page.name
)
def test_a_page_runs_with_its_slow_blocks(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run_page(page, tmp_path, monkeypatch, slow=True)


def test_output_that_is_not_as_shown_is_noticed() -> None:
    shown = ["one …", "…", "four"]
    assert _alike(shown, ["one two", "two", "three", "four"])
    assert _alike(shown, ["one two", "four"])
    assert not _alike(shown, ["one two", "three"])
    assert not _alike(shown, ["four", "one two"])
    assert not _alike(["one"], ["one", "two"])


def _run_page(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *, slow: bool) -> None:
    for name in ("scripts", "configs"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)
    # `hasten` and `python` are those of the interpreter that runs the tests.
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    # A module, since classes that a snippet defines look theirs up.
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in blocks_of(page):
        if not block.runs or (block.is_slow and not slow):
            continue
        try:
            _run(block, namespace)
        except AssertionError as error:
            raise AssertionError(f"{block}: {error}") from error


def _run(block: Block, namespace: dict[str, Any]) -> None:
    if block.language == "bash":
        done = _shell(f"set -euo pipefail\n{block.text}")
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}"
    elif block.language == "console":
        _run_console(block)
    elif block.language == "yaml":
        _write_plan(block)
    elif ">>> " in block.text:
        _run_doctest(block, namespace)
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            try:
                exec(compile(block.text, str(block), "exec"), namespace)
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}") from error


def _shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f"exec 2>&1\n{script}"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, timeout=600
    )


def _run_console(block: Block) -> None:
    shown: list[tuple[str, list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            shown.append((line[2:], []))
        else:
            shown[-1][1].append(line)
    for command, expected in shown:
        done = _shell(command)
        printed = [line.rstrip() for line in done.stdout.splitlines()]
        assert done.returncode == 0, f"{command}: exit code {done.returncode}\n{done.stdout}"
        assert _alike(expected, [line for line in printed if line]), f"{command} printed\n{done.stdout}"


def _alike(expected: list[str], printed: list[str]) -> bool:
    """Whether lines are as shown; `…` stands for any text, and alone for any number of lines."""
    pattern = "".join(
        r"(?:.*\n)*?" if line.strip() == "…" else ".*?".join(map(re.escape, line.rstrip().split("…"))) + r"\n"
        for line in expected
        if line.strip()
    )
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def _write_plan(block: Block) -> None:
    name = re.fullmatch(r"file: ([\w.-]+)( \(wrong on purpose\))?", block.comment)
    file = Path(name[1] if name else "plan.yaml")
    file.write_text(block.text, "utf-8")
    if name and name[2]:
        with pytest.raises(PlanError):
            load_plan(file)
    else:
        load_plan(file)


def _run_doctest(block: Block, namespace: dict[str, Any]) -> None:
    # Between `python` fences a blank line ends nothing: in a docstring it would end the expected output.
    test = doctest.DocTestParser().get_doctest(block.text, namespace, str(block), str(block.page), block.line - 1)
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    told = io.StringIO()
    runner = doctest.DocTestRunner(optionflags=flags, verbose=False)
    runner.run(test, out=told.write, clear_globs=False)
    namespace.update(test.globs)
    assert not runner.failures, told.getvalue()


# --- reading


def _prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


def _anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), flags=re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings)
    return set(plain)


def _commands(page: Path) -> Iterator[str]:
    """Command lines of hasten in blocks, and what stands between backticks and speaks of an option."""
    for block in blocks_of(page):
        if block.language in ("bash", "console"):
            for line in block.text.replace("\\\n", " ").splitlines():
                if block.language == "bash" or line.startswith("$ "):
                    yield from (
                        part for part in re.split(r"\||;|&&", line) if "hasten " in part or "scripts/run_" in part
                    )
    for span in re.findall(r"`([^`\n]+)`", _prose(page)):
        if re.match(r"-|hasten |scripts/run", span):
            yield span


def _unquoted(line: str) -> str:
    return re.sub(r"\"[^\"]*\"|'[^']*'", "''", line)


_SCRIPTS = {
    "run_taylorseer": "hasten generate",
    "run_generate": "hasten generate",
    "run_benchmark": "hasten bench",
}


def _command(line: str) -> str:
    """`hasten plan show`, told by a command line; nothing where it begins with an option."""
    words = shlex.split(_unquoted(line).removeprefix("$ "))
    for script, command in _SCRIPTS.items():
        if any(script in word for word in words):
            return command
    if "hasten" not in words:
        return ""
    rest = words[words.index("hasten") :]
    longest = " ".join(rest[:3])
    return longest if longest in _options() else " ".join(rest[:2])


@cache
def _options() -> dict[str, set[str]]:
    """Command → its options, in all spellings."""
    group: Any = typer.main.get_command(app)
    found = {"hasten": _of(group)}
    for name in COMMANDS:
        command = group.load(name)
        found[f"hasten {name}"] = _of(command)
        for child, inner in getattr(command, "commands", {}).items():
            found[f"hasten {name} {child}"] = _of(inner)
    return found


def _of(command: Any) -> set[str]:
    options = {"--help", "-h"}
    for parameter in command.params:
        if parameter.param_type_name == "option":
            options |= {*parameter.opts, *parameter.secondary_opts}
    return options
