"""A weighted sum of losses as one module, from a line of words."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module

import torch
from torch import Tensor, nn

from fieldmark import losses
from fieldmark.losses.targets import pure


def build(
    spec: str | Mapping[str, float],
    *,
    classes: int,
    embedding: int,
    weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    log_prior: Tensor | None = None,
) -> Criterion:
    """The sum of losses that ``spec`` names: "focal(gamma=3)", "cross_entropy+0.1*triplet" or {name: weight}.

    classes: C; embedding: its width E; weight: [C], how much the photos of each class weigh; label_smoothing:
    share; both for the losses of the logits. log_prior: [C], see `Criterion`. Raises UsageError for a spec
    that cannot be (`fieldmark.losses.parse`) and ValueError for a weight or prior that is not [C].
    """
    for name, given in (("weight", weight), ("log_prior", log_prior)):
        if given is not None and given.shape != (classes,):
            raise ValueError(f"{name} {tuple(given.shape)} is not [C] for {classes} classes")
    terms = losses.parse(spec)
    parts: dict[str, nn.Module] = {}
    for name, term in terms.items():
        card = losses.card(name)
        module, cls = card.home.split(":")
        make = getattr(import_module(module), cls)
        if card.needs == "logits":
            parts[name] = make(label_smoothing=label_smoothing, weight=weight, **term.settings)
        elif card.holds == "nothing":
            parts[name] = make(**term.settings)
        else:
            parts[name] = make(classes, embedding, **term.settings)
    return Criterion(parts, {name: term.weight for name, term in terms.items()}, log_prior)


class Criterion(nn.Module):
    """Weighted sum of losses, and each of them by itself.

    parts: name -> module; weights: name -> its factor in the sum. What a loss keeps (centres, directions) is
    in this module's state_dict, and its parameters need an optimiser.

    log_prior: [C], added to the logits in training only: softmax cross-entropy of the sum teaches logits that
    are right where all classes are alike frequent (Menon et al., "Long-tail Learning via Logit Adjustment",
    ICLR 2021, equation 10). In eval mode, as in the recogniser, logits are plain.

    Losses of the embedding need one class a photo: with soft targets they see the photos whose target is
    pure (`fieldmark.losses.targets.PURE`) and give 0 where there are none.
    """

    log_prior: Tensor | None

    def __init__(
        self, parts: Mapping[str, nn.Module], weights: Mapping[str, float], log_prior: Tensor | None = None
    ):
        super().__init__()
        self.parts = nn.ModuleDict(parts)
        self.weights = dict(weights)
        self.register_buffer("log_prior", log_prior, persistent=False)

    @property
    def needs_embedding(self) -> bool:
        """Does a part look at the embedding?"""
        return any(losses.card(name).needs == "embedding" for name in self.parts)

    def forward(self, logits: Tensor, targets: Tensor, embedding: Tensor | None = None) -> dict[str, Tensor]:
        """``loss`` (with gradient) and each part by its name (unweighted, detached).

        logits: [B, C]; targets: [B] class numbers or [B, C] shares; embedding: [B, E], needed by some losses
        only. Half precision is widened, and autocast is off in here.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = self.adjusted(logits)
            values = {
                name: part(logits, targets)
                if losses.card(name).needs == "logits"
                else _of_embedding(part, name, embedding, targets)
                for name, part in self.parts.items()
            }
            total = torch.stack([self.weights[name] * value for name, value in values.items()]).sum()
        return {"loss": total, **{name: value.detach() for name, value in values.items()}}

    def adjusted(self, logits: Tensor) -> Tensor:
        """Logits [B, C] as the losses see them: not in half precision, and in training with the prior."""
        logits = _wide(logits)
        if self.training and self.log_prior is not None:
            return logits + self.log_prior.to(logits.dtype)
        return logits

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum of the losses of the logits alone, a scalar: for what else a method makes logits of."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = self.adjusted(logits)
            values = [
                self.weights[name] * part(logits, targets)
                for name, part in self.parts.items()
                if losses.card(name).needs == "logits"
            ]
        return torch.stack(values).sum()

    def of_embedding(self, embedding: Tensor, targets: Tensor) -> Tensor:
        """The weighted sum of the losses of the embedding alone, a scalar; 0 where there are none."""
        with torch.autocast(embedding.device.type, enabled=False):
            values = [
                self.weights[name] * _of_embedding(part, name, embedding, targets)
                for name, part in self.parts.items()
                if losses.card(name).needs == "embedding"
            ]
        return torch.stack(values).sum() if values else embedding.new_zeros(())


def _of_embedding(part: nn.Module, name: str, embedding: Tensor | None, targets: Tensor) -> Tensor:
    if embedding is None:
        raise ValueError(f"the loss {name} needs the embedding [B, E]")
    embedding = _wide(embedding)
    labels, rows = pure(targets)
    if rows is not None:
        embedding, labels = embedding[rows], labels[rows]
    return part(embedding, labels)  # without rows too: what it holds is kept equal across processes


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
