"""Which photos are the same photo: equal bytes, and near-duplicates.

A near-duplicate is the photo resized, recompressed, slightly cropped, or the next of a burst. It must pass
two tests. Its perceptual hash (pHash: which of the 63 lowest frequencies of a discrete cosine transform of
32 x 32 grey means exceed their median; Zauner, "Implementation and Benchmarking of Perceptual Image Hash
Functions", 2010) differs in few bits; and its 8 x 8 grey thumbnail correlates with the other's. The hash
finds candidates quickly; the thumbnail keeps look-alike textures and poses apart. Photos with next to no
contrast have no perceptual hash worth the name and are only matched by their bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
from PIL import Image

from fieldmark.runtime import image
from fieldmark.runtime.errors import ImageError
from fieldmark.runtime.machine import cores

#: Bits in which the hashes of near-duplicates may differ (of 63), and the least correlation of thumbnails.
MAX_DISTANCE = 8
MIN_CORRELATION = 0.94
#: Tried in turn on groups that grew too large (a fixed camera, one background): (distance, correlation).
STRICTER = ((4, 0.98), (2, 0.995), (0, 0.999))
#: More near-duplicates than this in one group are taken for a set that is alike as a whole.
MAX_GROUP = 50
#: Standard deviation of a thumbnail (grey levels of 255) below which a photo counts as flat.
_FLAT = 2.0

_SIDE, _LOW = 32, 8
_CHUNK_BITS = 21  # three chunks make 63 bits
_WINDOW, _BUDGET = 64, 256  # candidates looked at per photo: in one bucket, and for one chunk
_BATCH = 64


@dataclass(frozen=True)
class Fingerprints:
    """What N photos look like, in 200 bytes each.

    ``content`` [N]: content hash of the bytes ("" where unreadable). ``perceptual`` [N] uint64: the hash.
    ``thumbs`` [N,8,8] uint8: grey means. ``errors``: why a photo cannot be read, else None.
    """

    content: np.ndarray
    perceptual: np.ndarray
    thumbs: np.ndarray
    errors: list[str | None]

    def __len__(self) -> int:
        return len(self.content)

    @property
    def readable(self) -> np.ndarray:
        """[N] bool."""
        return np.array([error is None for error in self.errors], bool)


def fingerprints(
    paths: Sequence[str | Path],
    workers: int | None = None,
    progress: Callable[[int], None] | None = None,
) -> Fingerprints:
    """Read every photo once (small: a JPEG is decoded at down to an eighth of its size), with threads.

    ``workers``: threads, by default one a core. ``progress`` is told how many more photos are done.
    Photos that cannot be read do not raise: see ``errors``.
    """
    batches = [paths[start : start + _BATCH] for start in range(0, len(paths), _BATCH)]
    content: list[str] = []
    errors: list[str | None] = []
    perceptual, thumbs = [np.zeros(0, np.uint64)], [np.zeros((0, _LOW, _LOW), np.uint8)]
    with ThreadPoolExecutor(workers or cores()) as pool:
        for names, hashes, small, reasons in pool.map(_fingerprint, batches):
            content += names
            errors += reasons
            perceptual.append(hashes)
            thumbs.append(small)
            if progress:
                progress(len(names))
    return Fingerprints(
        np.array(content, dtype="U32"), np.concatenate(perceptual), np.concatenate(thumbs), errors
    )


def perceptual_hash(grey: np.ndarray) -> np.ndarray:
    """pHash of grey pictures [N,32,32] as uint64 [N] (63 bits: all but the mean of the 8 x 8 lowest)."""
    k, n = np.mgrid[0:_LOW, 0:_SIDE]
    basis = np.cos(np.pi * k * (2 * n + 1) / (2 * _SIDE)) * np.where(k == 0, np.sqrt(0.5), 1.0)
    waves = (basis @ grey.astype(np.float64) @ basis.T).reshape(len(grey), -1)[:, 1:]
    bits = waves > np.median(waves, axis=1, keepdims=True) if len(grey) else waves > 0
    return (bits.astype(np.uint64) << np.arange(bits.shape[1], dtype=np.uint64)).sum(1, dtype=np.uint64)


def groups(
    prints: Fingerprints,
    extra_groups: Sequence[object] | None = None,
    max_distance: int = MAX_DISTANCE,
    max_group: int = MAX_GROUP,
) -> np.ndarray:
    """Group numbers [N], from 0 by first occurrence: photos of one group belong on one side of a split.

    Joined are photos with equal bytes, near-duplicates, and those with the same value (not None) in
    ``extra_groups`` [N]; and whatever these chain together. Where near-duplicates chain more than
    ``max_group`` different photos, that group is taken apart by stricter limits. ``max_distance``: 0 to 8.
    """
    count = len(prints)
    _, first, same = np.unique(prints.content, return_index=True, return_inverse=True)
    readable = prints.readable
    same = np.where(readable, same, len(first) + np.arange(count))  # an unreadable photo is like no other
    usable = first[readable[first]]
    usable = usable[prints.thumbs[usable].std((1, 2)) >= _FLAT]
    left, right = _near(prints.perceptual[usable], prints.thumbs[usable], max_distance, max_group)
    edges = [(usable[left], usable[right]), (first[same[readable]], np.flatnonzero(readable))]
    if extra_groups is not None:
        leaders: dict[object, int] = {}
        rows = [row for row, value in enumerate(extra_groups) if value is not None]
        edges.append(
            (np.array([leaders.setdefault(extra_groups[row], row) for row in rows], int), np.array(rows, int))
        )
    found = _components(count, *(np.concatenate(side) for side in zip(*edges, strict=True)))
    _, first, number = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number]


def near_pairs(hashes: np.ndarray, max_distance: int = MAX_DISTANCE) -> tuple[np.ndarray, np.ndarray]:
    """Pairs (i, j), i < j, of 63-bit hashes that differ in at most ``max_distance`` bits (at most 8).

    Multi-index hashing (Norouzi, Punjani, Fleet, CVPR 2012): of three chunks of 21 bits, one differs in at
    most ``max_distance // 3``. All pairs are found unless a hash has more than 64 candidates that share
    a chunk (or 256 that nearly do); then it is compared with so many, and of very many pairs the closest are
    kept.
    """
    if not 0 <= max_distance <= 8:
        raise ValueError("max_distance must be 0 to 8")
    count = len(hashes)
    limit = 20 * count + 1_000_000
    codes, waiting = np.zeros(0, np.int64), 0
    found: list[np.ndarray] = []
    for left, right in _candidates(hashes, max_distance // 3):
        near = np.bitwise_count(hashes[left] ^ hashes[right]) <= max_distance
        left, right = left[near], right[near]
        found.append(np.minimum(left, right) * count + np.maximum(left, right))
        waiting += len(left)
        if waiting > limit:
            codes, waiting, found = _closest(hashes, np.concatenate([codes, *found]), limit), 0, []
    codes = _closest(hashes, np.concatenate([codes, *found]), limit)
    return codes // max(count, 1), codes % max(count, 1)


def _fingerprint(
    paths: Sequence[str | Path],
) -> tuple[list[str], np.ndarray, np.ndarray, list[str | None]]:
    grey = np.zeros((len(paths), _SIDE, _SIDE), np.uint8)
    names, errors = [""] * len(paths), [None] * len(paths)  # type: list[str], list[str | None]
    for row, path in enumerate(paths):
        try:
            data = image.read(path)
            small = image.decode(data, min_side=_SIDE).convert("L")
            grey[row] = np.asarray(small.resize((_SIDE, _SIDE), Image.Resampling.BOX))
            names[row] = image.content_hash(data)
        except ImageError as error:
            errors[row] = str(error)
    means = grey.reshape(-1, _LOW, _SIDE // _LOW, _LOW, _SIDE // _LOW).mean((2, 4))
    return names, perceptual_hash(grey), np.rint(means).astype(np.uint8), errors


def _candidates(hashes: np.ndarray, radius: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs that agree in one chunk but for ``radius`` bits, in blocks of bounded size."""
    count = len(hashes)
    flips = [
        sum(1 << bit for bit in bits)
        for size in range(radius + 1)
        for bits in combinations(range(_CHUNK_BITS), size)
    ]
    for chunk in range(3):
        keys = ((hashes >> np.uint64(chunk * _CHUNK_BITS)) & np.uint64((1 << _CHUNK_BITS) - 1)).astype(
            np.int64
        )
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        ends = np.bincount(keys, minlength=1 << _CHUNK_BITS).cumsum()
        starts = np.concatenate([[0], ends[:-1]])
        budget = np.full(count, _BUDGET)
        for flip in flips:
            rows = np.arange(count) if flip == 0 else np.flatnonzero((keys ^ flip) > keys)  # each pair once
            other = keys[rows] ^ flip
            begin = rows + 1 if flip == 0 else starts[other]
            many = np.minimum(np.minimum(ends[other] - begin, _WINDOW), budget[rows])
            budget[rows] -= many
            some = many > 0
            rows, begin, many = rows[some], begin[some], many[some]
            for start in range(0, len(rows), 1 << 16):
                part = slice(start, start + (1 << 16))
                within = np.arange(many[part].sum()) - np.repeat(many[part].cumsum() - many[part], many[part])
                yield (
                    np.repeat(order[rows[part]], many[part]),
                    order[np.repeat(begin[part], many[part]) + within],
                )


