"""The network as it is trained: folded, cut, and with a head of its own."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods.base import Method
from fieldmark.methods.learner import Learner
from fieldmark.methods.task import Batch
from fieldmark.nn.chain import TOLERANCE, Call, Cut, Fold, chain, fold, unfold
from fieldmark.nn.pooling import FixedReduction
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.heads.head import Head
from fieldmark.train.heads.warm import last_of


class Network:
    """A method with a head that is made ready for training, and for answering afterwards.

    Batch norms keep the statistics that they came with: batches of a few photos of look-alikes would only blur
    them. What they do is folded into the convolutions while the network learns. depthwise: do depthwise kernels
    learn? Their gradient takes long on CPUs, for few weights. pixels: does the method crop or shuffle photos? Then
    it cannot take maps, and what lies before a cut only stays as it is. links: where it can be cut; module:
    what is trained.
    """

    def __init__(self, method: Method, criterion: Criterion, depthwise: bool = True, *, pixels: bool = False):
        self.method, self.criterion, self.pixels = method.eval(), criterion, pixels
        self.head = last_of(method.head)
        self.classes, self.size = self.head.out_features, method.backbone.size
        self._cut: Cut | None = None
        model = method.backbone.model.to(memory_format=torch.channels_last)
        example = self._images(1)
        self._folds: list[Fold] = fold(model, lambda: method.backbone(example))
        method.requires_grad_(True)
        method.projection.requires_grad_(criterion.needs_embedding)
        for module in method.backbone.modules():
            if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels:
                module.requires_grad_(depthwise)
        for module in method.modules():
            if isinstance(module, FixedReduction):
                free(module)
        self.links = chain(model, example, method.backbone)
        self.module = Training(method, criterion)
        self._learns: list[nn.Parameter] = []
        self._usable: list[str] | None = None

    def _images(self, count: int) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return torch.rand(count, 3, self.size, self.size, generator=chance) - 0.5

    def freeze_statistics(self) -> None:
        """The backbone answers as it will later: with the statistics that it came with, and all its paths."""
        self.method.backbone.eval()

    # -- two parts, and whole again

    def usable(self) -> list[str]:
        """Names of links behind which the network may be cut: nothing that the method reads lies before them."""
        if self._usable is None:
            self._usable, still, self._learns = [], self._learns, []  # what is frozen stays so
            for link in () if self.pixels else self.links:
                try:
                    self.open(link.name)
                except FieldmarkError:
                    break
                self.close()
                self._usable.append(link.name)
            self._learns = still
        return self._usable

    def apart(self, name: str) -> bool:
        """May what lies before this cut run apart? Else it only stays as it is, in every step."""
        return name in self.usable()

    def open(self, name: str) -> nn.Sequential:
        """Cut behind the module called ``name``: from now on the method takes the tensor that the returned
        part gives. Raises FieldmarkError where the two parts do not give what the whole gave."""
        cut = Cut(self.method.backbone.model, self._below(name))
        images, training = self._images(2), self.method.training
        error = float("inf")
        self.method.eval()  # dropout and the like would give another answer each time
        with torch.no_grad():
            whole = self.method.describe(images)
            tensor = cut.lower(images)
            cut.open()
            with contextlib.suppress(Exception):  # what is left cannot take the tensor
                error = float((whole - self.method.describe(tensor)).abs().max() / whole.abs().max())
        self.method.train(training)
        self.freeze_statistics()
        if not error <= TOLERANCE:
            cut.close()
            raise FieldmarkError(
                f"the backbone cannot be cut behind {name}: the method needs what lies before"
            )
        self._cut = cut
        return cut.lower

    def check(self, name: str) -> None:
        """Raises FieldmarkError where there is no module called ``name``."""
        self._below(name)

    def freeze(self, name: str | None = None) -> None:
        """Leave all as it is up to the module called ``name`` (none: the whole backbone); what the method takes stays
        the same."""
        below = [self.method.backbone.parameters()]
        if name:  # and what is in no module, such as a class token: it comes before them
            below = [link.module.parameters() for link in self._below(name)]
            below.append(self.method.backbone.model.parameters(recurse=False))
        for parameters in below:
            for parameter in parameters:
                if parameter.requires_grad:
                    parameter.requires_grad_(False)
                    self._learns.append(parameter)

    def begin(self, own: int) -> None:
        """A phase of the method's own begins. What is frozen stays so."""
        self.method.begin(own)
        for parameter in self._learns:
            parameter.requires_grad_(False)

    def _below(self, name: str) -> list[Call]:
        names = [link.name for link in self.links]
        if name not in names:
            raise FieldmarkError(
                f"the backbone cannot be cut behind {name!r}, only behind {', '.join(names)}"
            )
        return self.links[: names.index(name) + 1]

    def close(self) -> None:
        """In one piece again, and all of it learns."""
        if self._cut is not None:
            self._cut.close()
            self._cut = None
        for parameter in self._learns:
            parameter.requires_grad_()
        self._learns = []

    def finish(self) -> Method:
        """The method as it is saved: whole, on the CPU, with its own parts, for answering."""
        self.close()
        self.method.cpu()
        unfold(self.method.backbone.model, self._folds)
        self._folds = []
        for module in self.method.modules():
            if isinstance(module, FixedReduction):
                fix(module)
        forget_counts(self.method)
        return self.method.eval().requires_grad_(False)

    def depth(self) -> dict[str, int]:
        """Parameter name in `module` -> layers above it, counted in links of the chain. New layers, which know
        nothing yet, have no entry."""
        known = {
            f"method.{name}.basis" for name, m in self.method.named_modules() if isinstance(m, FixedReduction)
        }
        names = [
            n for n, _ in self.module.named_parameters() if n.startswith("method.backbone.") or n in known
        ]
        outside = self._beyond()
        under = max(outside.values(), default=0)
        above = {link.name: len(self.links) - number for number, link in enumerate(self.links)}
        answer = {}
        for name in names:
            own = name.removeprefix("method.backbone.model.")
            links = [link for link in above if own.startswith(f"{link}.")]
            answer[name] = above[max(links, key=len)] + under if links else outside.get(own, 0)
        return answer

    def _beyond(self) -> dict[str, int]:
        """Layers above each of the backbone's parameters that lie in no link, as timm counts them: the blocks of
        transformers, whose chain ends where positions are added."""
        model, firsts = self.method.backbone.model, tuple(f"{link.name}." for link in self.links)
        names = [name for name, _ in model.named_parameters() if not name.startswith(firsts)]
        try:
            layers = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
        except (AttributeError, TypeError):  # not every network of timm says
            return {}
        numbers = sorted({layers[name] for name in names if name in layers})
        return {name: len(numbers) - 1 - numbers.index(layers[name]) for name in names if name in layers}


