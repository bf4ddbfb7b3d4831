"""What the rows of a comparison of methods say: a line a method, beside plain trained alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fieldmark.evaluate.bench import ALIKE, PIXELS, YARDSTICK, fresh


def summary(rows: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """A line for each method and what its rows share (`ALIKE`): mean and spread over the seeds, difference to the
    yardstick, and the costs.

    ``delta`` is in points, seed by seed, to plain trained in the same way (from new views, where the method learned
    from such); ``training`` and ``answer`` are times the yardstick's cost of a photo.
    """
    found: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for row in rows:
        found.setdefault((*(row.get(name, "") for name in ALIKE), row["method"]), []).append(row)
    lines = []
    for (*alike, method), own in found.items():
        good = [row for row in own if row["top1"]]
        line: dict[str, Any] = {**dict(zip(ALIKE, alike, strict=True)), "method": method}
        lines.append(line)
        if not good:
            line["error"] = own[-1]["error"]
            continue
        top1 = [float(row["top1"]) for row in good]
        line |= {"top1": float(np.mean(top1)), "n": len(top1)}
        line["spread"] = float(np.std(top1, ddof=1)) if len(top1) > 1 else None
        plain, other = (
            {row["seed"]: row for row in found.get((*alike, name), []) if row["top1"]}
            for name in (YARDSTICK, PIXELS)
        )
        pairs = [(row, beside) for row in good if (beside := _beside(row, plain, other))]
        if pairs:
            line["delta"] = 100 * float(np.mean([float(a["top1"]) - float(b["top1"]) for a, b in pairs]))
            line["training"] = _ratio([(b["photos_per_second"], a["photos_per_second"]) for a, b in pairs])
            line["answer"] = _ratio([(a["answer_ms"], b["answer_ms"]) for a, b in pairs])
        minutes = float(np.mean([float(row["seconds"]) for row in good])) / 60
        line["per_minute"] = line["top1"] / minutes
        passes = [float(row["epochs"]) for row in good if row.get("epochs")]
        line["epochs"] = float(np.mean(passes)) if passes else None
        line |= {name: int(good[0][name]) if good[0].get(name) else None for name in ("n_train", "classes")}
        for what in ("mark_hit", "mark_area"):
            values = [float(row[what]) for row in good if row.get(what)]
            line[what] = float(np.mean(values)) if values else None
    return sorted(lines, key=lambda one: (one["set"], -one.get("top1", 0.0)))


def _beside(
    row: dict[str, str], plain: Mapping[str, dict[str, str]], other: Mapping[str, dict[str, str]]
) -> dict[str, str] | None:
    """The yardstick's row of the same seed. plain, other: those of plain, and of plain from new views, by seed."""
    if row["method"] == YARDSTICK:
        return None
    usual = plain.get(row["seed"])
    if row["method"] == PIXELS or not fresh(row) or (usual and fresh(usual)):
        return usual
    return other.get(row["seed"])


def _ratio(pairs: list[tuple[str, str]]) -> float | None:
    values = [float(a) / float(b) for a, b in pairs if a and b and float(b)]
    return float(np.mean(values)) if values else None
