"""A training run: what it writes, what it tells, what the second one costs, and what a kill leaves."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fieldmark.data import split as splitting
from fieldmark.recognizer import Recognizer
from fieldmark.runtime.bundle import CARD, FILES, Bundle
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.image import content_hash
from fieldmark.runtime.metrics import wilson

Painter = Any
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


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> tuple[Recognizer, Path]:
    """One run with everything that a run writes."""
    out = tmp_path_factory.mktemp("whole") / "run"
    return fit(photo_folder, out, report=True), out


def test_summary_has_the_fields_of_the_issue(whole: tuple[Recognizer, Path]) -> None:
    recognizer, out = whole
    run = recognizer.run
    assert set(run) == {
        "model",
        "mode",
        "top1",
        "n_train",
        "n_test",
        "seconds",
        "seconds_evaluate",
        "skipped",
    }
    assert run["model"] == str(out / "model") and run["mode"] == "instant" and run["skipped"] == 0
    assert run["n_train"] + run["n_test"] == 48 and 0 <= run["top1"] <= 1
    assert run["seconds"] > 0 and run["seconds_evaluate"] > 0
    assert json.loads(json.dumps(run)) == run, "plain numbers and text"


def test_the_run_folder(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    recognizer, out = whole
    assert {path.name for path in out.iterdir()} == {
        "model",
        "run.json",
        "split.csv",
        "skipped.csv",
        "report.html",
        "predictions.parquet",
        "evaluation.json",
    }
    assert {path.name for path in (out / "model").iterdir()} == {*FILES, CARD, "config.json"}
    Bundle(out / "model").verify()
    assert recognizer.predictor.check() < 1e-4, "the engine computes what was trained"
    notes = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert notes["result"] == recognizer.run and notes["seed"] == 0
    assert notes["command"] and notes["versions"]["fieldmark"] and notes["versions"]["numpy"]
    assert len(notes["data"]["sha256"]) == 64 and notes["data"]["photos"] == 48
    assert (out / "skipped.csv").read_text() == "path,reason\n" or (
        out / "skipped.csv"
    ).read_text() == "path,reason\r\n"
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    assert told["n"] == recognizer.run["n_test"] and told["top1"] == recognizer.run["top1"]


def test_a_photo_under_two_labels_is_told(photo_folder: Path, tmp_path: Path) -> None:
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    first, second = sorted(path for path in photos.iterdir() if path.is_dir())[:2]
    shutil.copy(sorted(first.glob("*.jpg"))[0], second / "again.jpg")
    warned = fit(photos, tmp_path / "run").warnings
    assert len(warned) == 1 and warned[0].startswith("1 photo is there with several labels, such as")
    assert f"({first.name}) and " in warned[0] and f"again.jpg ({second.name})" in warned[0]


def test_the_split_reads_back(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    _, out = whole
    back = Catalog.read(out / "split.csv")
    assert back == splitting.assign(Catalog.read(photo_folder), seed=0)
    known = Bundle(out / "model").splits()
    assert known == {
        content_hash(Path(path).read_bytes()): split
        for path, split in zip(back.paths, back.splits, strict=True)
    }


def test_training_again_on_its_split_is_the_same(whole: tuple[Recognizer, Path], tmp_path: Path) -> None:
    recognizer, out = whole
    again = fit(out / "split.csv", tmp_path / "again")
    for name in ("top1", "n_train", "n_test"):
        assert again.run[name] == recognizer.run[name]
    assert head(tmp_path / "again") == head(out)


def test_evaluation_of_the_run_is_evaluate(whole: tuple[Recognizer, Path], photo_folder: Path) -> None:
    """By the file of splits, and by content where the folder says nothing: the same photos, the same scores."""
    recognizer, out = whole
    told = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))
    for source in (out / "split.csv", photo_folder):
        found = Recognizer.load(out).evaluate(source).to_dict()
        assert set(found) == {
            "n",
            "top1",
            "top1_ci95",
            "top5",
            "balanced_accuracy",
            "macro_precision",
            "macro_recall",
            "macro_f1",
            "nll",
            "ece",
            "per_class",
            "excluded",
            "excluded_by_reason",
        }
        assert all(set(of) == {"n", "precision", "recall", "f1"} for of in found["per_class"].values())
        left_out = recognizer.run["n_train"] if source == photo_folder else 0
        assert found.pop("excluded") == left_out
        found.pop("excluded_by_reason")
        told = {name: told[name] for name in found}
        assert found == told
        low, high = wilson(round(found["top1"] * found["n"]), found["n"])
        assert found["top1_ci95"] == pytest.approx([low, high])


def head(out: Path) -> dict[str, bytes]:
    state = load_file(out / "model/model.safetensors")
    return {
        name: value.tobytes() for name, value in state.items() if name.startswith(("head.", "projection."))
    }


def test_the_same_seed_gives_the_same_bytes(
    whole: tuple[Recognizer, Path], photo_folder: Path, tmp_path: Path
) -> None:
    _, out = whole
    fit(photo_folder, tmp_path / "same", workers=1)
    fit(photo_folder, tmp_path / "other", seed=1)
    assert head(tmp_path / "same") == head(out) != head(tmp_path / "other")
    for name in ("model.onnx", "model.safetensors", "golden.npz", "split.parquet", "stats.safetensors"):
        if name != "golden.npz":  # a zip file holds the time
            assert (tmp_path / "same/model" / name).read_bytes() == (out / "model" / name).read_bytes(), name
    one, other = Bundle(out / "model").golden(), Bundle(tmp_path / "same/model").golden()
    assert all(np.array_equal(one[name], other[name]) for name in one)
    notes = [json.loads((where / "run.json").read_text()) for where in (out, tmp_path / "same")]
    assert notes[0]["data"]["sha256"] == notes[1]["data"]["sha256"]


def test_the_second_time_nothing_is_computed(
    photo_folder: Path, tmp_path: Path, paint_photos: Painter
) -> None:
    """Known photos come from the cache, under whatever name; only new ones are looked at."""
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    fit(write_table(tmp_path / "a.csv", photos, lambda n: "train" if n < 8 else "test"))
    paint_photos(tmp_path / "more", each=3, seed=99)
    for index, new in enumerate(sorted((tmp_path / "more").rglob("*.jpg"))):
        shutil.move(new, photos / new.parent.name / f"{100 + index}.jpg")

    def split(number: int) -> str:
        return "train" if number < 8 or number >= 100 else "test"

    table = write_table(tmp_path / "b.csv", photos, split)
    for expected in (12, 0):
        out = tmp_path / f"run {expected}"
        assert fit(table, out).run["n_train"] == 44
        assert json.loads((out / "run.json").read_text())["computed"] == expected


def test_seconds_count_from_when_it_is_told(photo_folder: Path) -> None:
    started = time.time() - 1000
    run = Recognizer(**QUICK, report=False).fit(photo_folder, started=started).run
    assert 1000 < run["seconds"] < 1100 and run["seconds_evaluate"] < 100


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
        "(fgn and hrn learn from coarser groups too)"
    )


@pytest.mark.parametrize("stage", ["assemble", "_weights", "_golden", "write_splits", "model_card", "seal"])
def test_a_full_disk_leaves_no_half_model(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    from fieldmark.train.bundle import write

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, stage, full)
    with pytest.raises(FieldmarkError, match="the disk is full"):
        fit(photo_folder, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == [], "nothing is left, and the place is free again"


def test_where_one_engine_answers_wrongly_the_other_serves(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.runtime.predictor import Predictor

    real = Predictor.check

    def wrong(self: Predictor) -> float:
        if self.engine().name == "openvino":
            raise FieldmarkError("openvino does not compute it")
        return real(self)

    monkeypatch.setattr(Predictor, "check", wrong)
    recognizer = fit(photo_folder, tmp_path / "run")
    assert "onnxruntime answers for this model: openvino does not compute it" in recognizer.warnings
    loaded = Predictor.load(tmp_path / "run/model")
    assert loaded.engine().name == recognizer.predictor.engine().name == "onnxruntime"
    assert Predictor.load(tmp_path / "run/model", engine="openvino").engine().name == "openvino", "as asked"


def test_a_model_that_answers_wrongly_is_not_left(
    photo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.runtime.predictor import Predictor

    def wrong(self: Predictor) -> float:
        raise FieldmarkError("golden answers differ")

    monkeypatch.setattr(Predictor, "check", wrong)
    with pytest.raises(FieldmarkError, match="golden"):
        fit(photo_folder, tmp_path / "run")
    assert list((tmp_path / "run").iterdir()) == []


def test_settings_that_do_not_exist(photo_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no setting 'sise'.*size"):
        Recognizer(sise=3).fit(photo_folder, tmp_path / "run")
    with pytest.raises(UsageError, match="no method is called"):
        fit(photo_folder, tmp_path / "run", method="nonsense")
    with pytest.raises(UsageError, match="no mode"):
        Recognizer(mode="deep")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"seed": -1}, "seed is -1: at least 0"),
        ({"folds": 1}, "folds is 1: at least 2"),
        ({"workers": 0}, "workers is 0: at least 1"),
        ({"workers": "2"}, "workers is '2': a whole number"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": 7}, "size is 7: input should be greater than or equal to 8"),
        ({"size": [64, 5000]}, "size is 5000"),
        ({"resize": "bad"}, "resize is 'bad': input should be 'stretch', 'crop' or 'pad'"),
        ({"label_smoothing": 2.0}, "label_smoothing is 2.0"),
        ({"loss": "hinge"}, "no loss of instant mode is called 'hinge'"),
        ({"engine": "steam"}, "unknown engine 'steam'"),
        ({"precision": "f8"}, "unknown precision 'f8'"),
        ({"engine": "onnxruntime", "precision": "bf16"}, "f32"),
    ],
)
def test_settings_that_cannot_be(
    photo_folder: Path, tmp_path: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        fit(photo_folder, tmp_path / "run", **settings)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"engine": "torch"},
        {"engine": "onnxruntime"},
        {"precision": "bf16"},
        {"method": "plain"},
        {"loss": "cross_entropy"},
        {"color_space": "lab", "resize": "pad"},
        {"size": 20},
        {"folds": 60},
        {"cache": False},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_settings_of_every_kind(photo_folder: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    recognizer = fit(photo_folder, tmp_path / "run", **settings)
    assert recognizer.run["top1"] >= 0.25, "chance is a quarter"
    assert recognizer.predictor.check() < (0.05 if "precision" in settings else 1e-4)
    section = Bundle(tmp_path / "run/model").section
    assert section.preprocess.color_space == settings.get("color_space", "rgb")
    assert section.method == settings.get("method", "isqrt_cov")


def test_several_sizes(photo_folder: Path, tmp_path: Path) -> None:
    recognizer = fit(photo_folder, tmp_path / "run", size=[48, 64])
    section = recognizer.predictor.bundle.section
    assert section.scales == [64, 48] and section.preprocess.size == 64
    assert recognizer.predictor.check() < 1e-4
    assert len(recognizer.predict(photo_folder / "circle/000.jpg")[0].top) == 4
