"""Checkpoints without pickle: tensors as safetensors, the rest as JSON, each whole or not there at all.

A checkpoint is a folder ``step-00000120`` with ``tensors.safetensors`` and ``state.json``. It is written beside
its place and renamed into it, so a kill at any moment leaves the one before. A checksum tells damaged tensors.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fieldmark.runtime.errors import FieldmarkError

TENSORS, STATE = "tensors.safetensors", "state.json"
#: Checkpoints kept: should the newest be damaged, there is one before it.
KEEP = 2
_NAME = re.compile(r"step-(\d{8})")


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by name, on the CPU; state: whatever JSON holds; step: optimiser steps done."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def write(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write a checkpoint into ``folder`` and drop all but the newest. Raises OSError, which names it, where there is
    no room."""
    for left in folder.glob(".draft-*"):  # by a kill
        shutil.rmtree(left, ignore_errors=True)
    draft = folder / f".draft-{uuid.uuid4().hex[:8]}"
    draft.mkdir(parents=True)
    try:
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        data = save(plain)
        _put(draft / TENSORS, data)
        _put(draft / STATE, json.dumps({"crc32": zlib.crc32(data), "state": dict(state)}).encode())
        target = folder / f"step-{step:08d}"
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
        _sync(folder)
    except OSError as error:
        error.filename = str(folder)
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    for old in _all(folder)[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)


def newest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint in ``folder``; None where there is none."""
    for path in _all(folder):
        try:
            note = json.loads((path / STATE).read_text(encoding="utf-8"))
            data = (path / TENSORS).read_bytes()
            if zlib.crc32(data) != note["crc32"]:
                continue
            return Checkpoint(int(path.name.removeprefix("step-")), load(data), note["state"])
        except (OSError, ValueError, KeyError, TypeError, SafetensorError):
            continue
    return None


def clear(folder: Path) -> None:
    """Remove all checkpoints, and what a kill left of one."""
    shutil.rmtree(folder, ignore_errors=True)


def pack_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimiser's state as tensors and JSON: its moments by ``optimizer.NUMBER.NAME``, its groups without
    the parameters."""
    packed = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    rest: dict[str, dict[str, Any]] = {}
    for number, values in packed["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{number}.{name}"] = value
            else:
                rest.setdefault(str(number), {})[name] = value
    return tensors, {"groups": packed["param_groups"], "rest": rest}


def unpack_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> None:
    """Put back what `pack_optimizer` took. Raises FieldmarkError where it belongs to another optimiser."""
    inner: dict[int, dict[str, Any]] = {int(n): dict(values) for n, values in state["rest"].items()}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, number, name = key.split(".", 2)
            inner.setdefault(int(number), {})[name] = value
    try:
        optimizer.load_state_dict({"state": inner, "param_groups": state["groups"]})
    except (ValueError, KeyError) as error:
        raise FieldmarkError(f"the checkpoint belongs to another optimiser ({error})") from error
    # Fused kernels pair a parameter with its moments by place in memory: channels-last ones need such moments.
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _all(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, newest first."""
    if not folder.is_dir():
        return []
    return sorted((p for p in folder.iterdir() if _NAME.fullmatch(p.name)), reverse=True)


def _put(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Make a rename in ``folder`` last, where the system lets a folder be synchronised."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
