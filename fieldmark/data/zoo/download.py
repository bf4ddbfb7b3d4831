"""Files of public sets: fetched once, checked by SHA-256 before anything reads them, kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fieldmark.runtime.cache import directory, touch
from fieldmark.runtime.errors import FieldmarkError

#: Tries at one address, and the pause before the second; it doubles from then on.
TRIES, PAUSE = 4, 1.0
#: Seconds without a byte after which a connection counts as lost.
TIMEOUT = 20.0
_BLOCK = 1 << 20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Remote:
    """A published file. addresses: tried in this order; sha256, bytes: of the file as it is published."""

    name: str
    addresses: tuple[str, ...]
    bytes: int
    sha256: str


class _WrongFileError(Exception):
    """What an address sends is not the published file: trying it again is of no use."""


def fetch(remote: Remote, progress: Progress | None = None) -> Path:
    """The file's path in the cache ``downloads``, fetched where it is not there.

    A lost connection is taken up where it broke off, also by the next process. ``progress(done, total)``
    counts bytes. Raises FieldmarkError where no address gives the published file.
    """
    folder = directory("downloads")
    target = folder / f"{remote.sha256[:16]}-{remote.name}"
    if target.is_file() and digest(target) == remote.sha256:
        touch(target)
        return target
    part = folder / f"{target.name}.part"
    own = folder / f".tmp-{uuid.uuid4().hex[:12]}-{target.name}"
    with contextlib.suppress(OSError):
        part.replace(own)  # of two processes one takes it, the other begins anew
    reasons = []
    try:
        for address in remote.addresses:
            try:
                _download(address, own, remote, progress)
                own.replace(target)
                return target
            except (OSError, http.client.HTTPException, ValueError, _WrongFileError) as error:
                reasons.append(f"{address}: {_reason(error)}")
    finally:
        with contextlib.suppress(OSError):
            own.replace(part)
    raise FieldmarkError(
        f"cannot fetch {remote.name} ({'; '.join(reasons)}); give a folder: --with source=FOLDER"
    )


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(address: str, path: Path, remote: Remote, progress: Progress | None) -> None:
    """All bytes of ``remote`` at ``path``. What was fetched before a failure stays there."""
    begun = path.exists()
    for attempt in range(TRIES):
        if attempt:
            time.sleep(PAUSE * 2 ** (attempt - 1))
        try:
            _append(address, path, remote, progress)
            break
        except (OSError, http.client.HTTPException) as error:
            if attempt == TRIES - 1 or not _passing(error):
                raise
    if digest(path) != remote.sha256:
        path.unlink()
        if begun:  # what an earlier process left may be at fault
            return _download(address, path, remote, progress)
        raise _WrongFileError("it is not the published file (SHA-256 differs)")


def _passing(error: Exception) -> bool:
    """Whether it may go better in a moment: not where the server refuses, or there is none."""
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    return not isinstance(error, urllib.error.URLError)


def _append(address: str, path: Path, remote: Remote, progress: Progress | None) -> None:
    """Fetch what is missing at the end of ``path``. Raises OSError where the connection ends too early."""
    have = path.stat().st_size if path.exists() else 0
    if have >= remote.bytes:
        if have == remote.bytes:
            return
        have = 0
    headers = {"User-Agent": "fieldmark", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(address, headers=headers)
    with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
        if have and not _goes_on(answer, have):
            have = 0  # the whole file is sent again
        with path.open("r+b" if path.exists() else "w+b") as file:
            file.truncate(have)
            file.seek(have)
            while block := answer.read(_BLOCK):
                have += len(block)
                if have > remote.bytes:
                    file.truncate(0)
                    raise _WrongFileError(f"it has more than the {remote.bytes} bytes of the published file")
                file.write(block)
                if progress:
                    progress(have, remote.bytes)
            file.flush()
            os.fsync(file.fileno())
    if have < remote.bytes:
        raise OSError(f"the connection ended after {have} of {remote.bytes} bytes")


def _goes_on(answer: http.client.HTTPResponse, have: int) -> bool:
    """Whether the server sends the rest from byte ``have`` on."""
    match = re.match(r"bytes (\d+)-", answer.headers.get("Content-Range") or "")
    return answer.status == 206 and match is not None and int(match[1]) == have


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    text = (
        str(inner.strerror if isinstance(inner, OSError) and inner.strerror else inner)
        or type(error).__name__
    )
    code = f"{error.code} " if isinstance(error, urllib.error.HTTPError) else ""
    return f"{code}{text.splitlines()[0][:120]}"
