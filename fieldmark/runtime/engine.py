"""Running a compiled graph on the CPU: OpenVINO where it works, else ONNX Runtime.

One engine serves many threads: each call runs on one core, so a worker takes a photo from its file to its
answer and all cores stay busy without a queue between decoding and inference.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from fieldmark.runtime.errors import FieldmarkError, UsageError

Precision = Literal["f32", "bf16", "f16"]
ENGINES = ("openvino", "onnxruntime")


class Engine(Protocol):
    """A compiled graph.

    name: which engine; precision: of its arithmetic; outputs: their names.
    """

    name: str
    precision: str

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """images [B, 3, H, W] float32 -> the named outputs, in order. Safe to call from several threads."""
        ...


def compile_graph(
    model: str | Path,
    *,
    outputs: Sequence[str],
    engine: str = "auto",
    precision: Precision = "f32",
    workers: int = 1,
) -> Engine:
    """Compile an ONNX file for ``workers`` threads that call it at the same time.

    outputs: only these are computed. engine: ``auto`` tries OpenVINO, then ONNX Runtime.
    Raises UsageError for an unknown engine, FieldmarkError where none can run the graph.
    """
    if engine not in ("auto", *ENGINES):
        raise UsageError(f"unknown engine {engine!r}: choose auto, {' or '.join(ENGINES)}")
    names = ENGINES if engine == "auto" else (engine,)
    reasons = []
    for name in names:
        try:
            kind = OpenVinoEngine if name == "openvino" else OnnxRuntimeEngine
            return kind(Path(model), list(outputs), precision, workers)
        except UsageError:
            raise
        except Exception as error:  # an engine may refuse a graph, or not be installed for this machine
            reasons.append(f"{name}: {str(error).strip().splitlines()[0] if str(error).strip() else error!r}")
    raise FieldmarkError(f"no engine can run {model}: " + "; ".join(reasons))


class OpenVinoEngine:
    """OpenVINO with one stream a worker, in the asked precision (its own default may be bf16)."""

    name = "openvino"

    def __init__(self, model: Path, outputs: list[str], precision: Precision, workers: int):
        os.environ.setdefault("OPENVINO_TELEMETRY_OPT_OUT", "1")
        import openvino as ov

        self.precision = precision
        core = ov.Core()
        core.set_property("CPU", {"INFERENCE_PRECISION_HINT": precision})
        graph = core.read_model(model)
        wanted = [graph.output(name) for name in outputs]
        # Outputs that nobody asked for are cut off, so they cost nothing.
        cut = ov.Model([port.get_node() for port in wanted], graph.get_parameters(), "fieldmark")
        self._compiled = core.compile_model(
            cut,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": precision,
                "NUM_STREAMS": str(workers),
                "INFERENCE_NUM_THREADS": workers,
            },
        )
        self._order = {name: index for index, name in enumerate(outputs)}
        self._local = threading.local()

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        request.infer([np.ascontiguousarray(images, np.float32)], share_inputs=True)
        return [request.get_output_tensor(self._order[name]).data.copy() for name in outputs]


class OnnxRuntimeEngine:
    """ONNX Runtime, one thread a call."""

    name = "onnxruntime"

    def __init__(self, model: Path, outputs: list[str], precision: Precision, workers: int):
        import onnxruntime as ort

        if precision != "f32":
            raise UsageError(f"ONNX Runtime computes in f32 here, not {precision}: take --engine openvino")
        self.precision = "f32"
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        feed = {self._input: np.ascontiguousarray(images, np.float32)}
        return [np.asarray(value) for value in self._session.run(list(outputs), feed)]
