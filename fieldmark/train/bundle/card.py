"""The model card: what the model knows, how it was made, how good it is, where it fails."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fieldmark.runtime.bundle import CARD, Bundle, Config

_CLASSES = 200
_HOW = {
    "out_of_fold": "Out of fold (photos judged by a head that had not seen them, {folds} folds, {photos} photos)",
    "held_out": "Held out (photos that did not train the weights, but chose among them, {photos} photos)",
}
_FITTED = {"out_of_fold": "out-of-fold predictions", "held_out": "the held-out photos"}


def model_card(config: Config, metrics: Mapping[str, Any], counts: Mapping[str, int]) -> str:
    """README.md of a bundle, with the YAML front matter that model hubs read. counts: training photos a class."""
    section = config.fieldmark
    how = "held_out" if "held_out" in metrics else "out_of_fold"
    judged = metrics.get(how, {})
    photos = judged.get("n", section.training.get("n_train"))
    lines = [
        "---",
        "library_name: fieldmark",
        "pipeline_tag: image-classification",
        "license: other",
        "tags: [fieldmark, fine-grained, image-classification]",
        "metrics: [accuracy, f1]",
        "---",
        "",
        f"# A recogniser of {len(section.classes)} look-alike classes",
        "",
        f"Made by fieldmark {section.version} in {section.mode} mode: {config.architecture}, {section.method}, "
        f"at {' and '.join(map(str, section.scales))} pixels.",
        "",
        "```",
        "fieldmark predict MODEL photos/ --out predictions.csv",
        "```",
        "",
        "## How good",
        "",
        f"{_HOW[how].format(folds=section.training.get('folds'), photos=photos)}: "
        f"top-1 {_percent(judged.get('top1'))}, ECE {_number(judged.get('ece'))}.",
        "A test split, where there is one, is reported beside the model in the run folder.",
        "",
        f"Scores are calibrated by one temperature, fitted on {_FITTED[how]}. They hold for photos like "
        "those it learned from; for others they are too sure.",
        "",
        *_changes(section.training.get("changes", [])),
        *_confusions(metrics, how.replace("_", " ")),
        "## Classes",
        "",
        "| class | training photos |",
        "| --- | ---: |",
        *(f"| {_cell(name)} | {count} |" for name, count in list(counts.items())[:_CLASSES]),
        *([f"| and {len(counts) - _CLASSES} more | |"] if len(counts) > _CLASSES else []),
        "",
        "## Limits",
        "",
        "It always names one of its classes, even for a photo of something else.",
        "The licence is that of your photos and of the backbone's weights; fill it in before you share this.",
        "",
    ]
    return "\n".join(lines)


def completed(bundle: Bundle) -> bool:
    """Whether the model card holds more than fieldmark wrote: it is someone's work then."""
    path = bundle.path / CARD
    if not path.is_file():
        return False
    card = path.read_text(encoding="utf-8", errors="replace")
    counts = dict(re.findall(r"^\| (.+) \| (\d+) \|$", card, re.MULTILINE))  # the table itself says them
    told = {name: int(counts.get(_cell(name), 0)) for name in bundle.classes}
    return card != model_card(bundle.config, bundle.metrics(), told)


def _confusions(metrics: Mapping[str, Any], how: str) -> list[str]:
    pairs = metrics.get("confusions", [])[:10]
    if not pairs:
        return []
    rows = [f"| {_cell(p['label'])} | {_cell(p['predicted'])} | {p['n']} |" for p in pairs]
    return [
        f"## Known confusions ({how})",
        "",
        "| is | was called | photos |",
        "| --- | --- | ---: |",
        *rows,
        "",
    ]


def _changes(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Classes added and removed after the training that the figures above speak of."""
    if not changes:
        return []
    lines = [
        f"- added {_cell(one['added'])}, from {one['photos']} photos"
        if "added" in one
        else f"- removed {_cell(one['removed'])}"
        for one in changes
    ]
    return ["Changed since, which these figures do not know:", "", *lines, ""]


def _percent(value: float | None) -> str:
    return "unknown" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def _cell(name: str) -> str:
    """A class name that cannot break out of its table cell."""
    return (
        json.dumps(name, ensure_ascii=False)[1:-1]
        .replace("|", "\\|")
        .replace("<", "&lt;")
        .replace("`", "\\`")
    )
