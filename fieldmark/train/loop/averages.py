"""Averages of weights over the steps of a run: steadier than the weights of any one step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

State = dict[str, Tensor]


def learned(module: nn.Module) -> State:
    """What training changes: parameters that learn, and floating-point buffers (running statistics)."""
    own = {name: p.detach() for name, p in module.named_parameters() if p.requires_grad}
    kept = set(module.state_dict())
    return own | {name: b for name, b in module.named_buffers() if name in kept and b.is_floating_point()}


def copied(state: Mapping[str, Tensor]) -> State:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


@torch.no_grad()
def put(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Write a state into the module's own tensors."""
    for name, tensor in learned(module).items():
        tensor.copy_(state[name])


def undoing(module: nn.Module) -> Callable[[], None]:
    """What puts back all buffers (running statistics, centres) as they are now. Modules that are not in training move
    none."""
    training = [one for one in module.modules() if one.training]
    before = [(buffer, buffer.clone()) for one in training for buffer in one.buffers(recurse=False)]

    @torch.no_grad()
    def undo() -> None:
        for buffer, value in before:
            buffer.copy_(value)

    return undo


class Average:
    """Exponential moving average of all that learns (Polyak and Juditsky, 1992).

    a <- d a + (1 - d) w with d = min(decay, (step + 1) / (step + 10)), so that early steps are soon forgotten. What
    learns is found once: until the last update the module may neither be moved nor learn something else.
    """

    def __init__(self, module: nn.Module, decay: float):
        self.now, self.decay = learned(module), decay
        self.state = copied(self.now)

    @torch.no_grad()
    def update(self, step: int) -> None:
        """step: from 0."""
        d = min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_([self.state[name] for name in self.now], [*self.now.values()], 1 - d)


@contextlib.contextmanager
def instead(module: nn.Module, state: Mapping[str, Tensor]) -> Iterator[None]:
    """The module with another state, for as long as the context lasts."""
    own = copied(learned(module))
    put(module, state)
    try:
        yield
    finally:
        put(module, own)


def between(start: Mapping[str, Tensor], end: Mapping[str, Tensor], share: float) -> State:
    """Weights on the way from ``start`` (share 0) to ``end`` (share 1) (Wortsman et al., WiSE-FT, CVPR 2022)."""
    return {name: torch.lerp(start[name], tensor, share) for name, tensor in end.items()}


def soup(states: Sequence[Mapping[str, Tensor]]) -> State:
    """The mean of several states of one run (Wortsman et al., "Model soups", ICML 2022; Izmailov et al., 2018)."""
    return {name: torch.stack([state[name] for state in states]).mean(0) for name in states[0]}
