"""Checkpoints: whole or not there, whatever happens while they are written; no pickle; nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from killed import Killed
from torch import nn

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.checkpoint import STATE, TENSORS
from fieldmark.train.loop.optimizer import make

DICE = torch.Generator().manual_seed(0)


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"a": torch.full((3, 2), float(step)), "b.c": torch.arange(4) + step}


def save(folder: Path, *steps: int) -> None:
    for step in steps:
        checkpoint.write(folder, step, tensors(step), {"step was": step})


def step_of(folder: Path) -> int | None:
    found = checkpoint.newest(folder)
    if found is None:
        return None
    assert found.state == {"step was": found.step}
    assert all(torch.equal(found.tensors[name], value) for name, value in tensors(found.step).items())
    return found.step


def test_what_is_written_is_read(tmp_path: Path) -> None:
    kinds = {
        "half": torch.randn(3, generator=DICE).half(),
        "bf16": torch.randn(3, generator=DICE).bfloat16(),
        "double": torch.randn(3, generator=DICE, dtype=torch.float64),
        "whole": torch.tensor(7),
        "bits": torch.tensor([True, False]),
        "nan": torch.tensor([float("nan"), float("inf"), -0.0]),
        "turned": torch.randn(4, 3, 2, 5, generator=DICE).to(memory_format=torch.channels_last).mT,
        "learns": nn.Parameter(torch.randn(2, generator=DICE)),
    }
    state = {"score": [1 / 3, float("nan")], "rows": [{"lr": 0.1 + 0.2}], "text": "é"}
    checkpoint.write(tmp_path / "new", 12, kinds, state)
    back = checkpoint.newest(tmp_path / "new")
    assert back.step == 12 and back.state["rows"] == state["rows"] and back.state["text"] == "é"
    assert back.state["score"][0] == 1 / 3
    for name, value in kinds.items():
        assert back.tensors[name].dtype == value.dtype and back.tensors[name].shape == value.shape
        assert torch.equal(back.tensors[name].nan_to_num(), value.detach().nan_to_num())
    assert not any(
        b"torch" in path.read_bytes() or b"\x80\x04" in path.read_bytes()[:2]
        for path in (tmp_path / "new").rglob("*")
        if path.is_file()
    ), "no pickle"
    assert {path.name for path in (tmp_path / "new/step-00000012").iterdir()} == {TENSORS, STATE}


def test_no_folder_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") is None and checkpoint.newest(tmp_path) is None
    (tmp_path / "step-1").mkdir()
    assert checkpoint.newest(tmp_path) is None, "not a name of ours"


def test_the_newest_and_the_one_before_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 5, 90, 100)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000090", "step-00000100"]
    assert step_of(tmp_path) == 100
    save(tmp_path, 100)
    assert step_of(tmp_path) == 100, "written again in its place"


@pytest.mark.parametrize("name", [TENSORS, STATE])
@pytest.mark.parametrize("how", ["gone", "empty", "half", "noise"])
def test_a_damaged_one_gives_way_to_the_one_before(tmp_path: Path, name: str, how: str) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / name
    data = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "noise": os.urandom(len(data))}[how])
    assert step_of(tmp_path) == 1
    save(tmp_path, 2)
    assert step_of(tmp_path) == 2


def test_bits_that_changed_are_noticed(tmp_path: Path) -> None:
    save(tmp_path, 1, 2)
    path = tmp_path / "step-00000002" / TENSORS
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert step_of(tmp_path) == 1


def test_a_kill_at_any_moment_leaves_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that touches the disk is made the last one, half done, with no clearing up after it."""
    moments = 0
    for moment in range(30):
        folder = tmp_path / f"{moment}"
        save(folder, 1, 2)
        with monkeypatch.context() as patch:
            calls = iter(range(1000))

            def doomed(real, before: bool, calls=calls, moment=moment):
                def call(*arguments, **more):
                    if next(calls) == moment:
                        if not before:
                            real(*arguments, **more)
                        raise Killed
                    return real(*arguments, **more)

                return call

            patch.setattr(Path, "mkdir", doomed(Path.mkdir, False))
            patch.setattr(Path, "rename", doomed(Path.rename, moment % 2 == 0))
            patch.setattr(Path, "replace", doomed(Path.replace, moment % 2 == 0))
            patch.setattr(checkpoint, "_put", doomed(_half, False))
            patch.setattr(checkpoint, "_sync", doomed(checkpoint._sync, True))
            patch.setattr(checkpoint.shutil, "rmtree", doomed(shutil.rmtree, moment % 2 == 0))
            try:
                save(folder, 2 if moment % 3 == 0 else 3)
            except Killed:
                moments += 1
        assert step_of(folder) in (1, 2, 3), moment
        save(folder, 4)
        assert step_of(folder) == 4
        assert sum(path.name.startswith("step-") for path in folder.iterdir()) == 2
        assert not list(folder.glob(".draft-*")), "what a kill left is cleared"
    assert moments > 5


