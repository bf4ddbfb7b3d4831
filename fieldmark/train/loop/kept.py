"""What a checkpoint holds of a loop: all that the next step depends on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.averages import copied, learned, put
from fieldmark.train.loop.best import Best

if TYPE_CHECKING:
    from fieldmark.train.loop.loop import Loop


def pack(loop: Loop) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Its tensors, and the rest as JSON."""
    packed, groups = checkpoint.pack_optimizer(loop.stepper.optimizer)
    seen, best = loop.best.pack()
    tensors = {f"now.{name}": value for name, value in learned(loop.module).items()}
    tensors |= {f"average.{name}": value for name, value in loop.average.state.items()}
    scaler = loop.accelerator.scaler
    return {**tensors, **packed, **seen}, {
        "phase": loop.number,
        "total": loop.total,
        "progress": loop.progress,
        "micro": loop.stepper.micro,
        "scaler": None if scaler is None else scaler.state_dict(),
        "seconds": loop.seconds,
        "looked": loop.looked,
        "spent": loop.watch.spent,
        "running": loop.stepper.running,
        "optimizer": groups,
        "best": best,
    }


def unpack(loop: Loop, saved: checkpoint.Checkpoint) -> None:
    """Go on from there."""
    state = saved.state
    tensors = {name: value.to(loop.accelerator.device) for name, value in saved.tensors.items()}

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    put(loop.module, part("now."))
    loop.average.state = copied(part("average."))
    checkpoint.unpack_optimizer(loop.stepper.optimizer, tensors, state["optimizer"])
    loop.best = Best.unpack(tensors, state["best"])
    loop.step, loop.total, loop.progress = saved.step, state["total"], state["progress"]
    loop.stepper.micro, loop.stepper.running = state["micro"], dict(state["running"])
    loop.before, loop.looked = state["seconds"], state["looked"]
    if loop.accelerator.scaler is not None and state.get("scaler"):
        loop.accelerator.scaler.load_state_dict(state["scaler"])
