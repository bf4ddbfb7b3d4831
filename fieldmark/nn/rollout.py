"""Attention rollout: how much each token of a vision transformer speaks for the class token, over many blocks.

For each head the attention of the blocks is multiplied, A_L ... A_2 A_1 (Abnar and Zuidema, "Quantifying Attention
Flow in Transformers", ACL 2020, without their residual term, as in TransFG's part selection module). Only the class
token's row of the product is asked for, so the row is carried through the blocks from the last to the first: [N] times
[N, N] in each, where the whole product would take [N, N] times [N, N].
"""

from __future__ import annotations

from collections.abc import Iterable

from timm.layers import Attention
from torch import Tensor, nn


def attention_weights(attention: Attention, x: Tensor) -> Tensor:
    """softmax(Q K^T / sqrt(d)) of timm's self-attention: tokens [B, N, D] -> [B, heads, N, N], rows that sum to 1.

    Fused attention never writes these down, so they are computed beside it from the same queries and keys.
    """
    width, heads = attention.qkv.out_features // 3, attention.num_heads
    bias = attention.qkv.bias
    both = nn.functional.linear(
        x, attention.qkv.weight[: 2 * width], None if bias is None else bias[: 2 * width]
    )
    q, k = both.unflatten(2, (2, heads, width // heads)).permute(2, 0, 3, 1, 4).unbind(0)
    q, k = attention.q_norm(q), attention.k_norm(k)
    return (q * attention.scale @ k.transpose(-2, -1)).softmax(-1)


def rollout(weights: Iterable[Tensor]) -> Tensor:
    """The first token's row of A_L ... A_1: [B, heads, N], entries that sum to 1.

    weights: A_L, ..., A_1, from the last block to the first, each [B, heads, N, N]; a generator needs to hold only
    one of them at a time.
    """
    row: Tensor | None = None
    for a in weights:
        row = a[:, :, :1] if row is None else row @ a
    if row is None:
        raise ValueError("there is no attention to roll out: no blocks were given")
    return row[:, :, 0]
