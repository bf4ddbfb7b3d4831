"""The network as it is trained: folded, cut where nothing is lost, and whole again at the end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fieldmark.methods.descriptor import build
from fieldmark.nn.pooling import FixedReduction
from fieldmark.nn.weights import resolve
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.train.heads.head import Head
from fieldmark.train.heads.warm import last_of
from fieldmark.train.network import fix, free, read_head

Make = Callable[..., Any]
KINDS = ("test_efficientnet", "test_resnet", "test_byobnet", "test_convnext")
SIZE = {"test_coatnet": 160, "test_vit": 160}


def images(size: int = 32, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(5))


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float = 1e-3) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("name", [*KINDS, "test_coatnet", "test_vit"])
def test_made_for_training_it_answers_as_before(network: Make, method: Make, name: str) -> None:
    size = SIZE.get(name, 32)
    with torch.no_grad():
        assert close(network(name, size).module.logits(images(size)), method(name, size)(images(size)))


@pytest.mark.parametrize("name", KINDS)
def test_two_parts_answer_as_the_whole(network: Make, name: str) -> None:
    net = network(name)
    places = net.usable()
    assert places and places == [link.name for link in net.links][: len(places)]
    with torch.no_grad():
        whole = net.module.logits(images())
        for place in places:
            tensor = net.open(place)(images())
            assert close(net.module.logits(tensor), whole)
            net.close()
            assert torch.equal(net.module.logits(images()), whole)
    net.close()  # of nothing


def test_no_cut_behind_what_the_method_needs(network: Make) -> None:
    """Second-order pooling reads maps of an inner stage: the last links of the chain lie behind it."""
    net = network("test_resnet")
    names = [link.name for link in net.links]
    refused = names[len(net.usable()) :]
    assert refused
    with torch.no_grad():
        whole = net.module.logits(images())
        with pytest.raises(FieldmarkError, match="the method needs what lies before"):
            net.open(refused[0])
        assert torch.equal(net.module.logits(images()), whole), "whole as before"
    with pytest.raises(FieldmarkError, match="cannot be cut behind 'no', only behind"):
        net.open("no")


def test_a_transformer_is_not_cut_and_says_so(network: Make) -> None:
    net = network("test_vit", size=160)
    assert net.usable() == []
    for link in net.links:
        with pytest.raises(FieldmarkError, match="cannot be cut behind"):
            net.open(link.name)


def test_looking_for_cuts_leaves_frozen_what_is_frozen(network: Make) -> None:
    """As in a run that goes on, or in a process that did not make the plan."""
    one, other = network(), network()
    for net in (one, other):
        net.freeze()
    assert one.usable() and other.apart(one.usable()[1])
    for net in (one, other):
        assert not any(p.requires_grad for p in net.method.backbone.parameters())
        net.close()
        assert any(p.requires_grad for p in net.method.backbone.parameters())


def test_what_cannot_be_cut_can_stay_as_it_is(network: Make) -> None:
    """Nothing before that place learns, and the rest has the gradient that it had."""
    net = network("test_resnet")
    name = net.links[len(net.usable())].name
    assert not net.apart(name)
    found = []
    for frozen in (False, True):
        if frozen:
            net.freeze(name)
        net.module(images(), torch.tensor([0, 1]))["loss"].backward()
        found.append({n: p.grad.clone() for n, p in net.module.named_parameters() if p.grad is not None})
        net.module.zero_grad(set_to_none=True)
    whole, part = found
    assert part and part.keys() < whole.keys() and all(close(part[n], whole[n]) for n in part)
    net.close()
    assert {n for n, p in net.module.named_parameters() if p.requires_grad} >= whole.keys()
    tokens = network("test_vit", size=160)
    tokens.freeze("patch_embed")
    still = {n for n, p in tokens.module.named_parameters() if not p.requires_grad}
    assert any("cls_token" in n for n in still) and any("pos_embed" in n for n in still)


def test_what_learns(network: Make) -> None:
    net = network()
    free_ones = {name for name, p in net.module.named_parameters() if p.requires_grad}
    assert "method.head.weight" in free_ones and not any("projection" in name for name in free_ones)
    assert any("method.backbone.model" in name for name in free_ones)
    reduced = {name for name, _ in network("resnet18").module.named_parameters() if name.endswith("basis")}
    assert reduced == {"method.last.reduce.basis", "method.middle.reduce.basis"}, "reductions learn, too"
    embedded = network(loss="cross_entropy+0.1*triplet")
    assert embedded.method.projection.weight.requires_grad


def test_depthwise_kernels_may_stay_as_they_are(network: Make) -> None:
    def frozen(net: Any) -> list[nn.Conv2d]:
        convolutions = [m for m in net.module.modules() if isinstance(m, nn.Conv2d)]
        return [m for m in convolutions if not m.weight.requires_grad]

    assert frozen(network()) == []
    still = frozen(network(depthwise=False))
    # Their biases too: one kernel gives both gradients, and it is the dear one.
    assert still and all(m.groups == m.in_channels > 1 and not m.bias.requires_grad for m in still)


def test_below_a_cut_nothing_learns(network: Make) -> None:
    net = network()
    before = dict(net.module.named_parameters())
    net.open(net.usable()[2])
    behind = dict(net.module.named_parameters())
    below = [name.split(".")[0] for name in (link.name for link in net.links[:3])]
    assert behind.keys() < before.keys()
    assert not any(name.startswith(f"method.backbone.model.{one}.") for name in behind for one in below[:1])
    assert net.depth().keys() <= behind.keys()


def test_depth_falls_from_the_stem_to_the_head(network: Make) -> None:
    net = network()
    depth = net.depth()
    names = [link.name for link in net.links]
    of = {
        name: {deep for key, deep in depth.items() if key.startswith(f"method.backbone.model.{name}.")}
        for name in names
    }
    with_weights = [name for name in names if of[name]]
    assert [of[name] for name in with_weights] == [{len(names) - names.index(name)} for name in with_weights]
    values = [min(of[name]) for name in with_weights]
    assert values == sorted(values, reverse=True) and values[-1] >= 1
    assert not any(name.startswith(("method.head", "method.projection")) for name in depth)
    learning = {name for name, _ in net.module.named_parameters()}
    heads = {name for name in learning if name.startswith(("method.head", "method.projection"))}
    criterion = {name for name in learning if name.startswith("criterion")}
    assert depth.keys() == learning - heads - criterion


def test_blocks_of_transformers_have_depths(network: Make) -> None:
    """Their chain ends before the first block: timm numbers what comes then."""
    net = network("test_vit", size=160)
    depth = {
        name.removeprefix("method.backbone.model."): deep
        for name, deep in net.depth().items()
        if name.startswith("method.backbone.model.")
    }
    blocks = [depth[f"blocks.{number}.mlp.fc1.weight"] for number in range(2)]
    assert (
        depth["patch_embed.proj.weight"]
        > depth["pos_embed"]
        >= blocks[0]
        > blocks[1]
        > depth["norm.weight"]
        == 0
    )


def test_statistics_stay_frozen(network: Make) -> None:
    net = network("test_convnext")
    net.module.train()
    net.freeze_statistics()
    assert not any(module.training for module in net.method.backbone.modules())
    assert net.criterion.training, "the loss trains"


@pytest.mark.parametrize("name", KINDS)
def test_finish_gives_the_networks_own_parts_with_what_was_learned(network: Make, name: str) -> None:
    net = network(name)
    net.open(net.usable()[0])
    net.close()
    optimizer = torch.optim.SGD([p for p in net.module.parameters() if p.requires_grad], 1e-3)
    first = net.module(images(count=4), torch.tensor([0, 1, 2, 3]))["loss"]
    first.backward()
    optimizer.step()
    with torch.no_grad():
        learned = net.module.logits(images())
        net.open(net.usable()[0])
        method = net.finish()
        assert close(method(images()), learned)
    assert not method.training and not any(p.requires_grad for p in method.parameters())
    plain = build(resolve(name, pretrained=False), "isqrt_cov", 32, ())
    plain.add_head(4, 6)
    plain.load_state_dict(method.state_dict())  # every tensor by its usual name and shape
    with torch.no_grad():
        assert close(plain.eval()(images()), learned)


def test_a_step_tells_its_losses(network: Make) -> None:
    net = network(loss="cross_entropy+0.5*triplet")
    net.module.train()
    net.freeze_statistics()
    x, y = images(count=4), torch.tensor([0, 0, 1, 1])
    told = net.module(x, y)
    assert set(told) == {"loss", "cross_entropy", "triplet", "accuracy"}
    logits = net.module.logits(x)
    assert told["accuracy"] == (logits.argmax(1) == y).float().mean()
    torch.testing.assert_close(told["cross_entropy"], nn.functional.cross_entropy(logits, y).detach())
    torch.testing.assert_close(told["loss"], told["cross_entropy"] + 0.5 * told["triplet"])
    soft = network().module(x, nn.functional.one_hot(y, 4).float())
    assert "accuracy" not in soft


def test_a_reduction_is_freed_and_fixed() -> None:
    one, same = FixedReduction(6, 3), FixedReduction(3, 6)
    basis, names = one.basis.clone(), list(one.state_dict())
    free(one)
    free(same)
    assert isinstance(one.basis, nn.Parameter) and not list(same.parameters())
    with torch.no_grad():
        one.basis.add_(1)
    fix(one)
    assert (
        not list(one.parameters()) and torch.equal(one.basis, basis + 1) and list(one.state_dict()) == names
    )


@pytest.mark.parametrize("rank", [None, 3])
def test_the_head_as_arrays(network: Make, rank: int | None) -> None:
    net = network(rank=rank)
    z = net.method.describe(images()).detach()
    width = z.shape[1]
    other = Head(
        weights=np.zeros((width, 4), np.float32),
        bias=np.zeros(4, np.float32),
        down=None,
        embedding=np.full((width, 2), 0.5, np.float32),
        offset=np.ones(2, np.float32),
        temperature=9.0,
    )
    head = read_head(net.method, other, 2.5)
    np.testing.assert_allclose(
        head.logits(z.numpy()), net.method.head(z).detach().numpy(), rtol=1e-4, atol=1e-4
    )
    assert head.temperature == 2.5 and head.embedding is other.embedding and head.offset is other.offset
    assert (head.down is None) == (rank is None)
    assert last_of(net.method.head).out_features == 4
