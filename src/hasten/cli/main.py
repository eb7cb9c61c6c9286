"""The `hasten` command: one group whose commands are imported when they are called.

Convention for a command module, say `hasten/cli/generate.py`:

- It defines `app`, a `typer.Typer`. With one `@app.command()` and no callback it is a plain command
  (`hasten generate …`); with several, or an `@app.callback()`, a group (`hasten plan check …`).
- It has one row in `COMMANDS` below: the command's name, the module, the line that `hasten --help` shows.
  The module itself is not imported for `hasten --help`.
- It imports torch, diffusers and everything that does so (handle, generation, loading, …) inside functions.
- For what the user can mend it raises `HastenError`; this module prints it and exits with 2. Ctrl-C is left alone:
  it ends here as one line and exit code 130, after the command's own `finally` blocks have run.
- It writes results through `hasten.cli.console.out` and everything else through `hasten.cli.console.err`.
- Options are declared with hyphens only: `--true_cfg_scale` is understood as `--true-cfg-scale` everywhere.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from hasten._version import __version__
from hasten.errors import HastenError


class Row(NamedTuple):
    module: str
    help: str


COMMANDS: dict[str, Row] = {
    "bench": Row("hasten.cli.bench", "Measure plans: speed and quality beside the reference."),
    "calibrate": Row("hasten.cli.calibrate", "Measure the figures that some methods need, once for a model."),
    "compare": Row("hasten.cli.compare", "Compare two reports of bench."),
    "convert": Row("hasten.cli.convert", "Write checkpoints as diffusers folders or single files, checked."),
    "explain": Row("hasten.cli.explain", "Show what a plan would do to a model: modules, snapshots, steps."),
    "generate": Row("hasten.cli.generate", "Make images from a prompt, accelerated by a plan."),
    "inspect": Row("hasten.cli.inspect", "Look inside a model without its weights: layers, stages, cost, code."),
    "metadata": Row("hasten.cli.metadata", "Print what an image says of how it was made."),
    "metrics": Row("hasten.cli.metrics", "Measure images, films and latents against their references."),
    "plan": Row("hasten.cli.plan", "Check, show and list plans."),
    "prune": Row("hasten.cli.prune", "Make a model smaller: whole blocks or widths, recovered by training."),
    "schedule": Row("hasten.cli.schedule", "Search which steps to compute, for the least error."),
    "tune": Row("hasten.cli.tune", "Find the fastest plan above a quality floor."),
    "zoo": Row("hasten.cli.zoo", "The bundled models: list, train, check."),
}


class LazyGroup(TyperGroup):
    """A group that knows its commands by name and imports one only to run it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        # The stand-ins carry the name and the help line: all that the overview and the suggestions need.
        self.commands = {name: TyperCommand(name, help=row.help) for name, row in COMMANDS.items()}
        self.loaded: dict[str, Any] = {}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = self.load(name)
        return name, command, rest

    def load(self, name: str) -> Any:
        """Import the module behind a command and return the command itself."""
        if name not in self.loaded:
            module = import_module(COMMANDS[name].module)
            command = typer.main.get_command(module.app)
            command.name = name
            # Completion is a matter of the whole program; typer offers it for every Typer anew.
            command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
            self.loaded[name] = command
        return self.loaded[name]

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HastenError as error:
            report_error(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            report_interrupt()
            raise typer.Exit(130) from None


def report_error(error: HastenError) -> None:
    """Print an error for a person: `error:` in red, the message as it is, no traceback."""
    from hasten.cli.console import err

    lines = str(error).splitlines() or [type(error).__name__]
    err.print("[bold red]error:[/] ", end="")
    if len(lines) > 1:
        err.print(f"{len(lines)} problems" if isinstance(error, ValueError) else lines.pop(0), markup=False)
    for line in lines:
        err.print(line, markup=False, highlight=False, soft_wrap=True)


def report_interrupt() -> None:
    from hasten.cli.console import err

    err.print("[red]interrupted[/]")


app = typer.Typer(
    cls=LazyGroup,
    name="hasten",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda token: token.replace("_", "-"),
    },
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hasten {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=False)
def hasten(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make any diffusers pipeline faster, and say what that cost."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; always ends in SystemExit, as a console script should."""
    try:
        app(args=list(argv) if argv is not None else None, prog_name="hasten")
    except KeyboardInterrupt:
        report_interrupt()
        sys.exit(130)
