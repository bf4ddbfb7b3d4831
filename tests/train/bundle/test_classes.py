"""Classes added and removed later: as if they had been there from the start, in a bundle that is whole."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark import Catalog, Recognizer
from fieldmark.data import lookalikes
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.bundle_files import seal
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.image import content_hash
from fieldmark.train.heads import head

QUICK: dict[str, Any] = {"backbone": "test_efficientnet", "pretrained": False, "size": 64, "report": False}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint_photos: Any) -> Path:
    return paint_photos(tmp_path_factory.mktemp("classes") / "photos", classes=6, each=20)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> Path:
    """A model of four classes of the six; read it, do not change it."""
    catalog = Catalog.read(photos)
    out = tmp_path_factory.mktemp("model") / "run"
    some = catalog.select([label[-1] not in "45" for label in catalog.labels if label])
    Recognizer(**QUICK).fit(some, out)
    return out / "model"


def of(photos: Path, name: str) -> list[Path]:
    return sorted((photos / name).iterdir())


def everything(photos: Path) -> list[Path]:
    return [photo for name in ("circle", "cross", "square", "triangle") for photo in of(photos, name)]


def test_the_changed_bundle_is_whole(model: Path, photos: Path, tmp_path: Path) -> None:
    name = 'ring, "new"\n环 💍'
    recognizer = Recognizer.load(model)
    before = {path.name: path.read_bytes() for path in model.iterdir()}
    recognizer.add_class(name, of(photos, "circle 4")[:15])
    recognizer.save(tmp_path / "more")
    assert {path.name: path.read_bytes() for path in model.iterdir()} == before
    bundle = Bundle(tmp_path / "more")
    bundle.verify()
    assert bundle.classes == ["circle", "cross", "square", "triangle", name]
    config = bundle.config
    assert config.num_classes == 5 and config.pretrained_cfg["label_names"] == bundle.classes
    assert bundle.section.training["changes"] == [{"added": name, "photos": 15}]
    loaded = Recognizer.load(tmp_path / "more")
    assert loaded.predictor.check() < 1e-4, "golden answers are those of the new head"
    assert Recognizer.load(tmp_path / "more", engine="onnxruntime").predictor.check() < 1e-5
    assert bundle.golden()["logits"].shape[1] == 5
    hashes = {content_hash(path.read_bytes()) for path in of(photos, "circle 4")[:15]}
    known = bundle.splits()
    assert {known[one] for one in hashes} == {"train"}
    assert Bundle(model).splits().items() <= known.items()
    card = (tmp_path / "more/README.md").read_text(encoding="utf-8")
    assert '| ring, \\"new\\"\\n环 💍 | 15 |' in card and "Changed since" in card
    # The photos it learned from are not tested on.
    table = tmp_path / "t.csv"
    cell = '"' + name.replace('"', '""') + '"'
    table.write_text(
        "path,label\n" + "".join(f"{p},{cell}\n" for p in of(photos, "circle 4")), encoding="utf-8"
    )
    found = loaded.evaluate(table)
    assert found.n == 5 and found.excluded == 15 and found.top1 >= 0.6


def test_what_rounding_may_change_is_kept(model: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    np.savez(own / "golden.npz", **Bundle(own).golden(), rounding=np.float32(0.25))  # type: ignore[arg-type]
    seal(own, Bundle(own).config)
    recognizer = Recognizer.load(own)
    recognizer.remove_class("circle")
    assert recognizer.predictor.bundle.golden()["rounding"] == 0.25


def test_splits_that_are_withheld(model: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    (own / "split.parquet").unlink()
    seal(own, Bundle(own).config)
    recognizer = Recognizer.load(own)
    assert recognizer.predictor.bundle.splits() == {}
    table = tmp_path / "t.csv"
    table.write_text("path,label\n" + "".join(f"{path},circle\n" for path in of(photos, "circle")))
    found = recognizer.evaluate(table)
    assert found.n == 20 and len(recognizer.warnings) == 1 and "does not tell" in recognizer.warnings[0]
    recognizer.add_class("ring", of(photos, "circle 4")[:5])
    recognizer.remove_class("circle")
    assert "split.parquet" not in recognizer.predictor.bundle.section.files
    recognizer.predictor.bundle.verify()


def test_in_place_the_owners_files_and_card_stay(model: Path, photos: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    (own / ".git").mkdir()
    (own / ".git/HEAD").write_text("ref")
    (own / "LICENSE").write_text("mine")
    recognizer = Recognizer.load(own)
    recognizer.add_class("a | b", of(photos, "circle 4")[:5])
    recognizer.save(own)
    assert (own / ".git/HEAD").exists() and (own / "LICENSE").read_text() == "mine"
    card = own / "README.md"
    assert "| a \\| b | 5 |" in card.read_text(encoding="utf-8")
    recognizer = Recognizer.load(own)
    recognizer.remove_class("a | b")
    recognizer.save(own)
    assert "removed a \\| b" in card.read_text(encoding="utf-8"), "a card that nobody touched is made anew"
    mine = card.read_text(encoding="utf-8").replace("license: other", "license: cc0-1.0")
    card.write_text(mine, encoding="utf-8")
    recognizer = Recognizer.load(own)
    recognizer.remove_class("circle")
    recognizer.save(own)
    assert card.read_text(encoding="utf-8") == mine and (own / "LICENSE").read_text() == "mine"


def test_added_and_removed_again_it_answers_as_before(model: Path, photos: Path) -> None:
    recognizer = Recognizer.load(model)
    before = recognizer.predict_proba(everything(photos))
    recognizer.add_class("ring", of(photos, "circle 4"))
    recognizer.remove_class("ring")
    assert recognizer.classes == Recognizer.load(model).classes
    after = recognizer.predict_proba(everything(photos))
    assert (after.argmax(1) == before.argmax(1)).mean() >= 0.95
    assert np.abs(after - before).mean() < 0.05
    assert recognizer.predictor.check() < 1e-4


def test_two_classes_in_either_order(model: Path, photos: Path) -> None:
    answers = []
    for names in (("circle 4", "square 5"), ("square 5", "circle 4")):
        recognizer = Recognizer.load(model)
        for name in names:
            recognizer.add_class(name, of(photos, name)[:15])
        p = recognizer.predict_proba(
            [*everything(photos), *of(photos, "circle 4")[15:], *of(photos, "square 5")[15:]]
        )
        answers.append(p[:, np.argsort(recognizer.classes)])
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-3)


def test_names(model: Path, photos: Path) -> None:
    recognizer = Recognizer.load(model)
    with pytest.raises(FieldmarkError, match="knows 'cross' already"):
        recognizer.add_class("cross", of(photos, "circle 4"))
    with pytest.raises(FieldmarkError, match="no class 'crosss'; did you mean 'cross'"):
        recognizer.remove_class("crosss")
    for name in ("", "  "):
        with pytest.raises(FieldmarkError, match="name"):
            recognizer.add_class(name, of(photos, "circle 4"))
    with pytest.raises(FieldmarkError, match="not valid UTF-8"):
        recognizer.add_class("\udce9", of(photos, "circle 4"))
    recognizer.add_class("Ka\u0308fer", of(photos, "circle 4"))
    assert recognizer.classes[-1] == "K\u00e4fer", "as catalogs write it"
    recognizer.remove_class("Ka\u0308fer")
    recognizer.remove_class("cross")
    recognizer.remove_class("circle")
    with pytest.raises(FieldmarkError, match="at least two classes"):
        recognizer.remove_class("square")
    assert recognizer.classes == ["square", "triangle"]
    assert {answer.label for answer in recognizer.predict(everything(photos))} <= {"square", "triangle"}
    recognizer.add_class("cross", of(photos, "cross"))
    assert recognizer.predictor.check() < 1e-4


def test_photos_that_cannot_be_read(model: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    recognizer = Recognizer.load(model)
    with pytest.raises(FieldmarkError, match=r"none of the 2 photos of 'ring' can be read: file is empty"):
        recognizer.add_class("ring", [tmp_path / "empty.jpg", tmp_path / "none.jpg"])
    with pytest.raises(FieldmarkError, match="no photos"):
        recognizer.add_class("ring", [])
    skipped = recognizer.add_class("ring", [tmp_path / "empty.jpg", *of(photos, "circle 4")])
    assert [item.reason for item in skipped] == ["file is empty"]
    assert recognizer.predictor.bundle.section.training["changes"] == [{"added": "ring", "photos": 20}]


def test_the_same_photo_twice_counts_once(model: Path, photos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.jpg"
    copy.write_bytes(of(photos, "circle 4")[0].read_bytes())
    one, two = Recognizer.load(model), Recognizer.load(model)
    one.add_class("ring", of(photos, "circle 4"))
    two.add_class("ring", [copy, *of(photos, "circle 4"), *of(photos, "circle 4")])
    np.testing.assert_allclose(
        one.predict_proba(everything(photos)), two.predict_proba(everything(photos)), atol=1e-5
    )


def test_a_low_rank_head(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = Catalog.read(photos)
    some = catalog.select([label != "circle 4" for label in catalog.labels])
    recognizer = Recognizer(**QUICK).fit(some)
    size = recognizer.predictor.bundle.arrays("model.safetensors")["head.weight"].size
    monkeypatch.setattr(head, "MOST_WEIGHTS", size - 1)
    recognizer.fit(some)
    assert "head.down" in recognizer.predictor.bundle.arrays("model.safetensors")
    recognizer.add_class("circle 4", of(photos, "circle 4")[:15])
    assert recognizer.predictor.check() < 1e-4
    found = [answer.label for answer in recognizer.predict(of(photos, "circle 4")[15:])]
    assert found.count("circle 4") >= 3
    recognizer.remove_class("circle 4")
    assert recognizer.predictor.check() < 1e-4


def test_a_full_disk_leaves_the_old_model(
    model: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.train.bundle import assemble

    recognizer = Recognizer.load(Recognizer.load(model).save(tmp_path / "own"))
    before = recognizer.predict_proba(everything(photos))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(assemble, "save_tensors", full)
    with pytest.raises(FieldmarkError, match="the disk is full"):
        recognizer.add_class("ring", of(photos, "circle 4"))
    assert recognizer.classes == ["circle", "cross", "square", "triangle"]
    np.testing.assert_array_equal(recognizer.predict_proba(everything(photos)), before)


def test_neither_torch_nor_the_old_photos_are_needed(model: Path, photos: Path, tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "for name in ('torch', 'torchvision', 'timm', 'sklearn', 'scipy'): sys.modules[name] = None\n"
        "from fieldmark.cli import main; main()"
    )
    out = tmp_path / "more"
    for words in (
        ["add-class", model, "ring", photos / "circle 4", "--out", out, "--json"],
        ["remove-class", out, "cross", "--json"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, words)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["classes"] == 4
    assert Bundle(out).classes == ["circle", "square", "triangle", "ring"]
    Bundle(out).verify()


def test_a_softmax_head_is_replaced_by_a_ridge_head_with_its_own_temperature(
    photos: Path, tmp_path: Path
) -> None:
    """Logits of the two live on other scales: with the old temperature all classes would seem alike."""
    catalog = Catalog.read(photos)
    some = catalog.select([label != "circle 4" for label in catalog.labels])
    recognizer = Recognizer(**QUICK, loss="cross_entropy").fit(some)
    before = recognizer.predictor.temperature
    recognizer.add_class("circle 4", of(photos, "circle 4"))
    assert recognizer.predictor.temperature < before / 3
    p = recognizer.predict_proba(catalog.paths)
    true = [recognizer.classes.index(label) for label in catalog.labels if label]
    assert -np.log(p[np.arange(len(true)), true]).mean() < 0.8, "log 6 is 1.8"


def test_classes_added_later_are_nearly_as_good(tmp_path: Path) -> None:
    """Rendered look-alikes: two of eight species come later; test top-1 and log loss stay near full training."""
    catalog = Catalog.read(lookalikes.write(tmp_path, n_species=8, per_species=40, size=160, unknown=0))
    full = Recognizer(size=160, report=False).fit(catalog)
    late = catalog.classes[3:5]
    recognizer = Recognizer(size=160, report=False).fit(
        catalog.select([label not in late for label in catalog.labels])
    )
    rows = list(zip(catalog.paths, catalog.labels, catalog.splits, strict=True))
    for name in late:
        recognizer.add_class(name, [path for path, label, split in rows if label == name and split != "test"])
    best, found = full.evaluate(catalog, "test"), recognizer.evaluate(catalog, "test")
    assert best.n == found.n == 96 and best.top1 > 0.7
    assert found.top1 > best.top1 - 0.08
    assert np.mean([found.per_class[name]["recall"] for name in late]) > 0.5
    assert found.nll < best.nll + 0.3 and found.ece < best.ece + 0.1, "the temperature still holds"
