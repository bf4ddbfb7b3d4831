"""What all verbs share: the common flags, ``--config``, and errors as one line with an exit status."""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import inspect
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fieldmark.cli.interrupt import patient
from fieldmark.cli.screen import Screen
from fieldmark.runtime.errors import FieldmarkError, UsageError

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE", show_default=False, help="A folder of class folders, or a CSV or Parquet table."
    ),
]
Photos = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE", show_default=False, help="Photos, folders (all below them), CSV or Parquet tables."
    ),
]
Model = Annotated[
    Path,
    typer.Argument(
        metavar="MODEL", show_default=False, help="The model folder, or the run folder that holds it."
    ),
]
Workers = Annotated[
    int | None, typer.Option(metavar="N", min=1, help="Threads.  [default: the cores there are]")
]
Engine = Annotated[
    Literal["auto", "openvino", "onnxruntime"],
    typer.Option(metavar="NAME", help="What runs the graph: openvino, else onnxruntime."),
]
Precision = Annotated[
    Literal["f32", "bf16", "f16"],
    typer.Option(metavar="NAME", help="Arithmetic of the graph: f32 (exact everywhere), bf16, f16."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where --out stopped.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]

#: Faults of the machine that deserve their own words.
_FAULTS = {
    errno.ENOSPC: "the disk is full: free some room, or choose another place",
    getattr(errno, "EDQUOT", -1): "the disk quota is used up: free some room, or choose another place",
    errno.EACCES: "permission denied: choose a place that you may write to",
    errno.EPERM: "not permitted: choose a place that you may write to",
    errno.EROFS: "the disk is read-only: choose another place",
    errno.ENAMETOOLONG: "the name is too long",
}


def verb(examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a command of a function ``f(screen, ...)``: adds the common flags, and handles errors.

    ``examples`` are shell lines for the end of ``--help``.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(function)
        def run(*, config: Path | None, json: bool, quiet: bool, **flags: Any) -> None:
            goes_on = bool(flags.get("out")) and "resume" in flags
            said = "interrupted: the same command with --resume goes on" if goes_on else "interrupted"
            with errors_as_lines(said), patient():
                function(Screen(json=json, quiet=quiet), **flags)

        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        common = list(inspect.signature(_common, eval_str=True).parameters.values())
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own + common]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {item.name: item.annotation for item in parameters}
        lines = [line.strip() for line in examples.strip().splitlines()]
        run.examples = "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)  # type: ignore[attr-defined]
        return run

    return decorate


@contextlib.contextmanager
def errors_as_lines(interrupted: str = "interrupted") -> Iterator[None]:
    """End the process as issue 2 says: 0, 1 (failed), 2 (wrong usage), 130 (interrupted); one line says why.

    With FIELDMARK_DEBUG set, the traceback comes too.
    """
    try:
        yield
    except (typer.Exit, typer.Abort, SystemExit, BrokenPipeError):
        raise
    except KeyboardInterrupt:
        _fail(interrupted, 130)
    except FieldmarkError as error:
        _fail(str(error), 2 if isinstance(error, UsageError) else 1)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package == "fieldmark":
            _fail(f"this build of fieldmark lacks {error.name}", 1)
        _fail(f"{package} is not installed; this verb needs it: pip install 'fieldmark[train]'", 1)
    except MemoryError:
        _fail("not enough memory: close other programs, or use fewer --workers", 1)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(where + _FAULTS.get(error.errno or 0, error.strerror or str(error)), 1)
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error} (FIELDMARK_DEBUG=1 shows where)", 1)


def _fail(text: str, status: int) -> None:
    if os.environ.get("FIELDMARK_DEBUG"):
        import traceback

        traceback.print_exc()
    sys.stdout.flush()
    print(f"fieldmark: error: {' '.join(text.split())}", file=sys.stderr, flush=True)
    raise typer.Exit(status)


def _read_config(context: typer.Context, path: Path | None) -> Path | None:
    """Take flags from a YAML file: they stand in for defaults, so any flag on the command line overrides."""
    if path is not None:
        with errors_as_lines():
            context.default_map = _defaults(path, context.command.params)
    return path


