"""Splits and folds keep groups whole, classes even, and answer the same whatever the order of the rows."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fieldmark.data import duplicates, split
from fieldmark.data.split import assign, folds
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError

SHARES = np.array([0.7, 0.1, 0.2])
cases = st.tuples(st.integers(0, 2**32), st.integers(1, 200), st.integers(1, 12), st.integers(1, 8))


def draw(case: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (some rare), groups (of up to about ``size`` photos) and keys."""
    seed, count, classes, size = case
    chance = np.random.default_rng(seed)
    labels = np.sqrt(chance.integers(0, classes**2, count)).astype(int)
    groups = chance.integers(0, max(1, count // size), count)
    return (
        labels,
        np.unique(groups, return_inverse=True)[1],
        chance.integers(0, 2**63, count, dtype=np.uint64),
    )


def whole(parts: np.ndarray, groups: np.ndarray) -> bool:
    return len(set(zip(groups.tolist(), parts.tolist(), strict=True))) == len(set(groups.tolist()))


class TestFolds:
    @settings(max_examples=80, deadline=None)
    @given(cases, st.integers(2, 6))
    def test_single_photos_are_even(self, case, k):
        labels, _, _ = draw(case)
        got = folds(labels, None, k, seed=case[0])
        assert got.shape == labels.shape and got.min() >= 0 and got.max() < k
        for label in set(labels.tolist()):
            counts = np.bincount(got[labels == label], minlength=k)
            assert counts.max() - counts.min() <= 1
        counts = np.bincount(got, minlength=k)
        assert counts.max() - counts.min() <= 2

    @settings(max_examples=80, deadline=None)
    @given(cases, st.integers(2, 6))
    def test_groups_stay_whole(self, case, k):
        labels, groups, _ = draw(case)
        got = folds(labels, groups, k, seed=1)
        assert whole(got, groups)
        assert np.array_equal(got, folds(labels, groups, k, seed=1))

    def test_grouped_folds_are_as_even_as_scikit_learns(self):
        model_selection = pytest.importorskip("sklearn.model_selection")
        chance = np.random.default_rng(0)
        for classes, count, size in ((5, 400, 3), (20, 1000, 5), (3, 90, 9)):
            labels = np.sort(chance.integers(0, classes, count))
            groups = np.arange(count) // size
            theirs = np.zeros(count, int)
            judge = model_selection.StratifiedGroupKFold(5, shuffle=True, random_state=0)
            for number, (_, held_out) in enumerate(judge.split(labels, labels, groups)):
                theirs[held_out] = number

            def unevenness(parts, labels=labels, classes=classes):
                table = np.zeros((classes, 5))
                np.add.at(table, (labels, parts), 1)
                return ((table - table.mean(1, keepdims=True)) ** 2).sum()

            assert unevenness(folds(labels, groups)) <= unevenness(theirs) * 1.05

    def test_seeds_differ_and_names_do_not_matter(self):
        labels = np.repeat(["b", "a", "ü"], 40)
        assert np.array_equal(folds(labels, seed=3), folds(labels, seed=3))
        assert not np.array_equal(folds(labels, seed=3), folds(labels, seed=4))
        assert np.bincount(folds(labels, np.repeat("one", 120))).tolist() == [120]
        assert folds(np.array([], int)).tolist() == []
        with pytest.raises(ValueError):
            folds(labels, k=1)

    def test_a_hundred_thousand_rows_are_quick(self):
        labels = np.random.default_rng(0).integers(0, 1000, 100_000)
        start = time.perf_counter()
        counts = np.bincount(folds(labels))
        folds(np.sort(labels), np.arange(100_000) // 2)
        assert time.perf_counter() - start < 10  # 0.6 s on a quiet machine
        assert counts.max() - counts.min() <= 2


class TestDealing:
    @settings(max_examples=150, deadline=None)
    @given(cases)
    def test_single_photos_come_within_one_of_their_share(self, case):
        labels, _, keys = draw(case)
        alone = np.arange(len(labels))
        parts = split._with_train(labels, alone, SHARES, keys)
        counts = Counter(labels.tolist())
        for label, count in counts.items():
            got = np.bincount(parts[labels == label], minlength=3)
            assert got[0] >= 1
            assert (abs(got - count * SHARES) < 1).all() or count == 1
        rare = sum(count == 1 for count in counts.values())
        wanted = (len(labels) - rare) * SHARES + [rare, 0, 0]
        assert abs(np.bincount(parts, minlength=3) - wanted).max() <= 2

    @settings(max_examples=150, deadline=None)
    @given(cases)
    def test_groups_stay_whole_and_every_class_is_trained(self, case):
        labels, groups, keys = draw(case)
        parts = split._with_train(labels, groups, SHARES, keys)
        assert whole(parts, groups)
        assert set(labels[parts == 0].tolist()) == set(labels.tolist())

    @settings(max_examples=100, deadline=None)
    @given(cases)
    def test_order_does_not_matter(self, case):
        labels, groups, keys = draw(case)
        order = np.random.default_rng(case[0] + 1).permutation(len(labels))
        renamed = np.random.default_rng(case[0] + 2).permutation(groups.max() + 1)[groups]
        straight = split._with_train(labels, groups, SHARES, keys)
        shuffled = split._with_train(labels[order], renamed[order], SHARES, keys[order])
        assert np.array_equal(straight[order], shuffled)

    def test_small_groups_keep_the_shares(self):
        chance = np.random.default_rng(0)
        labels = np.repeat(np.arange(50), 40)
        groups = np.unique(chance.integers(0, 500, 2000) + 500 * labels, return_inverse=True)[1]
        parts = split._with_train(labels, groups, SHARES, chance.integers(0, 2**63, 2000, dtype=np.uint64))
        assert abs(np.bincount(parts) / 2000 - SHARES).max() < 0.01
        for label in range(50):
            assert abs(np.bincount(parts[labels == label], minlength=3) - 40 * SHARES).max() <= 2

    def test_many_small_classes_still_fill_val(self):
        labels = np.repeat(np.arange(300), 3)
        parts = split._with_train(labels, np.arange(900), SHARES, np.arange(900, dtype=np.uint64))
        assert np.bincount(parts).tolist() == [630, 90, 180]


def picture(seed: int, size: int = 48) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 255, (8, 8, 3)).astype(np.uint8)
    return Image.fromarray(noise).resize((size, size), Image.Resampling.BICUBIC)


def folder(root: Path, classes: int = 3, each: int = 20) -> Path:
    for label in range(classes):
        (root / f"class {label}").mkdir(parents=True)
        for number in range(each):
            picture(label * 1000 + number).save(root / f"class {label}" / f"{number:02}.jpg")
    return root


def by_path(catalog: Catalog) -> dict[str, str | None]:
    return dict(zip(catalog.paths, catalog.splits, strict=True))


class TestAssign:
    def test_shares_classes_and_seeds(self, tmp_path):
        catalog = Catalog.read(folder(tmp_path))
        done = assign(catalog)
        assert Counter(zip(done.labels, done.splits, strict=True)) == {
            (f"class {label}", part): count
            for label in range(3)
            for part, count in (("train", 14), ("val", 2), ("test", 4))
        }
        assert assign(catalog, workers=1) == done and assign(catalog, seed=1) != done
        assert not catalog.has_split and done.root == tmp_path
        half = assign(catalog, fractions=(0.5, 0, 0.5))
        assert Counter(half.splits) == {"train": 30, "test": 30}

    def test_order_and_names_do_not_matter(self, tmp_path):
        catalog = Catalog.read(folder(tmp_path))
        order = np.random.default_rng(0).permutation(len(catalog))
        straight = by_path(assign(catalog))
        assert straight == by_path(assign(catalog.select(order)))
        for photo in (tmp_path / "class 1").iterdir():
            photo.rename(photo.with_name(f"{99 - int(photo.stem)} renamed.jpg"))
        renamed = by_path(assign(Catalog.read(tmp_path)))
        for path, part in renamed.items():
            if path.endswith("renamed.jpg"):
                old = f"{99 - int(Path(path).name[:2]):02}.jpg"
                assert straight[str(Path(path).with_name(old))] == part

    def test_copies_and_groups_stay_together(self, tmp_path):
        folder(tmp_path, each=12)
        for number in range(12):
            data = (tmp_path / f"class 0/{number:02}.jpg").read_bytes()
            (tmp_path / f"class 0/copy{number:02}.jpg").write_bytes(data)
            picture(1000 + number, size=64).save(tmp_path / f"class 1/larger{number:02}.png")
        catalog = Catalog.read(tmp_path)
        group = [
            "g" if Path(path).parent.name == "class 2" and path < "n" else None for path in catalog.paths
        ]
        for seed in range(3):
            done = assign(catalog.with_column("group", group), seed=seed)
            part = by_path(done)
            for number in range(12):
                assert (
                    part[str(tmp_path / f"class 0/{number:02}.jpg")]
                    == part[str(tmp_path / f"class 0/copy{number:02}.jpg")]
                )
                assert (
                    part[str(tmp_path / f"class 1/{number:02}.jpg")]
                    == part[str(tmp_path / f"class 1/larger{number:02}.png")]
                )
            named = {split for split, name in zip(done.splits, done.column("group"), strict=True) if name}
            assert len(named) == 1

    def test_photos_without_a_label_teach_unless_they_are_like_others(self, tmp_path):
        folder(tmp_path, classes=3, each=20)
        before = by_path(assign(Catalog.read(tmp_path)))
        tested = sorted(path for path, part in before.items() if part == "test")
        lines = [f"{path},{Path(path).parent.name}" for path in before]
        for number in range(3):
            picture(5000 + number).save(tmp_path / f"new{number}.png")
            (tmp_path / f"copy{number}.jpg").write_bytes(Path(tested[number]).read_bytes())
            lines += [f"new{number}.png,", f"copy{number}.jpg,"]
        ranks = {"class 0": "odd", "class 1": "even", "class 2": "even"}
        lines = [line + "," + ranks.get(line.partition(",")[2], "odd") for line in lines]
        (tmp_path / "t.csv").write_text("\n".join(["path,label,rank", *lines]))
        after = by_path(assign(Catalog.read(tmp_path / "t.csv")))
        assert {path: part for path, part in after.items() if path in before} == before
        assert {Path(path).name: part for path, part in after.items() if path not in before} == {
            **{f"new{number}.png": "train" for number in range(3)},
            **{f"copy{number}.jpg": "test" for number in range(3)},
        }

    def test_unreadable_photos_are_listed_and_dropped(self, tmp_path):
        folder(tmp_path, classes=2, each=4)
        (tmp_path / "class 0/empty.jpg").touch()
        (tmp_path / "class 1/text.jpg").write_text("hello")
        catalog = Catalog.read(tmp_path)
        done = assign(catalog)
        assert len(done) == 8 and len(catalog) == 10 and catalog.skipped == []
        assert sorted((Path(s.path).name, s.reason) for s in done.skipped) == [
            ("empty.jpg", "file is empty"),
            ("text.jpg", "not a photo: its content is text, not an image"),
        ]
        with pytest.raises(FieldmarkError, match=r"none of the 1 photos can be read .*file is empty"):
            assign(catalog.select([4]))

    def test_a_class_of_one_photo_is_trained(self, tmp_path):
        folder(tmp_path, classes=3, each=1)
        assert assign(Catalog.read(tmp_path)).splits == ["train"] * 3

    @pytest.mark.parametrize("given", [["train", "test", None], ["train", "train", "test"]])
    def test_a_split_that_is_there_stays(self, tmp_path, given):
        catalog = Catalog.read(folder(tmp_path, classes=3, each=1)).with_column("split", given)
        assert assign(catalog) is catalog

    @pytest.mark.parametrize("wrong", [(0.5, 0.5), (0.5, 0.1, 0.1), (0, 0.5, 0.5), (1.2, -0.1, -0.1)])
    def test_wrong_fractions(self, tmp_path, wrong):
        with pytest.raises(ValueError):
            assign(Catalog.read(folder(tmp_path, 1, 1)), fractions=wrong)


@pytest.mark.real
def test_real_photos_keep_their_shares_and_groups(data_root):
    if not (data_root / "grocery_store").is_dir():
        pytest.skip("no grocery_store")
    catalog = Catalog.read(data_root / "grocery_store")
    done = assign(catalog.with_column("split", [None] * len(catalog)))
    assert len(done) == len(catalog)
    counts = Counter(done.splits)
    assert [round(counts[part] / len(done), 3) for part in ("train", "val", "test")] == [0.7, 0.1, 0.2]
    parts = np.array(done.splits)
    assert whole(parts, duplicates.groups(duplicates.fingerprints(done.paths)))
    for label, count in Counter(done.labels).items():
        got = Counter(parts[np.array(done.labels) == label].tolist())
        for part, share in zip(("train", "val", "test"), SHARES, strict=True):
            assert abs(got[part] - count * share) < 2
