"""How quickly a machine looks at photos, by which plans are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fieldmark.train import instant


def test_the_rate_is_of_what_was_looked_at(look: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = look(6)
    monkeypatch.setattr(instant, "TIMED", 4)
    seen.instant.computed, seen.instant.seconds["describe"], seen.instant._rate = 24, 3.0, None
    assert seen.instant.rate(seen.looked) == pytest.approx(8.0)


def test_where_all_was_in_the_cache_some_are_looked_at_again(
    look: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second run, or one that goes on after a kill, plans by what this machine can do."""
    seen, asked = look(6), []
    monkeypatch.setattr(instant, "TIMED", 4)
    seen.instant.computed, seen.instant.seconds["describe"], seen.instant._rate = 0, 0.001, None
    made = seen.instant._describer

    def describer(graph: Any, cache: bool) -> Any:
        asked.append(cache)
        return lambda paths: made(graph, cache)(paths)

    monkeypatch.setattr(seen.instant, "_describer", describer)
    rate = seen.instant.rate(seen.looked)
    assert asked == [False] and 1 < rate < 10_000
    assert seen.instant.rate(seen.looked) == rate and asked == [False], "once"
