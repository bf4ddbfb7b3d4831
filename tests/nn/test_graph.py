"""A graph is written only if it says what its module says; the module is left as it was."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fieldmark.nn import graph
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.graph import TOLERANCE, export, parity, plain_attention
from fieldmark.nn.weights import Source
from fieldmark.runtime.engine import ENGINES, compile_graph
from fieldmark.runtime.errors import FieldmarkError


class Embedding(nn.Module):
    """A backbone's embedding alone."""

    def __init__(self, name: str, size: int):
        super().__init__()
        self.backbone = Backbone(Source(name, None, "random", {}), size)

    def forward(self, images: Tensor) -> Tensor:
        return self.backbone(images).embedding


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).relu().mean((2, 3))


def images(batch: int = 3, size: int = 32) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def refused(module: nn.Module, path: Path) -> str:
    with pytest.raises(FieldmarkError) as caught:
        export(module, images(), path, "y")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name, size", [("test_resnet", 64), ("test_vit", 64), ("test_efficientnet", 64)])
def test_both_engines_say_what_the_module_says(tmp_path, name, size):
    module, x = Embedding(name, size), images(5, size)
    made = export(module, images(2, size), tmp_path / "graph.onnx", "embedding")
    assert made.error <= TOLERANCE and made.exporter == "trace"
    with torch.inference_mode():
        expected = module(x).numpy()
    for engine in ENGINES:
        (ours,) = compile_graph(tmp_path / "graph.onnx", outputs=["embedding"], engine=engine).run(
            x.numpy(), ["embedding"]
        )
        assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-4, engine


def test_the_second_rung(tmp_path, monkeypatch):
    """Where tracing fails, the other exporter serves, with any batch."""
    real = graph._export

    def no_trace(*arguments: object) -> None:
        if arguments[-1] == "trace":
            raise RuntimeError("tracing failed here\nwith a long story")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(graph, "_export", no_trace)
    module = Small()
    made = export(module, images(), tmp_path / "graph.onnx", "y")
    assert made.exporter == "dynamo" and made.error < 1e-5
    with torch.inference_mode():
        expected = module(images(7)).numpy()
    (ours,) = compile_graph(tmp_path / "graph.onnx", outputs=["y"]).run(images(7).numpy(), ["y"])
    np.testing.assert_allclose(ours, expected, atol=1e-5)


class Restless(Small):
    """Never says the same twice."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.rand(1)


class Frozen(Small):
    """Its batch is written into the traced graph."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) + torch.zeros(len(images), 1)


class Nothing(Small):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) * float("nan")


@pytest.mark.parametrize("kind", [Restless, Nothing, Frozen])
def test_other_answers_are_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(graph, "_export", _only_trace(graph._export))
    (tmp_path / "graph.onnx").write_bytes(b"what was there")
    message = refused(kind(), tmp_path / "graph.onnx")
    assert kind.__name__ in message and "trace: " in message
    assert (tmp_path / "graph.onnx").read_bytes() == b"what was there"


def _only_trace(real):  # type: ignore[no-untyped-def]
    def one(*arguments: object) -> None:
        if arguments[-1] != "trace":
            raise RuntimeError("not now")
        real(*arguments)

    return one


def test_parity_is_relative_and_asks_for_one_image_too(tmp_path):
    module, x = Small(), images(4)
    graph._export(module, x, tmp_path / "graph.onnx", "y", "trace")
    with torch.inference_mode():
        expected = module(x).numpy()
    assert parity(tmp_path / "graph.onnx", x.numpy(), expected, "y") < 1e-6
    off = expected.copy()
    off[2, 1] += 0.1 * np.abs(expected).max()
    assert parity(tmp_path / "graph.onnx", x.numpy(), off, "y") == pytest.approx(0.1, rel=0.1)


def fused(module: nn.Module) -> list[bool]:
    return [bool(m.fused_attn) for m in module.modules() if hasattr(m, "fused_attn")]


def test_fused_attention_comes_back(tmp_path):
    module = Embedding("test_vit", 64)
    before = fused(module)
    assert before and all(before)
    with pytest.raises(KeyError), plain_attention(module):
        assert not any(fused(module))
        raise KeyError
    assert fused(module) == before
    export(module, images(2, 64), tmp_path / "graph.onnx", "embedding")
    assert fused(module) == before


def test_attention_that_was_plain_stays_plain():
    module = Embedding("test_vit", 64)
    first = next(m for m in module.modules() if hasattr(m, "fused_attn"))
    first.fused_attn = False  # type: ignore[assignment]
    before = fused(module)
    with plain_attention(module):
        pass
    assert fused(module) == before and not before[0] and any(before)


def test_plain_attention_says_the_same():
    module, x = Embedding("test_vit", 64), images(2, 64)
    with torch.inference_mode():
        expected = module(x)
        with plain_attention(module):
            torch.testing.assert_close(module(x), expected, atol=1e-5, rtol=1e-4)


def test_it_is_quiet_and_leaves_no_trace(tmp_path, capfd):
    level, filters = logging.root.manager.disable, list(warnings.filters)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export(Small(), images(), tmp_path / "graph.onnx", "y")
    assert logging.root.manager.disable == level and list(warnings.filters) == filters
    out, err = capfd.readouterr()
    assert out == "" and err == ""


class Choosing(nn.Module):
    """It shows what lies where a wave is highest: the shorter the wave, the less it takes to be elsewhere."""

    def __init__(self, frequency: float, wrong: float = 0.0):
        super().__init__()
        self.frequency, self.wrong = frequency, wrong

    def forward(self, images: Tensor) -> Tensor:
        here = images.flatten(2)
        where = (self.frequency * here[:, 0]).sin().argmax(1, keepdim=True)
        if torch.onnx.is_in_onnx_export():
            here = here + self.wrong
        return here.gather(2, where[:, None].expand(-1, 3, -1))[..., 0]


def test_no_graph_must_be_nearer_than_a_choosing_module_is_to_itself() -> None:
    x = images(5)
    with torch.inference_mode():
        sure, torn = (
            graph.rounding(lambda y, one=one: one(torch.from_numpy(y)).numpy(), x.numpy(), one(x).numpy())
            for one in (Choosing(1e-3), Choosing(1e7))
        )
    assert sure < TOLERANCE < torn


def test_a_wrong_graph_of_a_choosing_module_is_refused(tmp_path: Path) -> None:
    assert export(Choosing(1e-3), images(5), tmp_path / "g.onnx", "y", selects=True).error <= TOLERANCE
    with pytest.raises(FieldmarkError, match="differ by"):
        export(Choosing(1e-3, wrong=0.1), images(5), tmp_path / "g.onnx", "y", selects=True)
