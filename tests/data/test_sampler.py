"""Epoch orders: who comes how often, nobody again before the class is through, the same in every process."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldmark.data.sampler import GROUP, SAMPLERS, Sampler, epoch_order, shard, split_evenly

LABELS = np.repeat(["rare", "some", "many"], [2, 9, 64])
kinds: st.SearchStrategy[Sampler] = st.sampled_from(["all", "balanced", "square_root"])


@pytest.mark.parametrize("epoch", [0, 1, 7])
def test_all_is_a_permutation(epoch: int) -> None:
    order = epoch_order(LABELS, epoch, seed=3)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(75))
    assert order.tolist() != sorted(order.tolist())


@pytest.mark.parametrize("how", SAMPLERS)
def test_seed_and_epoch_say_everything(how: Sampler) -> None:
    first = epoch_order(LABELS, 4, 0, how, batch=15)
    np.random.seed(1)
    np.testing.assert_array_equal(epoch_order(LABELS, 4, 0, how, batch=15), first)
    assert (epoch_order(LABELS, 5, 0, how, batch=15) != first).any()
    assert (epoch_order(LABELS, 4, 1, how, batch=15) != first).any()


@given(kinds, st.integers(0, 5), st.integers(0, 40), st.integers(1, 8), st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_shares_and_rounds(how: Sampler, seed: int, n: int, classes: int, photos: int) -> None:
    """Every epoch's counts are p n rounded down or up; over the epochs no photo is two rounds ahead of another."""
    labels = np.random.default_rng(seed).integers(0, classes, photos)
    sizes = Counter(labels.tolist())
    share = {c: {"all": k, "balanced": 1, "square_root": k**0.5}[how] for c, k in sizes.items()}
    seen: Counter[int] = Counter()
    for epoch in range(6):
        order = epoch_order(labels, epoch, seed, how, n)
        assert len(order) == n
        drawn = Counter(labels[order].tolist())
        if how != "all":  # there the photos go by themselves
            for c in sizes:
                assert abs(drawn[c] - n * share[c] / sum(share.values())) < 1 + 1e-9
        for row in order.tolist():
            own = np.flatnonzero(labels == labels[row]) if how != "all" else np.arange(photos)
            assert seen[row] == min(seen[other] for other in own.tolist()), (
                "again before its class is through"
            )
            seen[row] += 1


@pytest.mark.parametrize(
    ("how", "share"), [("balanced", [1 / 3, 1 / 3, 1 / 3]), ("square_root", [2**0.5, 3.0, 8.0])]
)
def test_long_run_shares(how: Sampler, share: list[float]) -> None:
    """Seven places an epoch: what is rounded in one evens out over many."""
    drawn = Counter(name for epoch in range(60) for name in LABELS[epoch_order(LABELS, epoch, 0, how, 7)])
    wanted = 420 * np.array(share) / sum(share)
    np.testing.assert_allclose([drawn["rare"], drawn["some"], drawn["many"]], wanted, atol=16)


def test_any_two_classes_meet() -> None:
    """Two places for four classes: the remainders do not always fall to the same pairs."""
    labels = np.repeat(np.arange(4), 3)
    pairs = {tuple(sorted(labels[epoch_order(labels, e, 0, "balanced", 2)].tolist())) for e in range(40)}
    assert len(pairs) == 6


def test_classes_are_mixed() -> None:
    """Not class by class: the places of a class spread over the epoch, and change with it."""
    orders = [LABELS[epoch_order(LABELS, epoch, 0, "balanced", 300)] for epoch in range(2)]
    for names in orders:
        assert 150 < np.count_nonzero(names[1:] != names[:-1]) < 250  # 2/3 of 299 by chance
    assert (orders[0] != orders[1]).any()


# -- several photos of a class side by side


