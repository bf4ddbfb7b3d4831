"""A trained head becomes a model folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import fieldmark
from fieldmark.nn.graph import rounding
from fieldmark.runtime.bundle import GRAPH, Config, Decision, Section
from fieldmark.runtime.bundle_files import building, seal, write_splits
from fieldmark.runtime.engine import OnnxRuntimeEngine
from fieldmark.train.bundle.assemble import assemble, head_tensors, save_tensors
from fieldmark.train.bundle.card import model_card
from fieldmark.train.bundle.classes import Moments
from fieldmark.train.bundle.golden import rendered
from fieldmark.train.trained import Trained

#: Rendered pictures whose answers travel with the model.
GOLDEN = 4


def write(
    target: Path,
    trained: Trained,
    *,
    splits: Mapping[str, str],
    ranks: Mapping[str, Mapping[str, str | None]],
    metrics: dict[str, Any],
) -> Config:
    """Write the bundle to ``target``, whole or not at all. splits: content hash -> split of every photo."""
    config = _config(trained, ranks)
    tensors = head_tensors(trained.head)
    with building(target) as folder:
        assemble(trained.graph.path, tensors, folder / GRAPH)
        _weights(folder / "model.safetensors", trained.graph.weights, tensors)
        Moments.gather(trained).save(folder / "stats.safetensors")
        _golden(folder / "golden.npz", folder / GRAPH, trained)
        write_splits(folder / "split.parquet", splits)
        (folder / "metrics.json").write_text(
            json.dumps(metrics, indent=2, ensure_ascii=False), encoding="utf-8"
        )
        counts = np.bincount(trained.y, minlength=len(trained.classes)).tolist()
        (folder / "README.md").write_text(
            model_card(config, metrics, dict(zip(trained.classes, counts, strict=True))), encoding="utf-8"
        )
        return seal(folder, config)


def _config(trained: Trained, ranks: Mapping[str, Mapping[str, str | None]]) -> Config:
    graph, settings = trained.graph, trained.settings
    preprocess = graph.preprocess
    side = preprocess.size
    return Config(
        format=1,
        architecture=graph.source.architecture,
        num_classes=len(trained.classes),
        num_features=sum(graph.widths),
        pretrained_cfg={
            "input_size": [3, side, side],
            "mean": list(preprocess.mean),
            "std": list(preprocess.std),
            "interpolation": preprocess.interpolation,
            "crop_pct": preprocess.crop_pct,
            "label_names": trained.classes,
        },
        fieldmark=Section(
            version=fieldmark.__version__,
            method=graph.method,
            mode=trained.mode,
            classes=trained.classes,
            scales=list(graph.scales),
            widths=list(graph.widths),
            embedding=trained.head.embedding.shape[1],
            preprocess=preprocess,
            decision=Decision(temperature=trained.head.temperature),
            ranks={name: dict(values) for name, values in ranks.items()},
            training={
                "backbone": settings.backbone,
                "weights": graph.source.digest,
                "model_args": graph.source.options,
                "n_train": len(trained.y),
                "seed": settings.seed,
                "folds": settings.folds,
                "engine": trained.engine,
                **({"serves": trained.serves} if trained.serves else {}),
                "precision": settings.precision,
                "graph_parity": graph.parity,
                **({"network": trained.network} if trained.network else {}),
                **{k: v for k, v in trained.chosen.items() if k not in ("scales", "temperature")},
            },
        ),
    )


def _weights(path: Path, backbone: Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors.numpy import load_file

    state = {name: value for name, value in load_file(backbone).items() if value.size}
    save_tensors({**state, **tensors}, path)


def _golden(path: Path, graph: Path, trained: Trained) -> None:
    """Rendered pictures and what the reference engine, checked against PyTorch at export, says of them."""
    preprocess = trained.graph.preprocess
    images = rendered(preprocess, GOLDEN)
    names = ["logits", "embedding"]
    engine, pixels = OnnxRuntimeEngine(graph, names, "f32", 1), preprocess.normalise(images)
    logits, embedding = engine.run(pixels, names)
    more: dict[str, Any] = {}
    if trained.network.get(
        "selects"
    ):  # an engine may differ by what rounding changes where places are chosen
        more["rounding"] = np.float32(rounding(lambda x: engine.run(x, ["logits"])[0], pixels, logits))
    np.savez_compressed(path, images=images, logits=logits, embedding=embedding, **more)
