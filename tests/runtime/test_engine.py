"""Both engines compute the same, in the precision that was asked for, for many threads, and tell nobody."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldmark.runtime.engine import ENGINES, Engine, compile_graph, import_openvino
from fieldmark.runtime.errors import FieldmarkError, UsageError

OUTPUTS = ["logits", "embedding"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """images -> two convolutions -> embedding [B, 32], logits [B, 5]."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    dice = np.random.default_rng(0)
    arrays = {
        "w1": dice.normal(size=(64, 3, 3, 3)) / 3,
        "w2": dice.normal(size=(32, 64, 3, 3)) / 12,
        "w3": dice.normal(size=(32, 5)),
    }
    nodes = [
        helper.make_node("Conv", ["images", "w1"], ["c1"]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"]),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"]),
        helper.make_node("Flatten", ["p"], ["embedding"]),
        helper.make_node("MatMul", ["embedding", "w3"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"])],
        [
            helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 5]),
            helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", 32]),
        ],
        [numpy_helper.from_array(v.astype(np.float32), k) for k, v in arrays.items()],
    )
    path = tmp_path_factory.mktemp("engine") / "small, ü.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))
    return path


@pytest.fixture(scope="module")
def engines(model: Path) -> dict[str, Engine]:
    return {name: compile_graph(model, outputs=OUTPUTS, engine=name, workers=2) for name in ENGINES}


def images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_the_engines_agree(engines):
    x = images(3, 3, 24, 24)
    for one, other in zip(*(engine.run(x, OUTPUTS) for engine in engines.values()), strict=True):
        assert one.dtype == other.dtype == np.float32
        assert relative(one, other) < 1e-4


@pytest.mark.parametrize("name", ENGINES)
class TestEachEngine:
    def test_outputs_come_in_the_asked_order(self, engines, name):
        x = images(2, 3, 20, 20)
        logits, embedding = engines[name].run(x, OUTPUTS)
        assert logits.shape == (2, 5) and embedding.shape == (2, 32)
        swapped = engines[name].run(x, ["embedding", "logits"])
        np.testing.assert_array_equal(swapped[0], embedding)
        np.testing.assert_array_equal(swapped[1], logits)

    def test_any_batch_and_layout(self, engines, name):
        """A photo's answer does not depend on its neighbours, nor on how its numbers lie in memory."""
        x = images(4, 3, 20, 28)
        (whole,) = engines[name].run(x, ["logits"])
        for row in range(4):
            np.testing.assert_allclose(
                engines[name].run(x[row : row + 1], ["logits"])[0][0], whole[row], atol=1e-5
            )
        strided = np.moveaxis(np.ascontiguousarray(np.moveaxis(x, 1, -1)), -1, 1)
        np.testing.assert_array_equal(engines[name].run(strided, ["logits"])[0], whole)
        np.testing.assert_allclose(engines[name].run(x.astype(np.float64), ["logits"])[0], whole, atol=1e-6)

    def test_answers_stay_as_they_were(self, engines, name):
        """The next run does not write over them."""
        (first,) = engines[name].run(images(2, 3, 16, 16), ["logits"])
        kept = first.copy()
        engines[name].run(images(2, 3, 16, 16, seed=1), ["logits"])
        np.testing.assert_array_equal(first, kept)

    def test_eight_threads(self, engines, name):
        photos = [images(1, 3, 16, 16, seed=seed) for seed in range(64)]
        expected = [engines[name].run(photo, OUTPUTS) for photo in photos]
        with ThreadPoolExecutor(8) as pool:
            for _ in range(3):
                found = list(pool.map(lambda photo: engines[name].run(photo, OUTPUTS), photos))
                for answer, truth in zip(found, expected, strict=True):
                    for ours, theirs in zip(answer, truth, strict=True):
                        np.testing.assert_allclose(ours, theirs, atol=1e-6)

    def test_an_output_that_is_not_there(self, model, name):
        with pytest.raises(FieldmarkError, match="no engine can run") as caught:
            compile_graph(model, outputs=["nonsense"], engine=name)
        assert "\n" not in str(caught.value) and "nonsense'" in str(caught.value)

    @pytest.mark.parametrize("content", [None, b"", b"this is no graph"])
    def test_no_graph(self, tmp_path, name, content):
        path = tmp_path / "model.onnx"
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(FieldmarkError, match="no engine can run") as caught:
            compile_graph(path, outputs=["logits"], engine=name)
        assert "\n" not in str(caught.value) and "Exception from" not in str(caught.value)


def test_openvino_computes_only_the_asked_outputs(model):
    def operations(*outputs: str) -> set[str]:
        engine = compile_graph(model, outputs=outputs, engine="openvino")
        return {op.get_friendly_name() for op in engine._compiled.get_runtime_model().get_ops()}  # type: ignore[attr-defined]

    both = operations("logits", "embedding")
    assert {"logits", "embedding", "w3"} <= both
    assert "embedding" in operations("embedding") and not {"logits", "w3"} & operations("embedding")


# -- precision


