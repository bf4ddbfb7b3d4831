"""The Python face: any source in, the same answers out after saving and loading, one line where it cannot."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark import Catalog, Recognizer
from fieldmark.runtime.errors import FieldmarkError, UsageError

#: Quick: random weights and small pictures. What is tested here is not how well it recognises.
QUICK: dict[str, Any] = {"backbone": "test_efficientnet", "pretrained": False, "size": 64, "report": False}


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory, photo_folder: Path) -> Recognizer:
    """Read it, do not change it."""
    return Recognizer(**QUICK).fit(photo_folder, tmp_path_factory.mktemp("fitted") / "run")


@pytest.fixture
def own(fitted: Recognizer, tmp_path: Path) -> Recognizer:
    """A copy to change."""
    return Recognizer.load(fitted.save(tmp_path / "own"))


def photos_of(folder: Path, count: int = 3) -> list[Path]:
    return [photo for one in sorted(folder.iterdir()) for photo in sorted(one.glob("*.jpg"))[:count]]


def test_asking_before_fitting() -> None:
    with pytest.raises(FieldmarkError, match=r"call fit, or Recognizer\.load"):
        Recognizer().predict("a.jpg")
    with pytest.raises(FieldmarkError, match="no model at"):
        Recognizer.load("no/such/model")


def test_answers(fitted: Recognizer, photo_folder: Path) -> None:
    photos = photos_of(photo_folder)
    assert fitted.classes == ["circle", "cross", "square", "triangle"]
    p = fitted.predict_proba(photos)
    assert p.shape == (12, 4) and p.dtype == np.float32
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    for photo, row, answer in zip(photos, p, fitted.predict(photos), strict=True):
        assert answer.path == str(photo) and answer.error is None
        order = np.argsort(-row)
        assert [name for name, _ in answer.top] == [fitted.classes[i] for i in order]
        np.testing.assert_allclose([score for _, score in answer.top], row[order], atol=1e-6)
    vectors = fitted.embed(photos)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)
    assert vectors.shape[1] == fitted.predictor.bundle.section.embedding


def test_it_has_learned_its_photos(fitted: Recognizer, photo_folder: Path) -> None:
    """Random weights tell shapes apart well enough for this: labels and logits are in the same order."""
    photos = photos_of(photo_folder, 12)
    right = [answer.label == Path(answer.path).parent.name for answer in fitted.predict(photos)]
    assert np.mean(right) > 0.8
    assert fitted.run["top1"] > 0.4


def test_photos_of_any_kind(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    path = photo_folder / "cross/003.jpg"
    data = path.read_bytes()
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    answers = fitted.predict_proba([path, str(path), data, picture, np.asarray(picture)])
    for row in answers[1:]:
        np.testing.assert_allclose(row, answers[0], atol=1e-6)
    for one in (path, data, picture, np.asarray(picture)):
        assert fitted.predict(one)[0].top == fitted.predict([one])[0].top
    assert fitted.predict([]) == [] and fitted.predict_proba([]).shape == (0, 4)
    (tmp_path / "bad.jpg").write_text("text")
    told = fitted.predict([tmp_path / "bad.jpg", path, tmp_path / "none.jpg"])
    assert [answer.error for answer in told] == [
        "not a photo: its content is text, not an image",
        None,
        "no such file",
    ]
    for of in (fitted.predict_proba, fitted.embed):
        bad, good = of([tmp_path / "bad.jpg", path])
        assert np.isnan(bad).all() and np.isfinite(good).all()


def test_it_says_where_things_are(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    """As the model's own locator does, of one photo or several; the answer is that of predict."""
    photos = photos_of(photo_folder, 1)
    (tmp_path / "bad.jpg").write_text("text")
    *found, bad = fitted.locate([*photos, tmp_path / "bad.jpg"], most=1)
    assert bad.error and not bad.things
    for photo, one, answer in zip(photos, found, fitted.predict(photos), strict=True):
        assert (one.path, one.label) == (str(photo), answer.label)
        assert one.score == pytest.approx(answer.score, abs=1e-3)
        ((left, top, right, bottom),) = (thing.box for thing in one.things)
        assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
        assert one.mask is not None and one.mask.shape == (64, 64) and one.mask.any()
    (alone,) = fitted.locate(str(photos[0]), threshold=0.5)
    (box,), (small,) = found[:1][0].things, alone.things[:1]
    assert small.box != box.box and small.score == pytest.approx(box.score)
    with pytest.raises(FieldmarkError, match="call fit"):
        Recognizer().locate(photos)


