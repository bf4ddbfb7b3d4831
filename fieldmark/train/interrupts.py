"""Ctrl-C among several processes: it reaches them at different steps, and all of them leave at the same one.

A process that left at once would let the others wait for it for ever. So each notes it, and KeyboardInterrupt is
raised where all pass, in all of them. A process that has no others is interrupted as usual.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fieldmark.train import processes


class _Now:
    """pressed: was Ctrl-C? alone: does this process do what the others do not wait for, yet?"""

    pressed = alone = False


@contextmanager
def noted() -> Iterator[None]:
    """In here Ctrl-C is noted, and comes out of `agree` and `alone`. Where it is switched off, it stays so."""
    _Now.pressed, before = False, signal.getsignal(signal.SIGINT)
    if (
        processes.world() == 1
        or threading.current_thread() is not threading.main_thread()
        or not callable(before)
    ):
        yield
        return

    def note(number: int, frame: FrameType | None) -> None:
        first, _Now.pressed = not _Now.pressed, True
        if first and _Now.alone:
            before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def agree() -> None:
    """All processes wait for each other here; where one was interrupted, KeyboardInterrupt is raised in all."""
    if processes.world() > 1 and processes.anywhere(_Now.pressed):
        raise KeyboardInterrupt


@contextmanager
def alone() -> Iterator[None]:
    """What each process does for itself, so that Ctrl-C ends it at once. Then they `agree`."""
    if processes.world() == 1:
        yield
        return
    try:
        _Now.alone = True
        yield
        _Now.alone = False
    except BaseException as error:
        _Now.alone = False
        if not isinstance(error, KeyboardInterrupt):
            raise
        _Now.pressed = True
    agree()
