"""The class tree against enumeration: every legal state, every path, by hand."""

from __future__ import annotations

from itertools import product
from math import exp, log

import pytest
import torch

from fieldmark.nn.tree import Tree, shares_nll
from fieldmark.runtime.errors import UsageError

#: Seven classes: genera 0 to 3 (class 6: not known), families 1 and 0 (genus 3: not known).
GENUS = (0, 0, 1, 2, 2, 3, -1)
FAMILY = (1, 1, 1, 0, -1, -1, 0)


def tree() -> Tree:
    return Tree(7, [GENUS, FAMILY])


def scores(of: Tree, batch: int = 3, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, nodes, generator=generator, dtype=torch.float64) for nodes in of.sizes]


def paths(of: Tree) -> list[list[tuple[int, int]]]:
    """For every node, (level, number) of itself and its ancestors, the coarsest first."""
    answer = []
    for level, nodes in enumerate(of.sizes):
        for node in range(nodes):
            path, at = [], node
            for up in range(level, -1, -1):
                path.insert(0, (up, at))
                at = int(of.parent_of(up)[at])
            answer.append(path)
    return answer


def test_levels_and_ancestors():
    one = tree()
    assert one.depth == 3 and one.sizes == [3, 5, 7]
    assert one.groups == [[0, 1, -1], [0, 1, 2, 3, -1]]
    assert one.ancestors.tolist() == [
        [1, 0, 0],
        [1, 0, 1],
        [1, 1, 2],
        [0, 2, 3],
        [0, 2, 4],  # its genus says which family
        [2, 3, 5],  # genus 3 has none: a node of its own
        [0, 4, 6],  # no genus: a node of its own, below family 0
    ]
    assert one.known.tolist()[4:7] == [[True, True, True], [False, True, True], [True, False, True]]
    assert one.paths.tolist()[:7] == one.ancestors.tolist()
    assert one.paths.tolist()[7:] == [  # genera, then families
        *([1, 0, -1], [1, 1, -1], [0, 2, -1], [2, 3, -1], [0, 4, -1]),
        *([0, -1, -1], [1, -1, -1], [2, -1, -1]),
    ]
    assert one.known[10:12].tolist() == [[False, True, False], [True, False, False]]
    assert one.known[12:].tolist() == [[True, False, False], [True, False, False], [False, False, False]]
    assert [one.parent_of(level).tolist() for level in range(3)] == [
        [0, 0, 0],
        [1, 1, 0, 2, 0],
        [0, 0, 1, 2, 2, 3, 4],
    ]
    assert one.children_of(0).tolist() == [[0, 1, 2]]
    assert one.children_of(1).tolist() == [[2, 4], [0, 1], [3, 5]]


def test_data_that_contradict_themselves():
    """A genus in two families belongs to that of most of its classes; the smaller number where they are even."""
    one = Tree(5, [(0, 0, 0, 1, 1), (4, 2, 2, 4, 2)])
    assert one.ancestors.tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 2], [0, 1, 3], [0, 1, 4]]
    assert one.groups == [[2], [0, 1]]


def test_labels_of_any_rank():
    """Numbers go on after the classes: 7 to 11 are genera, 12 to 14 families. The finest known one is taken."""
    one = tree()
    assert one.labels([(3, -1, 0, 9, -1), (1, 1, -1, 0, -1)]) == [10, 13, 7, 12, -1]
    contradictory = Tree(3, [(0, 0, 0), (1, 1, 0)])
    assert contradictory.labels([(-1, -1), (0, 1)]) == [-1, 4], "no class is left in family 0"


def test_no_ranks():
    with pytest.raises(UsageError, match=r"fgn needs a tree.*\(CSV\).*family or order") as caught:
        Tree(3, [], "fgn")
    assert "\n" not in str(caught.value)


def test_softmax_over_siblings():
    one = tree()
    for level, values in enumerate(scores(one)):
        log_p = one.log_softmax(level, values)
        for photo in range(3):
            for node in range(one.sizes[level]):
                parent = one.parent_of(level)[node]
                siblings = [
                    exp(values[photo, other])
                    for other in range(one.sizes[level])
                    if one.parent_of(level)[other] == parent
                ]
                expected = log(exp(values[photo, node]) / sum(siblings))
                assert float(log_p[photo, node]) == pytest.approx(expected)


def test_the_chain_rule_gives_probabilities():
    one = tree()
    log_p = one.along_paths([one.log_softmax(level, v) for level, v in enumerate(scores(one))])
    for level in log_p:
        torch.testing.assert_close(level.exp().sum(1), torch.ones(3, dtype=torch.float64))
    by_family = log_p[2].exp().new_zeros(3, 3).index_add(1, one.ancestors[:, 0], log_p[2].exp())
    torch.testing.assert_close(by_family, log_p[0].exp())


