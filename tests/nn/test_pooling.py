"""Pooling against numpy: covariance, matrix roots by eigendecomposition, and maps that hold nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fieldmark.nn.pooling import (
    FixedReduction,
    SecondOrder,
    UpperTriangle,
    covariance,
    l2_normalise,
    newton_schulz_root,
)


def maps(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Correlated channels with a mean, as a ReLU leaves them."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(shape[1], shape[1], generator=generator, dtype=torch.float64)
    x = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return torch.einsum("kc,bchw->bkhw", mix, x).add(1).relu().to(dtype)


def exact_root(a: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(a)
    return np.einsum("bik,bk,bjk->bij", vectors, np.sqrt(np.maximum(values, 0)), vectors)


def relative(ours: torch.Tensor, exact: np.ndarray) -> float:
    """Largest Frobenius distance of a batch, over the exact one's norm."""
    difference = np.linalg.norm(ours.double().numpy() - exact, axis=(1, 2))
    return float((difference / np.linalg.norm(exact, axis=(1, 2))).max())


# -- covariance


def test_covariance_is_numpys():
    x = maps(3, 6, 5, 4)
    for ours, photo in zip(covariance(x), x, strict=True):
        np.testing.assert_allclose(ours, np.cov(photo.flatten(1).numpy(), bias=True), atol=1e-12)


def test_covariance_does_not_see_a_constant():
    x = maps(2, 4, 6, 6)
    shift = torch.arange(4.0, dtype=torch.float64)[None, :, None, None]
    torch.testing.assert_close(covariance(x + 10 * shift), covariance(x))


# -- the root


def scalar_steps(values: np.ndarray, iterations: int) -> np.ndarray:
    """What the iteration does to each eigenvalue: it works in the eigenbasis, one number at a time."""
    y, z = values.copy(), np.ones_like(values)
    for _ in range(iterations):
        t = (3 - z * y) / 2
        y, z = y * t, t * z
    return y


@pytest.mark.parametrize("iterations", [1, 2, 5, 8])
def test_root_is_the_published_iteration(iterations):
    """Equations 2 to 5 of the paper, applied to eigenvalues: equal at every count of steps."""
    a = covariance(maps(3, 6, 8, 8))
    values, vectors = np.linalg.eigh(a.numpy())
    trace = np.trace(a.numpy(), axis1=1, axis2=2)[:, None]
    expected = scalar_steps(values / trace, iterations) * np.sqrt(trace)
    expected = np.einsum("bik,bk,bjk->bij", vectors, expected, vectors)
    assert relative(newton_schulz_root(a, iterations), expected) < 1e-12


@pytest.mark.parametrize("iterations, tolerance", [(5, 0.12), (8, 0.02), (12, 2e-3), (20, 1e-8)])
def test_root_nears_the_exact_one(iterations, tolerance):
    a = covariance(maps(3, 6, 8, 8))
    root = newton_schulz_root(a, iterations)
    assert relative(root, exact_root(a.numpy())) < tolerance
    if iterations >= 20:
        torch.testing.assert_close(root @ root, a, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("positions", [(1, 2), (2, 2), (3, 3)])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 2e-3), (torch.float32, 2e-3)], ids=str)
def test_root_of_a_rank_deficient_matrix(positions, dtype, tolerance):
    """Fewer positions than channels: most eigenvalues are zero, and stay so."""
    a = covariance(maps(4, 16, *positions, dtype=dtype))
    assert (np.linalg.matrix_rank(a.double().numpy(), tol=1e-5) < 16).all()
    for iterations in (15, 20):
        assert relative(newton_schulz_root(a, iterations), exact_root(a.double().numpy())) < tolerance


def test_root_of_what_needs_none():
    identity = torch.eye(5).expand(2, 5, 5)
    torch.testing.assert_close(newton_schulz_root(identity * 4, 15), identity * 2)
    assert not newton_schulz_root(torch.zeros(2, 5, 5)).any()


def test_root_scales_with_the_square_root():
    a = covariance(maps(2, 6, 8, 8))
    for gain in (1e-4, 1e4):
        torch.testing.assert_close(newton_schulz_root(a * gain), newton_schulz_root(a) * gain**0.5)


# -- vectors of matrices


def test_upper_triangle_keeps_the_frobenius_product():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 7, 7, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a + a.mT, b + b.mT
    triangle = UpperTriangle(7).double()
    assert triangle(a).shape == (3, 28)
    torch.testing.assert_close((triangle(a) * triangle(b)).sum(1), (a * b).sum((1, 2)), rtol=1e-6, atol=1e-6)


def test_upper_triangle_holds_each_entry_once():
    a = torch.arange(9.0).reshape(1, 3, 3)
    expected = a[0].numpy()[np.triu_indices(3)] * np.where(np.eye(3), 1, 2**0.5)[np.triu_indices(3)]
    np.testing.assert_allclose(UpperTriangle(3)(a)[0], expected, rtol=1e-6)


# -- the reduction


def test_reduction_is_orthonormal_and_always_the_same():
    one, two = FixedReduction(12, 5, seed=3), FixedReduction(12, 5, seed=3)
    torch.testing.assert_close(one.basis @ one.basis.T, torch.eye(5), atol=1e-6, rtol=0)
    assert torch.equal(one.basis, two.basis)
    assert not torch.equal(one.basis, FixedReduction(12, 5, seed=4).basis)
    state = torch.random.get_rng_state()
    FixedReduction(12, 5)
    assert torch.equal(state, torch.random.get_rng_state()), "the user's random numbers are left alone"


def test_reduction_is_a_product_at_each_position():
    x, reduce = maps(2, 12, 3, 4, dtype=torch.float32), FixedReduction(12, 5)
    torch.testing.assert_close(reduce(x), torch.einsum("kc,bchw->bkhw", reduce.basis, x))


