"""Descriptors of photos: computed once, found again, and never wrong for it."""

from __future__ import annotations

import multiprocessing
import os
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.methods.descriptor import DescriptorGraph
from fieldmark.nn.weights import Source
from fieldmark.runtime import cache
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train import features
from fieldmark.train.features import Describer

SIDE = 8


def tiny_graph(folder: Path, key: str = "one", gain: float = 1.0) -> DescriptorGraph:
    """A graph [B, 3, 8, 8] -> [B, 192] that only reorders pixels: its answers are known beforehand."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("Mul", ["flat", "gain"], ["descriptor"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("descriptor", TensorProto.FLOAT, ["batch", 3 * SIDE * SIDE])],
        [numpy_helper.from_array(np.array([gain], np.float32), "gain")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path = folder / f"{key}.onnx"
    onnx.save(model, str(path))
    return DescriptorGraph(
        path=path,
        weights=path,
        key=key,
        native=SIDE,
        widths=(128, 64),
        scales=(SIDE,),
        preprocess=Preprocess(size=SIDE, crop_pct=1.0),
        source=Source("tiny", None, "digest", {}),
        method="plain",
        parity=0.0,
    )


def describe(graph: DescriptorGraph, paths: list[str], **options: object) -> features.Described:
    return Describer(graph, **{"engine": "onnxruntime", "workers": 2, **options})(paths)  # type: ignore[arg-type]


def entries() -> list[Path]:
    return [p for p in cache.directory("features").rglob("*") if p.is_file() and p.name != "CACHEDIR.TAG"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def graph(tmp_path: Path) -> DescriptorGraph:
    return tiny_graph(tmp_path)


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    dice = np.random.default_rng(0)
    paths = []
    for number in range(10):
        path = tmp_path / f"{number}.png"
        Image.fromarray(dice.integers(0, 255, (12, 12, 3), np.uint8)).save(path)
        paths.append(str(path))
    return paths


def test_what_the_graph_says(graph: DescriptorGraph, photos: list[str]) -> None:
    found = describe(graph, photos)
    for path, row in zip(photos, found.descriptors, strict=True):
        expected = graph.preprocess(Image.open(path)).ravel().astype(np.float16)
        np.testing.assert_array_equal(row, expected)
    assert found.computed == 10 and not found.errors and len(set(found.content)) == 10


def test_the_second_time_is_the_same_bits(graph: DescriptorGraph, photos: list[str]) -> None:
    first, second = describe(graph, photos), describe(graph, photos)
    assert (first.computed, second.computed) == (10, 0)
    assert first.descriptors.tobytes() == second.descriptors.tobytes()
    assert first.content == second.content
    without = describe(graph, photos, cache=False)
    assert without.computed == 10 and without.descriptors.tobytes() == first.descriptors.tobytes()


def test_only_new_photos_are_computed(graph: DescriptorGraph, photos: list[str], tmp_path: Path) -> None:
    assert describe(graph, photos[:7]).computed == 7
    renamed = tmp_path / "renamed.jpg"
    renamed.write_bytes(Path(photos[0]).read_bytes())
    assert describe(graph, [*photos, str(renamed)]).computed == 3, "a name says nothing, bytes do"
    assert len(entries()) == 10


def test_entries_are_small(graph: DescriptorGraph, photos: list[str]) -> None:
    from fieldmark.methods.base import MOST_ENTRIES

    describe(graph, photos)
    assert {p.stat().st_size for p in entries()} == {2 * 192}
    assert 2 * MOST_ENTRIES <= 32 * 1024, "what a method may give at one scale"


@pytest.mark.parametrize("damage", ["cut", "empty", "longer", "zeros"])
def test_a_torn_entry_is_computed_again(graph: DescriptorGraph, photos: list[str], damage: str) -> None:
    whole = describe(graph, photos)
    victim = entries()[0]
    data = victim.read_bytes()
    torn = {"cut": data[:100], "empty": b"", "longer": data + b"x", "zeros": bytes(len(data))}[damage]
    victim.write_bytes(torn)
    again = describe(graph, photos)
    assert again.computed == 1 and again.descriptors.tobytes() == whole.descriptors.tobytes()
    assert victim.read_bytes() == data and describe(graph, photos).computed == 0


def test_whatever_changes_the_answer_changes_the_key(
    graph: DescriptorGraph, photos: list[str], tmp_path: Path
) -> None:
    def with_(**changes: object) -> DescriptorGraph:
        return replace(graph, preprocess=graph.preprocess.model_copy(update=changes))

    assert describe(graph, photos).computed == 10
    others = [
        with_(resize="pad"),
        with_(color_space="lab"),
        with_(interpolation="bilinear"),
        with_(mean=(0.5, 0.5, 0.5)),
        with_(std=(0.5, 0.5, 0.5)),
        with_(crop_pct=0.5),
        tiny_graph(tmp_path, "other weights", gain=2.0),
    ]
    for other in others:
        assert describe(other, photos).computed == 10
    assert describe(graph, photos, engine="openvino").computed == 10
    assert describe(graph, photos, engine="openvino", precision="bf16").computed == 10
    assert describe(graph, photos).computed == 0, "and none of them stood in its way"


def test_graph_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph's own key holds weights, method, size and scales (no graph is exported here)."""
    from fieldmark.methods import descriptor

    made = []

    def note(source, method, size, scales, graph, note, weights):  # type: ignore[no-untyped-def]
        made.append(graph.stem)
        facts = '{"native": 8, "widths": [1], "scales": [8], "preprocess": {}, "parity": 0}'
        for path, text in ((graph, ""), (note, facts), (weights, "")):
            path.write_text(text)

    monkeypatch.setattr(descriptor, "_export", note)
    sources = {"a": Source("net", None, "a", {}), "b": Source("net", None, "b", {})}
    monkeypatch.setattr(descriptor, "resolve", lambda name, **_: sources[name])
    calls = [
        ("a", "plain", None, ()),
        ("b", "plain", None, ()),
        ("a", "isqrt_cov", None, ()),
        ("a", "plain", 64, ()),
        ("a", "plain", 64, (64, 32)),
        ("a", "plain", 64, (32,)),
    ]
    keys = [descriptor.descriptor_graph(b, m, size=s, scales=k).key for b, m, s, k in calls]
    assert len(set(keys)) == len(calls) == len(made)
    again = descriptor.descriptor_graph("a", "plain", size=64, scales=(32, 64))
    assert again.key == keys[4] and len(made) == len(calls), "in any order of scales"


