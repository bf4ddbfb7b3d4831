"""Classes added and removed later, from moments: without the old photos, and without the backbone on them.

A photo is summed up by f = [c, 1], c [k] its coordinates in the directions of most variance. The bundle keeps
the shared second moment F^T F [k + 1, k + 1] and each class's sum of f [C, k + 1] (its last column counts the
photos): class means and a shared covariance, in other words. Ridge regression of class membership on f needs
nothing else, so a new class changes the head by solving one small system, exactly as if it had been trained
beside the others in these k directions; and classes can be added one after the other, in any order.
"""

from __future__ import annotations

import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.runtime.errors import FieldmarkError

if TYPE_CHECKING:
    from fieldmark.runtime.bundle import Bundle
    from fieldmark.train.trained import Trained

#: Directions kept (k).
DIRECTIONS = 1024
#: Photos from which the directions' optimism is estimated: those that make directions, and those held out.
MAKERS, HELD_OUT = 768, 256
#: With fewer photos than this there is nothing to estimate it from.
FEWEST = 40


@dataclass(frozen=True)
class Moments:
    """moment: [k + 1, k + 1] and sums: [C, k + 1], float64.

    ridge, temperature: the regularisation chosen in training, and the temperature of a head so fitted.
    basis: [d, k] int8 and step: [k], so that c = z @ (basis * step) + offset, offset [k].
    """

    moment: np.ndarray
    sums: np.ndarray
    ridge: float
    temperature: float
    basis: np.ndarray
    step: np.ndarray
    offset: np.ndarray

    @classmethod
    def gather(cls, trained: Trained) -> Moments:
        """The moments of the training photos."""
        known = trained.known
        space, z = known.space, known.z
        k = min(DIRECTIONS, len(space.spectrum))
        basis = space.directions(z, np.eye(len(space.spectrum), k, dtype=np.float32))
        step = np.maximum(np.abs(basis).max(0), 1e-12) / 127
        basis = np.rint(basis / step).astype(np.int8)
        offset = -(space.scaling.mean @ basis.astype(np.float32)) * step
        f = _with_one(space.coordinates[:, :k] * optimism(z, space, k, trained.settings.seed))
        sums = np.zeros((len(trained.classes), f.shape[1]))
        np.add.at(sums, known.y, f)
        squared = known.squared
        return cls(f.T @ f, sums, squared.ridge, squared.temperature, basis, step, offset)

    @classmethod
    def load(cls, bundle: Bundle) -> Moments:
        arrays = bundle.arrays("stats.safetensors")
        ridge, temperature = arrays.pop("constants").tolist()
        return cls(ridge=ridge, temperature=temperature, **arrays)

    def save(self, path: Path) -> None:
        from fieldmark.train.bundle.assemble import save_tensors

        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        save_tensors({**arrays, "constants": np.array([self.ridge, self.temperature])}, path)

    def add(self, descriptors: np.ndarray) -> Moments:
        """With one class more, from the descriptors [M, d] of its photos."""
        f = _with_one(
            descriptors.astype(np.float32) @ self.basis.astype(np.float32) * self.step + self.offset
        )
        return self._with(self.moment + f.T @ f, np.vstack([self.sums, f.sum(0)]))

    def remove(self, row: int) -> Moments:
        """Without one class; its photos stay in the shared moment, as photos of none of the others."""
        return self._with(self.moment, np.delete(self.sums, row, axis=0))

    def _with(self, moment: np.ndarray, sums: np.ndarray) -> Moments:
        return replace(self, moment=moment, sums=sums)

    def solve(self) -> tuple[np.ndarray, np.ndarray]:
        """Ridge regression of membership on f: weights [k, C] over the quantised basis, and bias [C]."""
        ridge = np.full(len(self.moment), self.ridge)
        ridge[-1] = 0  # the constant is free
        solution = np.linalg.solve(self.moment + np.diag(ridge), self.sums.T)
        return self.step[:, None] * solution[:-1], self.offset @ solution[:-1] + solution[-1]