def test_marginals_of_legal_states():
    """All 2^15 states of the nodes: legal are those that are one way down from the root, or nothing."""
    one = tree()
    values, legal = scores(one, 2), paths(one)
    flat = [(level, node) for level, nodes in enumerate(one.sizes) for node in range(nodes)]
    parent = {(level, node): (level - 1, int(one.parent_of(level)[node])) for level, node in flat if level}
    everything = (
        {v for v, bit in zip(flat, bits, strict=True) if bit} for bits in product((0, 1), repeat=len(flat))
    )
    states = [
        on
        for on in everything
        if on
        and len({level for level, _ in on}) == len(on)  # one of a level
        and all(v[0] == 0 or parent[v] in on for v in on)
    ]
    assert sorted(map(sorted, states)) == sorted(map(sorted, legal))
    states.append(set())
    log_p = one.log_marginals(values)
    for photo in range(2):
        weight = [exp(sum(values[level][photo, node] for level, node in on)) for on in states]
        for level, node in flat:
            has = sum(w for w, on in zip(weight, states, strict=True) if (level, node) in on)
            assert float(log_p[level][photo, node]) == pytest.approx(log(has / sum(weight)))


def test_marginals_far_apart():
    one = tree()
    values = [(v * 300).requires_grad_() for v in scores(one)]
    log_p = one.log_marginals(values)
    assert all(v.isfinite().all() and v.max() < 1e-9 for v in log_p)
    torch.stack([v.sum() for v in log_p]).sum().backward()
    assert all(v.grad is not None and v.grad.isfinite().all() for v in values)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    one = tree()
    short = [v.to(dtype) for v in scores(one)]
    for a, b in zip(one.log_marginals(short), one.log_marginals([v.float() for v in short]), strict=True):
        torch.testing.assert_close(a, b)
    assert one.log_softmax(1, short[1]).isfinite().all()


def test_gradients():
    one = tree()
    values = [v.requires_grad_() for v in scores(one, 2)]
    assert torch.autograd.gradcheck(lambda *v: tuple(one.log_marginals(v)), values)
    assert torch.autograd.gradcheck(lambda v: one.log_softmax(1, v), (values[1],))


def test_shares_of_groups():
    one = tree()
    mixed = torch.tensor([[0.5, 0.0, 0.25, 0.0, 0.0, 0.0, 0.25]])
    assert one.rolled_up(one.node_shares(mixed), 1).tolist() == [[0.5, 0.25, 0, 0, 0]], "class 6 has no genus"
    every = one.node_shares(torch.tensor([4, 5, 8, 12]))
    assert every.shape == (4, 15) and every.argmax(1).tolist() == [4, 5, 8, 12] and every.sum() == 4
    assert one.rolled_up(every, 0).tolist() == [[1, 0, 0], [0, 0, 0], [0, 1, 0], [1, 0, 0]], (
        "class 5 has no family"
    )
    own = [one.own_shares(every, level) for level in range(one.depth)]
    assert [part.shape[1] for part in own] == one.sizes and [float(part.sum()) for part in own] == [1, 1, 2]
    assert one.above(every, 0).sum(1).tolist() == [1, 1, 1, 1], "what stands in for a group counts here"
    assert one.rolled_up(every, 1).argmax(1).tolist()[::2] == [2, 1]
    assert one.rolled_up(every, 1)[3].sum() == 0, "a family does not say which genus"
    wide = torch.nn.functional.pad(mixed / 2, (0, 6))  # columns up to the first family
    wide[0, 12] = 0.5
    torch.testing.assert_close(one.rolled_up(one.node_shares(wide), 0), torch.tensor([[0.625, 0.375, 0]]))


def test_likelihood_of_shares():
    log_p = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).log_softmax(1)
    hard = torch.nn.functional.one_hot(torch.tensor([1, 3, 0]), 4).float()
    torch.testing.assert_close(shares_nll(log_p, hard), torch.nn.functional.nll_loss(log_p, hard.argmax(1)))
    hard[1] = 0
    torch.testing.assert_close(shares_nll(log_p, hard), -(log_p[0, 1] + log_p[2, 0]) / 3)
    parts = shares_nll(log_p[:2], hard[:2]) * 2 / 3 + shares_nll(log_p[2:], hard[2:]) / 3
    torch.testing.assert_close(parts, shares_nll(log_p, hard))
