"""From scores to an answer: calibrated probabilities, the best classes, several photos of one specimen.

Pure numpy. The constants (the temperature) are fitted on photos that neither trained the weights nor test
them, and are kept in the bundle.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Temperatures that ``fit_temperature`` may answer with.
COLDEST, HOTTEST = 1e-3, 1e3
#: No single photo can rule a class out for its specimen: ``pool`` takes smaller probabilities as this.
FLOOR = 1e-6


def softmax(logits: ArrayLike, temperature: float = 1.0) -> NDArray[np.floating]:
    """Probabilities [..., C] of ``logits / temperature``, in the type of the logits (float32 at least)."""
    z = np.asarray(logits)
    z = z.astype(np.result_type(z, np.float32), copy=False)
    z = (z - z.max(-1, keepdims=True)) / z.dtype.type(temperature)
    p = np.exp(z, out=z)
    p /= p.sum(-1, keepdims=True)
    return p


def fit_temperature(logits: ArrayLike, labels: ArrayLike, *, prior: float = 1.0) -> float:
    """The temperature T that minimises the log loss of ``softmax(logits / T)`` (Guo et al., ICML 2017).

    ``logits`` [N, C], ``labels`` [N] class indices. The loss is convex in 1/T: a guarded Newton iteration
    finds its one minimum. ``prior`` photos whose label is any class with equal chance are imagined beside the
    N real ones (Platt's rule, 1999, for many classes), so that a head without a single mistake does not
    become infinitely sure of itself; 0 is plain maximum likelihood. The answer lies in 0.001 to 1000.
    """
    z = np.asarray(logits, np.float64)
    y = np.asarray(labels)
    if z.ndim != 2 or len(z) != len(y) or not len(z):
        raise ValueError(f"logits {z.shape} and labels {y.shape} are not [N, C] and [N] with N > 0")
    z = z - z.max(1, keepdims=True)
    n = len(z)
    # The slope is (expected logit under the model) - (expected logit under the targets).
    own = z[np.arange(n), y].mean()
    target = (n * own + prior * z.mean()) / (n + prior)

    low, high = 1 / HOTTEST, 1 / COLDEST  # of 1/T
    scale = 1.0
    for _ in range(100):
        p = softmax(z, 1 / scale)
        mean = (p * z).sum(1)
        slope = mean.mean() - target
        curvature = ((p * z**2).sum(1) - mean**2).mean()
        if slope < 0:
            low = scale
        else:
            high = scale
        step = scale - slope / curvature if curvature > 0 else np.inf
        new = step if low < step < high else float(np.sqrt(low * high))
        if abs(new - scale) <= 1e-9 * scale:
            break
        scale = new
    return float(1 / scale)


def top(probabilities: ArrayLike, classes: Sequence[str], k: int = 5) -> list[tuple[tuple[str, float], ...]]:
    """The ``k`` best classes of every photo [N, C] with probabilities, best first (ties: lower index)."""
    p = np.asarray(probabilities)
    best = np.argsort(-p, axis=1, kind="stable")[:, :k]
    scores = np.take_along_axis(p, best, axis=1)
    return [
        tuple((classes[c], float(s)) for c, s in zip(row, of_row, strict=True))
        for row, of_row in zip(best.tolist(), scores, strict=True)
    ]


def pool(probabilities: ArrayLike) -> NDArray[np.floating]:
    """One answer [C] from several photos [M, C] of one specimen: the mean of log-probabilities, renormalised.

    The product of experts (Hinton, 2002) with equal weights 1/M: photos that agree do not make it surer than
    they are, and a class that one photo speaks against loses more than under a plain mean. Probabilities
    under 1e-6 count as 1e-6, so that one photo alone cannot rule a class out.
    """
    p = np.asarray(probabilities)
    if p.ndim != 2 or not len(p):
        raise ValueError(f"pool needs at least one photo as [M, C], not {p.shape}")
    return softmax(np.log(np.maximum(p, FLOOR)).mean(0))
