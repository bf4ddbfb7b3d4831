"""PyTorch as an engine gives what the compiled engines give."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from fieldmark.methods.descriptor import OUTPUT, descriptor_graph
from fieldmark.runtime.engine import compile_graph
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.train import features


@pytest.fixture(scope="module")
def graph():  # type: ignore[no-untyped-def]
    return descriptor_graph("test_efficientnet", "isqrt_cov", size=96, pretrained=False)


def test_same_descriptors_from_many_threads(graph) -> None:  # type: ignore[no-untyped-def]
    from fieldmark.methods.torch_engine import TorchEngine

    images = np.random.default_rng(0).normal(size=(6, 1, 3, 96, 96)).astype(np.float32)
    compiled = compile_graph(graph.path, outputs=[OUTPUT], engine="onnxruntime")
    engine = TorchEngine(graph)
    with ThreadPoolExecutor(3) as pool:
        mine = list(pool.map(lambda x: engine.run(x, [OUTPUT])[0], images))
    for x, z in zip(images, mine, strict=True):
        np.testing.assert_allclose(z, compiled.run(x, [OUTPUT])[0], atol=1e-3)


def test_only_its_own_output_and_precision(graph) -> None:  # type: ignore[no-untyped-def]
    from fieldmark.methods.torch_engine import TorchEngine

    with pytest.raises(UsageError, match="openvino"):
        TorchEngine(graph, "bf16")
    with pytest.raises(UsageError, match="descriptor"):
        TorchEngine(graph).run(np.zeros((1, 3, 96, 96), np.float32), ["logits"])


def test_taken_where_no_engine_compiles(graph, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    def refuse(*args: object, **more: object) -> None:
        raise FieldmarkError("no engine can run this")

    monkeypatch.setattr(features, "compile_graph", refuse)
    assert features.Describer(graph).engine.name == "torch"
    with pytest.raises(FieldmarkError, match="no engine"):
        features.Describer(graph, engine="openvino")


def test_never_taken_for_a_trained_backbone(graph, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """PyTorch would build it as it came."""
    trained = replace(graph, trained=True)
    assert features.Describer(trained, engine="torch").engine.name != "torch"

    def refuse(*args: object, **more: object) -> None:
        raise FieldmarkError("no engine can run this")

    monkeypatch.setattr(features, "compile_graph", refuse)
    for engine in ("torch", "auto"):
        with pytest.raises(FieldmarkError, match="no engine"):
            features.Describer(trained, engine=engine)
