"""The `cvae` command: every command, its help, and its errors in one line.

A command is a typed function: its docstring is the help. It imports what is heavy only when it runs, so that
`cvae --help` answers at once.
"""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Annotated, Any

import typer

from pipeline.base import console, terminal
from pipeline.base.errors import UserError
from pipeline.cli import (
    complete,
    curve,
    doctor,
    draw,
    export,
    report,
    restore,
    services,
    study,
    values,
    verify,
    weight,
)

NAME = "cvae"
ABOUT = """\
Train a conditional VAE on MNIST and find out which KL weight, and why.

\b
  dvc repro                           run what changed of the whole pipeline
  cvae try objective.kl_weight=1      train and evaluate another KL weight
  cvae compare                        what was tried, side by side
  cvae report                         the headline figures; --html: a page
  cvae doctor                         what is wrong, and what to change
  cvae sample 0-9 --seed 1            samples on the terminal, or in a PNG
  cvae study                          the trials; `promote` takes the best
  cvae ui                             compare runs in the browser
"""
STAGES = {
    "download": "Fetch and check the four files of MNIST.",
    "prepare": "Split MNIST into train, validation and test.",
    "judge": "Train the classifier that measures samples.",
    "train": "Train the CVAE of params.yaml.",
    "evaluate": "Measure the CVAE on test, into reports/.",
    "train_completion": "Train the completion model.",
    "evaluate_completion": "Measure completions on test, into reports/.",
}  # those of dvc.yaml, for one stage without DVC
COMMANDS: dict[str, Callable[..., None]] = {"try": values.experiment}  # the others have their functions' names
COMMANDS |= {command.__name__: command for command in (
    draw.sample, draw.interpolate, draw.traverse, draw.morph, complete.complete, weight.weight, curve.spectrum,
    report.report, values.params, report.compare, curve.curve, curve.explore, export.export, study.tune, study.study,
    study.promote, doctor.doctor, study.reproduce, services.ui, services.sync, verify.verify, restore.restore,
)}  # fmt: skip


def _stage(name: str) -> Callable[[], None]:
    def run() -> None:
        importlib.import_module(f"pipeline.stages.{name}").main()
        console.say_seconds(name)

    return run


# Help in characters that the terminal has: typer itself writes UTF-8 where the encoding is ASCII.
class Command(typer.core.TyperCommand):
    def get_help(self, ctx: Any) -> str:
        return terminal.spelled(super().get_help(ctx))


class Group(typer.core.TyperGroup):
    def get_help(self, ctx: Any) -> str:
        return terminal.spelled(super().get_help(ctx))


app = typer.Typer(
    cls=Group,
    help=ABOUT,
    invoke_without_command=True,
    rich_markup_mode=None,  # rich help would cost half of the time that `cvae --help` takes
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, words in STAGES.items():
    app.command(name, cls=Command, help=words)(_stage(name))
for name, command in COMMANDS.items():
    app.command(name, cls=Command)(command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(NAME, version("cvae-pipeline"))
        raise typer.Exit


@app.callback()
def _start(
    context: typer.Context,
    version: Annotated[  # noqa: ARG001 (its callback does it)
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main() -> None:
    """The console command."""
    console.run(_run, timed=False)


def _run() -> None:
    command = typer.main.get_command(app)
    if f"_{NAME.upper()}_COMPLETE" in os.environ:
        command.main(prog_name=NAME)  # answers the shell, and exits
    try:
        with command.make_context(NAME, sys.argv[1:]) as context:
            command.invoke(context)
    except typer.Exit as end:
        sys.exit(end.exit_code)
    except typer.TyperException as error:
        failed = getattr(error, "ctx", None)
        path = failed.command_path if failed else NAME
        raise UserError(f"{error.format_message().rstrip('.')}; see `{path} --help`") from None
