"""Fetching: whole or not at all, resumed, retried, and nothing but the published file."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import numpy as np
import pytest

from fieldmark.data.zoo.download import TRIES, Remote, fetch
from fieldmark.runtime.cache import directory
from fieldmark.runtime.errors import FieldmarkError

BODY = np.random.default_rng(0).bytes(3_000_000)


def remote(*addresses: str, body: bytes = BODY) -> Remote:
    return Remote("set.gz", addresses, len(body), hashlib.sha256(body).hexdigest())


def left() -> list[str]:
    return sorted(name for name in os.listdir(directory("downloads")) if name != "CACHEDIR.TAG")  # noqa: PTH208


def test_fetched_once(server: Any) -> None:
    server.files["set.gz"] = BODY
    seen: list[tuple[int, int]] = []
    path = fetch(remote(f"{server.address}set.gz"), lambda *now: seen.append(now))
    assert path.read_bytes() == BODY and seen[-1] == (len(BODY), len(BODY)) and len(seen) > 1
    assert fetch(remote(f"{server.address}set.gz")) == path and len(server.asked) == 1
    path.write_bytes(BODY[:-1] + b"?")  # damaged later: fetched again
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert len(left()) == 1


def test_taken_up_where_it_broke_off(server: Any) -> None:
    server.files["set.gz"] = BODY
    server.breaks = [1_000_000, 500_000]
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert [wanted for _, wanted in server.asked] == ["", "bytes=1000000-", "bytes=1500000-"]


def test_a_server_that_cannot_resume_sends_all_again(server: Any) -> None:
    server.files["set.gz"] = BODY
    server.breaks, server.ranges = [1_000_000], False
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert len(server.asked) == 2


def test_taken_up_by_the_next_process(server: Any) -> None:
    server.files["set.gz"] = BODY
    server.breaks = [100_000] * TRIES
    with pytest.raises(FieldmarkError, match=f"ended after {TRIES}00000 of 3000000 bytes"):
        fetch(remote(f"{server.address}set.gz"))
    assert len(left()) == 1 and left()[0].endswith(".part")
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert server.asked[-1][1] == f"bytes={TRIES}00000-" and not left()[0].endswith(".part")


def test_what_was_left_may_be_wrong(server: Any) -> None:
    server.files["set.gz"] = BODY
    server.breaks = [1000] * TRIES
    with pytest.raises(FieldmarkError):
        fetch(remote(f"{server.address}set.gz"))
    part = directory("downloads") / left()[0]
    part.write_bytes(b"?" * part.stat().st_size)
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert server.asked[-1][1] == "", "from the start"


def test_busy_servers_are_asked_again(server: Any) -> None:
    server.files["set.gz"] = BODY
    server.errors = [503, 429]
    assert fetch(remote(f"{server.address}set.gz")).read_bytes() == BODY
    assert len(server.asked) == 3


def test_another_address(server: Any) -> None:
    server.files["b/set.gz"] = BODY
    path = fetch(remote(f"{server.address}a/set.gz", f"{server.address}b/set.gz"))
    assert path.read_bytes() == BODY and len(server.asked) == 2, "a refusal is not asked again"


@pytest.mark.parametrize("body", [BODY[:-1] + b"?", BODY + b"more"], ids=["other", "longer"])
def test_other_files_are_not_kept(server: Any, body: bytes) -> None:
    server.files["set.gz"] = body
    with pytest.raises(FieldmarkError, match="published file") as caught:
        fetch(remote(f"{server.address}set.gz"))
    assert "\n" not in str(caught.value) and "source=FOLDER" in str(caught.value)
    assert len(server.asked) == 1
    assert all((directory("downloads") / name).stat().st_size == 0 for name in left())


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/set.gz", "nowhere"])
def test_no_such_server(server: Any, address: str) -> None:
    with pytest.raises(FieldmarkError, match=r"cannot fetch set\.gz") as caught:
        fetch(remote(address))
    assert "\n" not in str(caught.value)
