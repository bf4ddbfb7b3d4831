"""``fieldmark cache``: what is kept to save time, and how to be rid of it."""

from __future__ import annotations

from typing import Annotated

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen


@verb(
    examples="""
    fieldmark cache
    fieldmark cache features --clear
    fieldmark cache --clear
    """
)
def cache(
    screen: Screen,
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", show_default=False, help="One cache.  [default: all]")
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Remove what it holds.")] = False,
) -> None:
    """Show or clear what is kept to save time: weights, compiled graphs, features of photos.

    Removing it is always safe: it is computed again. FIELDMARK_CACHE says where it lies,
    FIELDMARK_CACHE_SIZE how much it may hold (10 GB).
    """
    from fieldmark.runtime import cache as store
    from fieldmark.runtime.errors import UsageError

    root, cap = store.cache_root(), store.cap()
    if clear:
        removed = store.clear(name)
        screen.say(f"removed {_size(removed)} from {root}")
        screen.answer({"root": root, "removed": removed})
        return
    held = store.usage()
    if name is not None and name not in held:
        raise UsageError(f"no cache is called {name!r}; there are: {', '.join(held) or 'none'}")
    held = {one: held[one] for one in ([name] if name else held)}
    total = sum(one.bytes for one in held.values())
    screen.say(f"{root}: {_size(total)} of at most {_size(cap)}")
    if held:
        rows = [(one, use.files, _size(use.bytes)) for one, use in held.items()]
        screen.table(("cache", "files", "size"), rows)
    caches = {one: {"files": use.files, "bytes": use.bytes} for one, use in held.items()}
    screen.answer({"root": root, "bytes": total, "cap": cap, "caches": caches})


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            break
        count /= 1000
    return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
