"""The linear head of instant mode: ridge regression in closed form, with out-of-fold predictions.

The descriptors of n photos are rows of Z [n, d], with d far above n. Everything is computed in the span of at
most ``LANDMARKS`` photos (all of them, where there are no more: then it is exact kernel ridge regression;
otherwise the Nystroem approximation of Williams and Seeger, 2001):

    K = X_L X_L^T = U S U^T,   coordinates  C = X X_L^T U S^-1/2  [n, r],   X = (Z - mean) * scale

Predictions for a fold come from the same factorisation, without refitting (the block form of the
leave-one-out identity of ridge regression: Hastie, Tibshirani, Friedman, section 7.10):

    out_of_fold_B = Y_B - (I - H_BB)^-1 (Y_B - fitted_B),   H = C (C^T C + lambda I)^-1 C^T + 1 1^T / n

(the last term is the unpenalised intercept, so that not even the mean of Y knows the fold), so all
regularisations are tried on five folds for about the price of one fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from fieldmark.runtime.decision import fit_temperature, softmax
from fieldmark.runtime.errors import FieldmarkError

#: More photos than this are represented by this many of them.
LANDMARKS = 4096
#: Regularisations tried, as multiples of the mean squared norm of a descriptor times n / 100.
REGULARISATIONS = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
#: A head with more weights than this is low-rank.
MOST_WEIGHTS = 20_000_000
#: Width of the embedding, and how far its within-class covariance is shrunk towards a sphere.
EMBEDDING, SHRINK = 256, 0.1
#: Rows of descriptors held in memory at once.
ROWS = 512


@dataclass(frozen=True)
class Scaling:
    """Centring and scaling that make each part of a descriptor weigh the same.

    mean: [d]; scale: [d], constant within a part: one over the root of the part's total variance.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def fit(cls, z: np.ndarray, parts: Sequence[int]) -> Scaling:
        """z: [n, d] (any float, may be a memory map); parts: widths that add up to d."""
        total, square = np.zeros(z.shape[1]), np.zeros(z.shape[1])
        origin = z[0].astype(np.float32)  # near the mean, so that small variances survive E[x^2] - E[x]^2
        for start in range(0, len(z), ROWS):
            rows = z[start : start + ROWS].astype(np.float32) - origin
            total += rows.sum(0)
            square += np.einsum("nd,nd->d", rows, rows)
        mean = total / len(z)
        variance = np.maximum(square / len(z) - mean**2, 0)
        mean += origin
        bounds = np.cumsum([0, *parts])
        per_part = [variance[a:b].sum() for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        scale = np.repeat([1 / np.sqrt(v) if v > 1e-12 else 0.0 for v in per_part], parts)
        return cls(mean.astype(np.float32), scale.astype(np.float32))

    def weighted(self, weights: Sequence[float], parts: Sequence[int]) -> Scaling:
        """The same with each part's weight; 0 leaves a part out."""
        return replace(self, scale=(self.scale * np.repeat(weights, parts)).astype(np.float32))

    def rows(self, z: np.ndarray) -> np.ndarray:
        """[n, d] descriptors -> [n, d] float32, centred and scaled."""
        return (z.astype(np.float32) - self.mean) * self.scale


@dataclass(frozen=True)
class Subspace:
    """The span of the landmark photos: basis [d, r] in scaled descriptor space, coordinates [n, r].

    Directions are ordered by variance, and the coordinates' Gram matrix is diag(spectrum).
    """

    coordinates: np.ndarray
    spectrum: np.ndarray
    mixing: np.ndarray  # [landmarks, r]: basis = X_L^T mixing
    landmarks: np.ndarray  # row numbers
    scaling: Scaling

    @classmethod
    def fit(cls, z: np.ndarray, scaling: Scaling, labels: np.ndarray, seed: int = 0) -> Subspace:
        chosen = _landmarks(labels, LANDMARKS, seed)
        anchors = scaling.rows(z[chosen])
        gram = anchors @ anchors.T
        values, vectors = np.linalg.eigh(gram)
        keep = values > max(values[-1], 1e-12) * 1e-6
        if not keep.any():
            raise FieldmarkError("all photos look the same to the backbone: nothing tells the classes apart")
        mixing = vectors[:, keep][:, ::-1] / np.sqrt(values[keep][::-1])
        if len(chosen) == len(z):
            coordinates = vectors[:, keep][:, ::-1] * np.sqrt(values[keep][::-1])
            return cls(coordinates, values[keep][::-1].copy(), mixing, chosen, scaling)
        project = anchors.T @ mixing
        coordinates = np.concatenate(
            [scaling.rows(z[i : i + ROWS]) @ project for i in range(0, len(z), ROWS)]
        )
        values, vectors = np.linalg.eigh(coordinates.T @ coordinates)
        order = np.argsort(values)[::-1]
        return cls(
            coordinates @ vectors[:, order], values[order], mixing @ vectors[:, order], chosen, scaling
        )

    def directions(self, z: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Weights [r, m] over coordinates -> weights [d, m] over raw descriptors (without the mean)."""
        out = np.zeros((z.shape[1], weights.shape[1]), np.float32)
        mixed = (self.mixing @ weights).astype(np.float32)
        for start in range(0, len(self.landmarks), ROWS):
            rows = self.landmarks[start : start + ROWS]
            out += self.scaling.rows(z[rows]).T @ mixed[start : start + ROWS]
        return out * self.scaling.scale[:, None]


def _landmarks(labels: np.ndarray, most: int, seed: int) -> np.ndarray:
    """Row numbers of at most ``most`` photos, spread evenly over the classes."""
    if len(labels) <= most:
        return np.arange(len(labels))
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    starts = np.searchsorted(labels[by_class], labels[by_class], side="left")
    turn = np.arange(len(labels)) - starts  # a photo's number within its class
    return np.sort(by_class[np.argsort(turn, kind="stable")[:most]])


def out_of_fold(
    coordinates: np.ndarray, spectrum: np.ndarray, targets: np.ndarray, folds: np.ndarray, ridge: float
) -> np.ndarray:
    """Ridge predictions [n, C], with a free intercept, for each photo by a fit without its fold.

    coordinates: [n, r], columns with mean 0 and Gram matrix diag(spectrum); targets: [n, C]; folds: [n] numbers.
    """
    n = len(coordinates)
    coordinates = np.concatenate([coordinates, np.ones((n, 1), coordinates.dtype)], axis=1)
    penalised = np.append(spectrum + ridge, n).astype(coordinates.dtype)
    shrink = 1 / penalised
    moment = coordinates.T @ targets
    fitted = (coordinates * shrink) @ moment
    result = np.empty_like(targets)
    for fold in np.unique(folds):
        held = folds == fold
        rows = coordinates[held]
        if held.sum() <= len(penalised):
            hat = (rows * shrink) @ rows.T
            residual = targets[held] - fitted[held]
            result[held] = targets[held] - np.linalg.solve(np.eye(len(rows), dtype=hat.dtype) - hat, residual)
        else:
            gram = np.diag(penalised) - rows.T @ rows
            result[held] = rows @ np.linalg.solve(gram, moment - rows.T @ targets[held])
    return result


@dataclass(frozen=True)
class Head:
    """A fitted head over raw descriptors z [d].

    logits = z @ weights + bias, weights [d, C]; or z @ down @ weights + bias with down [d, r], weights [r, C],
    where the direct form would pass ``MOST_WEIGHTS``. The embedding is z @ embedding + offset, embedding [d, e],
    brought to unit length: the directions of most variance, whitened within classes. temperature: logits are
    divided by it before the softmax.
    """

    weights: np.ndarray
    bias: np.ndarray
    down: np.ndarray | None
    embedding: np.ndarray
    offset: np.ndarray
    temperature: float

    def logits(self, z: np.ndarray) -> np.ndarray:
        """[N, d] -> [N, C]."""
        z = z.astype(np.float32)
        return (z if self.down is None else z @ self.down) @ self.weights + self.bias

    def embed(self, z: np.ndarray) -> np.ndarray:
        """[N, d] -> [N, e], not yet of unit length."""
        return z.astype(np.float32) @ self.embedding + self.offset


@dataclass(frozen=True)
class Choice:
    """What the out-of-fold predictions say of one regularisation.

    solution [r, C] over coordinates, and bias [C], where the head is not the ridge solution.
    """

    ridge: float
    nll: float
    per_photo: np.ndarray
    accuracy: float
    temperature: float
    logits: np.ndarray
    solution: np.ndarray | None = None
    bias: np.ndarray | None = None


def choose(space: Subspace, labels: np.ndarray, n_classes: int, folds: np.ndarray) -> Choice:
    """The regularisation with the lowest calibrated out-of-fold negative log-likelihood."""
    targets, prior = _targets(labels, n_classes)
    unit = float(space.spectrum.sum()) / 100
    rows = np.arange(len(labels))
    best: Choice | None = None
    for factor in REGULARISATIONS:
        logits = out_of_fold(space.coordinates, space.spectrum, targets, folds, factor * unit) + prior
        temperature = fit_temperature(logits, labels)
        per_photo = -np.log(np.maximum(softmax(logits, temperature)[rows, labels], 1e-12))
        if best is None or per_photo.mean() < best.nll:
            accuracy = float((logits.argmax(1) == labels).mean())
            best = Choice(factor * unit, float(per_photo.mean()), per_photo, accuracy, temperature, logits)
    assert best is not None
    return best


def _targets(labels: np.ndarray, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """Centred one-hot targets [n, C] and their mean [C]."""
    targets = np.zeros((len(labels), n_classes), np.float32)
    targets[np.arange(len(labels)), labels] = 1
    prior = targets.mean(0)
    return targets - prior, prior


def fit_head(z: np.ndarray, space: Subspace, labels: np.ndarray, n_classes: int, choice: Choice) -> Head:
    """The head that ships: all photos, the chosen regularisation, the out-of-fold temperature."""
    targets, prior = _targets(labels, n_classes)
    # The Gram matrix of the coordinates is diagonal, so the ridge solution is, too; leaving out the directions
    # of least variance changes nothing in the others: that is the low-rank form.
    solution = choice.solution
    if solution is None:
        solution = (space.coordinates.T @ targets) / (space.spectrum + choice.ridge)[:, None]
    constant = prior if choice.bias is None else choice.bias
    width, rank = z.shape[1], len(space.spectrum)
    low = min(rank, MOST_WEIGHTS // (width + n_classes)) if width * n_classes > MOST_WEIGHTS else 0
    whiten = _within_class_whitening(space.coordinates[:, :EMBEDDING], labels)
    k = len(whiten)
    white = np.concatenate([whiten, np.zeros((rank - k, k))])
    columns = space.directions(z, np.concatenate([white, np.eye(rank, low) if low else solution], axis=1))
    embedding, rest = columns[:, :k], columns[:, k:]
    mean = space.scaling.mean
    offset = -(mean @ embedding)
    if low:
        down, weights = rest, solution[:low]
        bias = constant - (mean @ down) @ weights
    else:
        down, weights = None, rest
        bias = constant - mean @ weights
    return Head(
        weights=weights.astype(np.float32),
        bias=bias.astype(np.float32),
        down=down,
        embedding=embedding.astype(np.float32),
        offset=offset.astype(np.float32),
        temperature=choice.temperature,
    )


def _within_class_whitening(coordinates: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[k, k] map after which photos of one class spread alike in all directions, so that cosines compare classes.

    Within-class covariance normalisation (Hatch, Kajarekar and Stolcke, Interspeech 2006), shrunk.
    """
    order = np.argsort(labels, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(labels[order]) > 0])
    counts = np.diff(np.r_[starts, len(labels)])
    means = np.add.reduceat(coordinates[order], starts) / counts[:, None]
    spread = coordinates[order] - np.repeat(means, counts, axis=0)
    values, vectors = np.linalg.eigh(spread.T @ spread / len(labels))
    # Where classes have a photo each there is no spread within: then all directions keep their length.
    total = float(np.square(coordinates).mean())
    floor = max(SHRINK * float(values.mean()), 1e-6 * total, 1e-30)
    return vectors / np.sqrt(np.maximum(values, 0) + floor)