@pytest.mark.parametrize("keep", [12, 40])
def test_nothing_to_reduce(keep):
    x, reduce = maps(1, 12, 3, 3, dtype=torch.float32), FixedReduction(12, keep)
    assert reduce.out_channels == 12 and torch.equal(reduce(x), x)


def test_a_turn_within_the_subspace_changes_no_product():
    """Why the basis need not be learned: cosines between photos do not depend on how it is turned."""
    x = maps(6, 12, 7, 7)
    one, other = SecondOrder(12, 5).double(), SecondOrder(12, 5).double()
    turn = torch.linalg.qr(maps(1, 5, 5, 1).reshape(5, 5) - 1)[0]
    other.reduce.basis = turn @ one.reduce.basis
    assert not torch.allclose(one(x), other(x), atol=1e-3)
    torch.testing.assert_close(one(x) @ one(x).T, other(x) @ other(x).T, rtol=1e-6, atol=1e-6)


# -- the whole


def test_second_order_by_hand():
    x, pool = maps(3, 10, 8, 8), SecondOrder(10, 6).double()
    expected = []
    for photo in x.numpy():
        reduced = pool.reduce.basis.numpy() @ photo.reshape(10, -1)
        values, vectors = np.linalg.eigh(np.cov(reduced, bias=True))
        root = (vectors * scalar_steps(values / values.sum(), pool.iterations)) @ vectors.T
        row = (root * np.where(np.eye(6), 1, 2**0.5))[np.triu_indices(6)]
        expected.append(row / np.linalg.norm(row))
    assert pool.out_features == 21
    np.testing.assert_allclose(pool(x), expected, atol=1e-6)


def test_rows_have_unit_length():
    torch.testing.assert_close(SecondOrder(10, 6)(maps(3, 10, 8, 8).float()).norm(dim=1), torch.ones(3))
    torch.testing.assert_close(l2_normalise(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


def test_the_gain_of_a_map_does_not_matter():
    x, pool = maps(2, 10, 8, 8).float(), SecondOrder(10, 6)
    for gain in (1e-3, 1e3):
        torch.testing.assert_close(pool(x * gain), pool(x), rtol=1e-3, atol=1e-4)


# -- maps that hold nothing


def empty_maps() -> dict[str, torch.Tensor]:
    level = torch.rand(8, generator=torch.Generator().manual_seed(0)) * 6
    constant = level[None, :, None, None]
    return {
        "zeros": torch.zeros(2, 8, 5, 5),
        "constant": constant.expand(2, 8, 5, 5).contiguous(),
        "constant, large": (constant * 1e4).expand(2, 8, 7, 7).contiguous(),
        "one position": constant.expand(2, 8, 1, 1).contiguous(),
        "dead channels": maps(2, 8, 5, 5, dtype=torch.float32) * (torch.arange(8) < 2)[:, None, None],
    }


@pytest.mark.parametrize("kind", empty_maps())
@pytest.mark.parametrize("keep", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_maps_that_hold_nothing(kind, keep, dtype):
    x = empty_maps()[kind].to(dtype)
    x = torch.nan_to_num(x, posinf=6e4).requires_grad_()
    pool = SecondOrder(8, keep).to(dtype)
    rows = pool(x)
    assert rows.dtype == dtype and rows.isfinite().all()
    if kind != "dead channels":
        assert rows.norm(dim=1).max() < 0.05, "rounding is not made a feature"
    rows.float().sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_zero_rows():
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        x = torch.zeros(2, 5, dtype=dtype, requires_grad=True)
        rows = l2_normalise(x)
        rows.sum().backward()
        assert rows.dtype == dtype and not rows.any() and x.grad is not None and x.grad.isfinite().all()


def test_long_rows_in_half_precision():
    """Their squares pass the largest half-precision number."""
    x = torch.full((1, 1000), 100.0, dtype=torch.float16)
    torch.testing.assert_close(l2_normalise(x).float().norm(dim=1), torch.ones(1), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float16, 5e-3), (torch.bfloat16, 4e-2)])
def test_short_numbers_come_near(dtype, tolerance):
    x, pool = maps(4, 16, 7, 7, dtype=torch.float32), SecondOrder(16, 8)
    exact, short = pool(x), SecondOrder(16, 8).to(dtype)(x.to(dtype)).float()
    assert (exact - short).norm(dim=1).max() < tolerance
    assert newton_schulz_root(torch.zeros(1, 3, 3, dtype=dtype)).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_products_and_root_stay_in_single_precision(dtype):
    """Autocast would take both in half precision, which does not hold the squares of 300."""
    x, pool = 300 * maps(4, 16, 7, 7, dtype=torch.float32), SecondOrder(16, 16)
    exact = pool(x)
    with torch.autocast("cpu", dtype):
        torch.testing.assert_close(pool(x), exact)
        short = pool(x.to(dtype))
    assert short.dtype == dtype
    assert (short.float() - pool(x.to(dtype).float())).norm(dim=1).max() < 4 * torch.finfo(dtype).eps


# -- gradients


@pytest.mark.parametrize("function", [covariance, SecondOrder(4, 3).double(), SecondOrder(4, 4).double()])
def test_gradients(function):
    x = maps(2, 4, 3, 3).requires_grad_()
    assert torch.autograd.gradcheck(function, (x,))


def test_gradients_of_root_and_norm():
    x = covariance(maps(2, 4, 3, 3)).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: newton_schulz_root(a + a.mT), (x,))
    assert torch.autograd.gradcheck(l2_normalise, (maps(2, 6, 1, 1).flatten(1).requires_grad_(),))
