"""Averages of weights: which tensors count, the moving average by its formula, the soup."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fieldmark.train.loop.averages import Average, between, copied, instead, learned, put, soup, undoing


def module() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 2))
    model[2].bias.requires_grad_(False)
    model.register_buffer("fleeting", torch.ones(1), persistent=False)
    return model


def test_learned_is_what_training_changes() -> None:
    names = {"0.weight", "0.bias", "1.weight", "1.bias", "2.weight", "1.running_mean", "1.running_var"}
    state = learned(module())
    assert set(state) == names, "no frozen parameter, no whole number, nothing that is not saved"
    assert not any(tensor.requires_grad for tensor in state.values())


def test_put_writes_into_the_modules_own_tensors() -> None:
    model, other = module(), module()
    weight = model[0].weight
    with torch.no_grad():
        for tensor in learned(other).values():
            tensor.add_(1)
    put(model, learned(other))
    assert model[0].weight is weight and torch.equal(weight, other[0].weight)
    assert torch.equal(model[1].running_var, other[1].running_var)
    with pytest.raises(KeyError):
        put(model, {})


def test_buffers_go_back() -> None:
    """All that a batch moves, and nothing else; what is not in training moves none."""
    model, x = module(), torch.randn(5, 3)
    model.append(nn.BatchNorm1d(2).eval())
    before = copied(dict(model.named_buffers()))
    undo = undoing(model)
    model(x * math.nan)
    with torch.no_grad():
        model[0].bias.zero_()
    model[3].running_mean.fill_(7)
    undo()
    assert before.pop("3.running_mean") is not None and model[3].running_mean.tolist() == [7, 7]
    assert all(torch.equal(model.get_buffer(name), value) for name, value in before.items())
    assert not model[0].bias.any(), "parameters stay"
    model(x)
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])
    undo()
    assert torch.equal(model[1].running_mean, before["1.running_mean"]), "as often as it is called"


def test_copies_stay_as_they_are() -> None:
    model = module()
    kept, before = copied(learned(model)), model[0].weight.detach().clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(kept["0.weight"], before)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99])
def test_the_average_by_its_formula(decay: float) -> None:
    model = module()
    average = Average(model, decay)
    expected = model[0].weight.detach().double()
    for step in range(30):
        with torch.no_grad():
            model[0].weight.add_(torch.randn(2, 3))
        average.update(step)
        d = min(decay, (step + 1) / (step + 10))
        expected = d * expected + (1 - d) * model[0].weight.detach().double()
    torch.testing.assert_close(average.state["0.weight"].double(), expected, rtol=0, atol=1e-5)


def test_the_average_is_no_view_of_the_weights() -> None:
    model = module()
    average = Average(model, 0.9)
    before = average.state["0.weight"].clone()
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(average.state["0.weight"], before)


def test_instead_for_as_long_as_it_lasts() -> None:
    model, state = module(), {name: tensor + 1 for name, tensor in copied(learned(module())).items()}
    own = copied(learned(model))
    with pytest.raises(KeyboardInterrupt), instead(model, state):
        assert all(torch.equal(tensor, state[name]) for name, tensor in learned(model).items())
        raise KeyboardInterrupt
    assert all(torch.equal(tensor, own[name]) for name, tensor in learned(model).items())


def test_the_soup_is_the_mean() -> None:
    states = [
        {"a": torch.tensor([1.0, 2.0])},
        {"a": torch.tensor([3.0, 6.0])},
        {"a": torch.tensor([2.0, 4.0])},
    ]
    assert soup(states)["a"].tolist() == [2.0, 4.0]


def test_between_lies_on_the_way() -> None:
    start, end = {"w": torch.tensor([0.0, 2.0])}, {"w": torch.tensor([4.0, -2.0])}
    for share, there in ((0.0, [0, 2]), (0.25, [1, 1]), (1.0, [4, -2])):
        assert between(start, end, share)["w"].tolist() == there