def test_unreadable_photos_are_listed(graph: DescriptorGraph, photos: list[str], tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("no photo")
    cut = tmp_path / "cut.png"
    cut.write_bytes(Path(photos[0]).read_bytes()[:150])
    paths = [
        str(tmp_path / "empty.jpg"),
        photos[0],
        str(cut),
        str(tmp_path / "gone.jpg"),
        str(tmp_path / "text.jpg"),
    ]
    for _ in range(2):  # the second time from the cache
        found = describe(graph, paths)
        assert sorted(found.errors) == [0, 2, 3, 4]
        assert found.errors[0] == "file is empty" and found.errors[3] == "no such file"
        assert "truncated" in found.errors[2] and "text" in found.errors[4]
        assert (found.descriptors[[0, 2, 3, 4]] == 0).all() and found.descriptors[1].any()


def test_progress_ends_with_all(graph: DescriptorGraph, photos: list[str]) -> None:
    seen: list[int] = []
    Describer(graph, engine="onnxruntime", workers=2)(photos * 7, seen.append)
    assert seen == [32, 64, 70]


def test_no_photos(graph: DescriptorGraph) -> None:
    found = describe(graph, [])
    assert found.descriptors.shape == (0, 192) and found.computed == 0


def test_memory_is_bounded(
    graph: DescriptorGraph, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However slowly rows are taken: few photos are in flight, and large matrices live in a file."""
    started, most, taken = [0], [0], [0]
    lock = threading.Lock()
    real = features.image.read

    def read(path: str) -> bytes:
        with lock:
            started[0] += 1
            most[0] = max(most[0], started[0] - taken[0])
        return real(path)

    monkeypatch.setattr(features.image, "read", read)
    monkeypatch.setattr(features, "IN_MEMORY", 1000)
    found = Describer(graph, engine="onnxruntime", workers=2)(
        photos * 40, lambda done: taken.__setitem__(0, done)
    )
    assert isinstance(found.descriptors, np.memmap) and started[0] == 400
    assert most[0] <= 2 * 8 + 2 + 32, "in flight, and what progress has not told yet"
    plain = describe(graph, photos).descriptors
    np.testing.assert_array_equal(np.asarray(found.descriptors[:10]), np.asarray(plain))


@pytest.mark.parametrize("room", [0, 1 << 30])
def test_rows_and_columns(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "IN_MEMORY", room)
    monkeypatch.setattr(features, "BLOCK", 3)
    z = np.arange(40, dtype=np.float16).reshape(8, 5)
    rows = np.array([7, 0, 2, 3, 6])
    some, both = features.select(z, rows), features.beside(z, z[:, :2] + 1)
    assert isinstance(some, np.memmap) == isinstance(both, np.memmap) == (room == 0)
    np.testing.assert_array_equal(some, z[rows])
    np.testing.assert_array_equal(both, np.concatenate([z, z[:, :2] + 1], 1))


def test_no_room_for_the_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Said in a line, before any work: a full disk under a memory map would kill the process."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system cannot reserve room")
    with pytest.raises(FieldmarkError, match="FIELDMARK_CACHE"):
        features._matrix(1 << 30, 1 << 20)  # 2 PB


def test_a_cache_that_cannot_be_written_ends_nothing(
    graph: DescriptorGraph, photos: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = describe(graph, photos, cache=False)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features, "atomic_write", full)
    describer = Describer(graph, engine="onnxruntime", workers=2)
    found = describer(photos)
    assert found.descriptors.tobytes() == whole.descriptors.tobytes() and not found.errors
    assert "No space left" in str(describer.cache_error)


def _in_a_process(folder: str, paths: list[str]) -> tuple[bytes, int]:
    os.environ["FIELDMARK_CACHE"] = str(Path(folder) / "cache")
    found = describe(tiny_graph(Path(folder) / str(os.getpid())), paths)
    return found.descriptors.tobytes(), found.computed


def test_two_processes_at_once(tmp_path: Path, photos: list[str]) -> None:
    context = multiprocessing.get_context("spawn")
    with context.Pool(2, initializer=_own_folder, initargs=(str(tmp_path),)) as pool:
        answers = pool.starmap(_in_a_process, [(str(tmp_path), photos * 5)] * 2, chunksize=1)
    assert answers[0][0] == answers[1][0]
    assert answers[0][1] + answers[1][1] >= 10
    assert len(entries()) == 10, "no temporary files are left"
    assert describe(tiny_graph(tmp_path), photos).computed == 0


def _own_folder(folder: str) -> None:
    (Path(folder) / str(os.getpid())).mkdir()
