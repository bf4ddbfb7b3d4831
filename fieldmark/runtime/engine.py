"""Running a compiled graph on the CPU: OpenVINO where it works, else ONNX Runtime.

One engine serves many threads: each call runs on one core, so a worker takes a photo from its file to its
answer and all cores stay busy without a queue between decoding and inference.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from fieldmark.runtime.errors import FieldmarkError, UsageError

Precision = Literal["f32", "bf16", "f16"]
ENGINES = ("openvino", "onnxruntime")
#: The one that graphs are compared by with PyTorch, and golden answers come from.
REFERENCE = "onnxruntime"
_IMPORTING = threading.Lock()


def difference(answers: np.ndarray, expected: np.ndarray, selects: bool = False) -> float:
    """Largest difference of answers [B, d] from those expected [B, d], over the largest of these.

    selects: of the median photo: where a network chooses places by their rank, rounding may turn a close choice.
    """
    errors = np.abs(answers - expected).max(1) / max(float(np.abs(expected).max()), 1e-12)
    return float(np.median(errors) if selects else errors.max())


class Engine(Protocol):
    """A compiled graph.

    name: which engine; precision: of its arithmetic.
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

    outputs: those that will be asked for; OpenVINO computes no others. engine: ``auto`` tries OpenVINO, then ONNX
    Runtime. The engine's ``precision`` is the one it computes in: a processor may not have the asked one.
    Raises UsageError for an unknown engine or precision, FieldmarkError where none can run the graph.
    """
    if engine not in ("auto", *ENGINES):
        raise UsageError(f"unknown engine {engine!r}: choose auto, {' or '.join(ENGINES)}")
    if precision not in get_args(Precision):
        raise UsageError(f"unknown precision {precision!r}: choose {', '.join(get_args(Precision))}")
    names = ENGINES if engine == "auto" else (engine,)
    reasons = []
    for name in names:
        try:
            kind = OpenVinoEngine if name == "openvino" else OnnxRuntimeEngine
            return kind(Path(model), list(outputs), precision, workers)
        except Exception as error:  # an engine may refuse a graph, or not be installed for this machine
            if isinstance(error, UsageError) and engine != "auto":
                raise
            reasons.append(f"{name}: {_line(error)}")
    raise FieldmarkError(f"no engine can run {model}: " + "; ".join(reasons))


def _line(error: Exception) -> str:
    """What an engine says, without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return " ".join(kept)[:200] or type(error).__name__


def import_openvino() -> Any:
    """The module, told to send nothing, and ready for threads.

    Importing openvino reports the import to a counting service on the network, unless its helper package
    ``openvino_telemetry`` cannot be imported (no environment variable stops it, only CI=true). So it cannot,
    for as long as the import lasts: openvino then takes its own stub.

    Its table of number types is made at the first use, and two threads that meet there wait for each other for
    ever (one holds the interpreter, the other the table). So it is made here.
    """
    helper = "openvino_telemetry"
    with _IMPORTING:
        loaded = {name: sys.modules.pop(name) for name in [*sys.modules] if name.partition(".")[0] == helper}
        sys.modules[helper] = None  # type: ignore[assignment]
        try:
            import openvino
        finally:
            del sys.modules[helper]
            sys.modules.update(loaded)
        openvino.Type.f32.to_dtype()
        _ = openvino.Tensor(np.zeros(1, np.float32), shared_memory=True).data
    return openvino


class OpenVinoEngine:
    """OpenVINO with one stream a worker, in the asked precision (its own default may be bf16)."""

    name = "openvino"

    def __init__(self, model: Path, outputs: list[str], precision: Precision, workers: int):
        ov = import_openvino()
        core = ov.Core()
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
        self.precision: str = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
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
        self.precision: str = precision
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        ort.disable_telemetry_events()  # of the operating system (Windows)
        self._session: Any = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        missing = set(outputs) - {output.name for output in self._session.get_outputs()}
        if missing:
            raise FieldmarkError(f"the graph has no output {min(missing)!r}")

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        feed = {self._input: np.ascontiguousarray(images, np.float32)}
        return [np.asarray(value) for value in self._session.run(list(outputs), feed)]
