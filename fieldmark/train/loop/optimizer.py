"""Which parameters learn how fast: groups, optimisers, and the rate over time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import nn

from fieldmark.runtime.errors import UsageError

Name = Literal["adamw", "adam", "sgd"]
OPTIMIZERS: tuple[str, ...] = get_args(Name)
#: Share of the steps in which the rate rises to its peak.
WARM_UP = 0.05


def groups(
    module: nn.Module,
    depth: Mapping[str, int],
    *,
    lr: float,
    head_lr: float,
    layer_decay: float = 1.0,
    weight_decay: float = 0.0,
) -> list[dict[str, Any]]:
    """Parameter groups of all that can learn.

    depth: parameter name -> how many layers lie above it; names that are missing belong to the head, and learn
    at ``head_lr``. The others learn at lr * layer_decay^depth (Howard and Ruder, ULMFiT, ACL 2018; Bao et al.,
    BEiT, ICLR 2022). Vectors (biases, norms) have no weight decay.
    """
    found: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        rate = lr * layer_decay ** depth[name] if name in depth else head_lr
        decays = parameter.ndim > 1
        group = found.setdefault(
            (rate, decays),
            {"params": [], "lr": rate, "peak": rate, "weight_decay": weight_decay if decays else 0.0},
        )
        group["params"].append(parameter)
    return list(found.values())


def make(name: str, param_groups: list[dict[str, Any]], momentum: float = 0.9) -> torch.optim.Optimizer:
    """The optimiser; one kernel for all parameters where the device has it. Raises UsageError for no name."""
    if name == "adamw":
        return torch.optim.AdamW(param_groups, fused=True)
    if name == "adam":
        return torch.optim.Adam(param_groups, fused=True)
    if name == "sgd":
        return torch.optim.SGD(param_groups, momentum=momentum, nesterov=momentum > 0, fused=True)
    raise UsageError(f"no optimiser is called {name!r}; there are: {', '.join(OPTIMIZERS)}")


def factor(progress: float, warm_up: float = WARM_UP) -> float:
    """What peak rates are multiplied with: a linear rise, then half a cosine down to 0 (Loshchilov and Hutter,
    SGDR, ICLR 2017). progress: 0 at the first step, 1 after the last."""
    if progress < warm_up:
        return max(progress / warm_up, 0.01)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warm_up) / (1 - warm_up))))


def set_rate(optimizer: torch.optim.Optimizer, progress: float, warm_up: float = WARM_UP) -> float:
    """Set all rates for this progress; returns the factor."""
    now = factor(progress, warm_up)
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * now
    return now
