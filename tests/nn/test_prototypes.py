"""Prototypes against loops over photos, prototypes and patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldmark.nn.prototypes import (
    EPSILON,
    Cheapest,
    Prototypes,
    cluster_and_separation,
    distances,
    similarity,
)


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_distances_by_hand():
    x, vectors = noise(2, 5, 3, 4), noise(6, 5, seed=1)
    ours = distances(x, vectors)
    assert ours.shape == (2, 6, 3, 4)
    for b, p, i, j in np.ndindex(2, 6, 3, 4):
        expected = float((x[b, :, i, j] - vectors[p]).square().sum())
        assert float(ours[b, p, i, j]) == pytest.approx(expected, abs=1e-5)


def test_distances_are_never_negative_and_never_halved():
    x = 100 + noise(1, 64, 2, 2)
    vectors = x[0].flatten(1).T.contiguous()
    assert distances(x, vectors).min() >= 0
    assert distances(x.bfloat16(), vectors).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(distances(x, vectors), distances(x, vectors).float())
        assert distances(x, vectors).dtype == torch.float32


def test_similarity_falls_with_distance():
    d = torch.tensor([0.0, 0.5, 2.0, 1e6])
    s = similarity(d)
    torch.testing.assert_close(s[1], torch.log(torch.tensor(1.5 / (0.5 + EPSILON))))
    assert s[0] == pytest.approx(np.log(1 / EPSILON), rel=1e-5) and s.diff().max() < 0 <= s[3] < 1e-5


def test_cluster_and_separation_by_hand():
    distance, owner, labels = noise(4, 6), torch.tensor([0, 0, 1, 1, 2, 2]), torch.tensor([0, 2, 2, 1])
    cluster, separation = cluster_and_separation(distance, owner, labels)
    near = [min(float(distance[b, p]) for p in range(6) if owner[p] == labels[b]) for b in range(4)]
    far = [min(float(distance[b, p]) for p in range(6) if owner[p] != labels[b]) for b in range(4)]
    assert float(cluster) == pytest.approx(np.mean(near)) and float(separation) == pytest.approx(np.mean(far))


def test_push_finds_the_nearest_patch_of_the_class():
    """The same as a loop over all patches, however the photos are batched."""
    torch.manual_seed(0)
    prototypes = Prototypes(3, 2, 4)
    before = prototypes.vectors.detach().clone()
    x, labels = noise(7, 4, 2, 3), torch.tensor([0, 1, 0, 1, 0, 0, 1])  # none of class 2
    found = Cheapest(prototypes)
    for rows in (slice(0, 3), slice(3, 4), slice(4, 7)):
        found.see(x[rows], labels[rows], prototypes(x[rows]))
    prototypes.push(found)
    for p in range(6):
        own = p // 2
        assert prototypes.owner[p] == own
        best, at, patch = np.inf, None, before[p]
        for b, i, j in np.ndindex(7, 2, 3):
            d = float((x[b, :, i, j] - before[p]).square().sum())
            if labels[b] == own and d < best:
                best, at, patch = d, (b, (i + 0.5) / 2, (j + 0.5) / 3), x[b, :, i, j]
        torch.testing.assert_close(prototypes.vectors[p].detach(), patch)
        assert prototypes.place[p].tolist() == pytest.approx(at or (-1, -1, -1))


def test_a_pushed_prototype_is_at_no_distance():
    torch.manual_seed(0)
    prototypes, x, labels = Prototypes(2, 3, 4), noise(4, 4, 3, 3), torch.tensor([0, 1, 1, 0])
    found = Cheapest(prototypes)
    found.see(x, labels, prototypes(x))
    prototypes.push(found)
    for p, (photo, down, across) in enumerate(prototypes.place.tolist()):
        d = prototypes(x[int(photo)][None])[0, p]
        assert d.min() < 1e-5 and d[int(down * 3), int(across * 3)] == d.min()


def test_pushed_prototypes_stay_whatever_becomes_of_the_vectors():
    """A checkpoint holds what learns and buffers: a frozen parameter would not be in it."""
    torch.manual_seed(0)
    prototypes, x, labels = Prototypes(2, 2, 4), noise(4, 4, 3, 3), torch.tensor([0, 1, 1, 0])
    for stay in (False, True):
        found = Cheapest(prototypes)
        found.see(x, labels, prototypes(x))
        prototypes.push(found, stay)
        pushed = prototypes.current().detach().clone()
        with torch.no_grad():
            prototypes.vectors += 1
        assert torch.equal(prototypes.current(), pushed) is stay
        assert prototypes(x).requires_grad
    found = Cheapest(prototypes)
    prototypes.push(found)
    assert torch.equal(prototypes.vectors, pushed), "nothing was found: they stay where they are"


def test_what_is_saved():
    prototypes = Prototypes(2, 1, 4)
    assert set(prototypes.state_dict()) == {"vectors", "place", "patches", "settled"}
