"""From phase to phase: what each is fed with, what is kept of the ones before, and a kill between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from killed import Killed

from fieldmark.data.loader import Photos
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.held_out import hold_out
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.best import Best, Score
from fieldmark.train.loop.feeds import CachedFeed
from fieldmark.train.loop.loop import Outcome
from fieldmark.train.loop.watch import Watch
from fieldmark.train.plan.plan import Plan
from fieldmark.train.recipe import Recipe
from fieldmark.train.tuning.phases import drop_maps, feed_of, go_on, keep_end, newest
from fieldmark.train.tuning.tuner import Finetune

Make = Callable[..., Any]


def outcome(accuracy: float) -> Outcome:
    return Outcome(Best(Score(accuracy, 0.5), rows=[{"step": 3, "held_out_loss": 0.25}]), 24, 1.5, "done")


# -- what is kept


def test_the_next_phase_begins_where_the_last_one_ended(network: Make, tmp_path: Path) -> None:
    """All weights, though the next phase learns (and writes down) only some of them."""
    net, other = network(), network()
    with torch.no_grad():
        for value in (*net.module.parameters(), *net.module.buffers()):
            value.add_(1)
    keep_end(tmp_path, 0, network(), outcome(0.25), 7.0)
    keep_end(tmp_path, 1, net, outcome(0.5), 9.0)
    ends = go_on(tmp_path, 2, other)
    expected = net.module.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in other.module.state_dict().items())
    assert [end.best.score for end in ends] == [Score(0.25, 0.5), Score(0.5, 0.5)]
    assert ends[1][1:] == (24, 1.5, "done") and ends[0].best.rows == [{"step": 3, "held_out_loss": 0.25}]
    assert go_on(tmp_path, 0, other) == []
    with pytest.raises(FieldmarkError, match="start again with --overwrite"):
        go_on(tmp_path, 3, other)


def test_the_newest_phase(tmp_path: Path) -> None:
    assert newest(tmp_path) == (0, None, None)
    for number in (1, 2, 10):
        checkpoint.write(tmp_path / f"phase-{number}", 5, {}, {"phase": number - 1, "spent": 3.0})
    number, saved, spent = newest(tmp_path)
    assert number == 9 and saved is not None and saved.step == 5 and spent == 3, "ten comes after two"


def test_between_two_phases(network: Make, tmp_path: Path) -> None:
    """What is done is not done again where the next phase has no checkpoint yet: its maps may take minutes."""
    checkpoint.write(tmp_path / "phase-1", 5, {}, {"phase": 0, "spent": 3.0})
    keep_end(tmp_path, 0, network(), outcome(0.25), 7.0)
    assert newest(tmp_path) == (1, None, 7.0)
    checkpoint.write(tmp_path / "phase-2", 1, {}, {"phase": 1, "spent": 8.0})
    number, saved, spent = newest(tmp_path)
    assert number == 1 and saved is not None and saved.step == 1 and spent == 8


def test_maps_that_nobody_needs_go(plan: Make, tmp_path: Path) -> None:
    kept = plan(cut="a", views=2).phases[0]
    other = plan(cut="b", views=2).phases[0]
    whole = plan().model_copy(update={"phases": [kept, other, kept, plan().phases[0]]})
    for name in ("maps-1.f16", "maps-1.0-1.json", "maps-2.f16", "maps-2.0-1.json"):
        (tmp_path / name).touch()

    def left() -> list[str]:
        return sorted(path.name for path in tmp_path.iterdir())

    drop_maps(tmp_path, whole, 1)
    assert len(left()) == 4, "the third phase learns from the first one's maps"
    drop_maps(tmp_path, whole, 2)
    assert left() == ["maps-1.0-1.json", "maps-1.f16"]
    drop_maps(tmp_path, whole, 3)
    assert left() == []


# -- what a phase is fed with


def feed(net: Any, plan: Any, some: SimpleNamespace, folder: Path) -> Any:
    return feed_of(
        net,
        plan,
        0,
        Photos(some.train),
        Photos(some.held),
        some.preprocess,
        folder=folder,
        workers=1,
        accelerator=Accelerator(cpu=True),
        progress=lambda *_: None,
    )


def learning(net: Any) -> int:
    return sum(p.requires_grad for p in net.method.backbone.parameters())


def test_new_layers_alone(network: Make, plan: Make, some: SimpleNamespace, tmp_path: Path) -> None:
    net = network()
    whole, name = learning(net), net.usable()[1]
    made = feed(net, plan(cut=name, heads=True, views=2), some, tmp_path)
    assert isinstance(made, CachedFeed) and made.file.name == "maps-1.f16" and made.views == 2
    net.begin(0)
    assert learning(net) == 0 and all(p.requires_grad for p in net.method.head.parameters())
    made.close()
    net.close()
    assert learning(net) == whole


def test_what_is_frozen_stays_so(network: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the method says at the beginning of a phase of its own."""
    net = network(pixels=True)
    monkeypatch.setattr(type(net.method), "begin", lambda self, _: self.requires_grad_(True))
    net.freeze()
    net.begin(1)
    assert learning(net) == 0
    net.close()
    net.begin(1)
    assert learning(net) == len(list(net.method.backbone.parameters()))


def test_methods_that_look_at_photos_get_photos(
    network: Make, plan: Make, some: SimpleNamespace, tmp_path: Path
) -> None:
    net = network(pixels=True)
    whole = learning(net)
    made = feed(net, plan(cut=net.links[1].name), some, tmp_path)
    (x,) = made.batches([(np.array([0, 1]), 0)])
    assert x.shape == (2, 3, 32, 32) and 0 < learning(net) < whole


