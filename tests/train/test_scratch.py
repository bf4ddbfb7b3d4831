"""The textbook network by the command's own way: from a folder of photos to a model, and on from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed import Killed
from PIL import Image

from fieldmark.methods.cnn import Options, TextbookCNN
from fieldmark.methods.restore import restore
from fieldmark.recognizer import Recognizer
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import FieldmarkError, UsageError
from fieldmark.train.textbook import search as scratch_search
from fieldmark.train.textbook.network import default_options
from fieldmark.train.textbook.photos import usual_size
from fieldmark.train.textbook.recipe import EPOCHS, SHIFT, FromScratch, divide
from fieldmark.train.textbook.recipes import RECIPE

#: Small enough for a second; nothing here is about how well it recognises.
QUICK: dict[str, Any] = {
    "method": "cnn",
    "epochs": 3,
    "stages": "4 6",
    "hidden": 7,
    "batch": 8,
    "report": False,
}
Painter = Any


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, paint_photos: Painter) -> Path:
    return paint_photos(tmp_path_factory.mktemp("small"), classes=3, each=14, size=12)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> tuple[Recognizer, Path]:
    out = tmp_path_factory.mktemp("whole") / "run"
    return Recognizer(**QUICK).fit(photos, out), out


def weights(out: Path) -> dict[str, np.ndarray]:
    return Bundle(out / "model").arrays("model.safetensors")


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


# -- a run


def test_what_it_tells(whole):
    recognizer, out = whole
    run = recognizer.run
    assert run["mode"] == "scratch" and run["epochs"] == pytest.approx(3, abs=0.5)
    assert run["photos_per_second"] > 0 and run["resumed_at_step"] is None
    notes = json.loads((out / "run.json").read_text(encoding="utf-8"))
    assert notes["settings"]["backbone"] == "textbook_cnn" and notes["chosen"]["plan"]["shift"] == SHIFT
    steps = [row["step"] for row in notes["curve"]]
    assert steps[0] == 0 and steps == sorted(set(steps)) and len(steps) > 2
    assert notes["chosen"]["held_out_top1"] == max(
        notes["held_out"]["top1"], max(row["held_out_accuracy"] for row in notes["curve"])
    )
    assert not (out / "checkpoints").exists()


def test_the_model_answers(whole, photos):
    """Golden answers hold; class by name; a photo of another size is resized."""
    recognizer, _ = whole
    recognizer.predictor.check()
    some = sorted(photos.rglob("*.jpg"))[::9]
    p = recognizer.predict_proba(some)
    assert p.shape == (len(some), 3) and np.allclose(p.sum(1), 1, atol=1e-5)
    big = recognizer.predict_proba([Image.open(some[0]).resize((50, 40))])
    assert np.isfinite(big).all()
    assert recognizer.evaluate(photos).n == recognizer.run["n_test"]


def test_back_to_pytorch(whole):
    """The restored network says what the graph says, and its batch norm's statistics have moved."""
    import torch

    bundle = Bundle(whole[1] / "model")
    network = restore(bundle)
    assert isinstance(network, TextbookCNN) and network.options.compact == "4@3 6@3"
    golden = bundle.golden()
    x = torch.from_numpy(bundle.section.preprocess.normalise(golden["images"]))
    with torch.inference_mode():
        features, logits = network.features(x), network(x)
    assert np.abs(logits.numpy() - golden["logits"]).max() < 1e-3 * np.abs(golden["logits"]).max()
    assert np.abs(features["embedding"].numpy() - golden["embedding"]).max() < 1e-3
    assert any(
        value.abs().max() > 0 for name, value in network.state_dict().items() if "running_mean" in name
    )


def test_classes_come_and_go(whole, tmp_path, paint_photos):
    recognizer = Recognizer.load(whole[1])
    other = paint_photos(tmp_path / "more", classes=4, each=5, size=12, seed=9) / "cross"
    assert recognizer.add_class("cross", sorted(other.iterdir())) == []
    assert recognizer.classes == [*whole[0].classes, "cross"]
    recognizer.predictor.check()
    assert isinstance(restore(recognizer.predictor.bundle), TextbookCNN)
    recognizer.remove_class("cross")
    assert recognizer.classes == whole[0].classes


@pytest.mark.parametrize("more", [{}, {"head": "recurrent", "batch_norm": False, "rotate": 10.0}], ids=str)
def test_killed_and_resumed(photos, tmp_path, more):
    """The same bits as a run that was not killed; what the last checkpoint holds is not done again."""

    def kill(what: str, done: int, *rest: Any) -> None:
        if what == "training" and done == 7:
            raise Killed

    Recognizer(**QUICK, **more).fit(photos, tmp_path / "whole")
    with pytest.raises(Killed):
        Recognizer(**QUICK, **more).fit(photos, tmp_path / "killed", progress=kill)
    again = Recognizer(**QUICK, **more).fit(photos, tmp_path / "killed")
    assert again.run["resumed_at_step"] >= 5
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "killed"))


def test_seeds_and_options_matter(whole, photos, tmp_path):
    Recognizer(**QUICK, seed=1).fit(photos, tmp_path / "seed")
    assert not same(weights(whole[1]), weights(tmp_path / "seed"))
    Recognizer(**{**QUICK, "stages": "4@5"}, activation="tanh", pooling="average", cutmix=1.0).fit(
        photos, tmp_path / "other"
    )
    assert weights(tmp_path / "other")["stages.stage1.conv1.weight"].shape == (4, 3, 5, 5)