def test_saved_and_loaded_it_answers_the_same(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    photos = photos_of(photo_folder)
    target = fitted.save(tmp_path / "deep/model")
    for again in (Recognizer.load(target), Recognizer.load(str(target), workers=1)):
        np.testing.assert_array_equal(again.predict_proba(photos), fitted.predict_proba(photos))
        np.testing.assert_array_equal(again.embed(photos), fitted.embed(photos))
        assert again.classes == fitted.classes
    other = Recognizer.load(target, engine="onnxruntime")
    np.testing.assert_allclose(other.predict_proba(photos), fitted.predict_proba(photos), atol=1e-3)
    assert other.predictor.check() < 1e-4


def test_a_run_folder_is_as_good_as_its_model(fitted: Recognizer) -> None:
    run = Path(fitted.run["model"]).parent
    assert Recognizer.load(run).predictor.bundle.path == run / "model"


def test_the_card_may_be_completed(fitted: Recognizer, tmp_path: Path) -> None:
    """It asks for the licence: a model whose card was edited is whole, and keeps the edit where it is saved."""
    edited = fitted.save(tmp_path / "edited")
    (edited / "README.md").write_text("license: mine", encoding="utf-8")
    model = Recognizer.load(edited)
    model.predictor.bundle.verify()
    assert (model.save(tmp_path / "copy") / "README.md").read_text(encoding="utf-8") == "license: mine"
    (edited / "README.md").unlink()
    assert not (model.save(tmp_path / "bare") / "README.md").exists()


def test_saving_over_things(fitted: Recognizer, tmp_path: Path, photo_folder: Path) -> None:
    target = fitted.save(tmp_path / "model")
    (target / "README.md").write_text("changed")
    fitted.save(target)
    assert (
        Recognizer.load(target).classes == fitted.classes
        and "changed" not in (target / "README.md").read_text()
    )
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    with pytest.raises(FieldmarkError, match="photos"):
        fitted.save(photos)
    assert len(photos_of(photos, 12)) == 48, "a slip of the tongue costs no photos"
    own = Recognizer.load(target)
    assert own.save(target) == target, "onto itself"


def test_a_damaged_model_is_not_passed_on(own: Recognizer, tmp_path: Path) -> None:
    with (own.predictor.bundle.path / "model.onnx").open("r+b") as file:
        file.seek(1000)
        file.write(b"\0\1\2\3")
    with pytest.raises(FieldmarkError, match="damaged"):
        own.save(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(FieldmarkError, match="damaged"):
        Recognizer.load(own.predictor.bundle.path).predict(np.zeros((32, 32, 3), np.uint8))


def test_other_answers_than_the_golden_ones_are_refused(own: Recognizer) -> None:
    from fieldmark.runtime.bundle import Bundle
    from fieldmark.runtime.bundle_files import seal

    folder = own.predictor.bundle.path
    arrays = Bundle(folder).golden()
    np.savez_compressed(folder / "golden.npz", **{**arrays, "logits": arrays["logits"] + 0.1})  # type: ignore[arg-type]
    seal(folder, own.predictor.bundle.config)
    with pytest.raises(FieldmarkError, match="golden answers differ"):
        Recognizer.load(folder).predictor.check()


def sources(photos: Path, folder: Path) -> dict[str, Any]:
    """One set of photos with one split, in all the ways that a catalog is given."""
    import pyarrow as pa
    from pyarrow import parquet

    found = [
        (
            photo,
            photo.parent.name,
            "test" if int(photo.stem) % 4 == 0 else "val" if int(photo.stem) % 4 == 1 else "train",
        )
        for photo in photos_of(photos, 12)
    ]
    csv = folder / "photos.csv"
    csv.write_text("file_name,label,split\n" + "".join(f"{p},{label},{split}\n" for p, label, split in found))
    table = pa.table(
        {
            "path": [str(p) for p, _, _ in found],
            "label": [x[1] for x in found],
            "split": [x[2] for x in found],
        }
    )
    parquet.write_table(table, folder / "photos.parquet")
    for photo, label, split in found:
        place = folder / "folders" / {"val": "valid"}.get(split, split) / label
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photo, place / photo.name)
    inside = folder / "inside"
    shutil.copytree(photos, inside)
    lines = [f"{label}/{p.name},{label},{split}" for p, label, split in found]
    (inside / "metadata.csv").write_text("\n".join(["file_name,label,split", *lines]) + "\n")
    return {
        "csv": csv,
        "parquet": str(folder / "photos.parquet"),
        "folders": folder / "folders",
        "metadata": inside,
        "catalog": Catalog.read(csv),
    }


def test_the_same_photos_in_any_form_give_the_same_model(photo_folder: Path, tmp_path: Path) -> None:
    results = {}
    given = sources(photo_folder, tmp_path)
    for name, source in given.items():
        recognizer = Recognizer(**QUICK).fit(source)
        assert (recognizer.run["n_train"], recognizer.run["n_test"]) == (36, 12), name
        assert recognizer.evaluate(source).n == 12
        results[name] = (recognizer.run["top1"], recognizer.predict_proba(photos_of(photo_folder)))
    first = results["csv"]
    for name, (top1, p) in results.items():
        assert top1 == first[0], name
        np.testing.assert_array_equal(p, first[1], err_msg=name)
    crossed = Recognizer(**QUICK).fit(given["csv"]).evaluate(given["folders"])
    assert crossed.top1 == first[0], "labels are matched by name, photos by content"


def test_evaluation(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    run = Path(fitted.run["model"]).parent
    by_split = fitted.evaluate(run / "split.csv")
    by_content = fitted.evaluate(photo_folder)
    assert by_split.top1 == by_content.top1 == fitted.run["top1"]
    assert by_content.excluded == fitted.run["n_train"]
    assert by_split.predictions.num_rows == by_split.n and by_split.confusion.sum() == by_split.n
    assert fitted.evaluate(run / "split.csv", "train").n + fitted.evaluate(run / "split.csv", "val").n == 38
    with pytest.raises(UsageError):
        fitted.evaluate(photo_folder, "tests")
    page = fitted.report(by_split, tmp_path / "report.html")
    assert page.stat().st_size > 10_000 and "Light is where the model looked" in page.read_text(
        encoding="utf-8"
    )


def test_a_report_tells_of_the_split_and_of_photos_left_out(
    fitted: Recognizer, photo_folder: Path, tmp_path: Path
) -> None:
    photos = shutil.copytree(photo_folder, tmp_path / "photos")
    (photos / "cross/bad.jpg").write_text("text")
    earlier = fitted.evaluate(photos)
    page = fitted.report(earlier, tmp_path / "test.html").read_text(encoding="utf-8")
    assert f"{earlier.n} test photos" in page and "bad.jpg" in page and "Trained on" not in page
    later = fitted.evaluate(photos, "train")
    page = fitted.report(later, tmp_path / "train.html").read_text(encoding="utf-8")
    assert f"{later.n} train photos" in page and "test photos" not in page.lower()
    page = fitted.report(earlier, tmp_path / "earlier.html").read_text(encoding="utf-8")
    assert f"{earlier.n} photos" in page and "bad.jpg" not in page


def test_the_command_names_photos_left_out(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from fieldmark.cli import app

    good = photos_of(photo_folder, 12)
    lines = [f"{photo},{photo.parent.name}," for photo in good]
    bad = [tmp_path / f"bad{n}.jpg" for n in range(6)]
    for one in bad:
        one.write_text("text")
    lines += [f"{one},cross," for one in bad] + [f"{good[0]},cross,tset"]
    (tmp_path / "photos.csv").write_text("\n".join(["path,label,split", *lines]))
    done = CliRunner().invoke(app, ["evaluate", fitted.run["model"], str(tmp_path / "photos.csv"), "--json"])
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["excluded_by_reason"]["unreadable"] == 6 and told["excluded"] == 7 + fitted.run["n_train"]
    assert "bad0.jpg: not a photo" in done.stderr and "unknown split 'tset'" in done.stderr
    assert "and 2 more" in done.stderr and "bad5.jpg" not in done.stderr


def test_strange_photos_are_judged_with_a_warning(
    fitted: Recognizer, paint_photos: Any, tmp_path: Path
) -> None:
    strangers = paint_photos(tmp_path / "strangers", classes=5, each=3, seed=5)
    found = fitted.evaluate(strangers)
    assert found.n == 12 and found.excluded_by_reason == {"label never seen in training": 3}
    assert any("cannot know" in line for line in fitted.warnings)
    assert any("'circle 4'" in line for line in fitted.warnings)


def test_similar(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    photos = photos_of(photo_folder, 4)
    (tmp_path / "bad.jpg").touch()
    found = fitted.similar(photos[5], [tmp_path / "bad.jpg", *photos], k=3)
    assert found[0][0] == photos[5] and found[0][1] == pytest.approx(1, abs=1e-4)
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)
    vectors = fitted.embed(photos)
    assert found[1][1] == pytest.approx(np.sort(vectors @ vectors[5])[-2], abs=1e-4)
    assert len(fitted.similar(photos[0], photos[:2], k=9)) == 2
    assert fitted.similar(photos[0], [tmp_path / "bad.jpg"]) == []
    with pytest.raises(FieldmarkError, match=r"bad\.jpg cannot be read"):
        fitted.similar(tmp_path / "bad.jpg", photos)


def test_one_class_more_and_one_less(
    own: Recognizer, paint_photos: Any, tmp_path: Path, photo_folder: Path
) -> None:
    folder = own.predictor.bundle.path
    before = (folder / "config.json").read_bytes()
    new = paint_photos(tmp_path / "new", classes=5, each=8) / "circle 4"
    (new / "text.jpg").write_text("no photo")
    skipped = own.add_class("ring", sorted(new.iterdir()))
    assert own.classes[-1] == "ring" and len(own.classes) == 5
    assert [Path(item.path).name for item in skipped] == ["text.jpg"]
    assert own.predict_proba(photos_of(photo_folder)).shape == (12, 5)
    assert (folder / "config.json").read_bytes() == before, "the model it came from is left as it is"
    target = own.save(tmp_path / "more")
    assert Recognizer.load(target).classes == own.classes
    with pytest.raises(FieldmarkError, match="knows 'ring' already"):
        own.add_class("ring", sorted(new.iterdir()))
    assert len(own.classes) == 5, "a change that fails changes nothing"
    own.remove_class("ring")
    assert own.classes == ["circle", "cross", "square", "triangle"]


def test_the_second_fit_replaces_the_first(photo_folder: Path, tmp_path: Path) -> None:
    recognizer = Recognizer(**QUICK).fit(photo_folder)
    home = Path(recognizer.run["model"])
    two = shutil.copytree(photo_folder, tmp_path / "two")
    shutil.rmtree(two / "cross")
    assert recognizer.fit(two).classes == ["circle", "square", "triangle"]
    assert not home.exists() and Path(recognizer.run["model"]).exists()


def test_no_torch_is_needed_to_use_it(fitted: Recognizer, photo_folder: Path, tmp_path: Path) -> None:
    code = (
        "import sys, json\n"
        "for name in ('torch', 'torchvision', 'timm', 'sklearn', 'scipy', 'onnx'): sys.modules[name] = None\n"
        "from fieldmark import Recognizer\n"
        "r = Recognizer.load(sys.argv[1])\n"
        "r.embed(sys.argv[3:]); r.similar(sys.argv[3], sys.argv[3:]); r.save(sys.argv[4] + '-copy')\n"
        "print(json.dumps([r.evaluate(sys.argv[2]).top1, r.predict(sys.argv[3])[0].label]))"
    )
    photo = photo_folder / "circle/000.jpg"
    words = [fitted.run["model"], str(photo_folder), str(photo), str(tmp_path / "x")]
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [fitted.run["top1"], fitted.predict(photo)[0].label]
