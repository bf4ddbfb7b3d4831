"""The textbook network: its layers, its weights at the start, its sizes, its graph."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark.methods.cnn import (
    MOST_READ,
    Options,
    Stage,
    TextbookCNN,
    map_side,
    parse_stages,
    summary,
)
from fieldmark.nn.graph import export
from fieldmark.runtime.errors import FieldmarkError, UsageError

SMALL = Options(stages="4@3 6@5", hidden=10)
KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "leaky": {"activation": "leaky_relu", "pooling": "average"},
    "sigmoid": {"activation": "sigmoid", "batch_norm": False},
    "strides": {"activation": "tanh", "pooling": "none", "stages": "2*4@5/2 6@1 6@3/2"},
    "lstm": {"head": "recurrent", "dropout": 0.0},
    "gru": {"head": "recurrent", "cell": "gru", "batch_norm": False},
}


def make(size: int = 12, classes: int = 3, seed: int = 0, **options: Any) -> TextbookCNN:
    generator = torch.Generator().manual_seed(seed)
    return TextbookCNN(Options.of({**dict(SMALL), **options}), classes, size, generator).eval()


def images(batch: int, size: int = 12, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_shapes_and_head(self, kind):
        for size, classes in ((8, 1), (13, 3), (40, 7)):
            model, x = make(size, classes, **KINDS[kind]), images(2, size)
            with torch.inference_mode():
                logits, features = model(x), model.features(x)
                torch.testing.assert_close(model.head(model.describe(x)), logits)
            assert logits.shape == (2, classes) and logits.isfinite().all()
            assert features["embedding"].shape == (2, 10)
            side = map_side(model.options, size)
            assert features["map"].shape == (2, 6, side, side)
            torch.testing.assert_close(features["embedding"].norm(dim=1), torch.ones(2))

    def test_alone_or_among_others(self, kind):
        model, x = make(**KINDS[kind]), images(4)
        with torch.inference_mode():
            whole = model(x)
            for row in range(4):
                torch.testing.assert_close(model(x[row : row + 1])[0], whole[row], rtol=1e-4, atol=1e-5)
        assert (whole[0] - whole[1]).abs().max() > 1e-5

    def test_every_weight_is_trained(self, kind):
        model = make(**KINDS[kind]).train()
        model(images(4)).logsumexp(1).sum().backward()
        assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_graph(self, kind, tmp_path: Path):
        model = make(size=20, **KINDS[kind])
        assert export(model, images(3, 20), tmp_path / "graph.onnx", "logits").error < 1e-4

    def test_summary(self, kind):
        rows = summary(make(**KINDS[kind]).options, 12, 3)
        assert sum(row.parameters for row in rows) == sum(p.numel() for p in make(**KINDS[kind]).parameters())
        assert rows[-1].shape == (3,) and rows[-1].name == "head"


def test_against_layers_written_out():
    """stage: convolution, norm, activation, pooling; head: dense, activation, linear."""
    model, x = make(), images(5)
    f = nn.functional
    with torch.inference_mode():
        model.stages.stage1.norm1.running_mean.normal_()  # type: ignore[union-attr, operator]
        map_ = x
        stage: Any
        for stage in model.stages:
            map_ = f.conv2d(map_, stage.conv1.weight, padding=stage.conv1.weight.shape[-1] // 2)
            norm: Any = stage.norm1
            scale = norm.weight / (norm.running_var + norm.eps).sqrt()
            map_ = (map_ - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]
            map_ = map_.clamp_min(0).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
        dense: Any = model.neck.dense
        hidden = (map_.reshape(5, -1) @ dense.weight.T + dense.bias).clamp_min(0)
        torch.testing.assert_close(
            model(x), hidden @ model.head.weight.T + model.head.bias, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_the_recurrent_head_reads_rows_from_top_to_bottom(cell):
    model, x = make(head="recurrent", cell=cell), images(2)
    neck: Any = model.neck
    with torch.inference_mode():
        map_ = model.map(x)
        state = None
        for row in range(map_.shape[2]):
            step, state = neck.rows(map_[:, :, row].reshape(2, 1, -1), state)
        torch.testing.assert_close(model.describe(x), step[:, 0])
        assert not torch.allclose(model(x), model(x.flip(2)), atol=1e-4)


def test_large_photos_do_not_make_a_large_head():
    counts = {size: sum(p.numel() for p in make(size).parameters()) for size in (32, 64, 224)}
    assert counts[64] <= counts[32] and counts[224] <= counts[32]
    model = make(72)
    with torch.inference_mode():
        assert model.map(images(1, 72)).shape[-1] == 18 > MOST_READ
        mean = nn.functional.avg_pool2d(model.map(images(1, 72)), 3)
        torch.testing.assert_close(model.average(model.map(images(1, 72))), mean)


def test_too_small():
    with pytest.raises(FieldmarkError, match=r"15 px are too small .* at least 16 px") as caught:
        make(15, stages="4 4 4 4")
    assert "\n" not in str(caught.value)
    assert make(16, stages="4 4 4 4")(images(1, 16)).shape == (1, 3)
    assert make(8, stages="4/2 4/2 4/2 4/2", pooling="none")(images(1, 8)).shape == (1, 3)
    with pytest.raises(FieldmarkError, match="too small"):  # no size would do
        TextbookCNN(Options.of({"stages": "8/2 8/2 8/2 8/2 8/2 8/2 8/2 8/2"}), 2, 64)
    with pytest.raises(FieldmarkError, match="at least 8 px"):
        make(7, stages="4")
    with pytest.raises(UsageError, match="classes is 0"):
        make(classes=0)
    with pytest.raises(FieldmarkError, match=r"are not \[B, 3, 12, 12\]"):
        make(12)(images(1, 13))


# -- the start


@pytest.mark.parametrize(
    "activation, variance",
    [
        ("relu", lambda fan_in, fan_out: 2 / fan_in),
        ("leaky_relu", lambda fan_in, fan_out: 2 / (1 + 0.01**2) / fan_in),
        ("sigmoid", lambda fan_in, fan_out: 4**2 * 2 / (fan_in + fan_out)),
        ("tanh", lambda fan_in, fan_out: (5 / 3) ** 2 * 2 / (fan_in + fan_out)),
    ],
)
def test_variance_of_the_first_weights(activation, variance):
    model = make(stages="64@5 64@3", hidden=64, activation=activation, batch_norm=False)
    conv: Any = model.stages.stage2.conv1  # type: ignore[union-attr]
    dense: Any = model.neck.dense
    for layer, inputs, outputs in ((conv, 64 * 9, 64 * 9), (dense, 64 * 9, 64)):
        assert layer.weight.var().item() == pytest.approx(variance(inputs, outputs), rel=0.05)
        assert not layer.bias.any()


def test_recurrent_weights_at_the_start():
    rows: Any = make(head="recurrent", hidden=16).neck.rows
    for gate in rows.weight_hh_l0.chunk(4):
        torch.testing.assert_close(gate @ gate.T, torch.eye(16), rtol=1e-4, atol=1e-5)
    bias = (rows.bias_ih_l0 + rows.bias_hh_l0).reshape(4, 16)
    assert torch.equal(bias, torch.tensor([0.0, 1, 0, 0])[:, None].expand(4, 16))


def test_the_signal_passes_deep_networks():
    """Kaiming and Xavier keep the activations' size: neither vanishing nor exploding over eight layers."""
    for activation in ("relu", "leaky_relu", "tanh"):
        model = make(32, stages="4*32 4*32", activation=activation, batch_norm=False, pooling="none")
        with torch.inference_mode():
            assert 0.1 < model.map(images(8, 32)).std() < 3, activation


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid"])
def test_the_gradient_passes_deep_networks(activation):
    model = make(16, stages="3*16 3*16", activation=activation, batch_norm=False, pooling="none")
    model(images(8, 16)).logsumexp(1).sum().backward()
    first, last = (
        model.get_submodule(f"stages.{name}").weight.grad.norm().item()  # type: ignore[union-attr, operator]
        for name in ("stage1.conv1", "stage2.conv3")
    )
    assert 0.005 < first / last < 10  # a sigmoid with a gain of 1: 0.00009


