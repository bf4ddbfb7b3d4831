"""From a model folder back to a PyTorch module, so that training can go on where it ended."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fieldmark import methods
from fieldmark.methods.base import Method
from fieldmark.methods.cnn import Options, TextbookCNN
from fieldmark.methods.task import Task
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import Source
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.errors import FieldmarkError


def restore(bundle: Bundle) -> Method | TextbookCNN:
    """The method of a model folder, with its backbone (if it has one), head and projection, in eval mode.

    ``forward`` gives the logits [B, C] of model.onnx, ``features`` its embedding. Every parameter can be
    trained. Raises FieldmarkError in a line where the folder's tensors do not fit what it says it is.
    """
    tensors = {name: torch.from_numpy(value) for name, value in bundle.arrays("model.safetensors").items()}
    head = {name: tensors.pop(name) for name in [*tensors] if name.startswith(("head.", "projection."))}
    down = head.get("head.down")
    method = _empty(bundle, None if down is None else down.shape[1])
    try:
        state = {**tensors, **_linear(head)}
        # Tensors without an entry (a buffer of size 0) are not written.
        state |= {name: value for name, value in method.state_dict().items() if not value.numel()}
        method.load_state_dict(state)
    except (KeyError, RuntimeError) as error:
        why = " ".join(str(error).split())[:160]
        raise FieldmarkError(f"{bundle.path} does not hold the tensors of its network: {why}") from error
    return method.eval()


def _empty(bundle: Bundle, rank: int | None) -> Method | TextbookCNN:
    """The network before its tensors are read. rank: of the head, if it has one."""
    section, training = bundle.section, bundle.section.training
    options, classes = dict(training.get("model_args") or {}), len(section.classes)
    if not methods.card(section.method).backbone:
        network = TextbookCNN(Options.of(options), classes, section.preprocess.size)
        network.projection = nn.Linear(network.options.hidden, section.embedding)
        return network
    source = Source(bundle.config.architecture, None, str(training.get("weights", "")), options)
    made = dict(training.get("network") or {})
    task = Task.from_dict(made["task"]) if "task" in made else Task(classes)
    backbone = Backbone(source, section.preprocess.size)
    scales = section.scales if methods.card(section.method).instant else ()
    method = methods.get(section.method)(backbone, scales, task, made.get("settings", {}))
    method.tta = bool(made.get("tta"))
    method.add_head(classes, section.embedding, rank)
    return method


def _linear(head: dict[str, Tensor]) -> dict[str, Tensor]:
    """The head's tensors ([inputs, outputs], as in the graph) under the names and layout of `nn.Linear`."""
    last = "head.1" if "head.down" in head else "head"
    state = {
        f"{last}.weight": head["head.weight"].T,
        f"{last}.bias": head["head.bias"],
        "projection.weight": head["projection.weight"].T,
        "projection.bias": head["projection.bias"],
    }
    if "head.down" in head:
        state["head.0.weight"] = head["head.down"].T
    return state
