"""Photos of which only a coarser group is known: which of them teach, what, and that a run with them can be resumed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from killed import Killed

from fieldmark import methods
from fieldmark.data.augment import Augment
from fieldmark.data.loader import Photos
from fieldmark.methods.task import Task
from fieldmark.train.held_out import hold_out
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.averages import learned
from fieldmark.train.loop.feeds import CachedFeed, Feed
from fieldmark.train.loop.loop import Loop
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.plan import Plan
from fieldmark.train.recipe import Recipe
from fieldmark.train.tuning.coarse import Coarse
from fieldmark.train.tuning.material import Material
from fieldmark.train.tuning.tuner import Finetune

Make = Callable[..., Any]
CLASSES = ["circle", "cross", "square", "triangle"]
RANKS = {"genus": {"circle": "round", "cross": "thin", "square": "edged", "triangle": "edged"}}
RANKS["family"] = {"circle": "curve", "cross": "line", "square": "line", "triangle": "line"}


def coarse(paths: list[str], genus: list[str | None], family: list[str | None], start: int = 1000) -> Coarse:
    groups = np.arange(start, start + len(paths))
    return Coarse(paths, [f"hash of {path}" for path in paths], groups, {"genus": genus, "family": family})


def test_the_finest_group_that_a_labelled_photo_has() -> None:
    """Labels 4 to 6 are genera by name, 7 and 8 families."""
    genus, family = ["thin", "wavy", None, "edged", "wavy"], ["line", "line", "curve", None, None]
    photos = coarse(["a", "b", "c", "d", "e"], genus, family)
    taught = photos.taught(CLASSES, RANKS, np.array([5, 1003]))
    assert taught.photos.paths == ["a", "b", "c"] and taught.labels.tolist() == [6, 8, 7]
    assert taught.why == "photos without a label teach too: 1 by genus, 2 by family"
    assert [(one.path, one.reason) for one in taught.left] == [
        ("d", "no label, only genus 'edged': it is too much like a photo that judges"),
        ("e", "no label, only genus 'wavy': no labelled photo is of that"),
    ]
    fewer = photos.taught(["circle", "square"], RANKS, np.empty(0))  # as in a fold
    assert fewer.labels.tolist() == [5, 5, 4, 2] and len(fewer.left) == 1, "thin has no class then"
    assert photos.without(np.array([1000, 1004])).paths == ["b", "c", "d"]


def test_none_of_them() -> None:
    for photos, ranks in ((Coarse(), RANKS), (coarse(["a"], ["thin"], [None]), {})):
        taught = photos.taught(CLASSES, ranks, np.empty(0))
        assert len(taught.labels) == 0 and taught.why == "" and len(taught.left) == len(photos)


def test_they_stand_behind_the_others(look: Make) -> None:
    looked = look(6).looked
    held = hold_out(looked, np.zeros(24, bool))
    plain = Material.of(looked, held)
    none = Material.of(looked, held, None, Coarse().taught(CLASSES, RANKS, held))
    assert plain.y is plain.part.y and none.key == plain.key
    more = coarse([looked.paths[0], looked.paths[-1]], ["thin", None], ["line", "curve"])
    both = Material.of(looked, held, None, more.taught(CLASSES, RANKS, np.empty(0)))
    assert both.train.paths == plain.train.paths + more.paths and both.train.content[-2:] == more.content
    assert both.y.tolist() == [*plain.y.tolist(), 6, 7]
    assert both.key != plain.key and both.counts.tolist() == plain.counts.tolist()
    assert both.judges.paths == plain.judges.paths


# -- training

SMALL = {"hrn": {"width": 16}, "fgn": {"width": 16}, "tree_rnn": {"hidden": 16}}


def tune(seen: SimpleNamespace, folder: Path, told: list[str], more: Coarse | None, method: str) -> Any:
    looked = seen.looked
    run = Finetune(
        seen.instant,
        Recipe(epochs=1, batch=8, floor=False, settings=SMALL.get(method, {})),
        folder / "checkpoints",
        Watch(time.time()),
        lambda what, done, total=None, aside="": told.append(aside if not what else ""),
        Accelerator(cpu=True),
        ranks=RANKS,
        coarse=more,
    )
    return run.fit(looked, hold_out(looked, np.zeros(len(looked.y), bool)))


@pytest.mark.parametrize("method", ["hrn", "fgn", "hxe", "tree_rnn"])
def test_a_run_with_them(look: Make, photo_folder: Path, tmp_path: Path, method: str) -> None:
    """Eight photos more are learned: counted, told, in the plan; the answers are others, and judged by classes."""
    seen, told = look(6, method=method), list[str]()
    extra = [str(photo_folder / name / f"0{n}.jpg") for name in CLASSES for n in ("10", "11")]
    names = [path.split("/")[-2] for path in extra]
    more = coarse(extra, [RANKS["genus"][name] for name in names], [None] * 8)
    alone = tune(seen, tmp_path / "a", [], None, method)
    both = tune(seen, tmp_path / "b", told, more, method)
    learnt = len(alone.y) - alone.chosen["held_out"]
    assert "photos without a label teach too: 8 by genus" in told
    assert both.chosen["coarse"] == 8 and alone.chosen["coarse"] == 0 and list(both.coarse) == extra
    assert Plan.read(tmp_path / "b" / "checkpoints").photos == learnt + 8
    assert both.chosen["held_out"] == alone.chosen["held_out"] and both.paths == alone.paths
    for one in (alone, both):  # one epoch of the method's own layers, and one of all
        assert one.chosen["epochs"] > 0.7 and all(np.isfinite(row["held_out_loss"]) for row in one.curve)
    assert not np.allclose(both.judged.logits, alone.judged.logits, atol=1e-5)
    assert all(0 <= row.get("train_accuracy", 0) <= 1 for row in both.curve)


def hrn(loss: str) -> Any:
    """Over a tiny backbone, in two genera."""
    from fieldmark.losses.combine import build
    from fieldmark.nn.backbone import Backbone
    from fieldmark.nn.weights import resolve

    torch.manual_seed(0)
    backbone = Backbone(resolve("test_efficientnet", pretrained=False), 32)
    method = methods.get("hrn")(backbone, (), Task(4, (("genus", (0, 1, 1, 0)),)), {"width": 16})
    method.add_head(4, 6)
    return Network(method, build(loss, classes=4, embedding=6))


def phase(
    some: SimpleNamespace,
    plan: Make,
    folder: Path,
    labels: Any,
    tell: Any,
    loss: str = "cross_entropy+0.1*center",
    **changes: Any,
) -> Loop:
    """A phase of nine steps of eight photos."""
    network, wanted = hrn(loss), plan(**changes)
    common: dict[str, Any] = {"size": 32, "seed": wanted.seed, "workers": 1}
    photos = (Photos(some.train), Photos(some.held))
    if wanted.phases[0].cut:
        from fieldmark.train.loop.feeds import Lower

        lower = Lower(network.open(wanted.phases[0].cut), 32, 1)
        common |= {"lower": lower, "lower_held": lower}
        feed: Any = CachedFeed(
            *photos, some.preprocess, wanted.augment, views=2, file=folder / "maps.f16", **common
        )
        feed.build()
    else:
        feed = Feed(*photos, some.preprocess, wanted.augment, **common)
    places = (folder / "phase-1", tell, Accelerator(cpu=True))
    return Loop(network, feed, labels, some.held_labels, wanted, 0, Watch(0.0), *places)


@pytest.mark.parametrize("kind", ["new views", "kept maps", "mixed", "balanced"])
def test_killed_and_resumed_gives_the_same_bits(
    some: SimpleNamespace, plan: Make, tmp_path: Path, kind: str
) -> None:
    """Every third photo says its genus only: numbers 4 and 5."""
    labels = some.labels.copy()
    labels[::3] = 4 + np.array([0, 1, 1, 0])[labels[::3]]
    changes: dict[str, Any] = {
        "new views": {},
        "kept maps": {"cut": hrn("cross_entropy").usable()[-1], "views": 2},
        "mixed": {"augment": Augment(mixup=0.5, cutmix=0.5)},
        "balanced": {"sampler": "balanced"},
    }[kind]

    def killed(what: str, *values: Any) -> None:
        if what == "step" and values[0] == 5:
            raise Killed

    for one in "ab":
        (tmp_path / one).mkdir()
    whole = phase(some, plan, tmp_path / "a", labels, lambda *_: None, **changes)
    ended = whole.run()
    with pytest.raises(Killed):
        phase(some, plan, tmp_path / "b", labels, killed, **changes).run()
    other = phase(some, plan, tmp_path / "b", labels, lambda *_: None, **changes)
    again = other.run(checkpoint.newest(tmp_path / "b" / "phase-1"))
    assert again.best.score == ended.best.score and ended.stopped == "done"
    mine, theirs = learned(whole.module), learned(other.module)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    last = ended.best.rows[-1]
    assert np.isfinite(last["train_loss"]) and ("train_accuracy" in last) == (kind != "mixed")


def test_gradients_gathered_in_parts(some: SimpleNamespace, plan: Make, tmp_path: Path) -> None:
    """A step of eight photos, whole or one at a time, of which some have no class."""
    labels = some.labels.copy()
    labels[::2] = 4
    ends = []
    for micro in (8, 1):
        changes = {"loss": "cross_entropy", "steps": 1, "optimizer": "sgd"}
        one = phase(some, plan, tmp_path / str(micro), labels, lambda *_: None, **changes)
        one.stepper.micro = micro
        one.run()
        ends.append((learned(one.module), one.stepper.running))
    (weights, whole), (others, parts) = ends
    for name, value in weights.items():
        torch.testing.assert_close(value, others[name], rtol=1e-4, atol=1e-6)
    assert parts["tree"] == pytest.approx(whole["tree"], rel=1e-4)
    assert parts["accuracy"] == pytest.approx(whole["accuracy"]), "of the photos with a class"
