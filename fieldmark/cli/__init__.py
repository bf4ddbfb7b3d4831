"""The command line: parse, call, print. One verb a file, imported only when it is called.

``VERBS`` is the whole list. A verb's module has a function of the verb's name made by `common.verb`; its
heavy imports are inside that function, so that ``fieldmark --help`` stays quick.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

VERBS: dict[str, dict[str, str]] = {
    "Start here": {
        "demo": "Make look-alike photos, train, evaluate, predict: all at once.",
        "doctor": "Tell what works here, what is missing, and what to do.",
    },
    "The main job": {
        "train": "Turn a folder of labelled photos into a model.",
        "evaluate": "Measure a model on photos of known class.",
        "predict": "Name the photos in a folder, a table or a single file.",
        "locate": "Find the things in photos: boxes and masks.",
        "compare": "Tell whether one run is really better than another.",
        "bench": "Tell which method is best for these photos.",
    },
    "Search": {
        "embed": "Write the embedding of every photo to a Parquet file.",
        "similar": "Find the photos most like a given one.",
    },
    "Change a model": {
        "add-class": "Teach a model one more class, without the old photos.",
        "remove-class": "Make a model forget a class.",
    },
    "Look around": {
        "methods": "List the methods of training.",
        "backbones": "List the backbones.",
        "datasets": "List photo sets, or write one to a folder.",
        "cache": "Show or clear what is kept to save time.",
    },
}
_LINES = {name: line for group in VERBS.values() for name, line in group.items()}


class _Verbs(TyperGroup):
    """A group whose commands are imported when they are asked for."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(_LINES)  # type: ignore[assignment]  # for typer's "did you mean"

    def list_commands(self, ctx: Any) -> list[str]:
        return list(_LINES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in _LINES:
            return None
        name = cmd_name.replace("-", "_")
        function = getattr(import_module(f"fieldmark.cli.{name}"), name)
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(cmd_name, help=function.__doc__, epilog=function.examples)(function)
        return typer.main.get_command(single)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        for title, verbs in VERBS.items():
            with formatter.section(title):
                formatter.write_dl(list(verbs.items()))


app = typer.Typer(
    cls=_Verbs,
    no_args_is_help=True,
    subcommand_metavar="VERB ...",
    rich_markup_mode=None,  # rich's help costs another 0.1 s
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from fieldmark import __version__

        typer.echo(f"fieldmark {__version__}")
        raise typer.Exit


@app.callback(epilog="fieldmark VERB --help tells more, with examples.")
def fieldmark(
    version: Annotated[
        bool, typer.Option("--version", help="Say the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """fieldmark: a folder of look-alike photos becomes a recogniser."""


def main() -> None:
    """Run the command line on this process's arguments, and leave with its status: 0, 1 or 2."""
    for stream in (sys.stdout, sys.stderr):
        if reconfigure := getattr(stream, "reconfigure", None):
            reconfigure(errors="replace")  # a class name that the terminal cannot show ends nothing
    app(prog_name="fieldmark")
