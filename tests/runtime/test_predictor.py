"""From photos to answers, without PyTorch, and the same as PyTorch's."""

from __future__ import annotations

import gc
import io
import itertools
import json
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, logits_of, picture, write_bundle

from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.bundle_files import seal
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.runtime.image import content_hash
from fieldmark.runtime.predictor import Predictor


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("predictor") / "model", scales=(64, 48))


@pytest.fixture(scope="module")
def predictor(model: Path) -> Predictor:
    return Predictor.load(model, workers=2)


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [picture(seed) for seed in range(6)]


@pytest.fixture
def photos(tmp_path: Path, pictures: list[Image.Image]) -> list[Path]:
    paths = [tmp_path / f"{number}, ü.png" for number in range(len(pictures))]
    for path, photo in zip(paths, pictures, strict=True):
        photo.save(path)
    return paths


@pytest.fixture(scope="module")
def expected(model: Path, predictor: Predictor, pictures: list[Image.Image]) -> np.ndarray:
    """Probabilities [N, C] by PyTorch and the formula."""
    from fieldmark.methods.restore import restore

    logits = logits_of(restore(Bundle(model)), predictor.preprocess, pictures).astype(np.float64) / 1.5
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_answers_are_pytorchs(model, photos, expected, engine):
    ours = Predictor.load(model, engine=engine).predict_proba(photos)
    assert ours.dtype == np.float32 and ours.shape == (6, 3)
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    assert len(set(expected.argmax(1))) > 1, "the photos do not all look alike to it"


def test_probabilities_sum_to_one(predictor, photos):
    np.testing.assert_allclose(predictor.predict_proba(photos).sum(1), 1, atol=1e-6)
    assert predictor.predict_proba([]).shape == (0, 3)


def test_predictions_are_the_probabilities_best_first(predictor, photos, expected):
    found = predictor.predict(photos)
    assert [one.path for one in found] == [str(photo) for photo in photos]
    for one, p in zip(found, expected, strict=True):
        assert one.error is None
        assert [name for name, _ in one.top] == [CLASSES[i] for i in np.argsort(-p)]
        np.testing.assert_allclose([score for _, score in one.top], np.sort(p)[::-1], atol=1e-3)
        assert one.label == CLASSES[p.argmax()] and one.score == one.top[0][1]


def test_every_kind_of_source(predictor, photos, pictures):
    """A path, its text, bytes of several kinds, a picture and an array are one photo."""
    path, photo = photos[0], pictures[0]
    sources = [path, str(path), path.read_bytes(), bytearray(path.read_bytes()), photo, np.asarray(photo)]
    sources += [memoryview(path.read_bytes()), np.asarray(photo) / 255]
    whole = predictor.predict_proba(sources)
    np.testing.assert_allclose(whole, np.repeat(whole[:1], len(sources), 0), atol=1e-6)
    for source in sources:  # alone, without a list around it
        np.testing.assert_allclose(predictor.predict_proba(source), whole[:1], atol=1e-6)
    assert predictor.predict_proba(np.asarray(photo.convert("L"))).shape == (1, 3), "a grey photo is one"
    stack = np.stack([np.asarray(one) for one in pictures])
    assert predictor.predict_proba(stack).shape == (6, 3)
    names = [one.path for one in predictor.predict(sources[1:4])]
    assert names == [str(path), "#1", "#2"]


def test_what_is_no_photo_at_all(predictor):
    for wrong in (None, 3):
        with pytest.raises(UsageError, match="is no photo: give a path"):
            predictor.predict(wrong)


def test_embeddings(predictor, photos):
    rows = predictor.embed(photos)
    assert rows.shape == (6, 6) and rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert predictor.embed([]).shape == (0, 6)


def test_unreadable_photos_keep_their_place(predictor, photos, tmp_path):
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "cut.png").write_bytes(photos[0].read_bytes()[:500])
    bad = [tmp_path / name for name in ("empty.jpg", "text.jpg", "cut.png", "gone.jpg")]
    mixed = [bad[0], photos[0], bad[1], bad[2], photos[1], bad[3], photos[2], tmp_path, b"junk", 42]
    good = [1, 4, 6]
    found = predictor.predict(mixed)
    assert [one.error is None for one in found] == [row in good for row in range(10)]
    assert found[0].error == "file is empty" and found[5].error == "no such file"
    assert (
        "text" in str(found[2].error)
        and "truncated" in str(found[3].error)
        and "folder" in str(found[7].error)
    )
    assert all(one.top == () and one.label is None for one in found if one.error)
    for rows in (predictor.predict_proba(mixed), predictor.embed(mixed)):
        assert np.isfinite(rows).all(1).tolist() == [row in good for row in range(10)]
    np.testing.assert_array_equal(predictor.predict_proba(mixed)[good], predictor.predict_proba(photos[:3]))


def test_a_name_that_is_too_long_ends_nothing(predictor, photos, tmp_path):
    found = predictor.predict([photos[0], tmp_path / ("x" * 300 + ".jpg"), photos[1]])
    assert [answer.error is None for answer in found] == [True, False, True]
    assert "\n" not in found[1].error


def test_answers_carry_the_content_hash(predictor, photos):
    answers = list(predictor.answers([photos[0], photos[0].read_bytes(), b"junk", Image.new("RGB", (9, 9))]))
    name = content_hash(photos[0].read_bytes())
    assert [answer.content for answer in answers] == [name, name, content_hash(b"junk"), None]


