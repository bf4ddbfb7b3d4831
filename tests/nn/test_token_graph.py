"""Each piece of the token graph against a slow formula, one photo and one token at a time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldmark.nn.token_graph import (
    BottomUp,
    TokenGraph,
    TopDown,
    most_certain,
    of_the_answer,
    resized,
    select,
    suppression,
    tokens_of,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_tokens_are_positions_row_by_row():
    x = noise(2, 3, 4, 5)
    tokens = tokens_of(x)
    assert tokens.shape == (2, 20, 3)
    assert torch.equal(tokens[1, 2 * 5 + 3], x[1, :, 2, 3])


def test_scores_by_hand():
    logits = noise(3, 6, 4)
    for photo in range(3):
        p = softmax(logits[photo].numpy())
        answer = logits[photo].numpy().mean(0).argmax()
        np.testing.assert_allclose(most_certain(logits)[photo], p.max(1), rtol=1e-5)
        np.testing.assert_allclose(of_the_answer(logits)[photo], p[:, answer], rtol=1e-5)


def test_select_gives_the_best_first():
    tokens, score = noise(3, 7, 2), noise(3, 7, seed=1)
    picked, index = select(tokens, score, 4)
    for photo in range(3):
        order = np.argsort(-score[photo].numpy())[:4]
        assert index[photo].tolist() == order.tolist()
        np.testing.assert_array_equal(picked[photo], tokens[photo].numpy()[order])


@pytest.mark.parametrize("keep", [1, 3, 5])
def test_suppression_by_hand(keep):
    logits = noise(2, 5, 3)
    index = torch.stack(
        [torch.randperm(5, generator=torch.Generator().manual_seed(i))[:keep] for i in (0, 1)]
    )
    terms = [
        (np.tanh(logits[photo, token].numpy()) + 1) ** 2
        for photo in range(2)
        for token in range(5)
        if token not in index[photo]
    ]
    expected = np.mean(terms) if terms else 0.0
    assert float(suppression(logits, index)) == pytest.approx(expected, rel=1e-5)


def test_suppression_hushes_what_was_left_out_alone():
    logits = noise(1, 4, 3).requires_grad_()
    suppression(logits, torch.tensor([[2, 0]])).backward()
    assert logits.grad is not None
    assert logits.grad[0, [0, 2]].abs().max() == 0 and logits.grad[0, [1, 3]].min() > 0


def test_resized_to_half_is_the_mean_of_four():
    x = noise(2, 3, 6, 4)
    torch.testing.assert_close(resized(x, (3, 2)), torch.nn.functional.avg_pool2d(x, 2))
    assert resized(x, (6, 4)) is x


def test_top_down_by_hand():
    torch.manual_seed(0)
    pyramid = TopDown([4, 6, 8], 5)
    maps = [noise(2, 4, 8, 8), noise(2, 6, 4, 4), noise(2, 8, 2, 2)]
    own = [project(one) for project, one in zip(pyramid.project, maps, strict=True)]
    grow = torch.nn.Upsample(scale_factor=2, mode="bilinear")
    middle = own[1] + grow(own[2])
    for ours, expected in zip(pyramid(maps), [own[0] + grow(middle), middle, own[2]], strict=True):
        torch.testing.assert_close(ours, expected)


def test_top_down_does_not_see_the_scale_of_a_stage():
    torch.manual_seed(0)
    pyramid = TopDown([4, 6], 5)
    maps = [noise(2, 4, 4, 4), noise(2, 6, 2, 2)]
    for ours, expected in zip(pyramid([maps[0] * 50, maps[1]]), pyramid(maps), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-3, atol=1e-4)


def test_bottom_up_by_hand():
    torch.manual_seed(0)
    path = BottomUp(3, 5)
    maps = [noise(2, 5, 8, 8), noise(2, 5, 4, 4), noise(2, 5, 2, 2)]
    own = [project(one) for project, one in zip(path.project, maps, strict=True)]
    middle = own[1] + torch.nn.functional.avg_pool2d(own[0], 2)
    last = own[2] + torch.nn.functional.avg_pool2d(middle, 2)
    for ours, expected in zip(path(maps), [own[0], middle, last], strict=True):
        torch.testing.assert_close(ours, expected)


def test_graph_by_hand():
    torch.manual_seed(0)
    graph = TokenGraph(96, 8)
    torch.nn.init.normal_(graph.edges)
    torch.nn.init.constant_(graph.adaptive, 0.7)
    graph.norm.running_mean.normal_()  # type: ignore[union-attr]
    graph.norm.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]
    graph.eval()
    tokens = noise(2, 96, 8)
    with torch.no_grad():
        ours = graph(tokens)
    w = {name: p.detach().double().numpy() for name, p in graph.state_dict().items()}
    for photo in range(2):
        x = w["gather.weight"] @ tokens[photo].double().numpy() + w["gather.bias"][:, None]
        assert x.shape == (3, 8), "a node for every 32 tokens"
        mixed, y = x @ w["mix.weight"].T, np.zeros((3, 8))
        for j in range(3):
            for i in range(3):
                edge = w["edges"][i, j] + 0.7 * np.tanh(
                    w["query.weight"][0] @ x[i] - w["key.weight"][0] @ x[j]
                )
                y[j] += edge * mixed[i]
        y = (y - w["norm.running_mean"]) / np.sqrt(w["norm.running_var"] + 1e-5)
        y = y * w["norm.weight"] + w["norm.bias"]
        expected = w["join.weight"][0] @ y + w["join.bias"]
        np.testing.assert_allclose(ours[photo], expected, rtol=1e-4, atol=1e-5)


def test_a_graph_of_few_tokens_has_two_nodes():
    assert TokenGraph(3, 8).edges.shape == (2, 2)
    assert TokenGraph(3, 8)(noise(1, 3, 8)).shape == (1, 8), "one photo can be learned from"
