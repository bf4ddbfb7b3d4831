"""Every method's steps on a GPU that is only pretended: no tensor may be made on the CPU and left there.

Fake tensors know their shape, type and device and hold no numbers, so they can lie on a GPU that is not there. An
operation on tensors of two devices raises, as it would on a real one, and so does a real tensor that a method keeps
beside its parameters and buffers, where ``.to`` would not find it.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from method_tests import CLASSES, TASK, backbone_of
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributions import Distribution
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fieldmark import methods
from fieldmark.losses.combine import build
from fieldmark.methods.base import Method
from fieldmark.methods.plain import Plain
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.train.network import Network

SIDE, PHOTOS = 64, 8
#: Its steps look at numbers, which fake tensors do not have: pytorch-metric-learning chooses pairs by them.
LOOKS_AT_NUMBERS = {"metric"}
WITH_STEPS = [card.name for card in methods.cards() if card.backbone and card.name not in LOOKS_AT_NUMBERS]


@pytest.fixture
def gpu() -> Iterator[torch.device]:
    """A device that pretends to be a GPU."""
    checks = Distribution._validate_args
    Distribution.set_default_validate_args(False)  # they look at numbers
    shapes = ShapeEnv(allow_scalar_outputs=True, allow_dynamic_output_shape_ops=True)
    with FakeTensorMode(allow_non_fake_inputs=False, shape_env=shapes):
        yield torch.device("cuda", 0)
    Distribution.set_default_validate_args(checks)


def moved(module: torch.nn.Module, device: torch.device) -> None:
    """As ``module.to(device)``, which cannot do it with fake tensors."""
    for one in module.modules():
        for name, parameter in one._parameters.items():
            if parameter is not None:
                fake = torch.empty(parameter.shape, dtype=parameter.dtype, device=device)
                one._parameters[name] = torch.nn.Parameter(fake, parameter.requires_grad)
        for name, buffer in one._buffers.items():
            if buffer is not None:
                one._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device=device)


def network(cls: type[Method], needs: tuple[str, ...] = ()) -> Network:
    """The method with a head, ready to train."""
    method = cls(backbone_of("test_vit" if "transformer" in needs else "test_efficientnet", SIDE), (), TASK)
    method.add_head(CLASSES, 5)
    criterion = build("cross_entropy", classes=CLASSES, embedding=5, weight=torch.ones(CLASSES))
    made = Network(method, criterion, pixels="pixels" in needs)
    method.begin(0)  # which may ask for gradients: those there are on real devices only
    return made


def steps(made: Network, device: torch.device) -> list[torch.Tensor]:
    """The loss of each turn in each phase, and in the end what is answered."""
    method = made.method
    moved(made.module, device)
    made.module.train()
    x = torch.randn(method.views * PHOTOS, 3, SIDE, SIDE, device=device)
    y = torch.zeros(PHOTOS, dtype=torch.long, device=device)
    boxes = torch.rand(method.views * PHOTOS, 4, device=device)
    found = []
    for phase in range(len(method.phases)):
        if phase:
            method.begin(phase)
        for turn in range(method.turns):
            found.append(made.module(x, y, boxes=boxes, turn=turn, progress=0.5)["loss"])
            method.stepped()
    made.module.eval()
    return [*found, made.module.logits(x[:PHOTOS])]


@pytest.mark.parametrize("name", WITH_STEPS)
def test_a_step_uses_one_device(name: str, request: pytest.FixtureRequest) -> None:
    made = network(methods.get(name), methods.card(name).needs)
    device = request.getfixturevalue("gpu")
    *losses, logits = steps(made, device)
    assert all(loss.device == device and loss.shape == () for loss in losses)
    assert logits.device == device and logits.shape == (PHOTOS, CLASSES)


class Forgetful(Plain):
    """Makes a tensor and does not say where."""

    def parts(self, features: Features) -> list[torch.Tensor]:
        return [z * torch.arange(z.shape[1]) for z in super().parts(features)]


class Keeping(Plain):
    """Keeps a tensor that is no buffer."""

    def build(self, backbone: Backbone) -> None:
        self.kept = torch.ones(backbone.embedding)

    def parts(self, features: Features) -> list[torch.Tensor]:
        return [z * self.kept for z in super().parts(features)]


@pytest.mark.parametrize(
    "cls, why", [(Forgetful, "at least two devices"), (Keeping, "Please convert all Tensors to FakeTensors")]
)
def test_what_is_left_behind_is_found(cls, why, request: pytest.FixtureRequest) -> None:
    made = network(cls)
    device = request.getfixturevalue("gpu")
    with pytest.raises(Exception, match=why):
        steps(made, device)
