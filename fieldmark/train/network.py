"""The network as it is trained: folded, cut, and with a head of its own."""

from __future__ import annotations

import contextlib
import re
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.losses.combine import Criterion
from fieldmark.methods.base import Method
from fieldmark.nn.chain import TOLERANCE, Cut, Fold, chain, fold, unfold
from fieldmark.nn.pooling import FixedReduction
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.head import Head


class Network:
    """A method with a head that is made ready for training, and for answering afterwards.

    Batch norms keep the statistics that they came with: batches of a few photos of look-alikes would only blur
    them. What they do is folded into the convolutions while the network learns. depthwise: do depthwise kernels
    learn? Their gradient takes long on CPUs, for few weights. links: where it can be cut; module:
    what is trained.
    """

    def __init__(self, method: Method, criterion: Criterion, depthwise: bool = True):
        self.method, self.criterion = method.eval(), criterion
        self.head = last_layer(method)
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

    def _images(self, count: int) -> Tensor:
        chance = torch.Generator().manual_seed(0)
        return torch.rand(count, 3, self.size, self.size, generator=chance) - 0.5

    def freeze_statistics(self) -> None:
        """The backbone answers as it will later: with the statistics that it came with, and all its paths."""
        self.method.backbone.eval()

    # -- two parts, and whole again

    def usable(self) -> list[str]:
        """Names of links behind which the network may be cut: nothing that the method reads lies before them."""
        answer = []
        for link in self.links:
            try:
                self.open(link.name)
            except FieldmarkError:
                break
            self.close()
            answer.append(link.name)
        return answer

    def open(self, name: str) -> nn.Sequential:
        """Cut behind the module called ``name``: from now on the method takes the tensor that the returned
        part gives. Raises FieldmarkError where the two parts do not give what the whole gave."""
        names = [link.name for link in self.links]
        if name not in names:
            raise FieldmarkError(
                f"the backbone cannot be cut behind {name!r}, only behind {', '.join(names)}"
            )
        cut = Cut(self.method.backbone.model, self.links[: names.index(name) + 1])
        images = self._images(2)
        error = float("inf")
        with torch.no_grad():
            whole = self.method.describe(images)
            tensor = cut.lower(images)
            cut.open()
            with contextlib.suppress(Exception):  # what is left cannot take the tensor
                error = float((whole - self.method.describe(tensor)).abs().max() / whole.abs().max())
        if not error <= TOLERANCE:
            cut.close()
            raise FieldmarkError(
                f"the backbone cannot be cut behind {name}: the method needs what lies before"
            )
        self._cut = cut
        return cut.lower

    def close(self) -> None:
        """In one piece again."""
        if self._cut is not None:
            self._cut.close()
            self._cut = None

    def finish(self) -> Method:
        """The method as it is saved: whole, on the CPU, with its own parts, for answering."""
        self.close()
        self.method.cpu()
        unfold(self.method.backbone.model, self._folds)
        self._folds = []
        for module in self.method.modules():
            if isinstance(module, FixedReduction):
                fix(module)
        return self.method.eval().requires_grad_(False)

    def depth(self) -> dict[str, int]:
        """Parameter name in `module` -> layers above it, counted in links of the chain. The head has no entry."""
        above = {link.name: len(self.links) - number for number, link in enumerate(self.links)}
        answer = {}
        for name, _ in self.module.named_parameters():
            if not name.startswith("method.") or re.match(r"method\.(head|projection)\.", name):
                continue
            own = name.removeprefix("method.backbone.model.")
            links = [link for link in above if own.startswith(f"{link}.")]
            answer[name] = above[max(links, key=len)] if links else 0
        return answer


class Training(nn.Module):
    """One step as a module, so that several processes can share it: images and targets in, losses out."""

    def __init__(self, method: Method, criterion: Criterion):
        super().__init__()
        self.method, self.criterion = method, criterion

    def forward(self, x: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """x: [B, ...] images, or maps at the cut; targets: [B] or [B, C]. ``accuracy`` is told for hard targets."""
        z = self.method.describe(x)
        logits = self.method.head(z)
        embedding = self.method.projection(z) if self.criterion.needs_embedding else None
        losses = self.criterion(logits, targets, embedding)
        if targets.ndim == 1:
            losses["accuracy"] = (logits.detach().argmax(1) == targets).float().mean()
        return losses

    def logits(self, x: Tensor) -> Tensor:
        """[B, C]."""
        return self.method.head(self.method.describe(x))


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


def last_layer(method: Method) -> nn.Linear:
    """The layer that gives the logits."""
    last = method.head[-1] if isinstance(method.head, nn.Sequential) else method.head
    assert isinstance(last, nn.Linear)
    return last


def read_head(method: Method, embedding: Head, temperature: float) -> Head:
    """The method's logits, and the embedding of another head, as arrays."""

    def array(value: Any) -> np.ndarray:
        return value.detach().cpu().numpy()

    last, first = last_layer(method), None
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