def test_a_turned_photo_is_seen_upright(predictor, pictures):
    def stored(photo: Image.Image, orientation: int) -> bytes:
        exif, out = Image.Exif(), io.BytesIO()
        exif[0x0112] = orientation
        photo.save(out, "PNG", exif=exif)
        return out.getvalue()

    turned = stored(pictures[0].transpose(Image.Transpose.ROTATE_90), 6)
    upright, seen, tilted = predictor.predict_proba(
        [pictures[0], turned, pictures[0].transpose(Image.Transpose.ROTATE_90)]
    )
    np.testing.assert_allclose(seen, upright, atol=1e-6)
    assert np.abs(tilted - upright).max() > 1e-3


def test_streams_are_endless_ordered_and_in_constant_memory(predictor, photos):
    """A million photos could come: only a few are asked for ahead, and none is kept."""
    data, asked = [photo.read_bytes() for photo in photos], 0

    def endless() -> Iterator[bytes]:
        nonlocal asked
        for number in itertools.count():
            asked += 1
            yield data[number % 6]

    expected = [one.label for one in predictor.predict(data)]
    stream, levels = predictor.stream(endless()), {}
    tracemalloc.start()
    for number, one in enumerate(stream):
        assert one.label == expected[number % 6] and one.path == f"#{number}"
        assert asked - number <= predictor.workers * 8 + 1
        if number in (100, 400):
            gc.collect()
            levels[number] = tracemalloc.get_traced_memory()[0]
        if number == 400:
            break
    tracemalloc.stop()
    stream.close()
    assert levels[400] - levels[100] < 300 * 1000, "bytes: a photo kept would be fifty times that"


def test_one_worker_gives_the_same(model, predictor, photos):
    np.testing.assert_allclose(
        Predictor.load(model, workers=1).predict_proba(photos), predictor.predict_proba(photos), atol=1e-6
    )


# -- the golden check


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_the_golden_check_passes(model, engine):
    assert Predictor.load(model, engine=engine).check() < 1e-3


def test_the_golden_check_finds_a_changed_graph(model, tmp_path):
    """One weight of the head nudged, and the folder sealed again as if nothing had been."""
    import onnx
    from onnx import numpy_helper

    folder = Path(shutil.copytree(model, tmp_path / "model"))
    graph = onnx.load(str(folder / "model.onnx"))
    for tensor in graph.graph.initializer:
        if tensor.name == "head.bias":
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.2 + 0.3, "head.bias"))
    onnx.save(graph, str(folder / "model.onnx"))
    with pytest.raises(FieldmarkError, match="damaged"):
        Predictor.load(folder).predict(picture())
    seal(folder, Bundle(folder).config)
    with pytest.raises(FieldmarkError, match="does not compute what") as caught:
        Predictor.load(folder).check()
    assert "\n" not in str(caught.value)


def test_the_golden_check_allows_what_rounding_changes(model, tmp_path):
    """Where a network chooses places, the model says how far right answers may be apart."""
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    golden = {**Bundle(folder).golden(), "rounding": np.float32(0.5)}
    golden["logits"] = golden["logits"] * 1.2
    np.savez(folder / "golden.npz", **golden)
    seal(folder, Bundle(folder).config)
    assert 0.1 < Predictor.load(folder).check() < 0.5
    np.savez(folder / "golden.npz", **{**golden, "rounding": np.float32(0.1)})
    seal(folder, Bundle(folder).config)
    with pytest.raises(FieldmarkError, match="does not compute what"):
        Predictor.load(folder).check()


def test_short_precision_is_measured_but_not_refused(model):
    assert 0 <= Predictor.load(model, engine="openvino", precision="bf16").check() < 0.2


# -- refusals


def test_no_model(tmp_path):
    with pytest.raises(FieldmarkError, match="no model at"):
        Predictor.load(tmp_path / "nothing")


def test_a_damaged_graph_is_refused_before_an_answer(model, tmp_path):
    folder = Path(shutil.copytree(model, tmp_path / "model"))
    data = bytearray((folder / "model.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx").write_bytes(data)
    with pytest.raises(FieldmarkError, match=r"model\.onnx is damaged"):
        Predictor.load(folder).predict(picture())


# -- a process of its own

BARE = """
import json, sys
for name in ("torch", "torchvision", "timm", "onnx", "sklearn", "scipy", "pandas"):
    sys.modules[name] = None  # as if it were not installed
from fieldmark.runtime.predictor import Predictor
predictor = Predictor.load(sys.argv[1])
answer = {"proba": predictor.predict_proba(sys.argv[2:]).tolist(), "embed": predictor.embed(sys.argv[2:]).tolist()}
answer["check"] = predictor.check()
answer["slow"] = sorted({"torch", "timm", "pyarrow", "sklearn"} & {k for k, v in sys.modules.items() if v})
print(json.dumps(answer))
"""


def test_no_torch_is_needed(model, predictor, photos):
    command: list[Any] = [sys.executable, "-c", BARE, str(model), *map(str, photos)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["slow"] == [] and found["check"] < 1e-3
    np.testing.assert_allclose(found["proba"], predictor.predict_proba(photos), atol=1e-6)
    np.testing.assert_allclose(found["embed"], predictor.embed(photos), atol=1e-6)
