"""The modules that an image passes one after the other: where a network can be cut, and what can be folded.

Found by watching one forward pass, so it serves any network: nothing here knows an architecture's names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: Largest relative difference that taking a network apart may make.
TOLERANCE = 1e-3


class Call(NamedTuple):
    """One module's turn in a forward pass: when it began and ended, and which tensors went in and out.

    alone: what went in came from another module, and nothing else computes with it.
    """

    name: str
    module: nn.Module
    begun: int
    ended: int
    input: Tensor
    output: Tensor
    alone: bool = False


def watch(model: nn.Module, run: Callable[[], Any]) -> list[Call]:
    """The calls of all inner modules with one tensor in and one out, while ``run`` runs, in order of their start."""
    calls: list[Call] = []
    clock, open_calls, hooks = 0, [], []
    uses: dict[int, list[int]] = {}  # of outputs, which ``calls`` keep alive: no number is given twice

    class Uses(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            for tensor in tree_leaves((args, kwargs)):
                if id(tensor) in uses:
                    uses[id(tensor)].append(clock)
            return func(*args, **(kwargs or {}))

    def before(_: nn.Module, __: Any) -> None:
        nonlocal clock
        open_calls.append(clock)
        clock += 1

    def after(name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            nonlocal clock
            begun, ended = open_calls.pop(), clock
            clock += 1
            if len(arguments) == 1 and isinstance(arguments[0], Tensor) and isinstance(output, Tensor):
                calls.append(Call(name, module, begun, ended, arguments[0], output))
                uses.setdefault(id(output), [])

        return note

    try:
        for name, module in model.named_modules():
            if name:
                hooks += [
                    module.register_forward_pre_hook(before),
                    module.register_forward_hook(after(name)),
                ]
        with torch.no_grad(), Uses():
            run()
    finally:
        for hook in hooks:
            hook.remove()

    def alone(call: Call) -> bool:
        times = uses.get(id(call.input))
        return times is not None and all(call.begun < time <= call.ended for time in times)

    return [call._replace(alone=alone(call)) for call in sorted(calls, key=lambda call: call.begun)]


def chain(model: nn.Module, images: Tensor, run: Callable[[Tensor], Any]) -> list[Call]:
    """The outermost modules that follow each other from ``images`` on, each fed with what the last gave.

    It ends where anything else happens to the tensor (a position embedding is added, two branches meet).
    """
    calls = watch(model, lambda: run(images))
    links: list[Call] = []
    tensor, time = images, 0
    while True:
        link = next((c for c in calls if c.begun >= time and c.input is tensor), None)
        if link is None:
            return links
        links.append(link)
        tensor, time = link.output, link.ended


class Cut:
    """A network in two parts: ``lower`` maps images to a tensor, and the network itself, while it is `open`,
    maps that tensor to what it gave before.

    links: of `chain`, those below the cut.
    """

    def __init__(self, model: nn.Module, links: list[Call]):
        self.model, self.links = model, links
        self.lower = nn.Sequential(*(link.module for link in links))

    def open(self) -> None:
        """From now on the network takes the tensor at the cut instead of images."""
        for link in self.links:
            replace(self.model, link.name, nn.Identity())

    def close(self) -> None:
        """The network takes images again."""
        for link in self.links:
            replace(self.model, link.name, link.module)


def replace(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` in the place called ``name`` ("blocks.3.conv")."""
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


class Fold(NamedTuple):
    """A convolution that has taken in the batch norm behind it. bias: had it one before?"""

    convolution: str
    norm: str
    original: nn.Module
    bias: bool


def fold(model: nn.Module, run: Callable[[], Any]) -> list[Fold]:
    """Take batch norms with frozen statistics into the convolutions before them, in place.

    y = g (W x) + b - g m  with g = weight / sqrt(variance + eps): one convolution less to wait for, and no
    normalised copies of the maps in the backward pass. `unfold` undoes it, with whatever was learned since.
    Only a norm whose input is one convolution's output is folded, and nothing else may use that output.
    """
    calls = watch(model, run)
    convolutions = {id(c.output): c for c in calls if isinstance(c.module, nn.Conv2d)}
    times: dict[int, int] = {}
    for call in calls:
        times[id(call.module)] = times.get(id(call.module), 0) + 1
    folded = []
    for call in calls:
        norm, before = call.module, convolutions.get(id(call.input))
        if not isinstance(norm, nn.BatchNorm2d) or before is None or not call.alone:
            continue
        if norm.running_mean is None or norm.weight is None:
            continue
        convolution = before.module
        assert isinstance(convolution, nn.Conv2d)
        if times[id(norm)] > 1 or times[id(convolution)] > 1:
            continue
        biased = convolution.bias is not None
        weight, bias = fuse_conv_bn_weights(
            convolution.weight,
            convolution.bias,
            norm.running_mean,
            norm.running_var,  # type: ignore[arg-type]
            norm.eps,
            norm.weight,
            norm.bias,
        )
        convolution.weight, convolution.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        replace(model, call.name, getattr(norm, "act", None) or nn.Identity())  # timm's norms act, too
        folded.append(Fold(before.name, call.name, norm, biased))
    return folded


@torch.no_grad()
def unfold(model: nn.Module, folded: list[Fold]) -> None:
    """Put the batch norms back, in place: the same function, in the network's own parts."""
    for convolution_name, norm_name, norm, biased in folded:
        convolution = model.get_submodule(convolution_name)
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None and norm.running_var is not None and convolution.bias is not None
        # The convolution keeps its weights and the norm is made to change nothing but the offset.
        norm.weight.copy_((norm.running_var + norm.eps).sqrt())
        norm.bias.copy_(convolution.bias + norm.running_mean)
        convolution.bias = nn.Parameter(torch.zeros_like(convolution.bias)) if biased else None
        replace(model, norm_name, norm)
