"""Several processes that train one model, as torchrun starts them: who am I, who writes, and what holds them together.

Read from the environment, so that asking costs no import of PyTorch.
"""

from __future__ import annotations

import atexit
import gc
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from fieldmark.runtime.errors import UsageError

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")
#: How long the others wait for the one that looks at the photos and plans; PyTorch's own 10 minutes are too short.
PATIENCE = timedelta(days=1)


def rank() -> int:
    """The number of this process; the one that writes is 0."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """How many processes there are."""
    return int(os.environ.get("WORLD_SIZE", 1))


def main() -> bool:
    """Is this the process that writes?"""
    return rank() == 0


def agreed(value: T) -> T:
    """What the first process says, in all of them: clocks and disks differ."""
    if world() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    said = [value]
    broadcast_object_list(said)
    return said[0]


def anywhere(value: bool) -> bool:
    """Is it so in any process?"""
    if world() == 1:
        return value
    import torch
    from accelerate import PartialState
    from accelerate.utils import reduce

    return bool(reduce(torch.tensor(float(value), device=PartialState().device), "sum"))


def accelerator(amp: str) -> Accelerator:
    """Devices, processes and precision for one training. amp: no, bf16, fp16; auto: half precision on GPUs (on CPUs a
    plan may find that it pays, see `short_steps`).

    Raises UsageError for a precision that this machine does not have.
    """
    import torch
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs

    gpu = torch.cuda.is_available()
    if amp == "fp16" and not gpu:
        raise UsageError("--amp fp16 needs a GPU")
    if amp == "auto":
        fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        amp = "bf16" if fast else "fp16" if gpu else "no"
    if world() > 1 and not gpu:
        atexit.register(_part)
    AcceleratorState._reset_state()  # an earlier training of this process may have had another precision
    return Accelerator(
        cpu=not gpu,
        mixed_precision=amp,
        kwargs_handlers=[
            # A method may leave parts of the backbone out, or learn some heads in one turn and others in the next.
            DistributedDataParallelKwargs(find_unused_parameters=True),
            InitProcessGroupKwargs(timeout=PATIENCE),
        ],
    )


def short_steps(accelerator: Accelerator) -> Callable[[], AbstractContextManager[None]] | None:
    """Autocast to bfloat16, where this training is on a CPU that multiplies it by itself, and not in it already.

    There steps are up to twice as quick with dense convolutions (ResNet), and slower with depthwise ones.
    """
    import torch

    known = torch.cpu.get_capabilities()
    fast = known.get("amx_bf16") or known.get("avx512_bf16")
    if accelerator.device.type != "cpu" or accelerator.mixed_precision != "no" or not fast:
        return None
    return partial(torch.autocast, "cpu", torch.bfloat16)


def _part() -> None:
    """End the threads by which processes on CPUs speak: one that outlives Python aborts its process."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        gc.collect()  # networks that were shared hold them, too
