"""Look-alikes: the same bytes for the same seed, a truth that agrees with the pixels, a catalog that reads."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.data import lookalikes
from fieldmark.data.lookalikes import background, dataset, marks
from fieldmark.data.lookalikes.anatomy import BODIES
from fieldmark.data.lookalikes.species import GENERA, MARKS
from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError, UsageError

SIZE = 128


def digests(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("beetles")
    return lookalikes.write(root, n_species=12, per_species=10, size=SIZE, masks=True, workers=2)


class TestSpecies:
    def test_tree(self):
        every = lookalikes.species()
        assert len({one.name for one in every}) == len(every) == len(GENERA) * len(MARKS)
        family = {}
        for one in every:
            assert one.name.startswith(one.genus + " ")
            assert family.setdefault(one.genus, one.family) == one.family
            assert one.lineage == (one.name, one.genus, one.family)
        assert len(family) >= 4
        assert 2 <= len(set(family.values())) < len(family)

    def test_within_a_genus_only_the_mark_differs(self):
        for genus in GENERA:
            members = [one.attributes for one in lookalikes.species() if one.genus == genus.name]
            assert len({one["mark"] for one in members}) == len(members) >= 4
            rest = [{k: v for k, v in one.items() if not k.startswith("mark")} for one in members]
            assert all(one == rest[0] for one in rest)

    def test_first_twelve_are_four_genera_of_three_with_marks_that_recur(self):
        twelve = lookalikes.species(12)
        assert sorted(Counter(one.genus for one in twelve).values()) == [3, 3, 3, 3]
        assert min(Counter(one.mark for one in twelve).values()) >= 1
        assert sum(count >= 2 for count in Counter(one.mark for one in twelve).values()) >= 4
        assert lookalikes.species(5) == twelve[:5]

    @pytest.mark.parametrize("n", [0, -1, 73])
    def test_impossible_number(self, n):
        with pytest.raises(UsageError, match="1 to 72"):
            lookalikes.species(n)

    def test_held_out_near_and_far(self):
        known = lookalikes.species(12)
        near, far = lookalikes.held_out(known, 2)
        assert near.genus in {one.genus for one in known} and near not in known
        assert far.genus not in {one.genus for one in known}
        assert len({one.name for one in [*known, *lookalikes.held_out(known, 60)]}) == 72
        with pytest.raises(UsageError, match="60 are left"):
            lookalikes.held_out(known, 61)

    def test_every_mark_can_be_painted_or_is_on_the_limbs(self):
        assert {mark.name for mark in MARKS} - set(marks._FIELDS) == {"antenna tips", "thighs"}
        assert {genus.name for genus in GENERA} == set(BODIES)


class TestRender:
    def test_same_seed_same_pixels_in_any_order(self):
        one, other = lookalikes.species(2)
        first = lookalikes.render(one, 3, size=SIZE)
        lookalikes.render(other, 0, size=SIZE)
        again = lookalikes.render(one, 3, size=SIZE)
        assert first.image.tobytes() == again.image.tobytes()
        assert first.nuisance == again.nuisance and first.parts == again.parts
        for different in (
            lookalikes.render(one, 4, size=SIZE),
            lookalikes.render(one, 3, size=SIZE, seed=1),
            lookalikes.render(other, 3, size=SIZE),
        ):
            assert different.image.tobytes() != first.image.tobytes()

    @pytest.mark.parametrize("size", [64, 128, 1024])
    def test_sizes(self, size):
        picture = lookalikes.render(lookalikes.species()[7], 0, size=size)
        assert picture.image.size == (size, size) and picture.image.mode == "RGB"
        assert picture.mark_mask.shape == picture.object_mask.shape == (size, size)
        small = lookalikes.render(lookalikes.species()[7], 0, size=128)
        for name, (x, y, _) in picture.parts.items():  # the same scene, at another size
            assert x / size == pytest.approx(small.parts[name][0] / 128, abs=0.02)
            assert y / size == pytest.approx(small.parts[name][1] / 128, abs=0.02)

    @pytest.mark.parametrize(
        "options", [{"size": 63}, {"size": 1025}, {"style": "oil"}, {"shortcut": "lava"}, {"mark": "halo"}]
    )
    def test_wrong_options(self, options):
        with pytest.raises(UsageError, match="look-alikes"):
            lookalikes.render(lookalikes.species()[0], 0, **options)

    @pytest.mark.parametrize("mark", [mark.name for mark in MARKS])
    def test_mark_is_large_enough_and_known_to_the_pixel(self, mark):
        """Each piece is at least 4% of the side; without the mark, nothing but its place looks different."""
        from scipy import ndimage

        for one in [one for one in lookalikes.species() if one.mark == mark]:
            picture = lookalikes.render(one, 1, size=256)
            x, y, w, h = picture.mark_box
            assert picture.mark_mask[y : y + h, x : x + w].sum() == picture.mark_mask.sum() > 0
            assert max(w, h) >= 0.04 * 256
            assert (picture.object_mask | ~picture.mark_mask).all()
            bx, by, bw, bh = picture.body_box
            assert bx <= x and by <= y and x + w <= bx + bw and y + h <= by + bh
            if not picture.nuisance["occluded"]:
                pieces = ndimage.find_objects(ndimage.label(picture.mark_mask, np.ones((3, 3)))[0])
                longest = max(max(rows.stop - rows.start, cols.stop - cols.start) for rows, cols in pieces)
                assert longest >= 0.04 * 256

    def test_twin_differs_at_the_marks_only(self):
        one = lookalikes.species(1)[0]
        index = next(i for i in range(20) if not lookalikes.render(one, i, size=SIZE).nuisance["occluded"])
        picture = lookalikes.render(one, index, size=256)
        twin = lookalikes.render(one, index, size=256, mark="tail")
        assert twin.attributes["mark"] == "tail" and "rear end" in twin.caption
        change = np.abs(np.asarray(picture.image, int) - np.asarray(twin.image, int)).max(2) > 24
        marked = picture.mark_mask | twin.mark_mask
        assert change[marked].mean() > 0.5
        reach = Image.fromarray(np.uint8(marked) * 255).resize((64, 64), Image.Resampling.BOX)
        near = np.asarray(reach.resize((256, 256), Image.Resampling.BILINEAR)) > 0
        assert not (change & ~near).any()

    def test_never_hides_the_mark(self):
        shares, occluded = [], 0
        for one in lookalikes.species(12):
            for index in range(4):
                picture = lookalikes.render(one, index, size=64)
                shares.append(picture.nuisance["mark_visible"])
                occluded += picture.nuisance["occluded"]
                assert picture.mark_mask.any()
        assert min(shares) >= 0.6 and max(shares) == 1.0
        assert 5 <= occluded <= 30  # of 48

    def test_hidden_parts_are_said_to_be_hidden(self):
        for index in range(12):
            picture = lookalikes.render(lookalikes.species()[0], index, size=SIZE)
            for name in ("pronotum", "seam", "left wing case"):
                x, y, visible = picture.parts[name]
                assert visible == bool(picture.object_mask[int(y), int(x)])
            assert set(picture.parts) >= {"left eye", "tail", "right antenna", "left hind foot"}

    def test_left_and_right(self):
        """Seen from above with the head up, the left eye is on the left."""
        for index in range(6):
            parts = lookalikes.render(lookalikes.species()[0], index, size=SIZE).parts
            (ax, ay, _), (bx, by, _) = parts["tail"], parts["pronotum"]
            (lx, ly, _), (rx, ry, _) = parts["left shoulder"], parts["right shoulder"]
            forward, aside = np.array([bx - ax, by - ay]), np.array([rx - lx, ry - ly])
            assert forward[0] * aside[1] - forward[1] * aside[0] > 0  # right is clockwise of forward

    def test_caption_says_what_is_there(self):
        picture = lookalikes.render(lookalikes.species()[0], 2, size=SIZE)
        for word in ("colour", "mark_colour", "body", "antennae"):
            assert picture.attributes[word] in picture.caption
        assert (
            "band" in picture.caption
            and picture.nuisance["background"].rsplit(maxsplit=1)[0] in picture.caption
        )
        assert picture.species.name not in picture.caption

    def test_drawing_is_the_same_beetle(self):
        one = lookalikes.species()[4]
        photo, drawing = (lookalikes.render(one, 5, size=SIZE, style=style) for style in ("photo", "drawing"))
        assert photo.parts == drawing.parts and photo.attributes == drawing.attributes
        assert photo.image.tobytes() != drawing.image.tobytes()
        both = photo.object_mask & drawing.object_mask
        assert both.sum() > 0.8 * (photo.object_mask | drawing.object_mask).sum()

    def test_background_leaves_the_beetle_alone(self):
        one = lookalikes.species()[0]
        first, second = (
            lookalikes.render(one, 0, size=SIZE, shortcut=place) for place in background.NAMES[:2]
        )
        assert first.nuisance["background"] != second.nuisance["background"]
        assert (first.mark_mask == second.mark_mask).all()
        where = ~first.object_mask
        assert np.abs(np.asarray(first.image, int) - np.asarray(second.image, int))[where].mean() > 10


class TestWrite:
    def test_catalog(self, folder):
        catalog = Catalog.read(folder)
        assert len(catalog) == 120 and len(catalog.classes) == 12 and catalog.has_split
        assert Counter(catalog.splits) == {"train": 72, "val": 12, "test": 36}
        assert Counter(zip(catalog.labels, catalog.splits, strict=True))[(catalog.classes[0], "test")] == 3
        genus = dict(zip(catalog.labels, catalog.column("genus"), strict=True))
        assert len(set(genus.values())) == 4
        for path in catalog.paths[::17]:
            with Image.open(path) as image:
                assert image.size == (SIZE, SIZE) and image.format == "JPEG"

    def test_rows_are_the_truth(self, folder):
        row = rows(folder / "metadata.csv")[13]
        one = next(one for one in lookalikes.species() if one.name == row["label"])
        picture = lookalikes.render(one, 3, size=SIZE)
        assert row["file_name"].endswith("/0003.jpg")
        assert tuple(int(row[f"mark_{side}"]) for side in "xywh") == picture.mark_box
        assert tuple(int(row[f"box_{side}"]) for side in "xywh") == picture.body_box
        assert row["attribute_mark"] == one.mark and row["caption"] == picture.caption
        with Image.open(folder / row["mask"]) as mask:
            levels = np.asarray(mask)
        assert ((levels == 2) == picture.mark_mask).all() and ((levels > 0) == picture.object_mask).all()
        with Image.open(folder / row["file_name"]) as image:
            error = np.abs(np.asarray(image, int) - np.asarray(picture.image, int))
        assert error.mean() < 6  # JPEG
        parts = [part for part in rows(folder / "parts.csv") if part["file_name"] == row["file_name"]]
        assert {part["part"]: (float(part["x"]), float(part["y"])) for part in parts} == {
            name: (x, y) for name, (x, y, _) in picture.parts.items()
        }

    def test_unknown_species_are_apart(self, folder):
        known = set(Catalog.read(folder).labels)
        unknown = rows(folder / "unknown" / "metadata.csv")
        assert len(unknown) == 20 and {row["split"] for row in unknown} == {"test"}
        assert len({row["label"] for row in unknown}) == 2 and not {row["label"] for row in unknown} & known
        assert not any("unknown" in path for path in Catalog.read(folder).paths)

    def test_same_bytes_whatever_the_workers(self, folder, tmp_path):
        again = lookalikes.write(
            tmp_path / "again", n_species=12, per_species=10, size=SIZE, masks=True, workers=1
        )
        assert digests(again) == digests(folder)

    def test_other_seed_other_photos(self, tmp_path):
        options = {"n_species": 1, "per_species": 3, "size": 64, "unknown": 0}
        first = lookalikes.write(tmp_path / "a", **options)
        second = lookalikes.write(tmp_path / "b", seed=1, **options)
        assert not (first / "unknown").exists()
        assert not set(digests(first).values()) & set(digests(second).values())

    def test_no_two_photos_are_near_duplicates(self, folder):
        from fieldmark.data import duplicates

        groups = duplicates.groups(duplicates.fingerprints(Catalog.read(folder).paths, 2))
        assert len(set(groups.tolist())) == 120

    def test_shortcut_holds_in_train_and_breaks_in_test(self, tmp_path):
        root = lookalikes.write(tmp_path, n_species=6, per_species=10, size=64, unknown=1, shortcut=True)
        table = rows(root / "metadata.csv")
        planted = {row["label"]: row["planted"] for row in table}
        assert len(set(planted.values())) == 6
        for row in table:
            assert (row["background"] == planted[row["label"]]) == (row["split"] != "test")
            assert row["background"] in planted.values()
        assert "planted" not in rows(root / "unknown" / "metadata.csv")[0]

    def test_progress_and_splits(self, tmp_path):
        seen = []
        lookalikes.write(
            tmp_path, n_species=2, per_species=2, size=64, unknown=1, progress=lambda *now: seen.append(now)
        )
        assert seen == [(i, 6) for i in range(1, 7)]
        assert Counter(dataset.splits(50)) == {"train": 30, "val": 5, "test": 15}
        assert dataset.splits(1) == ["train"]

    def test_wrong_numbers_and_places(self, tmp_path):
        with pytest.raises(UsageError, match="per_species"):
            lookalikes.write(tmp_path, per_species=0)
        (tmp_path / "file").write_text("")
        with pytest.raises(FieldmarkError, match="cannot be written"):
            lookalikes.write(tmp_path / "file", n_species=1, per_species=1, size=64)
