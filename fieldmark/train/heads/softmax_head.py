"""A linear head fitted by cross-entropy instead of ridge regression: the same subspace, out-of-fold choices too.

Slower than ridge regression: there for comparison, and for those who want label smoothing.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from fieldmark.losses.cross_entropy import cross_entropy
from fieldmark.runtime.decision import fit_temperature, softmax
from fieldmark.train.heads.head import Choice, Subspace

#: Directions of the subspace that the head may use, and L-BFGS steps.
DIRECTIONS, STEPS = 1024, 80
#: Weights of half the squared norm of the head, tried out of fold.
DECAYS = (1e-5, 1e-4)


def choose_softmax(
    space: Subspace, labels: np.ndarray, n_classes: int, folds: np.ndarray, label_smoothing: float
) -> Choice:
    """The decay with the lowest calibrated out-of-fold loss, and the head fitted with it on all photos."""
    unit = float(np.sqrt(space.spectrum.sum() / len(labels)))  # root mean square length of the coordinates
    x = torch.from_numpy(np.ascontiguousarray(space.coordinates[:, :DIRECTIONS] / unit, np.float32))
    y = torch.from_numpy(labels.astype(np.int64))
    best: Choice | None = None
    for decay in DECAYS:
        logits = np.zeros((len(labels), n_classes), np.float32)
        for fold in np.unique(folds):
            held = torch.from_numpy(folds == fold)
            weights, bias = _fit(x[~held], y[~held], n_classes, decay, label_smoothing)
            logits[folds == fold] = (x[held] @ weights + bias).numpy()
        temperature = fit_temperature(logits, labels)
        rows = np.arange(len(labels))
        per_photo = -np.log(np.maximum(softmax(logits, temperature)[rows, labels], 1e-12))
        if best is None or per_photo.mean() < best.nll:
            accuracy = float((logits.argmax(1) == labels).mean())
            best = Choice(decay, float(per_photo.mean()), per_photo, accuracy, temperature, logits)
    assert best is not None
    weights, bias = _fit(x, y, n_classes, best.ridge, label_smoothing)
    solution = np.zeros((len(space.spectrum), n_classes), np.float32)
    solution[: len(weights)] = weights.numpy() / unit
    return replace(best, solution=solution, bias=bias.numpy())


def _fit(
    x: torch.Tensor, y: torch.Tensor, n_classes: int, decay: float, label_smoothing: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Multinomial logistic regression by L-BFGS (Liu and Nocedal, 1989): weights [r, C], bias [C]."""
    weights = torch.zeros(x.shape[1], n_classes, requires_grad=True)
    bias = torch.zeros(n_classes, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights, bias], max_iter=STEPS, history_size=10, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = cross_entropy(x @ weights + bias, y, label_smoothing) + 0.5 * decay * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return weights.detach(), bias.detach()
