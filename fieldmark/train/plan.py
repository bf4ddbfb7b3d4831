"""The plan of a fine-tuning run: written before the first step, and replayed when the run is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from fieldmark.data.augment import Augment
from fieldmark.data.sampler import Sampler
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.optimizer import Name

PLAN = "plan.json"


class Phase(BaseModel):
    """A stretch of training with one shape.

    cut: the module behind which the network learns; what lies before it is frozen, and runs as a compiled graph
    ("": nothing is frozen). views: of each photo, kept as maps at the cut (0: new views every epoch).
    size: side of the views in pixels; steps: of the optimiser; batch: photos of all
    processes together; lr, head_lr: peak rates; own: number of the phase among the method's own (`Learner.phases`).
    judge_every, save_every: steps between looks at the held-out photos, and between checkpoints.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cut: str = ""
    views: int = Field(0, ge=0)
    size: int = Field(ge=8)
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    head_lr: float = Field(gt=0)
    own: int = Field(0, ge=0)
    judge_every: int = Field(ge=1)
    save_every: int = Field(ge=1)


class Plan(BaseModel):
    """All phases, and what they share.

    data: what it was made for, see `data_key`. warm_views: augmented views of each photo that the head is warmed up
    with. average: decay of the moving average; patience: evaluations without a better one before a
    phase ends (0: it never ends early); clip: largest norm of the gradient (0: any).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=0)
    photos: int
    held_out: int
    data: str = ""
    warm_views: int = 0
    phases: list[Phase]
    augment: Augment = Augment()
    sampler: Sampler = "all"
    optimizer: Name = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    layer_decay: float = Field(1.0, gt=0, le=1)
    average: float = Field(0.99, ge=0, lt=1)
    clip: float = 1.0
    patience: int = 0
    on_nan: Literal["fail", "skip"] = "fail"
    #: Why it looks as it does, for people.
    why: str = ""

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / PLAN) as file:
            file.write_text(self.model_dump_json(indent=2), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Plan:
        """Raises FieldmarkError where there is none, or it is damaged."""
        path = folder / PLAN
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FieldmarkError(f"{path} cannot be read: start again with --overwrite") from error

    def describe(self) -> list[str]:
        """A line a phase."""
        lines = []
        for number, phase in enumerate(self.phases, 1):
            what = f"everything behind {phase.cut}" if phase.cut else "the whole network"
            views = f"{phase.views} kept views a photo" if phase.views else "new views every epoch"
            epochs = phase.steps * phase.batch / max(1, self.photos)
            lines.append(f"{number}. {what} at {phase.size} px, {views}: {epochs:.1f} epochs")
        return lines


def data_key(content: Sequence[str], labels: Sequence[str], held: Sequence[bool], graph: str) -> str:
    """What a run belongs to, as one SHA-256: a killed one goes on only with the same.

    content: hashes of the photos [N], in order; labels: their classes; held: which of them judge; graph: key of
    the frozen network that looked at them (`DescriptorGraph.key`).
    """
    of = [list(content), list(labels), [bool(one) for one in held], graph]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()
