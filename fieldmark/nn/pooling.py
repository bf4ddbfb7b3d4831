"""Pooling a feature map [B, C, H, W] into a vector: first order (mean) and second order (covariance).

Each is a function and, where it holds constants, a module beside it. All of them export to ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: Newton-Schulz steps; benchmarks/choices.py compares three, five and eight.
ITERATIONS = 5
#: Deviations of a map that are smaller than this part of its mean are taken for rounding.
ROUNDING = 1e-4
_SHORT = (torch.float16, torch.bfloat16)


def covariance(x: Tensor) -> Tensor:
    """Covariance over positions: [B, C, H, W] -> [B, C, C] (divided by H W, centred)."""
    tokens = x.flatten(2)
    tokens = tokens - tokens.mean(2, keepdim=True)
    return tokens @ tokens.transpose(1, 2) / tokens.shape[2]


def newton_schulz_root(a: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Square root of positive semi-definite matrices [B, C, C], without a decomposition.

    Y <- Y (3I - Z Y) / 2, Z <- (3I - Z Y) Z / 2 from Y = A / tr A, Z = I, then Y sqrt(tr A)
    (Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square
    Root Normalization", CVPR 2018, equations 2 to 5). More iterations come nearer to the
    exact root, but past 20 single precision fails on singular matrices: what rounding leaves in their empty
    directions grows by half at each step.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    least = max(1e-12, torch.finfo(a.dtype).tiny)  # a matrix of zeros has zeros as its root
    trace = (a * identity).sum((-2, -1), keepdim=True).clamp_min(least)
    y, z = a / trace, identity.expand_as(a)
    for step in range(iterations):
        t = 1.5 * identity - 0.5 * (y if step == 0 else z @ y)
        y = y @ t
        z = t if step == 0 else t @ z
    return y * trace.sqrt()


def l2_normalise(x: Tensor, noise: Tensor | None = None) -> Tensor:
    """Rows [B, D] of unit length; one shorter than 1e-4 stays short, so that zeros have a finite gradient.

    noise: [B, 1], the squared length that a row may have by rounding alone; shorter rows stay short. Half
    precision is widened on the way, so that no square overflows.
    """
    if x.dtype in _SHORT:
        return l2_normalise(x.float(), noise).to(x.dtype)
    square = x.square().sum(1, keepdim=True)
    if noise is not None:
        square = torch.maximum(square, noise)
    return x / square.clamp_min(1e-8).sqrt()


class UpperTriangle(nn.Module):
    """Symmetric [B, C, C] -> [B, C (C + 1) / 2], off-diagonal entries times sqrt(2).

    With that factor the dot product of two vectors is the Frobenius product of the two matrices.
    """

    index: Tensor
    factor: Tensor

    def __init__(self, channels: int):
        super().__init__()
        row, column = torch.triu_indices(channels, channels)
        self.register_buffer("index", row * channels + column, persistent=False)
        self.register_buffer("factor", torch.where(row == column, 1.0, 2.0**0.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, self.index] * self.factor


class FixedReduction(nn.Module):
    """A fixed orthonormal 1x1 reduction of channels: [B, C, H, W] -> [B, K, H, W], the same for every data set.

    A random subspace (Johnson and Lindenstrauss, 1984): the second-order descriptor is invariant to rotations
    within it, and what it gives depends on no training photo, so it can be cached. K >= C is the identity.
    """

    basis: Tensor

    def __init__(self, channels: int, keep: int, seed: int = 0):
        super().__init__()
        self.out_channels = min(channels, keep)
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(channels, channels, generator=generator, dtype=torch.float64)
        basis = (
            torch.linalg.qr(noise)[0][:, : self.out_channels].T if keep < channels else torch.eye(channels)
        )
        self.register_buffer("basis", basis.float().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        if self.basis.shape[0] == self.basis.shape[1]:
            return x
        return nn.functional.conv2d(x, self.basis[:, :, None, None])


class SecondOrder(nn.Module):
    """Normalised covariance pooling: [B, C, H, W] -> [B, K (K + 1) / 2], rows of unit length.

    A map that is constant (but for rounding, on which engines do not agree) gives a row near zero.
    """

    def __init__(self, channels: int, keep: int, iterations: int = ITERATIONS, seed: int = 0):
        super().__init__()
        self.iterations = iterations
        self.reduce = FixedReduction(channels, keep, seed)
        self.triangle = UpperTriangle(self.reduce.out_channels)
        self.out_features = self.reduce.out_channels * (self.reduce.out_channels + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        maps = self.reduce(x)
        with torch.autocast(x.device.type, enabled=False):  # products and their root want single precision
            return self.pool(maps.float() if maps.dtype in _SHORT else maps).to(x.dtype)

    def pool(self, maps: Tensor) -> Tensor:
        """Reduced maps [B, K, H, W] -> [B, K (K + 1) / 2]."""
        root = newton_schulz_root(covariance(maps), self.iterations)
        noise = ROUNDING**2 * maps.mean((2, 3)).square().sum(1, keepdim=True)
        return l2_normalise(self.triangle(root), noise)
