"""The frozen graph run by PyTorch, channels-last: for machines where no compiled engine works."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fieldmark.methods.descriptor import OUTPUT, DescriptorGraph, build
from fieldmark.runtime.errors import UsageError


class TorchEngine:
    """Serves like `fieldmark.runtime.engine.Engine`; each call computes on one core, as there."""

    name = "torch"
    precision = "f32"

    def __init__(self, graph: DescriptorGraph, precision: str = "f32"):
        if precision != "f32":
            raise UsageError(f"PyTorch computes in f32 here, not {precision}: take --engine openvino")
        module = build(graph.source, graph.method, graph.preprocess.size, graph.scales)
        self._module = module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, images: np.ndarray, outputs: Sequence[str]) -> list[np.ndarray]:
        """images [B, 3, H, W] float32 -> [descriptor]."""
        if list(outputs) != [OUTPUT]:
            raise UsageError(f"PyTorch gives {OUTPUT} here, not {', '.join(outputs)}")
        torch.set_num_threads(1)  # of the calling thread
        x = torch.from_numpy(np.ascontiguousarray(images)).contiguous(memory_format=torch.channels_last)
        with torch.inference_mode():
            return [self._module.describe(x).numpy()]
