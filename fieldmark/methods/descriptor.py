"""The frozen part of a model as an ONNX graph: pixels -> descriptor. Exported once, then found in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fieldmark.nn.weights import Source, resolve
from fieldmark.runtime.cache import atomic_write, directory, touch
from fieldmark.runtime.preprocess import Preprocess

if TYPE_CHECKING:
    from fieldmark.methods.base import Method

OUTPUT = "descriptor"
#: Raised when the same settings give other numbers, so that old cache entries are not used.
REVISION = 2


@dataclass(frozen=True)
class DescriptorGraph:
    """An exported graph ``images`` [B, 3, S, S] -> ``descriptor`` [B, d].

    weights: the same as safetensors; widths: of the descriptor's parts, scale by scale; key: names weights,
    method, size and scales; native: the size the backbone was trained at, in pixels; parity: largest relative
    difference from the PyTorch module; trained: are the backbone's weights others than it came with?
    """

    path: Path
    weights: Path
    key: str
    native: int
    widths: tuple[int, ...]
    scales: tuple[int, ...]
    preprocess: Preprocess
    source: Source
    method: str
    parity: float
    trained: bool = False


def descriptor_graph(
    backbone: str,
    method: str,
    *,
    size: int | None = None,
    scales: Sequence[int] = (),
    preprocess: dict[str, Any] | None = None,
    offline: bool = False,
    pretrained: bool = True,
) -> DescriptorGraph:
    """The graph for these settings. PyTorch and timm are imported only where the cache has no such graph.

    size: side of the input in pixels (default: the backbone's own); scales: sides at which the photo is looked
    at, none above ``size``; preprocess: fields that override the backbone's specification.
    """
    source = resolve(backbone, offline=offline, pretrained=pretrained)
    wanted = [REVISION, source.architecture, source.digest, source.options, method, size, sorted(scales)]
    key = hashlib.sha256(json.dumps(wanted, default=str).encode()).hexdigest()[:32]
    folder = directory("graphs")
    graph, note, weights = (folder / f"{key}{ending}" for ending in (".onnx", ".json", ".safetensors"))
    facts = _facts(graph, note, weights)
    if facts is None:
        _export(source, method, size, scales, graph, note, weights)
        facts = _seal(graph, note, weights)
    for entry in (graph, note, weights):
        touch(entry)
    changes = {k: v for k, v in (preprocess or {}).items() if v is not None}
    return DescriptorGraph(
        path=graph,
        weights=weights,
        key=key,
        native=facts["native"],
        widths=tuple(facts["widths"]),
        scales=tuple(facts["scales"]),
        preprocess=Preprocess(**{**facts["preprocess"], **changes}),
        source=source,
        method=method,
        parity=facts["parity"],
    )


def _facts(graph: Path, note: Path, weights: Path) -> dict[str, Any] | None:
    """What the note of a cache entry says; None where the entry is not there, or not whole."""
    try:
        facts = json.loads(note.read_text(encoding="utf-8"))
        return facts if facts["files"] == [_hash(graph), _hash(weights)] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _seal(graph: Path, note: Path, weights: Path) -> dict[str, Any]:
    """Add to the note the hashes of its files: from now on the entry counts."""
    facts = json.loads(note.read_text(encoding="utf-8"))
    facts["files"] = [_hash(graph), _hash(weights)]
    with atomic_write(note) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
    return facts


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(source: Source, method: str, size: int | None, scales: Sequence[int]) -> Method:
    """The PyTorch module of these settings, frozen, without a head."""
    from fieldmark import methods
    from fieldmark.nn.backbone import Backbone

    return methods.get(method)(Backbone(source, size), scales).eval().requires_grad_(False)


def _export(
    source: Source,
    method: str,
    size: int | None,
    scales: Sequence[int],
    graph: Path,
    note: Path,
    weights: Path,
) -> None:
    import torch
    from safetensors.torch import save

    from fieldmark.nn.graph import export

    module = build(source, method, size, scales)
    module.forward = module.describe  # type: ignore[method-assign]
    side = module.backbone.size
    images = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with atomic_write(graph) as temporary:
        exported = export(module, images, temporary, OUTPUT)
    with atomic_write(weights) as temporary:
        # Written as bytes, so that a full disk is an OSError like everywhere.
        temporary.write_bytes(save({k: v.contiguous() for k, v in module.state_dict().items()}))
    facts = {
        "native": module.backbone.native,
        "widths": module.widths,
        "scales": module.scales,
        "preprocess": module.backbone.preprocess().model_dump(mode="json"),
        "parity": exported.error,
        "exporter": exported.exporter,
    }
    with atomic_write(note) as temporary:
        temporary.write_text(json.dumps(facts), encoding="utf-8")