def test_bad_photos_are_listed(photos, tmp_path, paint_photos):
    folder = paint_photos(tmp_path / "photos", classes=2, each=12, size=12)
    bad = folder / "circle" / "000.jpg"
    bad.write_bytes(b"no photo")
    recognizer = Recognizer(**QUICK).fit(folder, tmp_path / "run")
    assert [Path(item.path) for item in recognizer.skipped] == [bad]


def test_a_budget_too_small(photos, tmp_path):
    with pytest.raises(FieldmarkError, match="less than one epoch") as caught:
        Recognizer(**{**QUICK, "epochs": None}, budget=1).fit(photos, tmp_path / "run")
    assert "\n" not in str(caught.value)


# -- options


@pytest.mark.parametrize(
    "options, says",
    [
        ({"method": "plain", "stages": "32"}, "--stages belongs to --method cnn"),
        ({"search": True}, "--search belongs to --method cnn"),
        ({"epochs": 1, "dropout": 0.0}, "--dropout belongs to --method cnn"),
        ({"epochs": 1, "batch_norm": False}, "--batch-norm belongs to --method cnn"),
        ({"mode": "scratch"}, "only --method cnn"),
        ({"method": "cnn", "mode": "finetune"}, "leave --mode out"),
        ({"method": "cnn", "backbone": "resnet18"}, "--backbone is for backbones"),
        ({"method": "cnn", "cut": "none"}, "--cut is for backbones"),
        ({"method": "cnn", "phases": "two"}, "--phases is for backbones"),
        ({"method": "cnn", "compile": "yes"}, "--compile is for backbones"),
        ({"method": "cnn", "settings": {"hidden": "64"}}, "--set is for backbones"),
        ({"method": "cnn", "floor": False}, "--floor is for backbones"),
        ({"method": "cnn", "epochs": 2, "budget": "90s"}, "two ways to say how long"),
        ({"method": "cnn", "folds": 3}, "--folds of --method cnn goes with --search"),
        ({"method": "cnn", "budget": "90s", "search": True}, "give --epochs instead of --budget"),
        ({"method": "cnn", "stages": "many"}, "is no stage"),
        ({"method": "cnn", "shift": 0.7}, "shift is 0.7"),
        ({"method": "cnn", "rotate": 999.0}, "rotate is 999"),
        ({"method": "cnn", "recipe": "cats"}, "there are: digits, mnist"),
        ({"method": "cnn", "size": [16, 32]}, "one --size"),
        ({"method": "cnn", "loss": "magic"}, "magic"),
        ({"method": "cnn", "imagination": 1}, "no setting"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(UsageError, match=says) as caught:
        divide(options)
    assert "\n" not in str(caught.value)


def test_defaults_and_recipes():
    settings, asked = divide({"method": "cnn"})
    assert settings.mode == "scratch" and isinstance(asked, FromScratch)
    assert (asked.recipe.epochs, asked.recipe.lr, asked.shift, asked.layers) == (EPOCHS, 3e-3, SHIFT, {})
    views = asked.recipe.augment
    assert not views.flip and not views.crops and not views.color
    _, asked = divide({"method": "cnn", "recipe": "fashion-mnist", "epochs": 9, "dropout": 0.1})
    known = RECIPE["fashion-mnist"]
    assert isinstance(asked, FromScratch) and asked.recipe.epochs == 9 and asked.recipe.batch == known.batch
    assert asked.recipe.augment.flip and asked.shift == known.shift
    assert Options.of(asked.layers) == known.options.model_copy(update={"dropout": 0.1})
    _, asked = divide({"method": "cnn", "budget": "2m", "crop_scale": 0.8, "batch_norm": False})
    assert isinstance(asked, FromScratch) and asked.recipe.epochs is None and asked.recipe.budget == 120
    assert asked.recipe.augment.scale == (0.8, 1.0) and asked.layers == {"batch_norm": False}


@pytest.mark.parametrize("longest, size", [(0, 8), (5, 8), (28, 28), (32, 32), (33, 32), (64, 32), (400, 64)])
def test_sizes(longest, size):
    assert usual_size(longest) == size
    TextbookCNN(default_options(size, {"pooling": "average"}), 2, size)


# -- search


def test_the_grid_keeps_what_was_given():
    base = default_options(8, {})
    assert base in (found := scratch_search.grid(base, {}, 8))
    assert {one.dropout for one in found} == {0.0, 0.3} and len(set(found)) == len(found)
    fixed = scratch_search.grid(base, {"stages": base.stages, "dropout": 0.3}, 8)
    assert fixed == [base]


def test_search_takes_the_smallest_of_the_best(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(scratch_search, "EPOCHS", 2)
    monkeypatch.setattr(scratch_search, "STAGES", ("3", "4 5"))
    options = {name: value for name, value in QUICK.items() if name != "stages"}
    recognizer = Recognizer(**options, dropout=0.1, search=True, folds=2).fit(photos, tmp_path / "run")
    notes = json.loads((tmp_path / "run/run.json").read_text(encoding="utf-8"))
    rows = notes["tried"]
    assert {row["stages"] for row in rows} == {"2*32@3 2*64@3", "3@3", "4@3 5@3"}
    assert all(0 <= row["accuracy"] <= 1 and row["dropout"] == 0.1 and row["folds"] == 2 for row in rows)
    (taken,) = [row for row in rows if row["taken"]]
    network = restore(recognizer.predictor.bundle)
    assert isinstance(network, TextbookCNN) and network.options.compact == taken["stages"]
    assert sum(p.numel() for p in network.stages.parameters()) < taken["parameters"]
