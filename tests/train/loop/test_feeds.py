"""Feeds: pictures, or the maps of the frozen part; kept maps go on where a killed run was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from fieldmark.data.augment import Augment
from fieldmark.data.loader import Loader, Photos
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.loop import feeds
from fieldmark.train.loop.feeds import CachedFeed, Feed

SIDE = 32
STEPS = [(np.array([3, 1]), 0), (np.array([0, 5]), 1), (np.array([3, 2]), 2)]


class Half:
    """The frozen part, without a compiled graph: each picture at half its size."""

    shape = (3, SIDE // 2, SIDE // 2)

    def __init__(self) -> None:
        self.seen, self.closed, self.fails_at = 0, False, 10**9

    def __call__(self, images: torch.Tensor) -> np.ndarray:
        if self.seen >= self.fails_at:
            raise KeyboardInterrupt
        self.seen += len(images)
        return images.contiguous().numpy()[:, :, ::2, ::2]

    def close(self) -> None:
        self.closed = True


def feed(some: SimpleNamespace, kind: type = Feed, **more: Any) -> Any:
    options = {"size": SIDE, "seed": 7, "workers": 1, **more}
    return kind(Photos(some.train), Photos(some.held), some.preprocess, Augment(), **options)


def views(some: SimpleNamespace, seed: int = 7) -> list[torch.Tensor]:
    return list(Loader(Photos(some.train), some.preprocess, Augment(), size=SIDE, seed=seed).batches(STEPS))


def test_the_compiled_part_gives_what_the_module_gives(
    network: Callable[..., Any], cut: SimpleNamespace
) -> None:
    module = network().open(cut.name)
    x = torch.randn(3, 3, SIDE, SIDE).contiguous(memory_format=torch.channels_last)
    expected = module(x).detach().numpy()
    got = cut.lower(x)
    assert got.dtype == np.float32 and got.shape == (3, *cut.lower.shape) == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-3 * np.abs(expected).max())


def test_without_a_cut_a_feed_is_the_loader(some: SimpleNamespace) -> None:
    for mine, theirs in zip(feed(some).batches(STEPS), views(some), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(next(iter(feed(some, seed=8).batches(STEPS))), views(some)[0]), "by the seed"


def test_with_a_cut_views_pass_the_frozen_part(some: SimpleNamespace) -> None:
    for mine, theirs in zip(feed(some, lower=Half()).batches(STEPS), views(some), strict=True):
        assert torch.equal(mine, theirs[:, :, ::2, ::2])
        assert mine.is_contiguous(memory_format=torch.channels_last) and mine.dtype == torch.float32


def test_photos_as_they_are(some: SimpleNamespace) -> None:
    rows = [np.array([2, 0]), np.array([1])]
    whole = Loader(Photos(some.train), some.preprocess, Augment())
    found = [*feed(some).as_they_are(rows)]
    assert all(torch.equal(mine, whole.clean(one)) for mine, one in zip(found, rows, strict=True))
    cut = feed(some, lower=Half(), lower_held=Half()).as_they_are(rows)
    assert all(torch.equal(mine, one[:, :, ::2, ::2]) for mine, one in zip(cut, found, strict=True))


def test_held_out_maps_that_do_not_fit_are_made_again(
    some: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "memory_bytes", lambda: 0)
    half = Half()
    one = feed(some, lower=Half(), lower_held=half)
    first, second = [*one.held_out()], [*one.held_out()]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert half.seen == 2 * sum(map(len, first))


def test_views_of_each_epochs_own_side(some: SimpleNamespace) -> None:
    def side(epoch: int) -> int:
        return (16, 16, SIDE)[epoch]

    def expected(size: int, steps: list[Any]) -> list[torch.Tensor]:
        return list(Loader(Photos(some.train), some.preprocess, Augment(), size=size, seed=7).batches(steps))

    wanted = [*expected(16, STEPS[:2]), *expected(SIDE, STEPS[2:])]
    for mine, theirs in zip(feed(some, sides=side).batches(STEPS), wanted, strict=True):
        assert torch.equal(mine, theirs)
    small, large = Half(), Half()
    cut = feed(some, sides=side, lower=large, lowers={16: small})
    for mine, theirs in zip(cut.batches(iter(STEPS)), wanted, strict=True):
        assert torch.equal(mine, theirs[:, :, ::2, ::2])
    assert (small.seen, large.seen) == (4, 2)
    cut.close()
    assert small.closed and large.closed


def test_pictures_are_handed_out_on_the_device_and_maps_are_made_on_the_cpu(some: SimpleNamespace) -> None:
    one = feed(some, device="meta", sides=lambda epoch: (16, SIDE)[epoch > 0])
    found = [*one.batches(STEPS), *one.held_out()]
    assert {x.device.type for x in found} == {"meta"}
    cut = feed(some, device="meta", lower=Half(), lower_held=Half())
    assert {x.device.type for x in (*cut.batches(STEPS), *cut.held_out())} == {"cpu"}


def test_leaving_early_with_several_sides(some: SimpleNamespace) -> None:
    import threading

    steps = ((np.array([0, 1]), epoch) for epoch in range(10**6))
    batches = feed(some, sides=lambda epoch: (16, SIDE)[epoch > 2]).batches(steps)
    assert [next(batches).shape[-1] for _ in range(5)] == [16, 16, 16, SIDE, SIDE]
    batches.close()
    assert not [one for one in threading.enumerate() if one.name.startswith("fieldmark-loader")]


def test_held_out_photos_come_as_they_are_in_order(some: SimpleNamespace) -> None:
    clean = Loader(Photos(some.held), some.preprocess).clean(np.arange(8))
    plain = feed(some, size=16)
    assert torch.equal(torch.cat(list(plain.held_out(batch=3))), clean), "at the size of the preprocessing"
    assert torch.equal(torch.cat([x for rank in range(3) for x in plain.held_out(rank, 3)]), clean)


def test_held_out_maps_are_made_once(some: SimpleNamespace) -> None:
    clean = Loader(Photos(some.held), some.preprocess).clean(np.arange(8))
    half, other = Half(), Half()
    one = feed(some, lower=other, lower_held=half)
    first, second = (torch.cat(list(one.held_out())) for _ in range(2))
    assert half.seen == 8 and other.seen == 0 and torch.equal(first, second)
    assert (first - clean[:, :, ::2, ::2]).abs().max() < 5e-3, "half precision"
    one.close()
    assert half.closed and other.closed


def cached(some: SimpleNamespace, file: Path, half: Half, count: int = 2, **more: Any) -> CachedFeed:
    return feed(some, CachedFeed, lower=half, lower_held=half, views=count, file=file, **more)


def test_kept_maps_are_the_views_of_the_first_epochs(some: SimpleNamespace, tmp_path: Path) -> None:
    half, told = Half(), []
    one = cached(some, tmp_path / "new" / "maps.f16", half)
    one.build(lambda *at: told.append(at))
    assert half.seen == 48 and told[-1] == (48, 48) and told == sorted(told)
    assert one.file.stat().st_size == 2 * 24 * 3 * 16 * 16 * 2
    wanted = [(rows, epoch % 2) for rows, epoch in STEPS]
    fresh = Loader(Photos(some.train), some.preprocess, Augment(), size=SIDE, seed=7).batches(wanted)
    for mine, theirs in zip(one.batches(STEPS), fresh, strict=True):
        assert torch.equal(mine, theirs[:, :, ::2, ::2].half().float())
        assert mine.is_contiguous(memory_format=torch.channels_last)
    assert half.seen == 48, "nothing is made again"
    again = cached(some, one.file, half)
    again.build()
    assert half.seen == 48 and torch.equal(next(iter(again.batches(STEPS))), next(iter(one.batches(STEPS))))


@pytest.mark.parametrize("at", [1, 9, 30, 44])
def test_killed_while_maps_are_made(
    some: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    monkeypatch.setattr(feeds, "CHUNK", 5)
    monkeypatch.setattr(feeds, "NOTED", 2)
    whole, half = cached(some, tmp_path / "a.f16", Half()), Half()
    whole.build()
    half.fails_at = at
    with pytest.raises(KeyboardInterrupt):
        cached(some, tmp_path / "b.f16", half).build()
    done, half.fails_at, half.seen = half.seen, 10**9, 0
    cached(some, tmp_path / "b.f16", half).build()
    assert 48 - done <= half.seen < 48 - done + 2 * 5, "little is made again"
    assert (tmp_path / "a.f16").read_bytes() == (tmp_path / "b.f16").read_bytes()


def test_processes_make_a_share_each(
    some: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feeds, "CHUNK", 5)
    whole, parts = cached(some, tmp_path / "a.f16", Half()), [Half(), Half()]
    whole.build()
    for rank, half in enumerate(parts):
        cached(some, tmp_path / "b.f16", half).build(rank=rank, world=2)
    assert sum(half.seen for half in parts) == 48 and abs(parts[0].seen - parts[1].seen) <= 5
    assert (tmp_path / "a.f16").read_bytes() == (tmp_path / "b.f16").read_bytes()


def test_a_file_of_another_length_is_made_anew(some: SimpleNamespace, tmp_path: Path) -> None:
    cached(some, tmp_path / "a.f16", Half()).build()
    (tmp_path / "a.f16").write_bytes(b"short")
    half = Half()
    cached(some, tmp_path / "a.f16", half).build()
    assert half.seen == 48
    more = Half()
    cached(some, tmp_path / "a.f16", more, count=3).build()
    assert more.seen == 72


def test_damaged_notes_are_not_believed(some: SimpleNamespace, tmp_path: Path) -> None:
    cached(some, tmp_path / "a.f16", Half()).build()
    for note in tmp_path.glob("*.json"):
        note.write_text("[nonsense")
    half = Half()
    cached(some, tmp_path / "a.f16", half).build()
    assert half.seen == 48


def test_no_room_is_said_in_a_line(
    some: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feeds.os, "posix_fallocate", full, raising=False)
    with pytest.raises(FieldmarkError, match=r"cannot keep 0\.0 GB of maps .*No space.*--cache-gb"):
        cached(some, tmp_path / "a.f16", Half()).build()
    assert not (tmp_path / "a.f16").exists()
