"""Products of channels and their sketches, against loops."""

from __future__ import annotations

import pytest
import torch

from fieldmark.nn.sketch import (
    TensorSketch,
    bilinear,
    count_sketch,
    level,
    signed_root,
    sketch_of_products,
    tensor_sketch,
)


def maps(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hashes(channels: int, width: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    sketch = TensorSketch(channels, width, seed)
    return sketch.index, sketch.sign.double()


def by_hand(photo: torch.Tensor, index: torch.Tensor, sign: torch.Tensor, width: int) -> torch.Tensor:
    """Every product at every place, added to where its two hashes send it."""
    out = [0.0] * width
    tokens = photo.flatten(1)
    for place in range(tokens.shape[1]):
        for i, a in enumerate(tokens[:, place]):
            for j, b in enumerate(tokens[:, place]):
                target = int(index[0, i] + index[1, j]) % width
                out[target] += float(sign[0, i] * sign[1, j] * a * b) / tokens.shape[1]
    return torch.tensor(out, dtype=torch.float64)


def test_bilinear_by_hand():
    x = maps(2, 4, 3, 2)
    for ours, photo in zip(bilinear(x), x, strict=True):
        truth = torch.stack([torch.outer(photo[:, h, w], photo[:, h, w]) for h in range(3) for w in range(2)])
        torch.testing.assert_close(ours, truth.mean(0))


def test_count_sketch_by_hand():
    x, index, sign = maps(2, 3, 5), torch.tensor([1, 0, 1, 3, 1]), torch.tensor([1, -1, -1, 1, 1.0]).double()
    y = count_sketch(x, index, sign, 4)
    assert y.shape == (2, 3, 4)
    torch.testing.assert_close(y[..., 1], x[..., 0] - x[..., 2] + x[..., 4])
    torch.testing.assert_close(y[..., 0], -x[..., 1])
    torch.testing.assert_close(y[..., 3], x[..., 3])
    assert not y[..., 2].any()


@pytest.mark.parametrize("width", [2, 7, 8, 50])
def test_both_ways_are_the_sketch_by_hand(width):
    x, (index, sign) = maps(2, 5, 2, 3), hashes(5, width)
    truth = torch.stack([by_hand(photo, index, sign, width) for photo in x])
    torch.testing.assert_close(tensor_sketch(x, index, sign, width), truth)
    torch.testing.assert_close(sketch_of_products(bilinear(x), index, sign, width), truth)
    torch.testing.assert_close(TensorSketch(5, width).double()(x), truth)


def test_it_keeps_products_on_average():
    """The mean over many hashes of <sketch(x), sketch(y)> is the Frobenius product (Gao et al., equation 5)."""
    x = maps(2, 6, 2, 2)
    a, b = bilinear(x)
    found = []
    for seed in range(600):
        one, two = sketch_of_products(bilinear(x), *hashes(6, 16, seed), 16)
        found.append(float(one @ two))
    mean = torch.tensor(found, dtype=torch.float64)
    error = float(mean.std() / len(found) ** 0.5)
    assert abs(float(mean.mean() - (a * b).sum())) < 4 * error


def test_longer_sketches_err_less():
    x = maps(8, 12, 3, 3)
    products = bilinear(x).flatten(1)
    errors = []
    for width in (16, 128, 1024):
        sketch = sketch_of_products(bilinear(x), *hashes(12, width), width)
        errors.append(float((sketch @ sketch.T - products @ products.T).abs().mean()))
    assert errors[0] > errors[1] > errors[2]


def test_hashes_depend_on_nothing_but_the_seed():
    state = torch.random.get_rng_state()
    one, two, other = TensorSketch(40, 64, 1), TensorSketch(40, 64, 1), TensorSketch(40, 64, 2)
    assert torch.equal(state, torch.random.get_rng_state()), "the user's random numbers are left alone"
    assert torch.equal(one.index, two.index) and torch.equal(one.sign, two.sign)
    assert not torch.equal(one.index, other.index) and not torch.equal(one.sign, other.sign)
    assert not torch.equal(one.index[0], one.index[1]), "two hashes"
    assert set(one.sign.flatten().tolist()) == {1.0, -1.0} and 0 <= one.index.min() <= one.index.max() < 64
    assert set(one.state_dict()) == {"index", "sign"}, "saved with the model"


def test_level():
    x = maps(3, 4, 2, 2) * torch.tensor([1e-3, 1.0, 1e3])[:, None, None, None]
    torch.testing.assert_close(level(x).square().mean((1, 2, 3)), torch.ones(3, dtype=torch.float64))
    assert not level(torch.zeros(1, 2, 3, 3)).any()


def test_signed_root():
    x = torch.tensor([-9.0, -0.25, 0.0, 1.0, 16.0])
    torch.testing.assert_close(signed_root(x), torch.tensor([-3.0, -0.5, 0.0, 1.0, 4.0]), rtol=1e-4, atol=0)
    tiny = torch.tensor([-1e-9, 1e-9], requires_grad=True)
    y = signed_root(tiny)
    y.sum().backward()
    assert (y[1] - y[0]).abs() < 1e-6, "no jump"
    assert tiny.grad is not None and tiny.grad.max() < 320


@pytest.mark.parametrize(
    "function",
    [
        bilinear,
        level,
        lambda x: signed_root(x, 0.1),
        TensorSketch(4, 6).double(),
        lambda x: tensor_sketch(x, *hashes(4, 6), 6),
    ],
)
def test_gradients(function):
    assert torch.autograd.gradcheck(function, (maps(2, 4, 2, 2).requires_grad_(),))