@given(st.integers(0, 5), st.integers(1, 8), st.integers(1, 60), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_batches_are_made_of_groups(seed: int, classes: int, photos: int, batch: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, photos)
    for epoch in (0, 3):
        order = epoch_order(labels, epoch, seed, "paired", batch=batch)
        assert order.dtype == np.int64 and len(order) == photos // batch * batch
        many = max(batch // GROUP, min(2, batch // 2), 1)
        for rows in order.reshape(-1, batch):
            groups = np.array_split(rows, many)
            if batch >= 4:
                assert min(map(len, groups)) >= 2 and max(map(len, groups)) <= 7
            for group in groups:
                assert len(set(labels[group].tolist())) == 1
                whole = np.count_nonzero(labels == labels[group[0]])
                assert len(set(group.tolist())) == min(len(group), whole), (
                    "twice only where there are no others"
                )


@pytest.mark.parametrize("batch", [4, 6, 8, 16, 24])
def test_photos_come_alike_often_in_groups(batch: int) -> None:
    """Within a class no photo is two rounds ahead; the classes come in proportion to their photos."""
    labels = np.repeat(np.arange(6), [2, 9, 64, 5, 1, 30])
    seen: Counter[int] = Counter()
    epochs = 60
    for epoch in range(epochs):
        seen.update(epoch_order(labels, epoch, 1, "paired", batch=batch).tolist())
        for c in range(6):
            own = [seen[row] for row in np.flatnonzero(labels == c).tolist()]
            assert max(own) - min(own) <= (1 if len(own) >= GROUP else 2)
    times = np.array([sum(seen[row] for row in np.flatnonzero(labels == c).tolist()) for c in range(6)])
    wanted = np.array([2, 9, 64, 5, 1, 30]) * epochs * (111 // batch * batch) / 111
    np.testing.assert_allclose(times, wanted, rtol=0.15, atol=36)


def test_classes_are_dealt_out_to_the_batches() -> None:
    """No class is twice in a batch that has room for all; each batch has others; the classes meet in many ways."""
    labels = np.repeat(np.arange(12), 12)
    met = set()
    for epoch in range(20):
        for rows in epoch_order(labels, epoch, 0, "paired", batch=16).reshape(-1, 16):
            there = labels[rows[::4]].tolist()
            assert len(set(there)) == 4
            met |= {frozenset((a, b)) for a in there for b in there if a != b}
    assert len(met) == 12 * 11 / 2


def test_a_class_of_most_photos_is_spread_over_the_batches() -> None:
    labels = np.repeat([0, 1], [96, 32])
    for rows in epoch_order(labels, 2, 0, "paired", batch=16).reshape(-1, 16):
        assert np.bincount(labels[rows]).tolist() == [12, 4]


def test_each_process_has_whole_groups() -> None:
    labels = np.repeat(np.arange(9), 11)
    order = epoch_order(labels, 1, 0, "paired", batch=16)
    for rank in range(2):
        for rows in shard(order, rank, 2, 16):
            assert all(len(set(labels[group].tolist())) == 1 for group in rows.reshape(2, 4))


def test_pairs_need_a_batch() -> None:
    with pytest.raises(ValueError, match="batch is needed"):
        epoch_order(LABELS, 0, 0, "paired")


def test_what_cannot_be_is_refused() -> None:
    for arguments in [(LABELS[:0], 0, 0), (LABELS, -1, 0), (LABELS, 0, -1), (LABELS, 0, 0, "all", -1)]:
        with pytest.raises(ValueError, match="photos are needed"):
            epoch_order(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="square_root"):
        epoch_order(LABELS, 0, 0, "odd")  # type: ignore[arg-type]


@pytest.mark.parametrize("world", [1, 2, 4])
@pytest.mark.parametrize("drop", [True, False])
def test_shards_side_by_side_are_the_batches_of_one_process(world: int, drop: bool) -> None:
    order = np.random.default_rng(0).permutation(75)
    shards = [shard(order, rank, world, 16, drop) for rank in range(world)]
    steps = 4 if drop else 5
    assert {s.shape for s in shards} == {(steps, 16 // world)}
    flat = np.concatenate(shards, axis=1).ravel()
    np.testing.assert_array_equal(flat[:75], order[: len(flat)])
    np.testing.assert_array_equal(flat[75:], order[: max(0, len(flat) - 75)])


def test_shards_that_cannot_be_are_refused() -> None:
    for rank, world, batch in [(2, 2, 16), (-1, 2, 16), (0, 3, 16), (0, 1, 0)]:
        with pytest.raises(ValueError, match="no such rank"):
            shard(np.arange(75), rank, world, batch)
    with pytest.raises(ValueError, match="do not fill"):
        shard(np.arange(15), 0, 1, 16)
    assert shard(np.arange(15), 0, 1, 16, drop=False).tolist() == [[*range(15), 0]]


@given(st.integers(0, 50), st.integers(1, 9))
@settings(max_examples=50, deadline=None)
def test_split_evenly_counts_everyone_once(n: int, world: int) -> None:
    shares = [split_evenly(n, rank, world) for rank in range(world)]
    assert np.concatenate(shares).tolist() == list(range(n))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    with pytest.raises(ValueError, match="rank"):
        split_evenly(n, world, world)
