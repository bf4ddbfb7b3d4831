"""Which photos a run learns from and is tested on: splits, copies, groups, ranks, and what cannot be read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from quick_runs import fit, head, write_table

from fieldmark.recognizer import Recognizer
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.image import content_hash


def test_without_test_photos(photo_folder: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", photo_folder, lambda n: "val" if n < 2 else "train")
    recognizer = fit(table, tmp_path / "run", report=True)
    run = recognizer.run
    assert run["top1"] is None and run["n_test"] is None and run["seconds_evaluate"] is None
    assert run["n_train"] == 48, "val chooses the settings, and is then learned from"
    assert set(Bundle(tmp_path / "run/model").splits().values()) == {"train", "val"}
    assert (tmp_path / "run/report.html").is_file() and not (tmp_path / "run/evaluation.json").exists()
    metrics = Bundle(tmp_path / "run/model").metrics()
    assert metrics["out_of_fold"]["n"] == 48


def test_val_is_never_tested(photo_folder: Path, tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.csv", photo_folder, lambda n: "val" if n < 2 else "test" if n < 5 else "train"
    )
    recognizer = fit(table, tmp_path / "run")
    assert (recognizer.run["n_train"], recognizer.run["n_test"]) == (36, 12)
    assert recognizer.evaluate(photo_folder).n == 12, "by content: train and val are left out"
    assert recognizer.evaluate(photo_folder, "val").n == 8


def test_photos_without_a_split_beside_others_that_have_one(photo_folder: Path, tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.csv", photo_folder, lambda n: None if n < 2 else "test" if n < 5 else "train"
    )
    recognizer = fit(table, tmp_path / "run")
    assert (recognizer.run["n_train"], recognizer.run["n_test"]) == (28, 12)
    assert any(line.startswith("8 photos have no split") for line in recognizer.warnings)


def test_copies_of_training_photos_in_the_test_split(photo_folder: Path, tmp_path: Path) -> None:
    """A copy under another name is not tested on; a copy in train and test counts as trained on."""
    table = write_table(tmp_path / "t.csv", photo_folder, lambda n: "test" if n < 4 else "train")
    copies = []
    for shape in ("circle", "cross"):
        copy = tmp_path / f"{shape} copy.jpg"
        shutil.copyfile(photo_folder / shape / "007.jpg", copy)
        copies.append(f'"{copy}",{shape},test')
    head_, *rows = table.read_text().strip().splitlines()
    table.write_text("\n".join([head_, copies[0], *rows, copies[1]]) + "\n")
    recognizer = fit(table, tmp_path / "run")
    assert (recognizer.run["n_train"], recognizer.run["n_test"]) == (32, 16)
    told = json.loads((tmp_path / "run/evaluation.json").read_text())
    assert told["excluded_by_reason"] == {"used in training": 2}
    assert any("2 test photos are copies" in line for line in recognizer.warnings)
    known = Bundle(tmp_path / "run/model").splits()
    for shape in ("circle", "cross"):
        assert known[content_hash((photo_folder / shape / "007.jpg").read_bytes())] == "train"


def test_copies_and_groups_stay_in_one_fold(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photos of a specimen, and copies of a photo, are never judged by a head that knows the others."""
    from fieldmark.train import instant

    fold_of: dict[str, int] = {}
    paths: list[str] = []
    real_folds, real_fit = instant._folds, instant.Instant.fit

    def folds(*words: Any) -> np.ndarray:
        answer = real_folds(*words)
        fold_of.update(zip(paths, answer.tolist(), strict=True))
        return answer

    def fit_(self: Any, catalog: Catalog, *words: Any) -> Any:
        paths.extend(catalog.paths)
        return real_fit(self, catalog, *words)

    monkeypatch.setattr(instant, "_folds", folds)
    monkeypatch.setattr(instant.Instant, "fit", fit_)
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    for photo in list((photos / "circle").glob("*.jpg")):
        shutil.copyfile(photo, photo.with_name(f"{int(photo.stem) + 500}.jpg"))

    def specimen(photo: Path) -> str:
        return "" if photo.parent.name == "circle" else f"{photo.parent.name} {int(photo.stem) // 3}"

    fit(write_table(tmp_path / "t.csv", photos, lambda n: "train", group=specimen))
    assert len(fold_of) == 60 and len(set(fold_of.values())) == 5
    together: dict[str, set[int]] = {}
    for path, fold in fold_of.items():
        key = specimen(Path(path)) or content_hash(Path(path).read_bytes())
        together.setdefault(key, set()).add(fold)
    assert len(together) == 12 + 12 and all(len(folds) == 1 for folds in together.values())


