"""What tests of runs share: a quick run, a table of its photos, and what its head weighs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

from fieldmark.recognizer import Recognizer

#: Quick: random weights and small pictures. What is tested here is not how well it recognises.
QUICK: dict[str, Any] = {"backbone": "test_efficientnet", "pretrained": False, "size": 64}


def fit(source: Any, out: Path | None = None, **settings: Any) -> Recognizer:
    return Recognizer(**{**QUICK, "report": False, **settings}).fit(source, out)


def write_table(path: Path, photos: Path, split: Any = lambda number: None, **columns: Any) -> Path:
    """A CSV of class folders; ``split`` and further columns are functions of a photo's number."""
    lines = [",".join(["path", "label", "split", *columns])]
    for photo in sorted(photos.rglob("*.jpg")):
        number = int(photo.stem)
        cells = [str(photo), photo.parent.name, split(number) or "", *(of(photo) for of in columns.values())]
        lines.append(",".join(f'"{cell}"' for cell in cells))
    path.write_text("\n".join(lines) + "\n")
    return path


def head(out: Path) -> dict[str, bytes]:
    state = load_file(out / "model/model.safetensors")
    return {
        name: value.tobytes() for name, value in state.items() if name.startswith(("head.", "projection."))
    }
