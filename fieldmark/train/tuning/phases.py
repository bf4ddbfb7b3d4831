"""From one phase of a plan to the next: what a phase is fed with, and what is kept of the ones before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator

from fieldmark.data.loader import Photos
from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.preprocess import Preprocess
from fieldmark.train.loop import checkpoint
from fieldmark.train.loop.best import Best, Score
from fieldmark.train.loop.checkpoint import Checkpoint
from fieldmark.train.loop.feeds import CachedFeed, Feed, Lower
from fieldmark.train.loop.loop import Outcome
from fieldmark.train.network import Network
from fieldmark.train.plan.plan import Plan


def feed_of(
    network: Network,
    plan: Plan,
    number: int,
    train: Photos,
    held: Photos,
    preprocess: Preprocess,
    *,
    folder: Path,
    workers: int | None,
    accelerator: Accelerator,
    progress: Callable[[int, int], None],
) -> Feed:
    """What phase ``number`` is fed with; the network is cut or frozen as the phase has it.

    folder: of kept maps; progress: told (done, total) while they are made.
    """
    phase, views = plan.phases[number], network.method.views
    common: dict[str, Any] = {
        "size": phase.size,
        "sides": lambda epoch: phase.side(epoch // views),
        "seed": plan.seed,
        "workers": workers,
        "device": accelerator.device,
    }
    if phase.heads:
        network.freeze()
    if phase.cut and not network.apart(phase.cut):
        network.freeze(phase.cut)
    elif phase.cut:
        below = network.open(phase.cut)
        lowers = {side: Lower(below, side, workers) for side in {*phase.sides(), preprocess.size}}
        common |= {"lower": lowers[phase.size], "lower_held": lowers[preprocess.size], "lowers": lowers}
    if not phase.views:
        return Feed(train, held, preprocess, plan.augment, **common)
    file = folder / plan.maps(number)
    feed = CachedFeed(train, held, preprocess, plan.augment, views=phase.views, file=file, **common)
    feed.build(progress, rank=accelerator.process_index, world=accelerator.num_processes)
    return feed


def drop_maps(folder: Path, plan: Plan, number: int) -> None:
    """Remove the maps that no phase from ``number`` on learns from."""
    needed = {plan.maps(later) for later in range(number, len(plan.phases)) if plan.phases[later].views}
    for file in folder.glob("maps-*"):
        if f"{file.name.partition('.')[0]}.f16" not in needed:
            file.unlink()


class Reached(NamedTuple):
    """How far a killed run came. number: the phase it was in; saved: its newest checkpoint (none: no step of it is
    kept); spent: seconds until then (none: nothing is kept at all)."""

    number: int = 0
    saved: Checkpoint | None = None
    spent: float | None = None


def newest(folder: Path) -> Reached:
    """How far the run of this folder came."""
    begun = (int(path.name.removeprefix("phase-")) for path in folder.glob("phase-*"))
    for number in sorted(begun, reverse=True):
        if (saved := checkpoint.newest(folder / f"phase-{number}")) is not None:
            break
    else:
        return Reached()
    phase = int(saved.state["phase"])
    end = checkpoint.newest(folder / f"after-{phase + 1}")
    if end is not None:  # the next one had no checkpoint yet
        return Reached(phase + 1, None, float(end.state["spent"]))
    return Reached(phase, saved, float(saved.state["spent"]))


def keep_end(folder: Path, number: int, network: Network, outcome: Outcome, spent: float) -> None:
    """Write down what phase ``number`` ended with, ``spent`` seconds after the start. The checkpoints of later ones
    hold only what learns then."""
    told = {
        "spent": spent,
        "score": outcome.best.score,
        "rows": outcome.best.rows,
        "photos": outcome.photos,
        "seconds": outcome.seconds,
        "stopped": outcome.stopped,
    }
    weights = {name: value.clone() for name, value in network.module.state_dict().items()}
    checkpoint.write(folder / f"after-{number + 1}", number + 1, weights, told)


def go_on(folder: Path, number: int, network: Network) -> list[Outcome]:
    """The network as the phase before ``number`` left it; returns how the earlier ones ended.

    Raises FieldmarkError where that cannot be read.
    """
    found = [checkpoint.newest(folder / f"after-{earlier + 1}") for earlier in range(number)]
    ends = [one for one in found if one is not None]
    if len(ends) < number:
        raise FieldmarkError(
            f"what the phases before left in {folder} cannot be read: start again with --overwrite"
        )
    if ends:
        network.module.load_state_dict(ends[-1].tensors)
    return [
        Outcome(
            Best(Score.read(one.state["score"]), rows=list(one.state["rows"])),
            int(one.state["photos"]),
            float(one.state["seconds"]),
            str(one.state["stopped"]),
        )
        for one in ends
    ]
