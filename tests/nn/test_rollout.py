"""Rollout against the whole product of matrices, and attention against what timm's own module computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from timm.layers import Attention

from fieldmark.nn.rollout import attention_weights, rollout


@pytest.mark.parametrize(
    "settings", [{}, {"qkv_bias": True, "qk_norm": True, "norm_layer": torch.nn.LayerNorm}]
)
def test_attention_is_what_timm_softmaxes(settings: dict[str, Any]):
    torch.manual_seed(0)
    attention = Attention(12, num_heads=3, **settings).eval()
    if settings:
        torch.nn.init.normal_(attention.qkv.bias)
    attention.fused_attn = False
    seen = []
    attention.attn_drop.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    x = torch.randn(2, 7, 12)
    attention(x)
    ours = attention_weights(attention, x)
    assert ours.shape == (2, 3, 7, 7)
    torch.testing.assert_close(ours, seen[0])
    torch.testing.assert_close(ours.sum(3), torch.ones(2, 3, 7))


@pytest.mark.parametrize("blocks", [1, 2, 5])
def test_rollout_is_the_first_row_of_the_product(blocks):
    weights = torch.randn(
        blocks, 2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(blocks)
    ).softmax(-1)
    row = rollout(weights.flip(0))
    for photo in range(2):
        for head in range(3):
            product = np.eye(6)
            for block in range(blocks):
                product = weights[block, photo, head].numpy() @ product
            np.testing.assert_allclose(row[photo, head], product[0], atol=1e-12)
    torch.testing.assert_close(row.sum(2), torch.ones(2, 3, dtype=torch.float64))


def test_no_blocks():
    with pytest.raises(ValueError, match="no blocks"):
        rollout([])
