"""The ordered map keeps order, bounds what is in flight, raises errors in their place, and stops when left."""

from __future__ import annotations

import itertools
import threading
import time
import tracemalloc
from collections.abc import Iterator

import pytest

from fieldmark.runtime.stream import ordered_map


def ours() -> int:
    return sum(thread.name.startswith("fieldmark") for thread in threading.enumerate())


@pytest.fixture(autouse=True)
def no_worker_survives() -> Iterator[None]:
    before = ours()
    yield
    assert ours() == before


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_order_is_kept(workers):
    def slow_first(number: int) -> int:
        time.sleep(0.002 * (7 - number % 8))
        return number * number

    assert list(ordered_map(slow_first, range(40), workers)) == [n * n for n in range(40)]
    assert list(ordered_map(slow_first, [], workers)) == []


def test_work_overlaps():
    """Four workers meet at a barrier, which one alone would never pass."""
    barrier = threading.Barrier(4, timeout=10)
    assert list(ordered_map(lambda n: barrier.wait() >= 0, range(8), 4)) == [True] * 8


@pytest.mark.parametrize("workers, ahead", [(2, 8), (3, 1), (1, 8)])
def test_bounded_in_flight(workers, ahead):
    """However slowly answers are taken, at most workers * ahead items have been asked for beyond them."""
    asked = 0

    def items() -> Iterator[int]:
        nonlocal asked
        for number in itertools.count(1):  # endless
            asked = number
            yield number

    taken = 0
    stream = ordered_map(lambda n: n, items(), workers, ahead)
    for taken, answer in enumerate(itertools.islice(stream, 200), 1):
        assert answer == taken
        assert asked - taken <= workers * ahead
    stream.close()  # type: ignore[attr-defined]
    assert taken == 200


def test_memory_does_not_grow():
    """A megabyte an answer, three hundred answers."""
    tracemalloc.start()
    try:
        for _ in ordered_map(lambda n: bytes(1_000_000), range(300), 2, 4):
            pass
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("workers", [1, 3])
def test_an_error_comes_at_its_place(workers):
    def work(number: int) -> int:
        if number == 5:
            raise ValueError("five")
        return number

    seen = []
    with pytest.raises(ValueError, match="five"):
        for answer in ordered_map(work, range(100), workers):
            seen.append(answer)
    assert seen == [0, 1, 2, 3, 4]


def test_leaving_early_stops_the_workers():
    """What was begun is ended, what was not begun (a dozen items wait) never is."""
    begun = []

    def work(number: int) -> int:
        begun.append(number)
        time.sleep(0.02)
        return number

    stream = ordered_map(work, range(10_000), 2, 8)
    assert [next(stream) for _ in range(4)] == [0, 1, 2, 3]
    count = len(begun)
    stream.close()  # type: ignore[attr-defined]
    assert len(begun) <= count + 2
    time.sleep(0.05)
    assert len(begun) <= count + 2


def test_nothing_happens_before_the_first_answer_is_asked_for():
    done: list[int] = []
    stream = ordered_map(done.append, range(10), 2)
    assert ours() == 0 and done == []
    stream.close()  # type: ignore[attr-defined]
