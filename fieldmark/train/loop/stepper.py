"""Steps of the optimiser: losses, gradients in as many parts as memory asks for, and what happens to bad ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train import memory
from fieldmark.train.loop import optimizer
from fieldmark.train.loop.averages import undoing
from fieldmark.train.network import Network
from fieldmark.train.plan.plan import Phase, Plan

#: Losses are noted as their mean over about this many steps.
SMOOTH = 20


class Stepper:
    """Takes steps in one phase of a plan.

    micro: photos whose gradients are computed at once; running: means of the last losses, by name; names: paths of
    the photos, for those that break a step.
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        phase: Phase,
        accelerator: Accelerator,
        micro: int,
        names: Sequence[str],
        tell: Callable[..., None],
    ):
        self.plan, self.accelerator, self.names, self.tell = plan, accelerator, names, tell
        self.module, self.learner, self.micro = network.module, network.module.method, micro
        groups = optimizer.groups(
            self.module,
            network.depth(),
            lr=phase.lr,
            head_lr=phase.head_lr,
            layer_decay=plan.layer_decay,
            weight_decay=plan.weight_decay,
        )
        self.optimizer = optimizer.make(plan.optimizer, groups, plan.momentum)
        self.shared = accelerator.prepare_model(self.module)
        self.scaled = accelerator.prepare_optimizer(self.optimizer)  # which scales, in half precision
        self.running: dict[str, float] = {}
        self._undo: Callable[[], None] = lambda: None

    def __call__(
        self,
        images: Tensor,
        targets: Tensor,
        boxes: Tensor | None,
        *,
        rows: Sequence[int],
        step: int,
        progress: float,
        coarse: bool = False,
    ) -> None:
        """All turns of a batch: images [V B, ...], targets, boxes, progress and coarse are those of a `Batch`.
        rows: numbers of its photos; step: so many were done before."""
        optimizer.set_rate(self.optimizer, progress)
        for turn in range(self.learner.turns):
            more = {"turn": turn, "progress": progress, "coarse": coarse}
            losses = self._gradients(images, targets, boxes, rows, step, more)
            if losses is not None and self._move(rows, step):
                keep = min(1 - 1 / SMOOTH, step / (step + 1))
                for name, value in losses.items():
                    self.running[name] = keep * self.running.get(name, value) + (1 - keep) * value
            self.scaled.zero_grad(set_to_none=True)

    def _move(self, rows: Sequence[int], step: int) -> bool:
        """Clip the gradients, which all processes share, and move the weights; not by what is no number."""
        norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.plan.clip or math.inf)
        if self.accelerator.scaler is None and not math.isfinite(norm):
            self._not_finite("gradient", rows, step)
            return False
        self.scaled.step()
        if self.scaled.step_was_skipped:  # half precision overflowed
            self._drop()
            return False
        self.learner.stepped()
        return True

    def _gradients(
        self,
        images: Tensor,
        targets: Tensor,
        boxes: Tensor | None,
        rows: Sequence[int],
        step: int,
        more: dict[str, float],
    ) -> dict[str, float] | None:
        """Losses and gradients of a batch, gathered in parts where it does not fit into memory as a whole."""
        self._undo = undoing(self.module)
        while True:
            try:
                sums, told = dict[str, float](), dict[str, float]()
                for at in range(0, len(targets), self.micro):
                    part = slice(at, at + self.micro)
                    x, places = (self._part(one, len(targets), part) for one in (images, boxes))
                    share = len(targets[part]) / len(targets)
                    with self.accelerator.autocast():
                        losses = self.shared(x, targets[part], boxes=places, **more)
                    for name, value in losses.items():
                        now = float(value.detach())
                        if name == "loss" or not math.isnan(now):  # it may be told of no photo of this part
                            sums[name] = sums.get(name, 0.0) + now * share
                            told[name] = told.get(name, 0.0) + share
                    self.accelerator.backward(losses["loss"] * share)
                if self._everywhere(math.isfinite(sums["loss"])):
                    return {name: value / told[name] for name, value in sums.items()}
                self._not_finite("loss", rows, step)
                return None
            except Exception as error:
                if not memory.ran_out(error):
                    raise
                self._halve(error)

    def _everywhere(self, good: bool) -> bool:
        """Is it so in all processes? They share gradients, so one that is bad spoils the step for all."""
        if self.accelerator.num_processes == 1:
            return good
        flag = torch.tensor(float(good), device=self.accelerator.device)
        return float(self.accelerator.reduce(flag, "sum")) == self.accelerator.num_processes

    def _part(self, x: Tensor | None, photos: int, part: slice) -> Tensor | None:
        """All views [V B, ...] of some of a batch's photos."""
        if x is None or self.micro >= photos:
            return x
        return x.unflatten(0, (-1, photos))[:, part].flatten(0, 1)

    def _drop(self) -> None:
        """What this batch has moved beside the weights goes back: running statistics, centres."""
        self.learner.dropped()
        self._undo()

    def _halve(self, error: BaseException) -> None:
        if self.accelerator.num_processes > 1:  # the others would wait for ever for its gradients
            raise FieldmarkError(
                f"not enough memory for {self.micro} photos in process {self.accelerator.process_index}: "
                "give a smaller --batch"
            ) from error
        if self.micro < 2:
            raise FieldmarkError(memory.NOT_ONE) from error
        self.optimizer.zero_grad(set_to_none=True)
        self._drop()
        self.micro //= 2
        memory.give_back()
        self.tell("note", f"out of memory: gradients are now gathered {self.micro} photos at a time")

    def _not_finite(self, what: str, rows: Sequence[int], step: int) -> None:
        self._drop()
        names = [self.names[row] for row in rows[:3]]
        what = f"the {what} is not a number at step {step + 1} (photos {', '.join(names)} …)"
        if self.plan.on_nan == "fail":
            raise FieldmarkError(f"{what}: give a smaller --lr, or --on-nan skip")
        self.tell("note", f"{what}: this step is skipped")
