"""The `luthier` command: the table of verbs, and how an error leaves it.

Lives here: which commands there are, exit codes. Does not live here: what a command does (`commands/`).
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

import luthier
from luthier import runs, settings
from luthier.cli.commands import after, before, begin, searching, tuning
from luthier.errors import DataError, LuthierError, ModelError, NotFound, SpecError

YOUR_INPUT, IT_FAILED = 2, 1

COMMANDS: dict[str, tuple[Callable[..., None], ...]] = {
    "Begin": (begin.demo, begin.init, begin.convert, begin.doctor, begin.schema),
    "Look before you tune": (before.prepare, before.look, before.plan),
    "Tune": (tuning.tune, tuning.ladder, tuning.stop, tuning.resume, tuning.watch),
    "What came of it": (after.runs, after.show, after.evaluate, after.compare, after.generate),
    "Pass it on": (after.publish,),
}

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Tune a foundation model on your data, and learn whether it worked.",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _functions in COMMANDS.items():
    for _function in _functions:
        app.command(rich_help_panel=_panel)(_function)
app.add_typer(searching.GROUP, name="search", rich_help_panel="Tune")


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context,
    home: Annotated[str | None, typer.Option(help="Where runs and data live (else $LUTHIER_HOME, ~/.luthier).")] = None,
    version: Annotated[bool, typer.Option("--version", help="Say the version and end.")] = False,
) -> None:
    if version:
        print(luthier.__version__)
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())
        raise typer.Exit
    if home is not None:
        os.environ["LUTHIER_HOME"] = home  # a worker inherits it
    if runs.home().exists() and not runs.home().is_dir():
        raise NotFound(f"the home folder {runs.home()} is a file", hint="say a folder: --home DIR or LUTHIER_HOME")
    for name, value in settings.environment(runs.home()).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # bars of ours only; downloads keep theirs


def main() -> None:
    """Run the command line. Exit codes: 0 done, 1 it failed, 2 your input."""
    try:
        app()
    except LuthierError as problem:
        from luthier.cli import show

        show.error(problem)
        sys.exit(YOUR_INPUT if isinstance(problem, SpecError | DataError | ModelError | NotFound) else IT_FAILED)
    except KeyboardInterrupt:
        sys.exit(IT_FAILED)
    except PermissionError as refusal:
        from luthier.cli import show

        ours = Path(str(refusal.filename)).is_relative_to(runs.home())
        hint = f"luthier keeps its runs in {runs.home()}; another place: --home DIR or LUTHIER_HOME" if ours else None
        show.error(LuthierError(f"permission denied: {refusal.filename}", hint=hint))
        sys.exit(IT_FAILED)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader left: nothing more to say
        sys.exit(IT_FAILED)
    except Exception as defect:
        sys.exit(_defect(defect))


def _defect(defect: Exception) -> int:
    """Something nobody foresaw: keep the traceback for us, spare the person."""
    from luthier import redaction
    from luthier.cli import show

    path = runs.home() / "defect.log"
    hint = "this is a defect of luthier, not of your input: please report it with this file"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(redaction.strike("".join(traceback.format_exception(defect))), encoding="utf-8")
    except OSError as unwritable:
        hint = f"the home folder cannot be written ({unwritable.strerror}); another place: --home DIR or LUTHIER_HOME"
    show.error(LuthierError(f"{type(defect).__name__}: {redaction.strike(str(defect))}", str(path), hint))
    return IT_FAILED
