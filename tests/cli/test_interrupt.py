"""Ctrl-C while something is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldmark.cli.interrupt import patient

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")

SLOW = """
import time
END = time.monotonic() + 1
while time.monotonic() < END:
    time.sleep(0.01)
done = True
"""
#: What a shell starts in the background has Ctrl-C switched off, and so has all that it starts.
LISTENS = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
PROGRAM = f"""
{LISTENS}
import sys, threading, time
from fieldmark.cli.interrupt import patient
with patient():
    print("ready", flush=True)
    if "aside" in sys.argv:
        other = threading.Thread(target=__import__, args=("slow",))
        other.start()
    try:
        import slow
    except KeyboardInterrupt:
        print("cut", flush=True)
        raise
    try:
        time.sleep(20)
    except KeyboardInterrupt:
        print("whole", slow.done, flush=True)
"""


def pressed(folder: Path, program: str, *after: float, how: str = "alone") -> tuple[str, int]:
    """What a program says, and its status, where Ctrl-C comes so many seconds after another (the first: after it was
    ready, which is before it imports something for a second)."""
    (folder / "slow.py").write_text(SLOW)
    process = subprocess.Popen(
        [sys.executable, "-c", program, how],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for seconds in after:
            time.sleep(seconds)
            process.send_signal(signal.SIGINT)
        return process.communicate(timeout=30)[0], process.returncode
    finally:
        process.kill()


@pytest.mark.parametrize("how", ["alone", "aside"])
def test_an_import_ends_first(tmp_path: Path, how: str) -> None:
    assert pressed(tmp_path, PROGRAM, 0.3, how=how) == ("whole True\n", 0)


def test_pressed_twice_in_an_import_it_comes_once(tmp_path: Path) -> None:
    """A second one would cut what the first one began to tidy up."""
    tidy = PROGRAM.replace('print("whole", slow.done, flush=True)', "time.sleep(0.5); print('tidy')")
    assert pressed(tmp_path, tidy, 0.1, 0.1, 0.1) == ("tidy\n", 0)


def test_what_ends_with_its_import(tmp_path: Path) -> None:
    program = f"""
{LISTENS}
from fieldmark.cli.interrupt import patient
try:
    with patient():
        print("ready", flush=True)
        import slow
except KeyboardInterrupt:
    print("told", slow.done, flush=True)
"""
    assert pressed(tmp_path, program, 0.95) == ("told True\n", 0)


@pytest.fixture
def listens() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_else_at_once(listens: None) -> None:
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt), patient():
        signal.raise_signal(signal.SIGINT)
        time.sleep(5)
    assert time.monotonic() - began < 2
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_what_others_set_stays() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with patient():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)

    def other() -> None:
        with patient():  # signals are the main thread's
            seen.append(signal.getsignal(signal.SIGINT))

    seen: list[object] = []
    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert seen == [before]
