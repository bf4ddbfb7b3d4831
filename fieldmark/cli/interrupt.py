"""Ctrl-C that waits for imports: an exception amid one is lost, or leaves a lock that nobody opens again."""

from __future__ import annotations

import contextlib
import signal
import sys
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
        or _importing(sys._getframe())  # all that follows is part of one: it would never come
    ):
        yield
        return
    handle = _Handler()
    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if handle.later is not None:  # the body was done first
            handle.later.cancel()
            raise KeyboardInterrupt


class _Handler:
    """later: what asks again, after Ctrl-C in the middle of an import; pressed again meanwhile, it is the same one."""

    later: threading.Timer | None = None

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if _importing(frame):
            if self.later is None:
                self.later = threading.Timer(_AGAIN, self._again)
                self.later.daemon = True
                self.later.start()
            return
        self.later = None
        raise KeyboardInterrupt

    def _again(self) -> None:
        self.later = None  # the next one may be asked for as soon as this one comes
        if hasattr(signal, "pthread_kill"):  # wakes the main thread where it waits for something
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            signal.raise_signal(signal.SIGINT)


def _importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False
