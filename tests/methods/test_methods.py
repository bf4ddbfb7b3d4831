"""Every method by the common tests, and what is each one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from method_tests import FrozenTests, images

from fieldmark import methods
from fieldmark.methods.base import MOST_ENTRIES, Method, Resample
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.weights import Source
from fieldmark.runtime.errors import UsageError


class TestPlain(FrozenTests):
    name = "plain"

    def test_it_is_the_pooled_embedding(self):
        method, x = self.make("test_resnet", 64), images(2, 64)
        with torch.inference_mode():
            pooled = method.backbone.model(x)
            torch.testing.assert_close(method.describe(x), pooled / pooled.norm(dim=1, keepdim=True))


class TestISqrtCov(FrozenTests):
    name = "isqrt_cov"

    def test_its_parts_by_hand(self):
        """Root of the covariance of the last map and of the one before, each without reduction, and the mean."""
        method: Any = self.make("test_efficientnet", 64)
        generator = torch.Generator().manual_seed(1)
        maps = [torch.rand(2, c, 9, 9, generator=generator) for c in method.backbone.channels]
        embedding = torch.rand(2, method.backbone.embedding, generator=generator)
        last, middle, mean = method.parts(Features(maps, embedding))
        for part, map_, pool in ((last, maps[-1], method.last), (middle, maps[-2], method.middle)):
            for row, photo in zip(part, map_, strict=True):
                reduced = (pool.reduce(photo[None])[0]).flatten(1).double().numpy()
                values, vectors = np.linalg.eigh(np.cov(reduced, bias=True))
                root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
                upper = np.triu_indices(len(root))
                truth = (root * np.where(np.eye(len(root)), 1, 2**0.5))[upper]
                cosine = row.numpy() @ truth / np.linalg.norm(truth)
                assert cosine > 0.97, "five steps come near the root"
        torch.testing.assert_close(mean, embedding / embedding.norm(dim=1, keepdim=True))

    @pytest.mark.parametrize(
        "embedding, last, middle", [(64, 8, 8), (1280, 320, 112), (4096, 512, 512), (8000, 700, 600)]
    )
    def test_wide_networks_fit_the_cache(self, embedding, last, middle):
        """A photo's descriptor at one scale has at most 32 KB, whatever the network's widths."""
        from types import SimpleNamespace

        from fieldmark.methods.isqrt_cov import ISqrtCov

        method = ISqrtCov.__new__(ISqrtCov)
        torch.nn.Module.__init__(method)
        method.build(SimpleNamespace(channels=[16, middle, last], embedding=embedding))  # type: ignore[arg-type]
        assert embedding + method.last.out_features + method.middle.out_features <= MOST_ENTRIES
        assert method.middle.out_features > 1


# -- what all share


def test_every_method_is_tested():
    """In one of the files beside this one: ``name = "…"``."""
    texts = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    tested = set(re.findall(r'^    name = "(\w+)"$', texts, re.MULTILINE))
    assert tested == {card.name for card in methods.cards() if card.backbone}


@pytest.mark.parametrize("card", methods.cards(), ids=lambda card: card.name)
def test_cards(card):
    if card.backbone:
        assert issubclass(methods.get(card.name), Method)
    else:  # tests/methods/test_cnn.py
        module, name = card.home.split(":")
        assert issubclass(getattr(import_module(module), name), torch.nn.Module)
        with pytest.raises(UsageError, match="from scratch"):
            methods.get(card.name)
    assert methods.card(card.name) is card and card.idea and card.source and 1990 < card.year < 2030
    assert methods.DEFAULT_METHOD in {one.name for one in methods.cards()}


def test_unknown_methods():
    with pytest.raises(UsageError, match="there are: plain,"):
        methods.get("magic")


def test_cards_are_read_without_torch():
    code = (
        "import sys; from fieldmark import methods; methods.card('plain'); "
        "print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_an_unfinished_method_says_so():
    backbone = Backbone(Source("test_resnet", None, "random", {}), 64)
    with pytest.raises(NotImplementedError):
        Method.parts(Method.__new__(Method), backbone(images(1, 64)))


@pytest.mark.parametrize("source, target", [(64, 48), (64, 33), (64, 64), (320, 224)])
def test_resample_is_an_antialiased_resize(source, target):
    x = images(2, source)
    expected = torch.nn.functional.interpolate(
        x, size=(target, target), mode="bilinear", antialias=True, align_corners=False
    )
    torch.testing.assert_close(Resample(source, target)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_head_of_low_rank():
    method = TestPlain().make("test_resnet", 64, rank=2)
    with torch.inference_mode():
        logits = method(images(8, 64))
    assert torch.linalg.matrix_rank(logits - logits.mean(0), rtol=1e-4) <= 2