class Training(nn.Module):
    """One step as a module, so that several processes can share it: images and targets in, losses out."""

    def __init__(self, method: Learner, criterion: Criterion):
        super().__init__()
        self.method, self.criterion = method, criterion

    def forward(self, x: Tensor, targets: Tensor, **more: Any) -> dict[str, Tensor]:
        """x, targets, more: the fields of a `Batch`. ``accuracy`` is told for hard targets, of the photos whose class
        is known (NaN: there are none)."""
        batch = Batch(x, targets, self.method.views, **more)
        losses = self.method.training_step(batch, self.criterion)
        logits = losses.pop("logits").detach()
        if targets.ndim == 1:
            right, known = logits.argmax(1) == targets, targets < logits.shape[1]
            losses["accuracy"] = right.sum() / known.sum()
        return losses

    def logits(self, x: Tensor) -> Tensor:
        """[B, C]."""
        return self.method.head(self.method.describe(x))


def forget_counts(module: nn.Module) -> None:
    """Batch norms no longer say how many batches they saw: nothing reads it, and checkpoints do not hold it."""
    for one in module.modules():
        if isinstance(one, nn.BatchNorm2d | nn.BatchNorm1d) and one.num_batches_tracked is not None:
            one.num_batches_tracked.zero_()


def free(module: FixedReduction) -> None:
    """From now on the reduction learns (where it reduces: the identity stays)."""
    basis = module.basis
    if basis.shape[0] < basis.shape[1]:
        del module.basis
        module.register_parameter("basis", nn.Parameter(basis.clone()))


def fix(module: FixedReduction) -> None:
    """The reduction is fixed again, as it is."""
    basis = module.basis.detach().clone()
    del module.basis
    module.register_buffer("basis", basis)


def read_head(method: Learner, embedding: Head, temperature: float) -> Head:
    """The method's logits, and the embedding of another head, as arrays."""

    def array(value: Any) -> np.ndarray:
        return value.detach().cpu().numpy()

    last, first = last_of(method.head), None
    if isinstance(method.head, nn.Sequential):
        first = method.head[0]
        assert isinstance(first, nn.Linear)
    return Head(
        weights=array(last.weight).T.copy(),
        bias=array(last.bias).copy(),
        down=None if first is None else array(first.weight).T.copy(),
        embedding=embedding.embedding,
        offset=embedding.offset,
        temperature=temperature,
    )
