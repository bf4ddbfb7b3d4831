"""From a frozen graph and a fitted head to one graph, pixels to logits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fieldmark.methods.descriptor import OUTPUT
from fieldmark.train.heads.head import Head

#: Outputs of the whole graph. Engines compute only those that are asked for.
OUTPUTS = ("logits", "embedding", OUTPUT)


def head_tensors(head: Head) -> dict[str, np.ndarray]:
    """The head's arrays by the names they have in the graph and in model.safetensors."""
    # The embedding is brought to unit length, so its scale is free: one that half precision holds.
    scale = max(float(np.abs(head.embedding).max(initial=0.0)), 1e-30)
    tensors = {
        "head.weight": head.weights,
        "head.bias": head.bias,
        "projection.weight": (head.embedding / scale).astype(np.float16),
        "projection.bias": (head.offset / scale).astype(np.float32),
    }
    if head.down is not None:
        tensors["head.down"] = head.down.astype(np.float32)
    return tensors


def save_tensors(tensors: Mapping[str, np.ndarray], path: Path) -> None:
    """Write a safetensors file. Raises OSError where it cannot be written, as every other file does.

    (The library's own writer raises an error of its own kind, without the number that tells a full disk.)
    """
    from safetensors.numpy import save

    path.write_bytes(save({name: np.ascontiguousarray(value) for name, value in tensors.items()}))


def assemble(descriptor: Path, tensors: dict[str, np.ndarray], target: Path) -> None:
    """Append the head to the graph at ``descriptor`` and write the whole to ``target``.

    logits = z [@ head.down] @ head.weight + head.bias; embedding = z @ projection.weight + projection.bias, at
    unit length; the descriptor z itself stays an output, for `fieldmark.train.bundle.classes`.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    model = onnx.load(str(descriptor))
    graph = model.graph
    del graph.output[:]
    graph.initializer.extend(numpy_helper.from_array(np.ascontiguousarray(v), k) for k, v in tensors.items())
    features = OUTPUT
    nodes = []
    if "head.down" in tensors:
        nodes.append(helper.make_node("MatMul", [features, "head.down"], ["reduced"]))
        features = "reduced"
    nodes += [
        helper.make_node("MatMul", [features, "head.weight"], ["scores"]),
        helper.make_node("Add", ["scores", "head.bias"], ["logits"]),
        helper.make_node("Cast", ["projection.weight"], ["projection"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", [OUTPUT, "projection"], ["projected"]),
        helper.make_node("Add", ["projected", "projection.bias"], ["shifted"]),
        helper.make_node("LpNormalization", ["shifted"], ["embedding"], axis=1, p=2),
    ]
    graph.node.extend(nodes)
    widths = (len(tensors["head.bias"]), *reversed(tensors["projection.weight"].shape))
    for name, width in zip(OUTPUTS, widths, strict=True):
        graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]))
    onnx.checker.check_model(model)
    onnx.save(model, str(target))


def replace_head(model_file: Path, tensors: dict[str, np.ndarray], target: Path) -> None:
    """Write the graph at ``model_file`` with other head tensors (and so perhaps another number of classes)."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(model_file))
    graph = model.graph
    for initializer in graph.initializer:
        if initializer.name in tensors:
            initializer.CopyFrom(numpy_helper.from_array(tensors[initializer.name], initializer.name))
    for output in graph.output:
        if output.name == "logits":
            output.type.tensor_type.shape.dim[1].dim_value = len(tensors["head.bias"])
    onnx.checker.check_model(model)
    onnx.save(model, str(target))
