"""A model folder made in a second or two: a tiny network with random weights and a random head."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fieldmark.runtime.errors import FieldmarkError

CLASSES = ("ant", "bee, or 'wasp'", "猫\n🐈")


def write_bundle(
    target: Path,
    *,
    backbone: str = "test_efficientnet",
    method: str = "isqrt_cov",
    size: int = 64,
    scales: Sequence[int] = (),
    classes: Sequence[str] = CLASSES,
    embedding: int = 6,
    rank: int | None = None,
    temperature: float = 1.5,
    preprocess: dict[str, Any] | None = None,
) -> Path:
    """Write a bundle as training does, by its own functions, and give back its folder."""
    from fieldmark.methods.descriptor import descriptor_graph
    from fieldmark.runtime.bundle import GRAPH, Config, Decision, Section
    from fieldmark.runtime.bundle_files import building, seal
    from fieldmark.runtime.engine import OnnxRuntimeEngine
    from fieldmark.train.bundle.assemble import assemble
    from fieldmark.train.bundle.write import _weights, write_splits

    graph = descriptor_graph(
        backbone, method, size=size, scales=scales, preprocess=preprocess, pretrained=False
    )
    dice = np.random.default_rng(0)
    d, c = sum(graph.widths), len(classes)
    tensors = {
        "head.weight": dice.normal(size=(rank or d, c)) * 3,
        "head.bias": dice.normal(size=c),
        "projection.weight": dice.normal(size=(d, embedding)),
        "projection.bias": dice.normal(size=embedding) / 10,
    }
    if rank:
        tensors["head.down"] = dice.normal(size=(d, rank)) / rank**0.5
    tensors = {name: value.astype(np.float32) for name, value in tensors.items()}
    tensors["projection.weight"] = tensors["projection.weight"].astype(np.float16)
    with building(target) as folder:
        assemble(graph.path, tensors, folder / GRAPH)
        _weights(folder / "model.safetensors", graph.weights, tensors)
        images = np.stack([graph.preprocess.pixels(picture(seed)) for seed in range(3)])
        names = ["logits", "embedding"]
        pixels = graph.preprocess.normalise(images)
        logits, embedded = OnnxRuntimeEngine(folder / GRAPH, names, "f32", 1).run(pixels, names)
        np.savez_compressed(folder / "golden.npz", images=images, logits=logits, embedding=embedded)
        write_splits(folder / "split.parquet", {"aa": "train", "bb": "test"})
        (folder / "metrics.json").write_text("{}", encoding="utf-8")
        (folder / "README.md").write_text("# A model\n", encoding="utf-8")
        section = Section(
            version="0",
            method=method,
            classes=list(classes),
            scales=list(graph.scales),
            widths=list(graph.widths),
            embedding=embedding,
            preprocess=graph.preprocess,
            decision=Decision(temperature=temperature),
            training={"weights": graph.source.digest, "model_args": graph.source.options},
        )
        config = Config(
            format=1,
            architecture=graph.source.architecture,
            num_classes=c,
            num_features=d,
            pretrained_cfg={"label_names": list(classes)},
            fieldmark=section,
        )
        seal(folder, config)
    return target


def picture(seed: int = 0, width: int = 90, height: int = 70) -> Image.Image:
    """Soft blobs of colour, different for every seed."""
    dice = np.random.default_rng(seed)
    small = Image.fromarray(dice.integers(0, 256, (4, 5, 3), np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def logits_of(module: Any, preprocess: Any, photos: Sequence[Image.Image]) -> np.ndarray:
    """What a PyTorch module says of photos: [N, C]."""
    import torch

    with torch.inference_mode():
        return module(torch.from_numpy(np.stack([preprocess(photo) for photo in photos]))).numpy()


def refused(call: Callable[[], Any]) -> str:
    """The line with which a call is refused."""
    with pytest.raises(FieldmarkError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)
