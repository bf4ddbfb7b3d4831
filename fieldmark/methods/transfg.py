"""The patches of a vision transformer that its class token listened to most, looked at once more by themselves."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from pydantic import Field
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

from fieldmark.losses.combine import Criterion
from fieldmark.losses.targets import pure
from fieldmark.methods import Card, base
from fieldmark.methods.base import Method
from fieldmark.methods.task import Batch
from fieldmark.nn.backbone import Backbone, Features
from fieldmark.nn.rollout import attention_weights, rollout
from fieldmark.runtime.errors import FieldmarkError

CARD = Card(
    cls="TransFG",
    family="transformers",
    title="TransFG",
    year=2022,
    idea="the attention of all blocks, multiplied, picks one patch for each head; the last block sees only these",
    source="He et al., TransFG, AAAI 2022",
    equation="A_h = argmax of row 0 of a_(L-1) ... a_1; z = block_L([z_0; z_A1; ...; z_AK])_0; CE + contrastive",
    needs=("transformer", "labels"),
    paper="CUB-200-2011 91.7% (ViT-B/16 of ImageNet-21k, 448 px, overlapping patches)",
    when="with a vision transformer, where marks are small and the background distracts",
)


def contrast(z: Tensor, labels: Tensor, margin: float) -> Tensor:
    """1/B^2 sum_i [sum_(j: y_j = y_i) (1 - s_ij) + sum_(j: y_j != y_i) max(0, s_ij - margin)], s the cosine of rows.

    z: [B, D]; labels: [B] class numbers (TransFG, contrastive feature learning). No photos give 0.
    """
    with torch.autocast(z.device.type, enabled=False):  # in half precision z is not quite like itself
        z = torch.nn.functional.normalize(z.float(), dim=1)
        cosine, same = z @ z.T, labels[:, None] == labels
    return torch.where(same, 1 - cosine, (cosine - margin).clamp_min(0)).sum() / max(1, len(z)) ** 2


class TransFG(Method):
    """One part: the class token after the last block, which saw only itself and the selected patches.

    Paper: patches of 16 px that overlap (stride 12), SGD 3e-2, 10,000 steps; here patches as the backbone has them, for
    which it was pretrained.
    Which patches are selected has no gradient, as in the paper; the rollout is therefore computed beside fused
    attention, without a graph for it.
    """

    selects = True

    class Options(base.Options):
        margin: float = Field(
            0.4, ge=-1, le=1, description="cosine below which photos of two classes are let be"
        )
        contrast: float = Field(1.0, ge=0, description="weight of the contrastive loss")

    def build(self, backbone: Backbone) -> None:
        model = backbone.model
        serves = (
            isinstance(model, VisionTransformer) and model.cls_token is not None and len(model.blocks) > 1
        )
        if not serves or not all(type(b) is Block and type(b.attn) is Attention for b in model.blocks):
            raise FieldmarkError(
                f"transfg needs a plain vision transformer with a class token, which {backbone.source.architecture} "
                "is not: take vit_small_patch16_224, deit_small_patch16_224 or another vit_* or deit_*"
            )

    def parts(self, features: Features) -> list[Tensor]:
        """Without selection: what the backbone's pooling gives."""
        return [features.embedding]

    def describe(self, images: Tensor) -> Tensor:
        return torch.cat([self._classes(*self._rolled(resample(images))) for resample in self.resamplers], 1)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Also ``attention`` [B, heads, h, w]: the rollout of each head, at the first scale."""
        return {**super().features(images), "attention": self._maps(self.resamplers[0](images))}

    @torch.no_grad()
    def attention(self, images: Tensor) -> Tensor:
        """The rollout, mean over the heads."""
        return self._maps(self.resamplers[0](images)).mean(1)

    def training_step(self, batch: Batch, criterion: Criterion) -> dict[str, Tensor]:
        z = self.describe(batch.x)
        losses = self.judge(z, batch.targets, criterion)
        labels, rows = pure(batch.targets)
        if rows is not None:
            z, labels = z[rows], labels[rows]
        apart = contrast(z, labels, self.options.margin)
        return {**losses, "loss": losses["loss"] + self.options.contrast * apart, "contrast": apart.detach()}

    def _rolled(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens before the last block [B, N, D], and the rollout over the blocks before it, of the patches alone
        [B, heads, N - prefix]."""
        model = self.backbone.model
        x = model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(images))))
        seen = []
        for block in model.blocks[:-1]:
            seen.append(x)
            x = block(x)

        def backwards() -> Iterator[Tensor]:
            for block, tokens in zip(reversed(model.blocks[:-1]), reversed(seen), strict=True):
                yield attention_weights(block.attn, block.norm1(tokens))

        with torch.no_grad():
            row = rollout(backwards())
        return x, row[:, :, model.num_prefix_tokens :]

    def _classes(self, tokens: Tensor, row: Tensor) -> Tensor:
        """The class token [B, D] after the last block, which sees beside it one patch for each head."""
        model = self.backbone.model
        picked = row.argmax(2) + model.num_prefix_tokens
        patches = tokens.gather(1, picked[:, :, None].expand(-1, -1, tokens.shape[2]))
        x = model.blocks[-1](torch.cat([tokens[:, :1], patches], 1))
        return model.fc_norm(model.norm(x)[:, 0])

    def _maps(self, images: Tensor) -> Tensor:
        """[B, heads, h, w]."""
        _, row = self._rolled(images)
        return row.unflatten(2, self.backbone.model.patch_embed.dynamic_feat_size(images.shape[2:]))
