"""Look-alike photos a second: ``python benchmarks/lookalikes_speed.py [--size 256] [--photos 50]``.

Each run is a new process that writes 12 species to an empty folder, backgrounds and bodies made anew, as a
newcomer sees it; the best of ``--runs`` goes to ``results/lookalikes_speed.csv``. ``per_core_second`` counts
processor time, so that it holds on a busy machine too.
"""

from __future__ import annotations

import argparse
import csv
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULT = Path(__file__).resolve().parent / "results" / "lookalikes_speed.csv"


def once(size: int, photos: int, workers: int | None, style: str) -> dict[str, float]:
    """Write the photos once; seconds of wall clock and of processor."""
    from fieldmark.data import lookalikes

    with tempfile.TemporaryDirectory() as folder:
        wall, cpu = time.perf_counter(), time.process_time()
        lookalikes.write(
            folder, n_species=12, per_species=photos, unknown=0, size=size, workers=workers, style=style
        )
        return {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--photos", type=int, default=50, help="of each of 12 species")
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--style", default="photo")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        print(json.dumps(once(chosen.size, chosen.photos, chosen.workers, chosen.style)))
        return
    from fieldmark.runtime.machine import cores

    flags = [word for word in sys.argv[1:] if word != "--once"]
    command = [sys.executable, __file__, *flags, "--once"]
    runs = []
    for _ in range(chosen.runs):
        answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        runs.append(json.loads(answer.splitlines()[-1]))
        print(runs[-1], file=sys.stderr)
    total = 12 * chosen.photos
    row = {
        "size": chosen.size,
        "style": chosen.style,
        "photos": total,
        "workers": chosen.workers or cores(),
        "per_second": round(total / min(run["wall"] for run in runs), 1),
        "per_core_second": round(total / min(run["cpu"] for run in runs), 1),
        "cores": cores(),
        "machine": f"{_processor()}, Python {platform.python_version()}",
        "command": " ".join(["python benchmarks/lookalikes_speed.py", *flags]),
    }
    rows = [old for old in _rows() if old["command"] != row["command"] or old["machine"] != row["machine"]]
    with RESULT.open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(row), lineterminator="\n")
        table.writeheader()
        table.writerows([*rows, row])
    print(json.dumps(row))


def _rows() -> list[dict[str, str]]:
    if not RESULT.is_file():
        return []
    with RESULT.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