def optimism(z: np.ndarray, space: Any, k: int, seed: int) -> np.ndarray:
    """How far coordinates of new photos fall short of those of the photos that made the directions: [k].

    Directions are fitted to their photos, whose coordinates along them are therefore longer than a new
    photo's, the more so the less variance a direction has. Measured by making directions from some of the
    photos and looking at others; without this correction a new class's photos would all seem nearer the mean.
    """
    if len(z) < FEWEST:
        return np.ones(k)
    order = np.random.default_rng(seed).permutation(len(z))
    held = min(HELD_OUT, len(z) // 5)
    others, makers = order[:held], order[held:][:MAKERS]
    anchors, tested = space.scaling.rows(z[np.sort(makers)]), space.scaling.rows(z[np.sort(others)])
    values, vectors = np.linalg.eigh(anchors @ anchors.T)
    values, vectors = np.maximum(values[::-1], 1e-12 * values[-1]), vectors[:, ::-1]
    c = (tested @ anchors.T) @ (vectors / np.sqrt(values))
    ratio = (c**2).mean(0) / (values / len(makers))
    window = min(51, 2 * (len(ratio) // 4) + 1)
    smooth = np.convolve(np.pad(ratio, window // 2, "edge"), np.ones(window) / window, "valid")
    usable = max(1, int(0.9 * len(smooth)))  # the last directions are noise
    at = np.minimum(np.arange(k), usable - 1)
    return np.sqrt(np.clip(smooth[at], 0.05, 1.0))


def _with_one(c: np.ndarray) -> np.ndarray:
    return np.concatenate([c, np.ones((len(c), 1))], axis=1).astype(np.float64)


def add_class(bundle: Bundle, target: Path, name: str, photos: Sequence[str], predictor: Any) -> list[Any]:
    """Write to ``target`` the bundle with class ``name``, learned from ``photos``; returns unreadable answers.

    Raises FieldmarkError where the class is known already or no photo can be read.
    """
    name = _proper(name)
    if name in bundle.classes:
        raise FieldmarkError(
            f"the model knows {name!r} already: remove-class comes first if it is to be learned anew"
        )
    answers = list(predictor.answers(photos, "descriptor"))
    good = [answer for answer in answers if answer.values is not None]
    if not good:
        why = answers[0].error if answers else "no photos given"
        raise FieldmarkError(f"none of the {len(answers)} photos of {name!r} can be read: {why}")
    good = list({answer.content or id(answer): answer for answer in good}.values())  # copies say nothing new
    moments = Moments.load(bundle).add(np.stack([answer.values for answer in good]))
    tensors = _head(bundle)
    weights, bias = moments.solve()
    if "head.down" in tensors:
        tensors["head.down"] = moments.basis.astype(np.float32)
    else:
        weights = moments.basis.astype(np.float32) @ weights.astype(np.float32)
    tensors["head.weight"], tensors["head.bias"] = weights.astype(np.float32), bias.astype(np.float32)
    splits = {answer.content: "train" for answer in good if answer.content}
    rewrite(
        bundle,
        target,
        [*bundle.classes, name],
        tensors,
        moments,
        splits,
        {"added": name, "photos": len(good)},
        moments.temperature,
    )
    return [answer for answer in answers if answer.values is None]


def remove_class(bundle: Bundle, target: Path, name: str) -> None:
    """Write to ``target`` the bundle without class ``name``: its logit goes, the others stay as they are."""
    name = _proper(name)
    if name not in bundle.classes:
        near = get_close_matches(name, bundle.classes, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise FieldmarkError(f"the model knows no class {name!r}{hint}")
    if len(bundle.classes) < 3:
        raise FieldmarkError("a model needs at least two classes: none can be removed from this one")
    row = bundle.classes.index(name)
    tensors = _head(bundle)
    tensors["head.weight"] = np.ascontiguousarray(np.delete(tensors["head.weight"], row, axis=1))
    tensors["head.bias"] = np.delete(tensors["head.bias"], row)
    classes = [c for c in bundle.classes if c != name]
    rewrite(bundle, target, classes, tensors, Moments.load(bundle).remove(row), {}, {"removed": name})


def _proper(name: str) -> str:
    """The name as catalogs have it: in Unicode's form NFC, so that labels match whoever typed them."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise FieldmarkError(f"{name!r} cannot name a class: it is not valid UTF-8") from None
    if not name.strip():
        raise FieldmarkError("a class needs a name")
    return unicodedata.normalize("NFC", name)


def _head(bundle: Bundle) -> dict[str, np.ndarray]:
    return {
        k: v for k, v in bundle.arrays("model.safetensors").items() if k.startswith(("head.", "projection."))
    }


def rewrite(
    bundle: Bundle,
    target: Path,
    classes: list[str],
    tensors: dict[str, np.ndarray],
    moments: Moments,
    splits: dict[str, str],
    change: dict[str, Any],
    temperature: float | None = None,
) -> None:
    """Write ``bundle`` to ``target`` with another head; golden answers and hashes are made anew.

    A model card that someone completed stays as it is.

    temperature: of the new head, where it differs.
    """
    from fieldmark.runtime.bundle import CARD, GRAPH, SPLITS
    from fieldmark.runtime.bundle_files import building, seal, write_splits
    from fieldmark.runtime.engine import OnnxRuntimeEngine
    from fieldmark.train.bundle.assemble import replace_head, save_tensors
    from fieldmark.train.bundle.card import completed, model_card

    section = bundle.section
    golden, state = bundle.golden(), bundle.arrays("model.safetensors")
    with building(target) as folder:
        replace_head(bundle.file(GRAPH), tensors, folder / GRAPH)
        save_tensors({**state, **tensors}, folder / "model.safetensors")
        moments.save(folder / "stats.safetensors")
        names = ["logits", "embedding"]
        pixels = section.preprocess.normalise(golden["images"])
        logits, embedding = OnnxRuntimeEngine(folder / GRAPH, names, "f32", 1).run(pixels, names)
        said = {**golden, "logits": logits, "embedding": embedding}
        np.savez_compressed(folder / "golden.npz", **said)  # type: ignore[arg-type]
        if SPLITS in section.files:  # else its owner withholds it
            write_splits(folder / SPLITS, {**bundle.splits(), **splits})
        shutil.copyfile(bundle.file("metrics.json"), folder / "metrics.json")
        training = {**section.training, "changes": [*section.training.get("changes", []), change]}
        ranks = {rank: {c: of.get(c) for c in classes} for rank, of in section.ranks.items()}
        decision = section.decision.model_copy(update={"temperature": temperature} if temperature else {})
        update = {"classes": classes, "training": training, "ranks": ranks, "decision": decision}
        cfg = {**bundle.config.pretrained_cfg, "label_names": classes}
        config = bundle.config.model_copy(
            update={
                "num_classes": len(classes),
                "pretrained_cfg": cfg,
                "fieldmark": section.model_copy(update=update),
            }
        )
        if completed(bundle):
            shutil.copyfile(bundle.path / CARD, folder / CARD)
        else:
            counts = dict(zip(classes, moments.sums[:, -1].round().astype(int).tolist(), strict=True))
            (folder / CARD).write_text(model_card(config, bundle.metrics(), counts), encoding="utf-8")
        seal(folder, config)