def test_f32_is_f32(model, engines):
    """OpenVINO's own default is bf16 where the processor has it; then logits differ by a hundred times as much."""
    x = images(8, 3, 32, 32)
    (exact,) = engines["onnxruntime"].run(x, ["logits"])
    full = engines["openvino"]
    assert full.precision == "f32"
    error = relative(full.run(x, ["logits"])[0], exact)
    assert error < 1e-5
    if "BF16" in import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        short = compile_graph(model, outputs=["logits"], engine="openvino", precision="bf16")
        assert short.precision == "bf16"
        assert 1e-2 > relative(short.run(x, ["logits"])[0], exact) > max(20 * error, 1e-4)


def test_the_precision_told_is_the_one_computed_in(model, engines):
    """f16 becomes bf16 or f32 on a processor without it: what is told names cache entries."""
    x = images(8, 3, 32, 32)
    half = compile_graph(model, outputs=["logits"], engine="openvino", precision="f16")
    error = relative(half.run(x, ["logits"])[0], engines["onnxruntime"].run(x, ["logits"])[0])
    assert half.precision in ("f32", "bf16", "f16")
    assert (error < 1e-5) == (half.precision == "f32")


def test_onnxruntime_has_one_precision(model):
    with pytest.raises(UsageError, match="f32"):
        compile_graph(model, outputs=["logits"], engine="onnxruntime", precision="bf16")


@pytest.mark.parametrize("wrong", [{"engine": "tensorrt"}, {"precision": "f64"}, {"precision": ""}])
def test_wrong_words_are_usage_errors(model, wrong):
    with pytest.raises(UsageError, match="unknown"):
        compile_graph(model, outputs=["logits"], **wrong)


# -- which engine


def test_auto_takes_openvino_and_falls_back(model, monkeypatch):
    assert compile_graph(model, outputs=["logits"]).name == "openvino"

    def absent(*_: Any) -> None:
        raise ImportError("no such thing here")

    monkeypatch.setattr("fieldmark.runtime.engine.OpenVinoEngine.__init__", absent)
    assert compile_graph(model, outputs=["logits"]).name == "onnxruntime"
    with pytest.raises(FieldmarkError, match="no such thing here"):
        compile_graph(model, outputs=["logits"], engine="openvino")
    with pytest.raises(FieldmarkError, match=r"no such thing here.*f32"):
        compile_graph(model, outputs=["logits"], precision="bf16")


# -- in a fresh process

FRESH = """
import builtins, faulthandler, json, sys, threading, time
faulthandler.dump_traceback_later(45, exit=True)
asked = []
def watch(event, arguments):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"):
        asked.append([event, repr(arguments)])
        raise PermissionError("the tests ask nobody")
sys.addaudithook(watch)
import numpy as np
from fieldmark.runtime.engine import compile_graph
engine = compile_graph(sys.argv[1], outputs=["logits"], engine="openvino", workers=2)
def slow(*arguments, _real=builtins.__import__, **more):
    time.sleep(0.05)  # another thread takes over
    return _real(*arguments, **more)
builtins.__import__ = slow
barrier, answers = threading.Barrier(8), []
def first():
    x = np.ones((1, 3, 16, 16), np.float32)
    barrier.wait()
    answers.append(engine.run(x, ["logits"])[0].tolist())
threads = [threading.Thread(target=first) for _ in range(8)]
[t.start() for t in threads], [t.join() for t in threads]
builtins.__import__ = slow.__kwdefaults__["_real"]
import openvino.tools.ovc.telemetry_utils as utils
loaded = sorted(name for name in sys.modules if name.startswith("openvino_telemetry"))
print(json.dumps({"asked": asked, "stub": utils.tm.__name__, "loaded": loaded, "answers": answers}))
"""


def test_first_answers_on_many_threads_and_no_word_to_anyone(model, tmp_path):
    """In a new home, outside CI, where openvino's counting would be on.

    The first answers come at the same moment on eight threads. openvino's own table of types, made at the first
    use, imports numpy; a thread that lets another one run meanwhile held all of them up for ever.
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("CI", "TF_BUILD", "JENKINS_URL")}
    environment |= {"HOME": str(tmp_path), "USERPROFILE": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(model)], capture_output=True, text=True, env=environment, timeout=90
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["asked"] == [] and found["loaded"] == []
    assert found["stub"] == "openvino.tools.ovc.telemetry_stub"
    assert not list(tmp_path.rglob("*openvino*")), "no identity was made up for this user"
    assert len(found["answers"]) == 8
    np.testing.assert_allclose(found["answers"], [found["answers"][0]] * 8, atol=1e-6)


def test_the_users_own_use_of_the_helper_is_left_alone(monkeypatch):
    mine = type(sys)("openvino_telemetry")
    monkeypatch.setitem(sys.modules, "openvino_telemetry", mine)
    import_openvino()
    assert sys.modules["openvino_telemetry"] is mine


def test_many_threads_may_import_it():
    barrier = threading.Barrier(4)

    def go(_: int) -> str:
        barrier.wait()
        return import_openvino().__name__

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(go, range(4))) == ["openvino"] * 4
    assert sys.modules.get("openvino_telemetry", "absent") is not None
