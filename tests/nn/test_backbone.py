"""Any timm model as a feature pyramid: at its own size and at others, or refused in a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from fieldmark.nn.backbone import DEFAULT_SIZE, Backbone
from fieldmark.nn.weights import Source, resolve
from fieldmark.runtime.errors import FieldmarkError

#: name -> options that keep it small.
SMALL: dict[str, dict[str, Any]] = {
    "test_resnet": {},
    "test_efficientnet": {},
    "test_convnext": {},
    "test_vit": {},
    "swin_tiny_patch4_window7_224": {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 2, 2, 2)},
}
#: name -> channels and strides of its maps, width of its embedding, side it was trained at.
FACTS: dict[str, tuple[list[int], list[int], int, int]] = {
    "test_resnet": ([32, 32, 48, 192, 96], [2, 4, 8, 16, 32], 96, 160),
    "swin_tiny_patch4_window7_224": ([16, 32, 64, 128], [4, 8, 16, 32], 128, 224),
}


def small(name: str, **options: Any) -> Source:
    return Source(name, None, "random", {**SMALL.get(name, {}), **options})


def refused(source: Source, size: int | None = None) -> str:
    with pytest.raises(FieldmarkError) as caught:
        Backbone(source, size)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", SMALL)
class TestEachFamily:
    def test_what_it_says_of_itself(self, name):
        backbone = Backbone(small(name))
        with torch.inference_mode():
            features = backbone(torch.rand(2, 3, backbone.size, backbone.size))
        maps, embedding = features.maps, features.embedding
        assert features.last.shape == (2, backbone.width, *maps[-1].shape[2:])
        assert [m.shape for m in maps] == [
            (2, channels, backbone.size // stride, backbone.size // stride)
            for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
        ]
        assert embedding.shape == (2, backbone.embedding) and len(maps) >= 2
        assert backbone.strides == sorted(backbone.strides), "fine to coarse"
        if name in FACTS:
            channels, strides, width, native = FACTS[name]
            assert (backbone.channels, backbone.strides) == (channels, strides)
            assert (backbone.embedding, backbone.native) == (width, native)

    def test_the_embedding_is_timms(self, name):
        """What timm pools before its classifier."""
        size = 96 if name != "swin_tiny_patch4_window7_224" else 224
        backbone = Backbone(small(name), size)
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            ours = backbone(images).embedding
            theirs = backbone.model.forward_head(backbone.model.forward_features(images), pre_logits=True)
            torch.testing.assert_close(ours, theirs)
            torch.testing.assert_close(backbone.model(images), theirs)  # without a classifier they are one

    def test_frozen_behaviour(self, name):
        """In eval mode from the start, and equal whenever it is made; the user's random numbers are left alone."""
        made = []
        for seed in range(2):
            torch.manual_seed(seed)
            state = torch.random.get_rng_state()
            made.append(Backbone(small(name), 224 if "swin" in name else 64))
            assert torch.equal(state, torch.random.get_rng_state())
        one, two = made
        assert not any(module.training for module in one.modules())
        assert all(
            torch.equal(a, b)
            for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
        )

    def test_too_small(self, name):
        for size in (-64, 0, 7):
            assert f"{name} cannot take {size} px" in refused(small(name), size)


@pytest.mark.parametrize(
    "name, size",
    [
        ("test_vit", 96),
        ("test_vit", 224),
        ("swin_tiny_patch4_window7_224", 112),
        ("swin_tiny_patch4_window7_224", 256),
    ],
)
def test_networks_of_fixed_size_at_others(name, size):
    backbone = Backbone(small(name), size)
    assert backbone.size == size == backbone.preprocess().size
    with torch.inference_mode():
        maps = backbone(torch.rand(1, 3, size, size)).maps
    assert maps[-1].shape[-1] == size // backbone.strides[-1]


def test_sizes_it_cannot_take():
    assert "100 px" in refused(small("test_vit"), 100), "not a multiple of its patches"
    assert "cannot" in refused(small("swin_tiny_patch4_window7_224"), 3)


