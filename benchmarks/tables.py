"""Fill the tables of the README and the docs from what was measured: ``python benchmarks/tables.py``.

A page holds ``<!-- table NAME -->`` and ``<!-- end -->``; what stands between is written anew from
``benchmarks/results/NAME.csv``. ``<!-- table NAME: set, top1 as top-1, seconds -->`` takes some columns only,
under other names. ``--check`` changes nothing and ends with status 1 where a page is out of date.
"""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGES = [
    HERE.parent / "README.md",
    HERE.parent / "README.zh.md",
    *sorted((HERE.parent / "docs").rglob("*.md")),
]
_SLOT = re.compile(r"(<!-- table ([\w-]+)(?:: ([^>]*?))? -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(text: str, results: Path, missing: str = "*Not measured yet.*") -> str:
    """The page with its tables written anew; one that was never measured says so."""

    def table(slot: re.Match[str]) -> str:
        start, name, wanted, end = slot.groups()
        path = results / f"{name}.csv"
        if not path.is_file():
            return f"{start}{missing}\n{end}"
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return f"{start}{markdown(rows, wanted)}{end}"

    return _SLOT.sub(table, text)


def markdown(rows: list[dict[str, str]], wanted: str | None) -> str:
    """A Markdown table; an unmeasured cell stays empty. Columns of numbers stand right."""
    names = list(rows[0]) if rows else []
    pairs = [(name, name) for name in names]
    if wanted:
        words = [item.partition(" as ") for item in wanted.split(",")]
        pairs = [(name.strip(), (title or name).strip()) for name, _, title in words]
        if unknown := [name for name, _ in pairs if name not in names]:
            raise SystemExit(f"no column {', '.join(unknown)}; columns: {', '.join(names)}")
    numeric = [all(_number(row[name]) for row in rows if row[name]) for name, _ in pairs]
    lines = [[title for _, title in pairs], ["---:" if right else "---" for right in numeric]]
    lines += [[row[name].replace("|", "\\|") for name, _ in pairs] for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _number(text: str) -> bool:
    try:
        float(text.rstrip("%").replace(",", ""))
    except ValueError:
        return False
    return True


def main() -> int:
    stale = []
    for page in PAGES:
        if not page.is_file():
            continue
        before = page.read_text(encoding="utf-8")
        words = {"missing": "*尚未测量。*"} if page.name.endswith(".zh.md") else {}
        after = fill(before, HERE / "results", **words)
        if after != before:
            stale.append(page.name)
            if "--check" not in sys.argv:
                page.write_text(after, encoding="utf-8")
    if stale:
        print(f"{'out of date' if '--check' in sys.argv else 'written'}: {', '.join(stale)}")
    return 1 if stale and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
