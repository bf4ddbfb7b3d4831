"""Ctrl-C that waits for imports: an exception amid one is lost, or leaves a lock that nobody opens again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_AGAIN = 0.1  # seconds


@contextlib.contextmanager
def patient() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, but not in the middle of an import: there it comes when that is done.

    PyTorch takes seconds to import. Where another has set what Ctrl-C does, nothing changes.
    """
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGINT) is not signal.default_int_handler
    ):
        yield
        return
    signal.signal(signal.SIGINT, _handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _handle(number: int, frame: FrameType | None) -> None:
    if not _importing(frame):
        raise KeyboardInterrupt
    later = threading.Timer(_AGAIN, _again)
    later.daemon = True
    later.start()


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _again() -> None:
    if hasattr(signal, "pthread_kill"):  # wakes the main thread where it waits for something
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    else:
        signal.raise_signal(signal.SIGINT)
