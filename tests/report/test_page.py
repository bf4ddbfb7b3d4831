from __future__ import annotations

import base64
import csv
import hashlib
import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fieldmark.report.page import write_report
from fieldmark.report.sections import evaluated
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.evaluation import evaluation
from fieldmark.runtime.results import Skipped

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "{{ 7 * 7 }}{% raw %}",
    "two\nlines & 'quotes' \u2028",
    "\u202eסלמון 三文鱼 🐟",
]


class Page(HTMLParser):
    """Every element with its attributes, the text of scripts, and all text outside them."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.scripts, self.text, self.stack = [], [], "", []
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.stack.append(tag)
        self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        while self.stack and self.stack.pop() != tag:
            pass

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "script":
            self.scripts[-1] += data
        elif "style" not in self.stack:
            self.text += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]

    def json(self):
        return [json.loads(text) for text in self.scripts[1:]]


def made_up(classes, n=60, seed=0, paths=None, accuracy=0.7):
    rng = np.random.default_rng(seed)
    k = len(classes)
    y = np.arange(n) % k
    called = np.where(rng.random(n) < accuracy, y, (y + 1) % k)
    p = np.full((n, k), 0.3 / max(1, k - 1))
    p[np.arange(n), called] = 0.6 + 0.39 * rng.random(n)
    paths = paths or [f"photo {i}.jpg" for i in range(n)]
    return evaluation(paths, [classes[i] for i in y], p / p.sum(1, keepdims=True), classes)


def report(tmp_path, result, **more):
    given = {"title": "Report", "settings": {}, "data": {}} | more
    return Page(write_report(tmp_path / "report.html", evaluation=result, **given))


def test_hostile_names_stay_text(tmp_path):
    result = made_up(HOSTILE, paths=[f"{HOSTILE[i % 6]}/{i}.jpg" for i in range(60)])
    page = report(
        tmp_path,
        result,
        title=HOSTILE[0],
        settings={HOSTILE[0]: HOSTILE[2], "nested": {"deep": HOSTILE[1]}},
        data={"train": dict.fromkeys(HOSTILE, 3), HOSTILE[0]: {HOSTILE[1]: 1}},
        skipped=[Skipped(HOSTILE[0], HOSTILE[2])],
        warnings=HOSTILE,
        train_examples={name: [name] for name in HOSTILE},
    )
    kinds = [attrs.get("type") for attrs in page.all("script")]
    assert kinds == [None, "application/json"]
    assert not page.all("img")
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    assert sorted(page.json()[0]["names"]) == sorted(HOSTILE)
    for name in HOSTILE:
        assert " ".join(name.split()) in " ".join(page.text.split())
    assert "49" not in re.findall(r"\d+", page.text.split("warnings")[1].split("Top-1")[0])


def test_asks_nothing_of_the_network_and_runs_one_script(tmp_path, photo_folder):
    photos = [str(path) for path in sorted(photo_folder.rglob("*.jpg"))]
    page = report(
        tmp_path, made_up(["a", "b", "c"], n=12, paths=photos[:12]), train_examples={"a": photos[:3]}
    )
    for tag, attrs in page.tags:
        for key in ("src", "href"):
            value = attrs.get(key)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert page.all("img")
    assert not re.search(r"https?:|//\w+\.|@import|url\(", page.source)
    policy = next(a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_headline_numbers_and_tables(tmp_path):
    classes = [f"class_{i}" for i in range(7)]
    result = made_up(classes, n=200)
    result.excluded, result.excluded_by_reason = 3, {"already trained on": 3}
    page = report(
        tmp_path,
        result,
        settings={"head": {"rank": None, "rate": 0.00032}, "sizes": [224, 320]},
        data={"test": {"class_0": 4}, "train": {name: i for i, name in enumerate(classes)}},
        skipped=[Skipped("bad.jpg", "truncated file")] * 250,
        seconds={"training": 41.34, "evaluation": 125},
    )
    text = " ".join(page.text.split())
    low, high = result.top1_ci95
    for expected in (
        f"{100 * result.top1:.1f}",
        f"lies between {100 * low:.1f}% and {100 * high:.1f}%",
        f"Macro F1 {100 * result.macro_f1:.1f}%",
        f"ECE {100 * result.ece:.1f}%",
        "41.3 s training; evaluation 2 min 5 s",
        "3 photos were left out of these numbers: 3 already trained on",
        "head.rate 0.00032",
        "sizes 224, 320",
        "head.rank —",
        "250 × truncated file",
        "and 50 more",
    ):
        assert expected in text, expected
    f1 = [float(a["data-v"]) for a in page.all("td") if "data-v" in a][4::6]
    assert f1 == sorted(f1) and len(f1) == 7
    assert text.index("Split") < text.index("train 21 6") < text.index("test 4 1")


def test_photos_are_called_by_their_split(tmp_path):
    result = made_up(["a", "b"])
    for split, told, title in (
        ("test", "60 test photos", "Test photos"),
        ("val", "60 val photos", "Val photos"),
    ):
        text = " ".join(report(tmp_path, result, split=split).text.split())
        assert told in text and f"{title} 60" in text
    text = report(tmp_path, result, split="all").text
    assert "60 photos" in text and "test photos" not in text.lower()


def test_what_a_class_was_learned_from_is_told_where_it_is_known(tmp_path):
    result = made_up(["a", "b"])
    assert "In train and val" not in report(tmp_path, result, data={"judged": {"a": 30, "b": 30}}).text
    page = report(tmp_path, result, data={"train": {"a": 5}, "val": {"a": 2, "b": 1}})
    assert "In train and val" in page.text
    assert {a["data-v"] for a in [a for a in page.all("td") if "data-v" in a][1::6]} == {"7", "1"}


def test_pairs_are_the_confusions(tmp_path):
    result = made_up(["ant", "bee", "cow"], n=300, accuracy=0.8)
    page = report(tmp_path, result)
    text = " ".join(page.text.split())
    worst = max((result.confusion[i, (i + 1) % 3], i) for i in range(3))
    names = ["ant", "bee", "cow"]
    assert f"{worst[0]} of 100 mistaken → {names[worst[1]]} called {names[(worst[1] + 1) % 3]}" in text
    told = page.json()[0]
    for row, column, count in told["cells"]:
        true, called = names.index(told["names"][row]), names.index(told["names"][column])
        assert result.confusion[true, called] == count


@pytest.mark.parametrize("accuracy", [0.0, 1.0])
def test_nothing_right_and_nothing_wrong(tmp_path, accuracy):
    page = report(tmp_path, made_up(["a", "b"], accuracy=accuracy))
    assert ("No mistakes" in page.text) == (accuracy == 1)
    assert ("#pairs" in page.source) == (accuracy == 0)


def test_one_photo(tmp_path):
    assert "100.0" in report(tmp_path, made_up(["a", "b"], n=1, accuracy=1.0)).text


def test_without_a_test_split(tmp_path):
    folds = made_up(["a", "b", "c"])
    page = report(tmp_path, None, judged=folds)
    assert "by cross-validation" in page.text and "There was no test split" in page.text
    both = report(tmp_path, made_up(["a", "b", "c"], seed=1), judged=folds)
    assert "Out of fold" in both.text and f"{100 * folds.top1:.1f}%" in both.text
    neither = report(tmp_path, None, data={"train": {"a": 3, "b": 1}})
    assert "No numbers yet" in neither.text and "train" in neither.text


def test_photos_are_dimmed_where_the_model_did_not_look(tmp_path, photo_folder):
    photos = [str(path.relative_to(photo_folder)) for path in sorted(photo_folder.rglob("*.jpg"))][:4]
    heat = np.zeros((4, 4), np.float32)
    heat[0, 1] = 1.0
    asked = []

    def look(paths):
        asked.extend(paths)
        return {paths[0]: heat}

    shown = made_up(["a", "b"], n=4, paths=photos, accuracy=0.0)
    page = report(tmp_path, shown, root=photo_folder, look=look)
    masks = [one for one in page.all("img") if one.get("class") == "mask"]
    assert masks and len({one["src"] for one in masks}) == 1 and all(one["alt"] == "" for one in masks)
    assert sorted(asked) == [str(photo_folder / path) for path in photos], "each once"
    alpha = np.asarray(Image.open(BytesIO(base64.b64decode(masks[0]["src"].split(",")[1]))))[..., 1]
    assert alpha[0, 1] == 0 and (np.delete(alpha.ravel(), 1) > 150).all()
    assert "Light is where the model looked" in page.text
    first = Path(asked[0]).name
    dimmed = re.findall(r'title="([^"]+)" loading="lazy"><img class="mask"', page.source)
    assert {Path(path).name for path in dimmed} == {first}
    without = report(tmp_path, shown, root=photo_folder, look=lambda paths: {})
    assert "Light is where" not in without.text and "mask" not in [o.get("class") for o in without.all("img")]

    def broken(paths):
        raise RuntimeError("not enough memory:\n tried to allocate")

    told = report(tmp_path, shown, root=photo_folder, look=broken, warnings=["one"])
    assert "where the model looks cannot be shown: not enough memory: tried to allocate" in told.text
    report(tmp_path, shown, root=photo_folder, look=broken, thumbnails=False)


def test_prototypes_are_cut_out_of_their_photos(tmp_path):
    photo = Image.new("RGB", (900, 600), "red")
    photo.paste("blue", (600, 100, 750, 250))
    photo.save(tmp_path / "a.jpg", quality=95)
    own = {"prototype": 3, "label": "b <i>", "weight": 1.0, "path": "a.jpg"}
    rows = [own | {"x": 600, "y": 100, "w": 150, "h": 150}, own | {"x": 0, "y": 0, "w": 150, "h": 150}]
    page = report(tmp_path, None, root=tmp_path, prototypes=rows)
    assert "What it compares photos with" in page.text and "b <i>" in page.text
    blue, red = (Image.open(BytesIO(base64.b64decode(one["src"].split(",")[1]))) for one in page.all("img"))
    assert blue.size == red.size == (80, 80)
    assert blue.getpixel((40, 40))[2] > 200 > 50 > blue.getpixel((40, 40))[0]
    assert red.getpixel((40, 40))[0] > 200 > 50 > red.getpixel((40, 40))[2]
    assert "What it compares" not in report(tmp_path, None).text


def test_thumbnails_carry_no_metadata_and_stand_upright(tmp_path):
    photo = Image.new("RGB", (300, 200), "red")
    photo.paste("blue", (0, 0, 300, 100))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 3, "a secret place"
    photo.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    (tmp_path / "broken.jpg").write_bytes(b"not a photo")
    result = made_up(["a", "b"], n=2, paths=["turned.jpg", "broken.jpg"], accuracy=0.0)
    page = report(tmp_path, result, root=tmp_path)
    pictures = page.all("img")
    assert {attrs["title"] for attrs in pictures} == {"turned.jpg"}
    data = base64.b64decode(pictures[0]["src"].split(",")[1])
    picture = Image.open(BytesIO(data))
    assert picture.size == (160, 160) and not picture.getexif() and b"secret" not in data
    assert picture.getpixel((80, 10))[0] > 200 and picture.getpixel((80, 150))[2] > 200  # red is up now
    assert all(attrs["alt"] for attrs in pictures)
    assert not report(tmp_path, result, root=tmp_path, thumbnails=False).all("img")


def test_1300_classes_make_a_small_page_quickly(tmp_path):
    classes = [f"Genus species number {i}" for i in range(1300)]
    rng = np.random.default_rng(0)
    y = np.arange(4000) % 1300
    p = np.full((4000, 1300), 1e-6, np.float32)
    p[np.arange(4000), np.where(rng.random(4000) < 0.7, y, rng.integers(0, 1300, 4000))] = 0.9
    result = evaluation([f"{i}.jpg" for i in range(4000)], [classes[i] for i in y], p, classes)
    start = time.perf_counter()
    page = report(tmp_path, result)
    assert time.perf_counter() - start < 10
    assert len(page.source) < 3e6 and "Of 1,300 classes, the 400 with the most mistakes" in page.text


def test_only_photos_that_are_shown_become_rows():
    """Of a million mistakes a dictionary each would take gigabytes."""
    taken = []

    class Watched:
        def __init__(self, table):
            self.table = table

        def __getitem__(self, name):
            return self.table[name]

        def take(self, places):
            taken.append(len(places))
            return self.table.take(places)

    result = made_up([f"class_{i}" for i in range(30)], n=3000, accuracy=0.5)
    of = evaluated(replace(result, predictions=Watched(result.predictions)), {}, {})
    assert of["n_wrong"] > 1000 and sum(taken) < 100
    assert len(of["wrong"]) == 24 and len(of["best"]) == 12
    scores = [row["score"] for row in of["wrong"]]
    assert scores == sorted(scores, reverse=True) and not any(row["correct"] for row in of["wrong"])


def test_cannot_write(tmp_path):
    with pytest.raises(FieldmarkError, match="cannot write the report"):
        report(tmp_path / "missing", made_up(["a", "b"]))


@pytest.mark.real
def test_a_hundred_classes_of_real_photos(tmp_path, data_root):
    folder = data_root / "cub100"
    if not folder.is_dir():
        pytest.skip("no cub100")
    with (folder / "metadata.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    test = [row for row in rows if row["split"] == "test"]
    examples: dict[str, list[str]] = {}
    for row in rows:
        if row["split"] == "train":
            examples.setdefault(row["label"], []).append(str(folder / row["file_name"]))
    classes = sorted(examples)
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.full(len(classes), 0.05), len(test))
    p[np.arange(len(test)), [classes.index(row["label"]) for row in test]] += 0.5
    paths, labels = [str(folder / row["file_name"]) for row in test], [row["label"] for row in test]
    result = evaluation(paths, labels, p / p.sum(1, keepdims=True), classes)
    start = time.perf_counter()
    page = report(tmp_path, result, train_examples=examples)
    assert time.perf_counter() - start < 6  # 0.5 s on two idle cores
    assert len(page.all("img")) > 180 and len(page.source) < 4e6
