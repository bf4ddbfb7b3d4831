"""The model folder: all that an answer needs, without pickles, and a Hugging Face repository as it stands.

config.json        format, timm's keys, classes, preprocessing, decision; SHA-256 of every other file but README.md
model.onnx         pixels -> logits and embedding
model.safetensors  the same weights, for training on
stats.safetensors  class sums and shared moments: to add or remove a class without the old photos
golden.npz         rendered pictures and their answers: proof that an engine computes what was trained
split.parquet      content hash of each photo -> the split it was in (no names)
metrics.json, README.md
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess

FORMAT = 1
GRAPH = "model.onnx"
SPLITS = "split.parquet"
#: Files that are part of the format; others in the folder are left alone, and stay when a model takes its place.
FILES = (
    GRAPH,
    "model.safetensors",
    "stats.safetensors",
    "golden.npz",
    SPLITS,
    "metrics.json",
)
#: The model card is for people, who are asked to complete it: it is not hashed, and need not be there.
CARD = "README.md"


class Decision(BaseModel):
    """Fitted constants of the answer. temperature: logits are divided by it before the softmax."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    temperature: float = Field(1.0, gt=0)


class Section(BaseModel):
    """What fieldmark adds to timm's keys.

    classes: in the order of the logits. scales: sides in pixels at which a photo is looked at. widths: of the
    descriptor's parts. ranks: coarser ranks of each class, finest first ({} where unknown).
    """

    model_config = ConfigDict(extra="forbid")
    version: str
    method: str
    mode: str = "instant"
    classes: list[str] = Field(min_length=1)
    scales: list[int]
    widths: list[int]
    embedding: int
    preprocess: Preprocess
    decision: Decision = Decision()
    ranks: dict[str, dict[str, str | None]] = {}
    training: dict[str, Any] = {}
    files: dict[str, str] = {}

    @field_validator("classes")
    @classmethod
    def _once(cls, classes: list[str]) -> list[str]:
        if len(set(classes)) < len(classes):
            raise ValueError("a class is named twice")
        return classes


class Config(BaseModel):
    """config.json: timm's keys, so that other tools can read the folder, and our section."""

    model_config = ConfigDict(extra="allow")
    format: int
    architecture: str
    num_classes: int
    num_features: int
    pretrained_cfg: dict[str, Any]
    fieldmark: Section


class Bundle:
    """An opened model folder.

    Raises FieldmarkError in one line for what is no model, an unknown format, or a damaged file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.config = _read_config(self.path)

    @property
    def section(self) -> Section:
        return self.config.fieldmark

    @property
    def classes(self) -> list[str]:
        return self.section.classes

    @property
    def key(self) -> str:
        """Names what it answers: 12 digits, others for another graph, classes, preprocessing or calibration."""
        says = self.section.model_dump(mode="json", include={"classes", "preprocess", "decision"})
        told = json.dumps([self.section.files.get(GRAPH), says], sort_keys=True)
        return hashlib.sha256(told.encode()).hexdigest()[:12]

    def file(self, name: str) -> Path:
        """The path of one of the bundle's files, once its hash has been checked."""
        path = self.path / name
        expected = self.section.files.get(name)
        if expected is None:
            raise FieldmarkError(f"{self.path} has no {name}: this model was saved without it")
        try:
            with path.open("rb") as handle:
                found = hashlib.file_digest(handle, "sha256").hexdigest()
        except OSError as error:
            raise FieldmarkError(
                f"cannot read {path}: {error.strerror}; copy the whole model folder"
            ) from error
        if found != expected:
            raise FieldmarkError(f"{path} is damaged or was changed (its hash differs): copy the model again")
        return path

    def verify(self) -> None:
        """Check every file."""
        for name in self.section.files:
            self.file(name)

    def splits(self) -> dict[str, str]:
        """Content hash -> the split that photo was in at training; nothing where the model's owner withholds it."""
        if SPLITS not in self.section.files:
            return {}
        from pyarrow import parquet

        with self._reading(SPLITS) as path:
            table = parquet.read_table(path)
            return dict(zip(table["content"].to_pylist(), table["split"].to_pylist(), strict=True))

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """The tensors of a safetensors file."""
        from safetensors.numpy import load_file

        with self._reading(name) as path:
            return load_file(path)

    def golden(self) -> dict[str, np.ndarray]:
        """images [N, S, S, 3] uint8, logits [N, C], embedding [N, E]; rounding [] where the network chooses places."""
        with self._reading("golden.npz") as path, np.load(path, allow_pickle=False) as arrays:
            more = [name for name in ("rounding",) if name in arrays]
            return {name: arrays[name] for name in ("images", "logits", "embedding", *more)}

    def metrics(self) -> dict[str, Any]:
        with self._reading("metrics.json") as path:
            return json.loads(path.read_text(encoding="utf-8"))

    @contextlib.contextmanager
    def _reading(self, name: str) -> Iterator[Path]:
        """The checked path of a file whose content may still be something else than it should."""
        path = self.file(name)
        try:
            yield path
        except Exception as error:
            raise FieldmarkError(
                f"{path} cannot be read ({_first_line(error)}): copy the model again"
            ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _read_config(path: Path) -> Config:
    file = path / "config.json"
    if not path.is_dir():
        raise FieldmarkError(
            f"no model at {path}: give the folder that `fieldmark train` wrote (runs/…/model)"
        )
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise FieldmarkError(f"{path} holds no model: it has no config.json") from None
    except (OSError, UnicodeDecodeError) as error:
        raise FieldmarkError(f"cannot read {file}: {error}") from error
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FieldmarkError(f"{file} is damaged: it is not JSON ({error})") from error
    version = raw.get("format") if isinstance(raw, dict) else None
    if version is None or "fieldmark" not in raw:
        raise FieldmarkError(f"{path} was not written by fieldmark: its config.json has no fieldmark section")
    if version != FORMAT:
        raise FieldmarkError(
            f"{path} has format {version}, this fieldmark reads format {FORMAT}: "
            + ("update fieldmark" if isinstance(version, int) and version > FORMAT else "train it again")
        )
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise FieldmarkError(f"{file} is damaged: {where}: {first['msg']}") from error
    if config.num_classes != len(config.fieldmark.classes):
        raise FieldmarkError(
            f"{file} is damaged: {config.num_classes} classes, but {len(config.fieldmark.classes)} names"
        )
    unsafe = [name for name in config.fieldmark.files if name not in FILES]
    if unsafe:
        raise FieldmarkError(f"{file} names a file that is no part of the format: {unsafe[0]!r}")
    return config