def _half(path: Path, data: bytes) -> None:
    """Write in two goes, as a kill between them shows."""
    path.write_bytes(data[: len(data) // 2])
    path.write_bytes(data)


def test_no_room_is_an_oserror_and_the_old_one_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "_put", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert step_of(tmp_path) == 1 and [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_clear(tmp_path: Path) -> None:
    save(tmp_path / "x", 1)
    (tmp_path / "x/.draft-1").mkdir()
    checkpoint.clear(tmp_path / "x")
    checkpoint.clear(tmp_path / "x")
    assert not (tmp_path / "x").exists()


def goes_on(folder: Path, fresh: Any, steps: Any, idle: bool = False) -> torch.optim.Optimizer:
    """Three steps (``idle``: none), a checkpoint and three more end where three from the checkpoint do."""
    model, optimizer = fresh()
    if not idle:
        steps(model, optimizer, range(3))
    packed, rest = checkpoint.pack_optimizer(optimizer)
    checkpoint.write(folder, 3, {**packed, "w": model.weight, "b": model.bias}, {"optimizer": rest})
    steps(model, optimizer, range(3, 6))
    saved = checkpoint.newest(folder)
    assert saved is not None
    other, again = fresh()
    with torch.no_grad():
        other.weight.copy_(saved.tensors["w"])
        other.bias.copy_(saved.tensors["b"])
    checkpoint.unpack_optimizer(again, saved.tensors, saved.state["optimizer"])
    steps(other, again, range(3, 6))
    assert torch.equal(model.weight, other.weight) and torch.equal(model.bias, other.bias)
    return again


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd", "plain sgd", "rmsprop", "idle"])
def test_an_optimiser_goes_on_to_the_bit(tmp_path: Path, name: str) -> None:
    how = {
        "adamw": lambda p: torch.optim.AdamW(p, 0.1, fused=True),
        "adam": lambda p: torch.optim.Adam(p, 0.1, fused=True, amsgrad=True),
        "sgd": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True, fused=True),
        "plain sgd": lambda p: torch.optim.SGD(p, 0.1),
        "rmsprop": lambda p: torch.optim.RMSprop(p, 0.1, momentum=0.5),
        "idle": lambda p: torch.optim.AdamW(p, 0.1),
    }[name]

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Linear(4, 3)
        return model, how([{"params": [model.weight], "peak": 1 / 3}, {"params": [model.bias], "lr": 0.05}])

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            optimizer.zero_grad()
            x = torch.randn(5, 4, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            optimizer.step()

    again = goes_on(tmp_path, fresh, steps, idle=name == "idle")
    assert again.param_groups[0]["peak"] == 1 / 3


@pytest.mark.parametrize("name", ["adamw", "adam", "sgd"])
def test_moments_stay_with_their_weights_in_any_layout(tmp_path: Path, name: str) -> None:
    """Fused kernels pair weights and moments by their place in memory."""

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(1)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, make(name, [{"params": list(model.parameters()), "lr": 0.1}])

    def steps(model: nn.Module, optimizer: torch.optim.Optimizer, which: range) -> None:
        for step in which:
            optimizer.zero_grad()
            x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(step))
            model(x.contiguous(memory_format=torch.channels_last)).square().mean().backward()
            optimizer.step()

    goes_on(tmp_path, fresh, steps)


def test_another_optimisers_state_is_refused() -> None:
    one = torch.optim.SGD([nn.Parameter(torch.ones(2))], 0.1)
    two = torch.optim.SGD([{"params": [nn.Parameter(torch.ones(2))]}, {"params": []}], 0.1)
    packed, rest = checkpoint.pack_optimizer(one)
    with pytest.raises(FieldmarkError, match="the checkpoint belongs to another optimiser"):
        checkpoint.unpack_optimizer(two, packed, json.loads(json.dumps(rest)))
