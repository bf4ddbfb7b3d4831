"""``fieldmark datasets``: photo sets that can be written to a folder here and now."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.common import check_free, verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark datasets
    fieldmark datasets digits --out digits
    fieldmark datasets look-alikes --out beetles --with n_species=20 --with shortcut=true
    """
)
def datasets(
    screen: Screen,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="The set.  [default: list all]")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write it to this folder.")] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--with", metavar="OPTION=VALUE", help="An option of the set; NAME alone lists them."),
    ] = None,
) -> None:
    """List photo sets, or write one to a folder, ready for `fieldmark train`."""
    from fieldmark.data.zoo import DATASETS, get
    from fieldmark.runtime.errors import UsageError

    if name is None:
        if out is not None or option:
            raise UsageError("which set? `fieldmark datasets` lists them")
        columns = ("name", "title", "classes", "photos", "licence")
        rows = [[*(getattr(one, key) for key in columns), _size(one.download)] for one in DATASETS.values()]
        screen.table((*columns, "download"), rows)
        screen.answer({"datasets": [asdict(one) for one in DATASETS.values()]})
        return
    chosen_set = get(name)
    write = chosen_set.write
    known = _options(write)
    chosen = dict(_read(item, known) for item in option or ())
    if out is None:
        if chosen:
            raise UsageError("--with needs --out: the folder to write to")
        screen.say(f"{name}: {chosen_set.title} ({chosen_set.source})")
        screen.table(("option", "default"), [(one, str(default)) for one, default in known.items()])
        screen.answer({"name": name, "title": chosen_set.title, "options": known})
        return
    check_free(out)
    with screen.progress() as progress:
        reports: dict[str, Callable[[int, int], None]] = {
            "progress": lambda done, total: progress("photos", done, total),
            "download": lambda done, total: progress("bytes fetched", done, total),
        }
        takes = inspect.signature(write).parameters
        chosen |= {key: report for key, report in reports.items() if key in takes}
        folder = write(out, **chosen)
    screen.say(f"{folder} is ready: fieldmark train {folder}")
    screen.answer({"name": name, "out": folder})


def _size(count: int) -> str:
    """Bytes to fetch, in megabytes; nothing for sets that need no network."""
    return f"{count / 1e6:.0f} MB" if count else ""


def _options(write: Callable[..., Path]) -> dict[str, Any]:
    """The options of a set and their defaults; only plain values can be given on a command line."""
    parameters = inspect.signature(write).parameters.values()
    return {
        item.name: item.default
        for item in parameters
        if item.kind is item.KEYWORD_ONLY and isinstance(item.default, bool | int | float | str)
    }


def _read(item: str, known: dict[str, Any]) -> tuple[str, Any]:
    from fieldmark.runtime.errors import UsageError

    name, _, text = item.partition("=")
    name = name.strip().replace("-", "_")
    if name not in known:
        raise UsageError(f"--with {item}: the options are {', '.join(known) or 'none'}")
    default = known[name]
    try:
        if isinstance(default, bool):
            return name, {"true": True, "false": False}[text.strip().lower()]
        return name, type(default)(text.strip())
    except (ValueError, KeyError):
        kind = "true or false" if isinstance(default, bool) else f"a value such as {default}"
        raise UsageError(f"--with {item}: expected {kind}") from None
