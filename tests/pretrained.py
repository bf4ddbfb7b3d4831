"""What tests of weights share: a refusal in one line, a pickle that leaves a trace, and networks told apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fieldmark.nn import weights
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import resolve
from fieldmark.runtime.errors import FieldmarkError


def refused(name: str, **options: Any) -> str:
    with pytest.raises(FieldmarkError) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


def same_network(source: weights.Source, network: Any) -> bool:
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        ours = Backbone(source, 96)(images).embedding
        return torch.allclose(ours, network.forward_head(network.forward_features(images), pre_logits=True))
