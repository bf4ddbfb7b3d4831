"""The phases of a plan, one after the other, from wherever a run came to."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator

from fieldmark.train.loop.best import Enough
from fieldmark.train.loop.checkpoint import Checkpoint
from fieldmark.train.loop.loop import Loop, Outcome
from fieldmark.train.loop.telling import Teller
from fieldmark.train.loop.watch import Watch
from fieldmark.train.network import Network
from fieldmark.train.plan.measure import as_it_was, compile_step
from fieldmark.train.plan.plan import Plan
from fieldmark.train.processes import agreed
from fieldmark.train.tuning.material import Material
from fieldmark.train.tuning.phases import drop_maps, feed_of, go_on, keep_end


class Course:
    """One network through the phases of one plan.

    folder: of checkpoints and kept maps; enough: do the weights do, after so many photos of all phases? workers:
    threads that prepare photos (none: one a core).
    """

    def __init__(
        self,
        network: Network,
        plan: Plan,
        material: Material,
        folder: Path,
        watch: Watch,
        tell: Teller,
        accelerator: Accelerator,
        *,
        enough: Enough = lambda *_: True,
        workers: int | None = None,
    ):
        self.network, self.plan, self.material, self.folder = network, plan, material, folder
        self.watch, self.tell, self.accelerator = watch, tell, accelerator
        self.enough, self.workers = enough, workers

    def run(self, number: int, saved: Checkpoint | None) -> list[Outcome]:
        """Train phase after phase, from ``number`` on, where ``saved`` says how far it came.

        Interrupted between two of them, it ends with what the one before ended with.
        """
        outcomes, deadline = go_on(self.folder, number, self.network), self.watch.deadline
        for phase in range(number, len(self.plan.phases)):
            if deadline is not None:
                self.watch.deadline = deadline * self.plan.phases[phase].until
            try:
                outcomes.append(self._phase(phase, saved, sum(one.photos for one in outcomes)))
            except KeyboardInterrupt:
                if phase == 0 or saved is not None:  # what is kept of it is more than what came before
                    raise
                self.network.close()
                outcomes = go_on(self.folder, phase, self.network)
                outcomes[-1] = outcomes[-1]._replace(stopped="interrupted")
            saved = None
            if phase + 1 == len(self.plan.phases) or outcomes[-1].stopped == "interrupted":
                break
            if deadline is not None and agreed(self.watch.spent >= deadline):
                break
            try:
                if self.accelerator.is_main_process:
                    keep_end(self.folder, phase, self.network, outcomes[-1], self.watch.spent)
            except KeyboardInterrupt:
                outcomes[-1] = outcomes[-1]._replace(stopped="interrupted")
                break
        return outcomes

    def _phase(self, number: int, saved: Checkpoint | None, seen: int) -> Outcome:
        """Train one phase, and leave the network whole, with the best weights. seen: photos of the phases before."""
        network, plan, material = self.network, self.plan, self.material
        if self.accelerator.is_main_process:
            drop_maps(self.folder, plan, number)
        began = self.watch.spent
        feed = feed_of(
            network,
            plan,
            number,
            material.train,
            material.judges,
            material.looked.graph.preprocess,
            folder=self.folder,
            workers=self.workers,
            accelerator=self.accelerator,
            progress=lambda done, total: self.tell.report("making maps", done, total),
        )
        making = self.watch.spent - began  # of maps, which belongs to the time that training takes
        self.tell.loop = loop = Loop(
            network,
            feed,
            material.y,
            material.y_held,
            plan,
            number,
            self.watch,
            self.folder / f"phase-{number + 1}",
            self.tell,
            self.accelerator,
            lambda score, photos: self.enough(score, seen + photos),
        )
        if plan.compile and (why := compile_step(network, loop.example(), self.accelerator.autocast)):
            self.tell("note", why)
        outcome = loop.run(saved)
        outcome = outcome._replace(seconds=making + outcome.seconds)
        feed.close()
        as_it_was(network.module)
        network.module.cpu()
        network.close()
        self.accelerator.free_memory()  # it keeps each phase's optimiser otherwise, and scales by all of them
        return outcome
