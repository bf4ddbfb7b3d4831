"""Products of channels: bilinear pooling of a map [B, C, H, W], and its tensor sketch, which is far shorter.

Each is a function and, where it holds constants, a module beside it. The modules export to ONNX.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

#: What is added under the root of products that are 1 on average on the diagonal: no slope is above 320.
SMALL = 1e-5


def bilinear(x: Tensor) -> Tensor:
    """Mean over positions of x x^T: [B, C, H, W] -> [B, C, C] (Lin et al., "Bilinear CNN Models for Fine-grained
    Visual Recognition", ICCV 2015, section 3.1, of one network with itself)."""
    tokens = x.flatten(2)
    return tokens @ tokens.transpose(1, 2) / tokens.shape[2]


def level(x: Tensor) -> Tensor:
    """Maps [B, C, H, W] with a mean square of 1 in each photo; a map of zeros stays one."""
    square = x.square().mean((1, 2, 3), keepdim=True)
    return x / square.clamp_min(1e-12).sqrt()


def signed_root(x: Tensor, small: float = SMALL) -> Tensor:
    """x / sqrt(|x| + small): sign(x) sqrt(|x|), without its endless slope at 0."""
    return x / (x.abs() + small).sqrt()


def count_sketch(x: Tensor, index: Tensor, sign: Tensor, width: int) -> Tensor:
    """y_k = sum of sign_i x_i over all i with index_i = k: [..., C] -> [..., width].

    index: [C] in 0 to width - 1; sign: [C] of 1 and -1 (Charikar et al., "Finding Frequent Items in Data
    Streams", ICALP 2002).
    """
    empty = torch.zeros(*x.shape[:-1], width, dtype=x.dtype, device=x.device)
    return empty.index_add(x.ndim - 1, index, x * sign)


def tensor_sketch(x: Tensor, index: Tensor, sign: Tensor, width: int) -> Tensor:
    """Sketch of `bilinear`, position by position: [B, C, H, W] -> [B, width].

    The mean over positions of IFFT(FFT(s_1) * FFT(s_2)), where s_1 and s_2 are two count sketches of what stands
    there (Pham and Pagh, KDD 2013; Gao et al., "Compact Bilinear Pooling", CVPR 2016, algorithm 2). The dot
    product of two such sketches is on average that of the two matrices. index, sign: [2, C]. In single precision
    at least.
    """
    tokens = x.flatten(2).transpose(1, 2)
    one, two = (torch.fft.rfft(count_sketch(tokens, i, s, width)) for i, s in zip(index, sign, strict=True))
    return torch.fft.irfft((one * two).mean(1), n=width)  # it is linear: once, for all positions


def sketch_of_products(a: Tensor, index: Tensor, sign: Tensor, width: int) -> Tensor:
    """The same sketch from the products a = `bilinear`: [B, C, C] -> [B, width].

    a_ij goes, with sign_1i sign_2j, to place (index_1i + index_2j) mod width. Without a transform, so it exports;
    up to 512 channels it is also the quicker way on CPUs, by ten times and more.
    """
    place = (index[0][:, None] + index[1]).remainder(width).flatten()
    signed = (a * sign[0][:, None] * sign[1]).flatten(1)
    empty = torch.zeros(a.shape[0], width, dtype=a.dtype, device=a.device)
    return empty.scatter_add(1, place.expand(a.shape[0], -1), signed)


class TensorSketch(nn.Module):
    """Compact bilinear pooling: [B, C, H, W] -> [B, width], by two fixed hashes, the same for every data set."""

    index: Tensor
    sign: Tensor

    def __init__(self, channels: int, width: int, seed: int = 0):
        super().__init__()
        self.width = width
        chance = torch.Generator().manual_seed(seed)
        self.register_buffer("index", torch.randint(width, (2, channels), generator=chance))
        self.register_buffer("sign", torch.randint(2, (2, channels), generator=chance) * 2.0 - 1)

    def forward(self, x: Tensor) -> Tensor:
        return sketch_of_products(bilinear(x), self.index, self.sign, self.width)
