"""Steps that go wrong: losses that are no numbers, and memory that is full."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from fieldmark.data.sampler import epoch_order
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.loop import checkpoint

Make = Callable[..., Any]

# -- losses and gradients that are no numbers


def broken(one: Any, at: set[int], what: str = "loss") -> None:
    """Make the losses of some steps (from 0) no number, or the gradients of losses that are one."""
    real = one.stepper.shared

    def shared(x: torch.Tensor, y: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        losses = real(x, y)
        if one.step not in at:
            return losses
        if what == "loss":
            return {name: value * math.nan for name, value in losses.items()}
        weight = next(p for p in one.module.parameters() if p.requires_grad)
        steep = (weight - weight.detach()).sum().sqrt()  # 0, and infinitely steep
        return {**losses, "loss": losses["loss"] + steep}

    one.stepper.shared = shared


@pytest.mark.parametrize(("what", "clip"), [("loss", 1.0), ("gradient", 1.0), ("gradient", 0.0)])
def test_what_is_no_number_names_its_photos(
    loop: Make, some: SimpleNamespace, tmp_path: Path, what: str, clip: float
) -> None:
    one = loop(tmp_path, clip=clip)
    broken(one, {4}, what)
    photo = some.train[epoch_order(some.labels, 1, 3)[8]]
    with pytest.raises(FieldmarkError) as caught:
        one.run()
    text = str(caught.value)
    assert (
        f"the {what} is not a number at step 5" in text
        and photo in text
        and "--on-nan skip" in text
        and "\n" not in text
    )
    assert checkpoint.newest(tmp_path / "phase-1").step == 3, "what was there before stays"


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_or_it_is_skipped(loop: Make, tmp_path: Path, what: str) -> None:
    told: list[tuple[Any, ...]] = []
    one = loop(tmp_path, tell=lambda *line: told.append(line), on_nan="skip")
    broken(one, {0, 4}, what)
    ended = one.run()
    notes = [line for kind, line, *_ in told if kind == "note"]
    assert len(notes) == 2 and "step 1 " in notes[0] and notes[1].endswith("this step is skipped")
    assert ended.stopped == "done" and one.step == 9
    assert all(parameter.isfinite().all() for parameter in one.module.parameters())
    assert all(tensor.isfinite().all() for tensor in ended.best.state.values())
    assert math.isfinite(ended.best.rows[-1]["train_loss"])


# -- memory


def short_of_memory(one: Any, most: int, error: BaseException) -> list[int]:
    seen: list[int] = []
    real = one.stepper.shared

    def shared(x: torch.Tensor, y: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        seen.append(len(x))
        if len(x) > most:
            raise error
        return real(x, y)

    one.stepper.shared = shared
    return seen


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("no"), MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
)
def test_out_of_memory_halves_the_batch_and_steps_are_the_same(
    loop: Make, tmp_path: Path, error: BaseException
) -> None:
    whole, told = loop(tmp_path / "a", steps=3), []
    whole.run()
    one = loop(tmp_path / "b", tell=lambda *what: told.append(what), steps=3)
    seen = short_of_memory(one, 3, error)
    one.run()
    assert seen[:7] == [8, 4, 2, 2, 2, 2, 2] and [what[1] for what in told if what[0] == "note"] == [
        "out of memory: gradients are now gathered 4 photos at a time",
        "out of memory: gradients are now gathered 2 photos at a time",
    ]
    saved = [checkpoint.newest(tmp_path / name / "phase-1") for name in "ab"]
    assert saved[1].state["micro"] == 2, "a resumed run does not try again"
    for name, value in saved[0].tensors.items():
        if name.startswith("optimizer.") and name.endswith("exp_avg"):
            torch.testing.assert_close(saved[1].tensors[name], value, rtol=1e-2, atol=1e-4)
    assert saved[0].state["running"]["loss"] == pytest.approx(saved[1].state["running"]["loss"], rel=1e-2)


def test_out_of_memory_in_one_of_several_processes(
    loop: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cannot go on alone: the others wait for its gradients."""
    one = loop(tmp_path)
    short_of_memory(one, 3, MemoryError())
    monkeypatch.setattr(type(one.accelerator), "num_processes", 2)
    with pytest.raises(FieldmarkError, match="give a smaller --batch"):
        one.stepper._halve(MemoryError())


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_was_left_out_teaches_nothing(loop: Make, tmp_path: Path, what: str) -> None:
    one, dropped = loop(tmp_path, on_nan="skip"), []
    one.learner.dropped = lambda: dropped.append(one.step)
    broken(one, {4}, what)
    one.run()
    assert dropped == [4]


def test_what_was_left_out_moves_no_statistics(loop: Make, network: Make, tmp_path: Path) -> None:
    made = network()
    made.method.head = nn.Sequential(nn.BatchNorm1d(made.head.in_features), made.head)
    one = loop(tmp_path, made=made, on_nan="skip")
    rows, images, boxes = next(iter(one.batches.since(0)))
    norm = made.method.head[0]
    one._train(rows, images * math.nan, boxes)
    assert not norm.running_mean.any() and norm.num_batches_tracked == 0
    one._train(rows, images, boxes)
    assert norm.running_mean.isfinite().all() and norm.running_mean.any()


def test_not_even_one_photo(loop: Make, tmp_path: Path) -> None:
    one = loop(tmp_path)
    short_of_memory(one, 0, MemoryError())
    with pytest.raises(FieldmarkError, match="not enough memory for one photo at a time"):
        one.run()


@pytest.mark.parametrize("why", ["shapes do not fit", "CUDA error: an illegal memory access was encountered"])
def test_other_errors_are_not_taken_for_memory(loop: Make, tmp_path: Path, why: str) -> None:
    one = loop(tmp_path)
    short_of_memory(one, 0, RuntimeError(why))
    with pytest.raises(RuntimeError, match=why):
        one.run()