def test_the_seed_decides():
    one, two, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(one(images(2)), two(images(2)))
    assert not torch.equal(one(images(2)), other(images(2)))


def test_it_learns():
    """Which half of the photo is brighter: from noise, in a second, with every head."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 8, 8, generator=generator)
    y = torch.arange(64) % 2
    x[y == 0, :, :4] += 1
    x[y == 1, :, 4:] += 1
    for head in ("dense", "recurrent"):
        model = make(8, 2, head=head).train()
        adam = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(30):
            adam.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            adam.step()
        with torch.inference_mode():
            assert (model.eval()(x).argmax(1) == y).float().mean() > 0.95, head


# -- options


def test_stages_in_a_line():
    options = Options(stages="2*32@3, 64@5/2 8")  # type: ignore[arg-type]
    assert options.stages == (
        Stage(channels=32, convolutions=2),
        Stage(channels=64, kernel=5, stride=2),
        Stage(channels=8),
    )
    assert Options(stages=options.compact) == options  # type: ignore[arg-type]
    assert options.compact == "2*32@3 64@5/2 8@3"
    assert parse_stages("7") == ({"channels": 7},)
    assert Options.model_validate_json(options.model_dump_json()) == options


@pytest.mark.parametrize(
    "wrong, words",
    [
        ({"stages": "32x3"}, "write N"),
        ({"stages": ""}, "stages"),
        ({"stages": "32@4"}, "kernel"),
        ({"stages": "32/3"}, "stride"),
        ({"activation": "elu"}, "activation"),
        ({"dropout": 1.0}, "dropout"),
        ({"colour": 1}, "colour"),
        ({"hidden": 0}, "hidden"),
    ],
)
def test_options_that_cannot_be(wrong, words):
    with pytest.raises(UsageError, match=words) as caught:
        Options.of(wrong)
    assert "\n" not in str(caught.value)


def test_summary_by_hand():
    rows = summary(Options(stages="4@3 6@5/2", hidden=10), 12, 3)  # type: ignore[arg-type]
    shapes = {row.name.removeprefix("stages."): (row.shape, row.parameters) for row in rows}
    assert shapes["stage1.conv1"] == ((4, 12, 12), 3 * 4 * 9)
    assert shapes["stage1.norm1"] == ((4, 12, 12), 8)
    assert shapes["stage1.pool"] == ((4, 6, 6), 0)
    assert shapes["stage2.conv1"] == ((6, 3, 3), 4 * 6 * 25)
    assert shapes["stage2.pool"] == ((6, 1, 1), 0)
    assert shapes["neck.dense"] == ((10,), 6 * 10 + 10)
    assert shapes["head"] == ((3,), 33)
    assert math.prod(rows[0].shape) == 576 and np.all([row.parameters >= 0 for row in rows])
