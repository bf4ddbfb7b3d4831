"""From a module to an ONNX graph whose answers are checked against the module's."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fieldmark.runtime.engine import OnnxRuntimeEngine, difference
from fieldmark.runtime.errors import FieldmarkError

#: Largest difference from the module that a graph may show, relative to the largest answer.
TOLERANCE = 2e-3
#: Rounding of the input, relative to its largest value, how often it is drawn, and how many times the largest change
#: that it makes in the answers of a module that chooses places a graph may show.
ROUNDING, DRAWS, TIMES = 1e-6, 5, 3.0
OPSET = 18


@dataclass(frozen=True)
class Exported:
    """exporter: which rung of the ladder worked; error: largest relative difference from the module."""

    exporter: str
    error: float


def export(module: nn.Module, images: Tensor, path: Path, output: str, selects: bool = False) -> Exported:
    """Write ``module`` as ONNX with input ``images`` [B, 3, H, W] (any B) and one output; prove its parity.

    The ladder: the tracing exporter, whose graphs run fastest, then the dynamo exporter, both with fused
    attention switched off (no engine has it). ``images`` [B >= 2, 3, H, W] are the ones compared. selects: does the
    module choose places by their rank? Rounding may then turn a close choice: most answers must be the same, not all,
    and no nearer than the module's own are where its input is rounded.
    Raises FieldmarkError where no rung gives the module's answers.
    """
    module = module.eval()
    reasons = []
    with plain_attention(module), torch.inference_mode():
        expected = module(images).numpy()
        allowed = TOLERANCE
        if selects:
            own = rounding(lambda x: module(torch.from_numpy(x)).numpy(), images.numpy(), expected)
            allowed = max(TOLERANCE, own)
        for exporter in ("trace", "dynamo"):
            try:
                with _quiet(), TemporaryDirectory() as folder:
                    draft = Path(folder) / "graph.onnx"
                    _export(module, images, draft, output, exporter)
                    found = parity(draft, images.numpy(), expected, output, selects)
                    if found <= allowed:
                        path.write_bytes(draft.read_bytes())
                        return Exported(exporter, found)
                reasons.append(f"{exporter}: answers differ by {found:.1e}")
            except Exception as failure:
                reasons.append(f"{exporter}: {str(failure).strip().splitlines()[0][:120]}")
    raise FieldmarkError(f"cannot export {type(module).__name__} to ONNX ({'; '.join(reasons)})")


def parity(
    model: Path, images: np.ndarray, expected: np.ndarray, output: str, selects: bool = False
) -> float:
    """Largest difference between the graph's answer and the expected one, over the largest expected value. selects: of
    the median photo.

    Asked for one image, and for all at once: a graph with a frozen batch size fails here.
    """
    engine = OnnxRuntimeEngine(model, [output], "f32", 1)
    one, all_ = engine.run(images[:1], [output])[0], engine.run(images, [output])[0]
    if (one.shape, all_.shape) != (expected[:1].shape, expected.shape):
        raise ValueError(f"shapes {one.shape} for one image, {all_.shape} for {len(images)}")
    return difference(np.concatenate([all_, one]), np.concatenate([expected, expected[:1]]), selects)


def rounding(answer: Callable[[np.ndarray], np.ndarray], images: np.ndarray, expected: np.ndarray) -> float:
    """How far answers may be apart where places are chosen: `TIMES` what rounding of the images [B, 3, H, W] changes
    in those of ``answer``, which are ``expected`` [B, d] without it."""
    chance, size = np.random.default_rng(0), ROUNDING * np.abs(images).max()
    rounded = (images + size * chance.standard_normal(images.shape, np.float32) for _ in range(DRAWS))
    return TIMES * max(difference(answer(one), expected, selects=True) for one in rounded)


def _export(module: nn.Module, images: Tensor, path: Path, output: str, exporter: str) -> None:
    names: dict[str, Any] = {"input_names": ["images"], "output_names": [output]}
    if exporter == "trace":
        axes = {"images": {0: "batch"}, output: {0: "batch"}}
        torch.onnx.export(
            module, (images,), path, opset_version=OPSET, dynamic_axes=axes, dynamo=False, **names
        )
    else:
        shapes = ({0: torch.export.Dim("batch", min=1, max=4096)},)
        torch.onnx.export(
            module, (images,), path, dynamo=True, external_data=False, dynamic_shapes=shapes, **names
        )


@contextlib.contextmanager
def plain_attention(module: nn.Module) -> Iterator[None]:
    """Attention written out as products and a softmax, for as long as the context lasts."""
    switched = [m for m in module.modules() if getattr(m, "fused_attn", False) is True]
    for m in switched:
        m.fused_attn = False  # type: ignore[assignment]
    try:
        yield
    finally:
        for m in switched:
            m.fused_attn = True  # type: ignore[assignment]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporters talk a lot; what matters of it is in the exception."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
