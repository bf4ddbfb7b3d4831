"""Runs the ordinary command line and notes how far it is: ``python benchmarks/probe.py LOG EVERY predict MODEL …``

LOG gets a line every EVERY answers, and one after the last: number of answers, seconds on a clock, bytes of memory
in use (resident set). Used by predict_speed.py and predict_memory.py.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil


@dataclass(frozen=True)
class Note:
    """answers so far; seconds on the process's clock; resident memory in bytes."""

    answers: int
    seconds: float
    memory: int


def read(log: Path) -> list[Note]:
    """The notes of a process."""
    lines = (line.split(",") for line in log.read_text(encoding="ascii").splitlines())
    return [Note(int(answers), float(seconds), int(memory)) for answers, seconds, memory in lines]


def main() -> None:
    from fieldmark.runtime.predictor import Predictor

    log, every = Path(sys.argv[1]), int(sys.argv[2])
    stream, process = Predictor.stream, psutil.Process()

    def noted(self: Predictor, sources: Iterable[Any]) -> Iterator[Any]:
        answers = 0
        with log.open("w", buffering=1, encoding="ascii") as file:
            for answers, prediction in enumerate(stream(self, sources), 1):
                if answers % every == 0:
                    file.write(f"{answers},{time.perf_counter()},{process.memory_info().rss}\n")
                yield prediction
            if answers % every:
                file.write(f"{answers},{time.perf_counter()},{process.memory_info().rss}\n")

    Predictor.stream = noted  # type: ignore[method-assign]
    sys.argv = ["fieldmark", *sys.argv[3:]]
    from fieldmark.cli import main as command

    command()


if __name__ == "__main__":
    main()
