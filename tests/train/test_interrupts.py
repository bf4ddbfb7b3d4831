"""Ctrl-C among several processes: noted, and raised where all of them are."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from fieldmark.train import interrupts, processes

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")


def press() -> None:
    signal.raise_signal(signal.SIGINT)


@pytest.fixture(autouse=True)
def listens() -> Iterator[None]:
    """What runs in the background may have Ctrl-C switched off."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One of two processes; what it told the other, which was not interrupted."""
    told: list[bool] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "anywhere", lambda value: told.append(value) or value)
    return told


def test_one_process_is_interrupted_at_once() -> None:
    with interrupts.noted(), pytest.raises(KeyboardInterrupt):
        press()
    with interrupts.noted(), interrupts.alone(), pytest.raises(KeyboardInterrupt):
        press()
    interrupts.agree()


def test_it_is_raised_where_all_agree(others: list[bool]) -> None:
    with interrupts.noted():
        interrupts.agree()
        press()
        press()
        with pytest.raises(KeyboardInterrupt):
            interrupts.agree()
    assert others == [False, True]
    with interrupts.noted():
        interrupts.agree()  # another training knows nothing of it
    with pytest.raises(KeyboardInterrupt):
        press()  # outside it is as ever


def test_work_for_itself_ends_at_once_and_tells_the_others(others: list[bool]) -> None:
    done = []
    with interrupts.noted(), pytest.raises(KeyboardInterrupt), interrupts.alone():
        try:
            press()
            done.append("more work")
        finally:
            press()  # again, while it tidies up
            done.append("tidy")
    assert done == ["tidy"] and others == [True]


def test_another_process_ends_this_one(others: list[bool], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "anywhere", lambda _: True)
    done = []
    with interrupts.noted(), pytest.raises(KeyboardInterrupt), interrupts.alone():
        done.append("whole")
    assert done == ["whole"]


def test_an_error_does_not_wait_for_the_others(others: list[bool]) -> None:
    with interrupts.noted():
        with pytest.raises(ValueError, match="no"), interrupts.alone():
            raise ValueError("no")
        press()  # noted again
    assert others == []


def test_where_it_is_switched_off_it_stays_so(others: list[bool]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.noted():
        press()
        interrupts.agree()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
