"""The plan of a fine-tuning run: written before the first step, and replayed when the run is resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from fieldmark.data.augment import Augment
from fieldmark.data.sampler import Sampler
from fieldmark.runtime.cache import atomic_write
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import processes
from fieldmark.train.loop.optimizer import Name

if TYPE_CHECKING:
    from fieldmark.train.recipe import Recipe

PLAN = "plan.json"
#: Seconds for the model's graph, its check and its files, beside looking at photos again.
WRITING = 8.0
#: Share of the budget that plans leave alone: no machine is always equally quick.
RESERVE = 0.02
#: Settings of a `Recipe` that stand in a plan as they are.
AS_ASKED = (
    "augment",
    "optimizer",
    "momentum",
    "weight_decay",
    "layer_decay",
    "average",
    "clip",
    "patience",
    "on_nan",
)


class Phase(BaseModel):
    """A stretch of training with one shape.

    cut: the module behind which the network learns; what lies before it is frozen, and runs as a compiled graph
    ("": nothing is frozen). heads: does only learn what lies outside the backbone? fresh: does the head begin with what
    fits the descriptors that new layers give at first? views: of each photo, kept as maps
    at the cut (0: new views every epoch). size: side of the views in pixels; rising: (side, epoch) of smaller ones,
    each until this epoch. steps: of the optimiser; batch: photos of all processes together; lr, head_lr: peak rates;
    own: number of the phase among the method's own (`Learner.phases`). judge_every, save_every: steps between looks at
    the held-out photos, and between checkpoints. until: share of the run's time by which it must end.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    cut: str = ""
    heads: bool = False
    fresh: bool = False
    views: int = Field(0, ge=0)
    size: int = Field(ge=8)
    rising: tuple[tuple[int, int], ...] = ()
    steps: int = Field(ge=1)
    batch: int = Field(ge=1)
    lr: float = Field(gt=0)
    head_lr: float = Field(gt=0)
    own: int = Field(0, ge=0)
    judge_every: int = Field(ge=1)
    save_every: int = Field(ge=1)
    until: float = Field(1.0, gt=0, le=1)

    def side(self, epoch: int) -> int:
        """Pixels of the views of this epoch, from 0."""
        return next((side for side, until in self.rising if epoch < until), self.size)

    def sides(self) -> list[int]:
        """All sides of views, in the order in which they come."""
        return [*(side for side, _ in self.rising), self.size]

    def epochs(self, photos: int) -> float:
        return self.steps * self.batch / max(1, photos)

    def steps_left(self, an_epoch: int, first: int, step: int, seconds: float, left: float) -> int:
        """How many more steps fit into ``left`` seconds, where those from ``first`` to ``step`` took ``seconds``.

        A step takes as long as it has pixels. an_epoch: steps of one.
        """

        def pixels(number: int) -> float:
            return (self.side(number // an_epoch) / self.size) ** 2

        room = left * sum(map(pixels, range(first, step))) / seconds
        more, last = 0, max((until for _, until in self.rising), default=0) * an_epoch
        while step + more < last and room >= pixels(step + more):
            room -= pixels(step + more)
            more += 1
        return more if step + more < last else more + int(room)


class Plan(BaseModel):
    """All phases, and what they share.

    data, asked: what it was made for, see `data_key` and `Recipe.key`. warm_views: augmented views of each photo that
    the head is warmed up with. compile: are the steps compiled? bf16: are they computed in bfloat16 on a CPU, where
    nothing was asked for? average: decay of the moving average; patience:
    evaluations without a better one before a phase ends (0: it never ends early); clip: largest norm of the gradient
    (0: any); even: do held-out photos judge with all classes weighing the same?
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=0)
    photos: int
    held_out: int
    data: str = ""
    asked: str = ""
    warm_views: int = 0
    phases: list[Phase]
    augment: Augment = Augment()
    sampler: Sampler = "all"
    even: bool = False
    optimizer: Name = "adamw"
    momentum: float = 0.9
    weight_decay: float = 0.01
    layer_decay: float = Field(1.0, gt=0, le=1)
    average: float = Field(0.99, ge=0, lt=1)
    clip: float = 1.0
    patience: int = 0
    on_nan: Literal["fail", "skip"] = "fail"
    compile: bool = False
    bf16: bool = False
    #: Why it looks as it does, for people.
    why: str = ""

    @classmethod
    def of(cls, recipe: Recipe, **more: Any) -> Self:
        """With what the recipe says; ``more``: all other fields."""
        return cls(**{name: getattr(recipe, name) for name in AS_ASKED}, **more)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / PLAN) as file:
            file.write_text(self.model_dump_json(indent=2), encoding="utf-8")

    def check(self, data: str, asked: str, run: Path) -> None:
        """Raise FieldmarkError, in a line, if the run in this folder was begun with something else."""
        for what, same in (
            ("other photos, labels, backbone, size or preprocessing", self.data == data),
            ("another method or other flags", self.asked == asked),
        ):
            if not same:
                raise FieldmarkError(
                    f"the run in {run} was begun with {what}: give those, or start again with --overwrite"
                )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises FieldmarkError where there is none, or it is damaged."""
        path = folder / PLAN
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise FieldmarkError(f"{path} cannot be read: start again with --overwrite") from error

    @classmethod
    def agreed(cls, folder: Path) -> Self | None:
        """The plan that the process which writes has there, in all processes; None: it has none."""
        there = processes.main() and (folder / PLAN).exists()
        return processes.agreed(cls.read(folder) if there else None)

    def maps(self, number: int) -> str:
        """Name of the file that this phase keeps its maps in; phases with the same maps share one."""
        phase = self.phases[number]
        same = [(p.cut, p.views, p.size) for p in self.phases].index((phase.cut, phase.views, phase.size))
        return f"maps-{same + 1}.f16"

    def describe(self) -> list[str]:
        """A line a phase."""
        lines = []
        for number, phase in enumerate(self.phases, 1):
            what = f"everything behind {phase.cut}" if phase.cut else "the whole network"
            what = "the method's own layers" if phase.heads else what
            views = f"{phase.views} kept views a photo" if phase.views else "new views every epoch"
            sides = ", then ".join(map(str, phase.sides()))
            lines.append(f"{number}. {what} at {sides} px, {views}: {phase.epochs(self.photos):.1f} epochs")
        return lines


def deadline(budget: float, photos: int, rate: float) -> float:
    """Seconds from the start by which the last step of a run must be done.

    photos: that the finished model then looks at, ``rate`` a second.
    """
    return budget * (1 - RESERVE) - WRITING - photos / rate


def data_key(
    content: Sequence[str], labels: Sequence[str], held: Sequence[bool], graph: str, *more: object
) -> str:
    """What a run belongs to, as one SHA-256: a killed one goes on only with the same.

    content: hashes of the photos [N], in order; labels: their classes; held: which of them judge; graph: key of
    the frozen network that looked at them (`DescriptorGraph.key`); more: what else there is.
    """
    of = [list(content), list(labels), [bool(one) for one in held], graph, *more]
    return hashlib.sha256(json.dumps(of).encode()).hexdigest()
