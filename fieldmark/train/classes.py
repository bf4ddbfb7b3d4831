"""Classes added and removed later, from moments: without the old photos, and without the backbone on them.

A photo is summed up by f = [coordinates (e), logits (C), 1]. The moments are the shared F^T F [p, p] and each
class's sum of f [C, p] (the last column counts its photos); for training photos the logits are out-of-fold
ones, so that the head does not look better than it is. Ridge regression of class membership on f needs
nothing else, so a new class changes the head by solving one small system. The new logits are linear in f, and
so are the new moments: classes can be added one after the other.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldmark.runtime.errors import FieldmarkError

if TYPE_CHECKING:
    from fieldmark.runtime.bundle import Bundle
    from fieldmark.train.instant import Trained

#: Regularisation of the small system, relative to the mean of the moments' diagonal.
RIDGE = 1e-3


@dataclass(frozen=True)
class Moments:
    """moment: F^T F [p, p]; sums: [C, p]; width: of the coordinates (e). p = e + C + 1. All float64."""

    moment: np.ndarray
    sums: np.ndarray
    width: int

    @classmethod
    def gather(cls, trained: Trained) -> Moments:
        width = trained.head.embedding.shape[1]
        f = features(trained.space.coordinates[:, :width], trained.choice.logits)
        sums = np.zeros((len(trained.classes), f.shape[1]))
        np.add.at(sums, trained.y, f)
        return cls(f.T @ f, sums, width)

    def save(self, path: Path) -> None:
        from safetensors.numpy import save_file

        save_file({"moment": self.moment, "sums": self.sums, "width": np.array([self.width])}, path)

    @classmethod
    def load(cls, bundle: Bundle) -> Moments:
        arrays = bundle.arrays("stats.safetensors")
        return cls(arrays["moment"], arrays["sums"], int(arrays["width"][0]))

    def add(self, coordinates: np.ndarray, logits: np.ndarray) -> tuple[Moments, np.ndarray]:
        """Moments with one class more, and the map [p, C + 1] from f to the new logits.

        coordinates: [M, e] and logits: [M, C] of photos of the new class.
        """
        f = features(coordinates, logits)
        moment, sums = self.moment + f.T @ f, np.vstack([self.sums, f.sum(0)])
        ridge = np.full(len(moment), RIDGE * np.diag(moment)[:-1].mean())
        ridge[-1] = 0  # the constant is free
        new = np.linalg.solve(moment + np.diag(ridge), sums.T)
        onto = np.zeros((len(moment), self.width + new.shape[1] + 1))
        onto[: self.width, : self.width] = np.eye(self.width)
        onto[:, self.width : -1] = new
        onto[-1, -1] = 1
        return Moments(onto.T @ moment @ onto, sums @ onto, self.width), new

    def remove(self, row: int) -> Moments:
        """Moments without one class. Its photos stay in the shared moment, as photos of none of the others."""
        keep = np.delete(np.arange(len(self.moment)), self.width + row)
        sums = np.delete(self.sums, row, axis=0)
        return Moments(self.moment[np.ix_(keep, keep)], sums[:, keep], self.width)


def features(coordinates: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """[N, e], [N, C] -> [N, e + C + 1] float64."""
    ones = np.ones((len(logits), 1))
    return np.concatenate([coordinates, logits, ones], axis=1).astype(np.float64)


def add_class(bundle: Bundle, target: Path, name: str, photos: Sequence[str], predictor: Any) -> list[Any]:
    """Write to ``target`` the bundle with class ``name``, learned from ``photos``; returns unreadable answers.

    Raises FieldmarkError where the class is known already or no photo can be read.
    """
    if name in bundle.classes:
        raise FieldmarkError(
            f"the model knows {name!r} already; remove-class comes first if it is to be learned anew"
        )
    logits = list(predictor.answers(photos))
    coordinates = list(predictor.answers(photos, "coordinates"))
    good = [
        i
        for i, answer in enumerate(logits)
        if answer.values is not None and coordinates[i].values is not None
    ]
    if not good:
        why = logits[0].error if logits else "no photos given"
        raise FieldmarkError(f"none of the {len(logits)} photos of {name!r} can be read: {why}")
    moments, new = Moments.load(bundle).add(
        np.stack([coordinates[i].values for i in good]), np.stack([logits[i].values for i in good])
    )
    tensors = _head(bundle)
    width = moments.width
    by_coordinates, by_logits, constant = new[:width], new[width:-1], new[-1]
    changed = dict(tensors)
    if "head.down" in tensors:
        # Low-rank: the coordinates are the first columns of the reduced descriptor, up to a constant.
        weights = tensors["head.weight"] @ by_logits
        weights[:width] += by_coordinates
    else:
        weights = (
            tensors["head.weight"] @ by_logits
            + tensors["projection.weight"].astype(np.float64) @ by_coordinates
        )
    changed["head.weight"] = weights.astype(np.float32)
    bias = tensors["head.bias"] @ by_logits + tensors["projection.bias"] @ by_coordinates + constant
    changed["head.bias"] = bias.astype(np.float32)
    splits = {answer.content: "train" for i, answer in enumerate(logits) if i in set(good) and answer.content}
    rewrite(
        bundle,
        target,
        [*bundle.classes, name],
        changed,
        moments,
        splits,
        {"added": name, "photos": len(good)},
    )
    return [answer for answer in logits if answer.values is None]


def remove_class(bundle: Bundle, target: Path, name: str) -> None:
    """Write to ``target`` the bundle without class ``name``."""
    if name not in bundle.classes:
        from difflib import get_close_matches

        near = get_close_matches(name, bundle.classes, 1)
        raise FieldmarkError(
            f"the model knows no class {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
        )
    if len(bundle.classes) < 3:
        raise FieldmarkError("a model needs at least two classes: none can be removed from this one")
    row = bundle.classes.index(name)
    tensors = _head(bundle)
    changed = dict(tensors)
    changed["head.weight"] = np.ascontiguousarray(np.delete(tensors["head.weight"], row, axis=1))
    changed["head.bias"] = np.delete(tensors["head.bias"], row)
    classes = [c for c in bundle.classes if c != name]
    rewrite(bundle, target, classes, changed, Moments.load(bundle).remove(row), {}, {"removed": name})


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
) -> None:
    """Write ``bundle`` to ``target`` with another head; golden answers and hashes are made anew."""
    from safetensors.numpy import save_file

    from fieldmark.runtime.bundle import GRAPH, building, seal
    from fieldmark.runtime.engine import OnnxRuntimeEngine
    from fieldmark.train.assemble import replace_head
    from fieldmark.train.write import write_splits

    section = bundle.section
    golden, state = bundle.golden(), bundle.arrays("model.safetensors")
    known = bundle.splits()
    with building(target) as folder:
        replace_head(bundle.file(GRAPH), tensors, folder / GRAPH)
        save_file({**state, **tensors}, folder / "model.safetensors")
        moments.save(folder / "stats.safetensors")
        names = ["logits", "embedding"]
        pixels = section.preprocess.normalise(golden["images"])
        logits, embedding = OnnxRuntimeEngine(folder / GRAPH, names, "f32", 1).run(pixels, names)
        np.savez_compressed(
            folder / "golden.npz", images=golden["images"], logits=logits, embedding=embedding
        )
        write_splits(folder / "split.parquet", {**known, **splits})
        for name in ("metrics.json", "README.md"):
            shutil.copyfile(bundle.file(name), folder / name)
        training = {**section.training, "changes": [*section.training.get("changes", []), change]}
        ranks = {rank: {c: of.get(c) for c in classes} for rank, of in section.ranks.items()}
        update = {"classes": classes, "training": training, "ranks": ranks}
        cfg = {**bundle.config.pretrained_cfg, "label_names": classes}
        config = bundle.config.model_copy(
            update={
                "num_classes": len(classes),
                "pretrained_cfg": cfg,
                "fieldmark": section.model_copy(update=update),
            }
        )
        seal(folder, config)
