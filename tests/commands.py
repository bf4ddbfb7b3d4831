"""What tests of bad input share: a call in this process, what a run skipped, and a photo that declares any size."""

from __future__ import annotations

import csv
import json
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace

from typer.testing import CliRunner

from fieldmark.cli import app


def call(*words: object) -> SimpleNamespace:
    """The command line, in this process."""
    result = CliRunner().invoke(app, [str(word) for word in words], prog_name="fieldmark")
    answer = None
    if result.exit_code == 0 and "--json" in words:
        answer = json.loads(result.stdout.rstrip("\n").rsplit("\n", 1)[-1])
    return SimpleNamespace(status=result.exit_code, out=result.stdout, err=result.stderr, json=answer)


def skipped(out: Path) -> dict[str, str]:
    """skipped.csv as {file name: reason}."""
    with (out / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert all(set(row) == {"path", "reason"} for row in rows)
    return {Path(row["path"]).name: row["reason"] for row in rows}


def png_of(width: int, height: int) -> bytes:
    """A PNG file that declares a size and has next to no content."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100)))
        + chunk(b"IEND", b"")
    )
