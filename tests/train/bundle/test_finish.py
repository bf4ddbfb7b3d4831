"""From trained weights to a recogniser: its graph, its head and its constants say what the network says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fieldmark.data.loader import Loader, Photos
from fieldmark.methods.descriptor import build
from fieldmark.runtime.decision import fit_temperature
from fieldmark.train.bundle import finish
from fieldmark.train.bundle.finish import KNOWN, KNOWN_LEAST, finished, known_within


@pytest.fixture(scope="module")
def ended(network: Callable[..., Any], look: Callable[..., Any], tmp_path_factory: Any) -> SimpleNamespace:
    seen, told = look(6), []
    net = network()
    with torch.no_grad():
        for parameter in net.module.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    method = net.finish()
    held = np.arange(24) % 6 == 0
    folder = tmp_path_factory.mktemp("finished")
    trained = finished(
        method, seen.looked, held, "isqrt_cov", seen.instant.settings, folder, lambda *at: told.append(at), 12
    )
    return SimpleNamespace(**vars(seen), trained=trained, method=method, held=held, folder=folder, told=told)


def test_how_many_photos_are_looked_at_again() -> None:
    assert known_within(None, 1.0) == known_within(600.0, 50.0) == known_within(1e6, 1.0) == KNOWN
    assert known_within(120.0, 100.0) == 600 and known_within(60.0, 10.0) == KNOWN_LEAST


def logits(ended: SimpleNamespace, rows: np.ndarray) -> np.ndarray:
    paths = [ended.looked.paths[row] for row in rows]
    images = Loader(Photos(paths), ended.trained.graph.preprocess).clean(np.arange(len(paths)))
    with torch.no_grad():
        return ended.method(images).numpy()


def test_answers_are_the_networks(ended: SimpleNamespace) -> None:
    trained, rows = ended.trained, np.flatnonzero(ended.held)
    expected = logits(ended, rows)
    assert np.array_equal(trained.judged.rows, rows) and trained.judged.how == "held out"
    scale = np.abs(expected).max()
    np.testing.assert_allclose(trained.judged.logits, expected, atol=2e-2 * scale)
    assert trained.mode == "finetune" and trained.paths == ended.looked.paths
    assert trained.evaluation().n == len(rows)


def test_the_temperature_is_of_the_held_out_photos(ended: SimpleNamespace) -> None:
    judged = ended.trained.judged
    expected = fit_temperature(judged.logits, ended.looked.y[judged.rows])
    assert judged.temperature == expected == ended.trained.head.temperature


def test_photos_for_classes_to_come_were_learned_from(ended: SimpleNamespace) -> None:
    known = ended.trained.known
    assert known.z.shape == (12, sum(ended.trained.graph.widths)) and sorted(set(known.y)) == [0, 1, 2, 3]
    assert ended.told[-1] == ("looking at photos again", 16, 16), "held-out photos and those that are kept"
    learned = np.flatnonzero(~ended.held)
    paths = [ended.looked.paths[row] for row in learned]
    images = Loader(Photos(paths), ended.trained.graph.preprocess).clean(np.arange(len(paths)))
    with torch.no_grad():
        all_of_them = ended.method.describe(images).numpy()
    gaps = np.abs(known.z[:, None].astype(np.float32) - all_of_them[None]).max(2).min(1)
    assert gaps.max() < 2e-2, "none of them judges"


def test_the_files_hold_the_learned_weights(ended: SimpleNamespace) -> None:
    graph, before = ended.trained.graph, ended.looked.graph
    assert graph.path == ended.folder / "finetuned.onnx" and graph.path.is_file() and graph.parity < 1e-2
    assert graph.key != before.key and len(graph.key) == len(before.key) and graph.widths == before.widths
    weights = load_file(graph.weights)
    assert not any(name.startswith(("head.", "projection.")) for name in weights)
    plain = build(graph.source, graph.method, 32, ())
    assert weights.keys() == plain.state_dict().keys()
    plain.load_state_dict(weights)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            plain.describe(images), ended.method.describe(images), rtol=1e-4, atol=1e-5
        )


def test_other_weights_have_another_key(ended: SimpleNamespace, tmp_path: Path) -> None:
    same = finish._graph(ended.method, ended.looked.graph, "isqrt_cov", tmp_path)
    assert same.key == ended.trained.graph.key
    with torch.no_grad():
        next(ended.method.backbone.parameters()).mul_(1.01)
    assert finish._graph(ended.method, ended.looked.graph, "isqrt_cov", tmp_path).key != same.key
    with torch.no_grad():
        next(ended.method.backbone.parameters()).div_(1.01)
