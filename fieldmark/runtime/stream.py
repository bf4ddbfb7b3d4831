"""An ordered, bounded, parallel map: the one way photos flow through the machine."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    work: Callable[[Item], Result], items: Iterable[Item], workers: int, ahead: int = 8
) -> Iterator[Result]:
    """``work`` over ``items`` on threads, results in order, at most ``workers * ahead`` of them in flight.

    Memory stays bounded however many items there are. An error in ``work`` is raised at its place in the order.
    """
    if workers <= 1:
        yield from map(work, items)
        return
    pending: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="fieldmark")
    try:
        for item in items:
            pending.append(pool.submit(work, item))
            if len(pending) >= workers * ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
