"""The frame of the command line: quick help, suggestions, errors without tracebacks, Ctrl-C."""

from __future__ import annotations

import subprocess
import sys
import types
from collections.abc import Callable
from importlib import metadata

import pytest
import typer
from typer.testing import CliRunner

from hasten import __version__
from hasten.cli.main import COMMANDS, Row, app, main
from hasten.errors import HastenError, LoadError, PlanError

run = CliRunner().invoke


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Add a command `boom` that raises what it is given."""

    def add(problem: BaseException) -> None:
        module = types.ModuleType("hasten_test_boom")
        module.app = typer.Typer()  # type: ignore[attr-defined]

        @module.app.command()  # type: ignore[attr-defined]
        def boom(true_cfg_scale: float = 1.0) -> None:
            typer.echo(f"scale {true_cfg_scale}")
            raise problem

        monkeypatch.setitem(sys.modules, "hasten_test_boom", module)
        monkeypatch.setitem(COMMANDS, "boom", Row("hasten_test_boom", "Fail."))

    return add


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_help_lists_every_command_and_imports_none_of_them() -> None:
    loaded = python(
        "import sys\n"
        "from hasten.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit as end: assert end.code == 0, end.code\n"
        "print(sorted(m for m in sys.modules if m.startswith('hasten.cli.')))\n"
        "print([m for m in ('torch', 'diffusers', 'transformers', 'numpy', 'PIL', 'pydantic') if m in sys.modules])\n"
    ).splitlines()
    for name, row in COMMANDS.items():
        assert any(name in line and row.help in line for line in loaded)
    assert loaded[-2] == "['hasten.cli.main']"
    assert loaded[-1] == "[]"


@pytest.mark.parametrize("module", ["hasten", "hasten.plan", "hasten.cli.plan", "hasten.errors"])
def test_importing_does_not_import_torch(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_version_is_the_installed_one() -> None:
    result = run(app, ["--version"])
    assert (result.exit_code, result.output) == (0, f"hasten {__version__}\n")
    assert metadata.version("hasten") == __version__


def test_no_command_shows_the_help() -> None:
    result = run(app, [])
    assert "Usage: hasten" in result.output
    assert "generate" in result.output


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["genrate"], "No such command 'genrate'. Did you mean 'generate'?"),
        (["plan", "shw"], "No such command 'shw'. Did you mean 'show'?"),
        (["plan", "show", "--sett", "seed=1"], "--set"),
        (["--versoin"], "--version"),
    ],
)
def test_a_misspelt_word_is_answered_with_the_right_one(arguments: list[str], answer: str) -> None:
    result = run(app, arguments)
    assert result.exit_code == 2
    assert answer in result.output


def test_an_error_is_one_red_word_and_its_message(command: Callable[..., None]) -> None:
    command(LoadError("no folder [/work/model] here"))
    result = run(app, ["boom"])
    assert result.exit_code == 2
    assert result.stdout == "scale 1.0\n"
    assert result.stderr == "error: no folder [/work/model] here\n"


def test_several_problems_are_counted_and_listed(command: Callable[..., None]) -> None:
    command(PlanError("plan.yaml:1: a: wrong", "plan.yaml:2: b: wrong"))
    result = run(app, ["boom"])
    assert result.exit_code == 2
    assert result.stderr == "error: 2 problems\nplan.yaml:1: a: wrong\nplan.yaml:2: b: wrong\n"


def test_the_lines_of_one_message_are_not_counted_as_problems(command: Callable[..., None]) -> None:
    command(HastenError("no GPU\ninstall the driver"))
    assert run(app, ["boom"]).stderr == "error: no GPU\ninstall the driver\n"


def test_an_empty_message_still_names_the_error(command: Callable[..., None]) -> None:
    command(LoadError())
    assert run(app, ["boom"]).stderr == "error: LoadError\n"


def test_ctrl_c_ends_in_one_line(command: Callable[..., None]) -> None:
    command(KeyboardInterrupt())
    result = run(app, ["boom"])
    assert (result.exit_code, result.stderr) == (130, "interrupted\n")


def test_a_bug_keeps_its_traceback(command: Callable[..., None]) -> None:
    command(ZeroDivisionError("a bug"))
    result = run(app, ["boom"])
    assert isinstance(result.exception, ZeroDivisionError)


@pytest.mark.parametrize("flag", ["--true-cfg-scale", "--true_cfg_scale"])
def test_options_may_be_spelt_with_underscores(command: Callable[..., None], flag: str) -> None:
    command(HastenError("done"))
    assert run(app, ["boom", flag, "2"]).stdout == "scale 2.0\n"


def test_completion_is_offered_once_and_knows_the_commands_options() -> None:
    assert "--install-completion" in run(app, ["--help"]).output
    assert "completion" not in run(app, ["plan", "--help"]).output
    asked = {"_HASTEN_COMPLETE": "complete_bash", "COMP_WORDS": "hasten plan show --re", "COMP_CWORD": "3"}
    assert run(app, [], env=asked, prog_name="hasten").stdout.split() == ["--resolved"]


def test_main_ends_in_system_exit(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["plan", "show", "nothing-like-it"])
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: 'nothing-like-it': there is no preset")


def test_python_dash_m_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "hasten", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout == f"hasten {__version__}\n"