def _closest(hashes: np.ndarray, codes: np.ndarray, limit: int) -> np.ndarray:
    codes = np.sort(codes)  # numpy's own unique is ten times slower here: it hashes
    codes = codes[np.diff(codes, prepend=-1) > 0]
    if len(codes) > limit // 2:
        distance = np.bitwise_count(hashes[codes // len(hashes)] ^ hashes[codes % len(hashes)])
        codes = codes[np.argsort(distance, kind="stable")[: limit // 2]]
    return codes


def _near(
    hashes: np.ndarray, thumbs: np.ndarray, max_distance: int, max_group: int
) -> tuple[np.ndarray, np.ndarray]:
    """Near-duplicates among different photos, as pairs that chain no group larger than ``max_group``."""
    left, right = near_pairs(hashes, max_distance)
    flat = thumbs.reshape(-1, _LOW * _LOW).astype(np.float32)
    flat -= flat.mean(1, keepdims=True)
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    likeness = np.zeros(len(left), np.float32)
    for start in range(0, len(left), 1 << 18):
        part = slice(start, start + (1 << 18))
        likeness[part] = np.einsum("nd,nd->n", flat[left[part]], flat[right[part]])
    distance = np.bitwise_count(hashes[left] ^ hashes[right])
    keep = likeness >= MIN_CORRELATION
    for bits, least in (*STRICTER, (-1, 2.0)):
        member = _components(len(hashes), left[keep], right[keep])
        crowded = np.bincount(member, minlength=1)[member[left]] > max_group
        if not (crowded & keep).any():
            break
        keep &= ~crowded | ((distance <= bits) & (likeness >= least))
    return left[keep], right[keep]


def _components(count: int, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Connected components [count] of an undirected graph."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(left), bool), (left, right)), shape=(count, count))
    return connected_components(graph, directed=False)[1]
