"""Methods of every kind from photos to a model folder and back: what is trained is what answers."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fieldmark import Recognizer
from fieldmark.evaluate.boxes import iou
from fieldmark.explain.locate import Locator
from fieldmark.methods.restore import restore
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.image import load

#: Pairs of one class; four steps a batch; views that differ in colour; parts that learn in turn; a class tree; boxes.
KINDS = ("metric", "pmg", "pipnet", "protopnet", "tree_rnn", "two_stage", "fcos")
FLAGS = {
    "backbone": "test_efficientnet",
    "size": 64,
    "train_size": 64,
    "batch": 8,
    "epochs": 2,
    "pretrained": False,
}


@pytest.fixture(scope="module")
def table(photo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The photos as a table, with a coarser rank and boxes."""
    path = tmp_path_factory.mktemp("table") / "photos.csv"
    groups = {"circle": "round", "square": "edged", "triangle": "edged", "cross": "edged"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["file_name", "label", "kind", "box_x", "box_y", "box_w", "box_h"])
        for photo in sorted(photo_folder.rglob("*.jpg")):
            writer.writerow([photo, photo.parent.name, groups[photo.parent.name], 8, 8, 40, 40])
    return path


@pytest.mark.parametrize(
    ("method", "tta"), [*((name, False) for name in KINDS), ("wsdan", True), ("mmal", True)]
)
def test_what_is_trained_is_what_answers(
    method: str, tta: bool, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where it looks twice, at a part that is less than the photo however little was learned."""
    monkeypatch.setattr("fieldmark.methods.wsdan.SECOND_LOOK", 0.7)
    recognizer = Recognizer(
        method=method, tta=tta, floor=False, report=False, **FLAGS | {"size": 128 if tta else 64}
    )
    recognizer.fit(table, out=tmp_path / "run")
    assert recognizer.run["mode"] == "finetune"
    bundle = Bundle(tmp_path / "run/model")
    assert bundle.section.method == method
    network: Any = restore(bundle)
    photos = sorted(str(row["file_name"]) for row in csv.DictReader(table.open()))[::7]
    pixels = np.stack([bundle.section.preprocess(load(photo)) for photo in photos])
    with torch.inference_mode():
        logits = network(torch.from_numpy(pixels))
        assert network.tta == tta
        network.tta = False
        assert torch.equal(network(torch.from_numpy(pixels)), logits) != tta
    p = torch.softmax(logits / bundle.section.decision.temperature, 1).numpy()
    differ = np.abs(p - recognizer.predict_proba(photos)).max(1)
    assert np.median(differ) < 1e-3


@pytest.mark.parametrize("method", ["protopnet", "pipnet"])
def test_what_prototypes_are_is_told(method: str, table: Path, tmp_path: Path) -> None:
    Recognizer(method=method, floor=False, **FLAGS).fit(table, out=tmp_path / "run")
    network: Any = restore(Bundle(tmp_path / "run/model"))
    rows = list(csv.DictReader((tmp_path / "run/prototypes.csv").open(newline="")))
    labels, splits = {}, {}
    for row in csv.DictReader((tmp_path / "run/split.csv").open(newline="")):
        labels[row["path"]], splits[row["path"]] = row["label"], row["split"]
    names = sorted(set(labels.values()))
    for row in rows:
        number, label = int(row["prototype"]), names.index(row["label"])
        weight = network.head.weight[:, number]
        assert int(weight.argmax()) == label and float(row["weight"]) == pytest.approx(
            float(weight[label]), abs=1e-3
        )
        assert splits[row["path"]] != "test"
        with Image.open(row["path"]) as photo:
            x, y, w, h = (int(row[name]) for name in "xywh")
            assert 0 <= x < x + w <= photo.width and 0 <= y < y + h <= photo.height
    if method == "protopnet":
        own = [names[int(network.prototypes.owner[int(row["prototype"])])] for row in rows]
        assert own == [labels[row["path"]] for row in rows] and len(rows) == 40
    assert "What it compares photos with" in (tmp_path / "run/report.html").read_text(encoding="utf-8")


def test_a_class_is_added_to_any(table: Path, tmp_path: Path, photo_folder: Path) -> None:
    recognizer = Recognizer(method="metric", floor=False, report=False, **FLAGS).fit(
        table, out=tmp_path / "run"
    )
    recognizer.add_class("ring", sorted((photo_folder / "circle").glob("*.jpg"))[:4])
    assert "ring" in recognizer.classes


def test_a_detector_finds_with_and_without_a_class_more(
    table: Path, tmp_path: Path, photo_folder: Path
) -> None:
    """Taught by the table's boxes; its boxes keep their names when the head gets or loses classes."""
    rows = list(csv.DictReader(table.open()))
    rows[0]["boxes"] = '[[8, 8, 40, 40], [0, 0, 9, 9, null, "ghost"]]'
    with (tmp_path / "photos.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0]])
        writer.writeheader()
        writer.writerows(rows)
    recognizer = Recognizer(method="fcos", report=False, settings={"width": 32}, **FLAGS | {"epochs": 12})
    recognizer.fit(tmp_path / "photos.csv", out=tmp_path / "run")
    assert "boxes of ghost are left out" in (tmp_path / "run/run.json").read_text()
    photos = sorted(str(path) for path in photo_folder.rglob("*.jpg"))[::6]
    found = list(Locator(Bundle(tmp_path / "run/model"), threshold=0.05)(photos))
    truth = np.array([[8, 8, 48, 48]])
    fitting = [iou(np.array([one.things[0].box]), truth)[0, 0] for one in found if one.things]
    assert len(fitting) == len(photos) and np.mean(fitting) > 0.5
    recognizer.add_class("ring", sorted((photo_folder / "circle").glob("*.jpg"))[:4])
    recognizer.remove_class("circle")
    recognizer.save(tmp_path / "other")
    for before, after in zip(found, Locator(Bundle(tmp_path / "other"), threshold=0.05)(photos), strict=True):
        kept = [thing for thing in before.things if thing.label != "circle"]
        assert [thing.label for thing in after.things][: len(kept)] == [thing.label for thing in kept]


def test_settings_of_a_method_that_could_be_frozen(table: Path, tmp_path: Path) -> None:
    """Its network is then another one than the frozen graph's, and is read back as that."""
    recognizer = Recognizer(method="bilinear", settings={"channels": "8"}, floor=False, report=False, **FLAGS)
    recognizer.fit(table, out=tmp_path / "run")
    network = restore(Bundle(tmp_path / "run/model"))
    assert network.options.channels == 8 and sum(network.widths) == sum(
        Bundle(tmp_path / "run/model").section.widths
    )
    with pytest.raises(UsageError, match="--set belongs to fine-tuning"):
        Recognizer(method="bilinear", settings={"channels": "8"}, mode="instant").fit(
            table, out=tmp_path / "b"
        )


def test_what_a_method_lacks_is_said(photo_folder: Path, tmp_path: Path) -> None:
    said: list[str] = []

    def fit(name: str, **options: Any) -> None:
        told = Recognizer(**options, **FLAGS)
        told.fit(photo_folder, out=tmp_path / name, progress=lambda what, *_: said.append(what))

    with pytest.raises(UsageError, match="layers of its own") as one:
        Recognizer(method="pmg", mode="instant").fit(photo_folder, out=tmp_path / "a")
    with pytest.raises(FieldmarkError, match="rank") as two:
        fit("b", method="tree_rnn")
    with pytest.raises(UsageError, match="mixup") as three:
        fit("c", method="metric", mixup=0.2)
    with pytest.raises(FieldmarkError, match=r"fcos needs boxes .* boxes\.csv") as five:
        fit("e", method="fcos")
    with pytest.raises(UsageError, match="settings") as four:
        fit("d", method="metric", settings={"no_such": 1})
    assert "reading photos" in said and "looking at photos" not in said, "it is found out before that"
    assert all("\n" not in str(error.value) for error in (one, two, three, four, five))