def test_growing_views_pass_the_frozen_part_of_their_side(
    network: Make, plan: Make, some: SimpleNamespace, tmp_path: Path
) -> None:
    net = network()
    name = net.usable()[0]
    below = net.open(name)
    net.close()
    made = feed(net, plan(cut=name, size=96, rising=((64, 2),)), some, tmp_path)
    steps = [(np.array([0, 1]), epoch) for epoch in (1, 2)]
    sides = [tuple(x.shape) for x in made.batches(steps)]
    assert sides == [tuple(below(torch.zeros(2, 3, side, side)).shape) for side in (64, 96)]
    held = next(iter(made.held_out()))
    assert held.shape[1:] == below(torch.zeros(1, 3, 32, 32)).shape[1:], "held-out photos are as they are"
    made.close()


# -- a run


def run(seen: SimpleNamespace, folder: Path, progress: Callable[..., None], **recipe: Any) -> Any:
    own = Recipe(**{"epochs": 4, "batch": 8, "phases": "two", **recipe})
    watch = Watch(0.0)
    made = Finetune(seen.instant, own, folder, watch, progress, Accelerator(cpu=True))
    return made.fit(seen.looked, hold_out(seen.looked, np.zeros(len(seen.looked.y), bool)))


def weights(folder: Path) -> bytes:
    return (folder / "finetuned.safetensors").read_bytes()


def test_killed_in_the_second_phase_and_resumed(look: Make, tmp_path: Path) -> None:
    """The same bits, epochs and curve as a run that was not killed."""
    seen, taken = look(12), []

    def kill(what: str, *_: object) -> None:
        taken.append(what)
        if taken.count("training") == 9:
            raise Killed

    options = {"lr": 1e-4}
    whole = run(seen, tmp_path / "whole", lambda *_: None, **options)
    assert whole.mode == "finetune"
    plan = Plan.read(tmp_path / "whole")
    assert [bool(phase.views) for phase in plan.phases] == [True, False] and plan.phases[0].steps == 5
    with pytest.raises(Killed):
        run(seen, tmp_path / "killed", kill, **options)
    resumed = run(seen, tmp_path / "killed", lambda *_: None, **options)
    assert resumed.chosen["resumed_at_step"] is not None
    assert weights(tmp_path / "whole") == weights(tmp_path / "killed")
    for name in ("epochs", "held_out_top1", "held_out_nll"):
        assert resumed.chosen[name] == whole.chosen[name]

    def told(trained: Any) -> list[Any]:
        return [(row["phase"], row["step"], row["held_out_loss"]) for row in trained.curve]

    assert told(resumed) == told(whole) and {row["phase"] for row in whole.curve} == {0, 1}
    assert not list((tmp_path / "whole").glob("maps-*.f16")), "the last phase needs none"


def test_ctrl_c_before_a_resumed_run_steps_leaves_what_it_found(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.train.tuning import course

    seen, taken = look(12), []

    def kill(what: str, *_: object) -> None:
        taken.append(what)
        if taken.count("training") == 3:
            raise Killed

    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(Killed):
        run(seen, tmp_path, kill)
    before = newest(tmp_path)
    assert before.saved is not None
    monkeypatch.setattr(course, "feed_of", cut)
    with pytest.raises(KeyboardInterrupt):
        run(seen, tmp_path, lambda *_: None)
    after = newest(tmp_path)
    assert after.saved is not None and after.saved.step == before.saved.step


def test_growing_views_end_to_end(look: Make, tmp_path: Path) -> None:
    trained = run(
        look(12), tmp_path, lambda *_: None, phases="one", progressive=True, train_size=64, epochs=3
    )
    plan = Plan.read(tmp_path)
    assert plan.phases[0].rising and trained.chosen["stopped"] == "done"


def test_each_phase_ends_in_time(look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldmark.train.tuning import course, tuner

    seen, deadlines = look(12), []

    def note(loop: Any, *_: Any) -> Outcome:
        deadlines.append(loop.watch.deadline)
        if len(deadlines) == 2:
            raise Killed
        return outcome(0.5)

    def plan(planner: Any, *arguments: Any) -> Any:
        planner.recipe = Recipe(epochs=2, batch=8, phases="two")
        made = real(planner, *arguments)
        return made.model_copy(
            update={"phases": [made.phases[0].model_copy(update={"until": 0.25}), *made.phases[1:]]}
        )

    real = tuner.Planner.plan
    monkeypatch.setattr(course.Loop, "run", note)
    monkeypatch.setattr(tuner.Planner, "deadline", lambda *_: 1e12)
    monkeypatch.setattr(tuner.Planner, "plan", plan)
    with pytest.raises(Killed):
        run(seen, tmp_path, lambda *_: None, budget=60.0, epochs=None)
    assert deadlines == [0.25e12, 1e12]


def test_steps_are_compiled_phase_by_phase(
    look: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fieldmark.train.tuning import course

    told, tried = [], []

    def fails(network: Any, x: torch.Tensor, *_: Any) -> str:
        tried.append(tuple(x.shape[1:]))
        return "the steps are not compiled: no compiler"

    monkeypatch.setattr(course, "compile_step", fails)
    trained = run(look(12), tmp_path, lambda *at: told.append(at), compile="yes", epochs=2)
    assert len(tried) == 2 and tried[0] != tried[1], "maps, then whatever comes behind the lower cut"
    assert ("", 0, None, "the steps are not compiled: no compiler") in told
    assert trained.chosen["stopped"] == "done"
