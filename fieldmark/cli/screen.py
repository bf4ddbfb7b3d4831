"""How a verb speaks: results on standard output; progress, notes and errors on standard error."""

from __future__ import annotations

import codecs
import contextlib
import json
import math
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

#: Seconds between two plain lines of progress where no bar can be drawn.
_EVERY = 10.0


class Progress(Protocol):
    """``progress("reading photos", done, total)``: called as often as one likes; total None is unknown.

    aside: said behind the bar ("31 photos/s"); where ``what`` is empty, a line of its own.
    """

    def __call__(self, what: str, done: int, total: int | None = None, aside: str = "") -> None: ...


class Screen:
    """What one call of a verb says. ``json``: only one JSON object, at the end; ``quiet``: no chatter."""

    def __init__(self, json: bool = False, quiet: bool = False) -> None:
        self.json, self.quiet = json, quiet
        self.started = time.monotonic()
        self._bar: Any = None

    def seconds(self) -> float:
        """Since the verb began."""
        return time.monotonic() - self.started

    # -- standard output

    def say(self, text: str = "") -> None:
        """A line of the result for human eyes."""
        if not self.json:
            print(text)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[Any]], *, title: str | None = None
    ) -> None:
        """Rows for human eyes; numbers stand right. Text is shown as it is, without markup."""
        if self.json:
            return
        from rich import box
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        rows = [list(row) for row in rows]
        table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False)
        for place, name in enumerate(columns):
            numbers = all(isinstance(row[place], int | float | None) for row in rows) and rows
            table.add_column(Text(name), justify="right" if numbers else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(_cell(value)) for value in row))
        Console(highlight=False).print(table)

    def answer(self, result: dict[str, Any]) -> None:
        """With ``--json`` the one object, as the last line of standard output."""
        if self.json:
            print(json_line(result), flush=True)

    # -- standard error

    def note(self, text: str) -> None:
        """A line beside the result: what was left out, what comes next."""
        if not self.quiet:
            self._error(text)

    def warn(self, text: str) -> None:
        """Like a note, but ``--quiet`` does not hide it."""
        self._error(f"fieldmark: warning: {text}")

    def _error(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def progress(self) -> Iterator[Progress]:
        """Bars on a terminal; elsewhere a plain line now and then; nothing with ``--quiet``."""
        if self.quiet:
            yield lambda what, done, total=None, aside="": None
        elif not sys.stderr.isatty():
            yield _plain_lines()
        else:
            with self._bars() as report:
                yield report

    @contextlib.contextmanager
    def _bars(self) -> Iterator[Progress]:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            SpinnerColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        class Count(MofNCompleteColumn):
            def render(self, task: Any) -> Any:
                return super().render(task) if task.fields["counted"] else ""

        tasks: dict[str, Any] = {}
        reached: dict[str, int] = {}
        with Bars(
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            Count(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[aside]}", markup=False),
            console=Console(stderr=True),
        ) as bars:

            def end_open() -> None:
                for task in bars.tasks:
                    if not task.fields["counted"]:
                        bars.update(task.id, total=1, completed=1)

            def report(what: str, done: int, total: int | None = None, aside: str = "") -> None:
                if not what:
                    self._error(aside)
                    return
                if what not in tasks:
                    end_open()  # a stage without a count ends where the next begins
                    tasks[what] = bars.add_task(what, total=total, counted=total is not None, aside="")
                elif done < reached[what]:  # it begins again, as training does in every phase
                    bars.reset(tasks[what])
                reached[what] = done
                bars.update(tasks[what], completed=done, total=total, aside=aside)

            self._bar = bars
            try:
                yield report
                end_open()
            finally:
                self._bar = None


def _plain_lines() -> Progress:
    last = {"": time.monotonic()}
    reached: dict[str, int] = {}

    def report(what: str, done: int, total: int | None = None, aside: str = "") -> None:
        if not what:
            print(f"fieldmark: {aside}", file=sys.stderr, flush=True)
            return
        now = time.monotonic()
        if done < reached.get(what, 0):
            last.pop(what, None)
        reached[what] = done
        ended = total is not None and done >= total
        if now - max(last.get(what, 0), last[""]) >= _EVERY or (ended and last.get(what) != math.inf):
            count = "" if total is None else f": {done} of {total}"
            print(f"fieldmark: {what}{count}{aside and f' ({aside})'}", file=sys.stderr, flush=True)
            last[what] = math.inf if ended else now
            last[""] = now

    return report


def json_line(value: Any) -> str:
    """A value as one line of JSON; letters are escaped where standard output cannot show all (a pipe on Windows)."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return json.dumps(plain(value), ensure_ascii=codecs.lookup(encoding).name != "utf-8")


def plain(value: Any) -> Any:
    """A value that JSON knows: no NaN or infinity (null), no numpy, no paths, no tuples."""
    if isinstance(value, dict):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if isinstance(value, float) else str(value)