def test_unreadable_photos_do_not_shift_the_others(photo_folder: Path, tmp_path: Path) -> None:
    """The model is that of the readable photos alone, to the bit."""
    table = write_table(tmp_path / "t.csv", photo_folder, lambda n: "test" if n < 3 else "train")
    fit(table, tmp_path / "clean")
    lines = table.read_text().strip().splitlines()
    for number in range(6):  # cut in different places: readable as files, not as photos
        data = (photo_folder / f"circle/00{number}.jpg").read_bytes()
        (tmp_path / f"cut{number}.jpg").write_bytes(data[: 300 + number])
        lines.insert(1 + 7 * number, f'"{tmp_path}/cut{number}.jpg",cross,train')
    table.write_text("\n".join(lines) + "\n")
    spoilt = fit(table, tmp_path / "spoilt")
    assert spoilt.run["skipped"] == 6 and spoilt.run["n_train"] == 36
    assert head(tmp_path / "spoilt") == head(tmp_path / "clean")


def test_test_photos_that_cannot_be_used_are_listed(photo_folder: Path, tmp_path: Path) -> None:
    """Though none is left to test on."""
    (tmp_path / "cut.jpg").write_bytes((photo_folder / "circle/000.jpg").read_bytes()[:300])
    table = write_table(tmp_path / "t.csv", photo_folder, lambda n: "train")
    table.write_text(f'{table.read_text()}"{tmp_path / "cut.jpg"}",circle,test\nnone.jpg,cross,test\n')
    recognizer = fit(table, tmp_path / "run")
    assert recognizer.run["top1"] is None and recognizer.run["skipped"] == 2
    assert {Path(item.path).name: item.reason for item in recognizer.skipped} == {
        "cut.jpg": "truncated file",
        "none.jpg": "no such file",
    }
    assert any("nothing to evaluate" in line for line in recognizer.warnings)


def test_ranks_travel_with_the_model(photo_folder: Path, tmp_path: Path) -> None:
    table = write_table(
        tmp_path / "t.csv",
        photo_folder,
        family=lambda photo: "round" if photo.parent.name == "circle" else "edged",
    )
    fit(table, tmp_path / "run")
    assert Bundle(tmp_path / "run/model").section.ranks == {
        "family": {"circle": "round", "cross": "edged", "square": "edged", "triangle": "edged"}
    }


def test_photos_of_which_only_a_family_is_known(photo_folder: Path, tmp_path: Path) -> None:
    """They teach hrn, and are remembered; a method of classes says that they wait. None is lost without a word."""
    families = {"circle": "round", "cross": "edged", "square": "edged", "triangle": "edged"}
    table = write_table(
        tmp_path / "t.csv",
        photo_folder,
        lambda number: "test" if number == 0 else "train",
        family=lambda photo: families[photo.parent.name],
    )
    lines = [line.split(",") for line in table.read_text().splitlines()]
    for row in lines[1:]:
        number = int(Path(row[0].strip('"')).stem)
        if number in (0, 1, 2, 3) and "circle" not in row[0]:
            row[1] = '""'  # three a number: of test, and of train
        if number == 3 and "cross" in row[0]:
            row[3] = '"of nothing"'
    table.write_text("\n".join(",".join(row) for row in lines))
    hrn = fit(
        table, tmp_path / "hrn", method="hrn", epochs=1, batch=8, size=32, floor=False, settings={"width": 16}
    )
    taught = [row[0].strip('"') for row in lines[1:] if row[1] == '""' and row[2] == '"train"']
    lost = next(path for path in taught if "cross/003" in Path(path).as_posix())
    assert len(taught) == 9 and hrn.run["n_train_coarse"] >= 7 and hrn.run["mode"] == "finetune"
    reasons = {one.path: one.reason for one in hrn.skipped}
    assert reasons[lost] == "no label, only family 'of nothing': no labelled photo is of that"
    known = Bundle(tmp_path / "hrn" / "model").splits()
    seen = [path for path in taught if known.get(content_hash(Path(path).read_bytes())) == "train"]
    assert len(seen) == hrn.run["n_train_coarse"] and {*seen} | {*reasons} >= {*taught}, "none is lost"
    assert sum("family" in reason and "teaches in train only" in reason for reason in reasons.values()) == 3
    assert any("photos without a label teach nothing: skipped.csv says why" in line for line in hrn.warnings)
    assert Recognizer.load(tmp_path / "hrn").evaluate(table).excluded_by_reason == {"no label": 3}

    instant = fit(table, tmp_path / "instant")
    assert instant.run["skipped"] == 12 and "n_train_coarse" not in instant.run
    assert instant.warnings[-1] == (
        "12 photos without a label teach nothing: instant mode learns from classes only "
        "(fgn, hrn, hxe and tree_rnn learn from coarser groups too)"
    )


def test_a_photo_under_two_labels_is_told(photo_folder: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    first, second = sorted(path for path in photos.iterdir() if path.is_dir())[:2]
    shutil.copy(sorted(first.glob("*.jpg"))[0], second / "again.jpg")
    warned = fit(photos, tmp_path / "run").warnings
    assert len(warned) == 1 and warned[0].startswith("1 photo is there with several labels, such as")
    assert f"({first.name}) and " in warned[0] and f"again.jpg ({second.name})" in warned[0]