def _common(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.yaml",
            help="Take flags from a YAML file; flags given here override it.",
            callback=_read_config,
            is_eager=True,
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object as the last line of standard output.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no notes.")] = False,
) -> None:
    """The flags of every verb, to be copied onto its own."""


def _defaults(path: Path, parameters: list[Any]) -> dict[str, Any]:
    """The values of a YAML file by parameter name, written as the command line would have them."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"--config {path}: no such file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {error}") from error
    if not isinstance(values, dict | None):
        raise UsageError(f"--config {path} must hold lines such as 'seed: 3'")
    known: dict[str, tuple[Any, bool]] = {}
    for item in parameters:
        if item.name in ("config", "help"):
            continue
        known[item.name.replace("_", "-")] = (item, True)
        for flag in getattr(item, "secondary_opts", ()):  # --no-report
            known[flag.lstrip("-")] = (item, False)
        for flag in item.opts:
            known[flag.lstrip("-")] = (item, True)
    answer: dict[str, Any] = {}
    for key, value in (values or {}).items():
        name = str(key).replace("_", "-")
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0)
            raise UsageError(f"--config {path}: no flag is called {key!r}; did you mean {near[0]!r}?")
        item, positive = known[name]
        if getattr(item, "is_flag", False):
            if not isinstance(value, bool):
                raise UsageError(f"--config {path}: {key} must be true or false, not {value!r}")
            answer[item.name] = value == positive
        elif isinstance(value, dict) or (isinstance(value, list) and not (item.multiple or item.nargs == -1)):
            raise UsageError(f"--config {path}: {key} must be one value, not {value!r}")
        elif value is not None:
            many = item.multiple or item.nargs == -1
            items = value if isinstance(value, list) else [value]
            answer[item.name] = [str(inner) for inner in items] if many else str(value)
    return answer


def check_free(out: Path, *, resume: bool = False, overwrite: bool = False) -> None:
    """Refuse an ``--out`` that exists (an empty folder is free) unless the user said what to do with it."""
    if resume and overwrite:
        raise UsageError("--resume and --overwrite exclude each other")
    there = out.exists() and not (out.is_dir() and not any(out.iterdir()))
    if there and not (resume or overwrite):
        raise UsageError(f"{out} exists already: choose another --out, or --overwrite it")


def shared(model: str, **options: tuple[Any, Any]) -> dict[str, str]:
    """What all rows of a table share (`open_table`): the model, and in the column ``setting`` the options that change
    answers, (value, default), where one is not the default. So --resume does not mix the answers of several."""
    told = ", ".join(
        name if value is True else f"{name} {value}"
        for name, (value, default) in options.items()
        if value != default
    )
    return {"model": model} | ({"setting": told} if told else {})


def check_own(out: Path, marks: tuple[str, ...]) -> None:
    """Refuse to overwrite a folder that holds none of ``marks`` (files that fieldmark writes)."""
    if out.exists() and (
        not out.is_dir() or (any(out.iterdir()) and not any((out / mark).exists() for mark in marks))
    ):
        raise UsageError(f"{out} was not made by fieldmark and is not overwritten: choose another --out")


@contextlib.contextmanager
def replacing(out: Path, marks: tuple[str, ...], overwrite: bool) -> Iterator[None]:
    """Set an old folder aside while a new one is made in its place; put it back if that fails."""
    if not (overwrite and out.exists()):
        yield
        return
    check_own(out, marks)
    out = Path(os.path.abspath(out))  # noqa: PTH100 (with a name where it is ".", and a link stays one)
    if Path.cwd().is_relative_to(out.resolve()):
        raise UsageError(f"{out} holds the folder you are in: go elsewhere to overwrite it")
    aside = out.with_name(f".{out.name}.old-{uuid.uuid4().hex[:8]}")
    out.rename(aside)
    try:
        yield
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def model_folder(path: Path) -> Path:
    """The bundle itself, whether the user names it or the run folder around it."""
    inner = path / "model"
    return inner if not (path / "config.json").is_file() and (inner / "config.json").is_file() else path