def test_default_sizes():
    """Free networks look at more pixels than they were trained at; fixed ones keep theirs."""
    assert Backbone(small("test_resnet")).size == DEFAULT_SIZE == 320
    assert Backbone(small("test_vit")).size == 160
    larger = small("test_resnet", pretrained_cfg_overlay={"input_size": (3, 384, 384)})
    assert Backbone(larger).size == 384


def test_vgg16():
    """The largest of the old ones: its head is a convolution over the whole map, at any size it can shrink to."""
    backbone = Backbone(small("vgg16"), 64)
    assert backbone.channels == [64, 128, 256, 512, 512, 512]
    assert backbone.strides == [1, 2, 4, 8, 16, 32]
    assert (backbone.embedding, backbone.native) == (4096, 224)
    with pytest.raises(FieldmarkError, match="vgg16 cannot take 16 px") as caught:
        Backbone(small("vgg16"), 16)
    assert "\n" not in str(caught.value)


# -- weights


def write(folder: Path, model: Any, **config: Any) -> str:
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"architecture": "test_vit", **config}))
    return str(folder)


def test_position_embeddings_follow_the_size(tmp_path):
    """Weights made at 160 px serve at 96: the grid is resampled, the class token's entry stays."""
    model = timm.create_model("test_vit")
    grid = model.patch_embed.grid_size[0]
    prefix = model.num_prefix_tokens
    ramp = torch.linspace(-1, 1, grid)[None, :].expand(grid, grid)
    with torch.no_grad():
        model.pos_embed[:, :prefix] = 3
        model.pos_embed[:, prefix:] = ramp.reshape(1, -1, 1)
    source = resolve(write(tmp_path / "vit", model))
    same, other = Backbone(source).model.pos_embed, Backbone(source, 96).model.pos_embed
    assert torch.equal(same, model.pos_embed)
    side = 96 // 16
    assert other.shape == (1, prefix + side * side, same.shape[2])
    assert (other[:, :prefix] == 3).all()
    resampled = other[0, prefix:, 0].reshape(side, side)
    assert (resampled.diff(dim=1) > 0).all() and torch.allclose(
        resampled, resampled[:1].expand(side, side), atol=1e-5
    )


def test_weights_that_do_not_fit(tmp_path):
    source = resolve(write(tmp_path / "vit", timm.create_model("test_vit"), architecture="test_resnet"))
    assert "does not hold the weights of test_resnet" in refused(source, 64)
    wide = timm.create_model("test_vit", embed_dim=128)
    assert "of another shape" in refused(resolve(write(tmp_path / "wide", wide)))


def test_a_saved_image_size_is_a_default(tmp_path):
    model = timm.create_model("test_vit", img_size=96)
    config = {"model_args": {"img_size": 96}, "pretrained_cfg": {"input_size": [3, 96, 96]}}
    source = resolve(write(tmp_path / "vit", model, **config))
    assert Backbone(source).size == 96
    assert Backbone(source, 128).size == 128


# -- refusals


def test_unknown_architectures():
    assert "no_such_network" in refused(Source("no_such_network", None, "random", {}))
    assert "hf-hub" in refused(Source("hf-hub:someone/network", None, "random", {})), (
        "no hub is asked from here"
    )
    assert "bogus" in refused(small("test_resnet", bogus=1))


# -- the photos it wants


def test_preprocess_is_the_networks_own():
    overlay = {"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.6, 0.7), "interpolation": "bilinear"}
    preprocess = Backbone(small("test_resnet", pretrained_cfg_overlay=overlay), 64).preprocess()
    assert (preprocess.mean, preprocess.std) == (overlay["mean"], overlay["std"])
    assert preprocess.interpolation == "bilinear" and preprocess.size == 64
    assert preprocess.resize == "stretch", "marks at the border are kept"


def test_preprocess_can_be_overruled():
    backbone = Backbone(small("test_resnet"), 64)
    assert backbone.preprocess(resize="pad", interpolation=None).resize == "pad"
    assert backbone.preprocess(resize=None) == backbone.preprocess()
