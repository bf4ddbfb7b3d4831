"""Does hard attention find a digit in clutter? ``python benchmarks/ram.py``

scikit-learn's digits, at three times their size (24 px), each anywhere on a canvas of 64 px among four pieces of
others, placed anew for every step; 360 digits are kept for the test. `ram` sees six glimpses, each as windows of
12, 24 and 48 px that are 12 pixels wide, through a small encoder of its own; features of random weights, which do
not learn, of the canvas at 32 px say where the first one goes. The textbook CNN of as many weights sees the whole
canvas, in as many steps over the same photos, at a quarter of the rate: at that of `ram` it learns nothing.
``on the digit`` is the share of the last glimpses whose middle lies
on it (of places by chance 14%). The glimpses of some test photos are drawn into ``docs/pictures/ram.png`` (of a
trial: into the work folder). About half an hour on two quiet cores.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import common
import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from fieldmark.losses import DEFAULT_LOSS
from fieldmark.losses.combine import build
from fieldmark.methods.cnn import Options, TextbookCNN
from fieldmark.methods.learner import Learner
from fieldmark.methods.ram import RAM
from fieldmark.methods.task import Batch, Task
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.glimpse import boxes
from fieldmark.nn.weights import Source

SET = "digits in clutter"
#: Sides in pixels: of the canvas, a digit, a piece of clutter; how many pieces; photos a step.
CANVAS, DIGIT, PIECE, PIECES, BATCH = 64, 24, 8, 4, 128
#: Of the canvases' pixels.
MEAN, SPREAD = 0.1, 0.25
SETTINGS = {"glimpses": 6, "side": 12, "windows": 3, "hidden": 256, "encoder": "small", "spread": 0.3}
#: The side at which the whole is looked at, to place the first glimpse.
COARSE = 32
RATES = {"ram": 2e-3, "cnn": 5e-4}


def digits() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Digits [N, 24, 24] from 0 to 1 and labels, to learn from and for the test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    found = load_digits()
    large = found.images.repeat(3, 1).repeat(3, 2).astype(np.float32) / 16
    x, held, y, y_held = train_test_split(
        large, found.target, test_size=360, stratify=found.target, random_state=0
    )
    return x, y, held, y_held


def placed(x: np.ndarray, pick: np.ndarray, chance: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Canvases [B, 3, 64, 64] with the digits ``pick`` [B] among pieces of others; each one's left and top [B, 2]."""
    canvas = np.zeros((len(pick), CANVAS, CANVAS), np.float32)

    def put(row: int, what: np.ndarray) -> tuple[int, int]:
        left, top = chance.integers(0, CANVAS - len(what) + 1, 2)
        part = canvas[row, top : top + len(what), left : left + len(what)]
        np.maximum(part, what, out=part)
        return left, top

    at = []
    for row, digit in enumerate(pick):
        for other in chance.integers(0, len(x), PIECES):
            a, b = chance.integers(0, DIGIT - PIECE + 1, 2)
            put(row, x[other, a : a + PIECE, b : b + PIECE])
        at.append(put(row, x[digit]))
    return torch.from_numpy((canvas - MEAN) / SPREAD)[:, None].expand(-1, 3, -1, -1).contiguous(), np.array(
        at
    )


def batches(x: np.ndarray, y: np.ndarray, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    chance = np.random.default_rng(seed)
    while True:
        pick = chance.integers(0, len(x), BATCH)
        yield placed(x, pick, chance)[0], torch.from_numpy(y[pick])


def train(
    learner: Learner,
    photos: Iterator[tuple[Tensor, Tensor]],
    steps: int,
    rate: float,
    tell: Callable[[], str],
) -> float:
    """AdamW, the rate falling by a cosine; seconds that it took."""
    criterion, began = build(DEFAULT_LOSS, classes=10, embedding=1), time.perf_counter()
    learner.train()
    if isinstance(learner, RAM):
        learner.backbone.eval()
        learner.begin(0)
    weights = [p for p in learner.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, rate, weight_decay=1e-4)
    for step, (x, y) in zip(range(steps), photos, strict=False):
        optimizer.param_groups[0]["lr"] = rate * (0.5 + 0.5 * math.cos(math.pi * step / steps))
        optimizer.zero_grad()
        learner.training_step(Batch(x, y, progress=step / steps), criterion)["loss"].backward()
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimizer.step()
        if step % 500 == 499:
            print(f"    step {step + 1}: {tell()}", file=sys.stderr, flush=True)
            learner.train()
            if isinstance(learner, RAM):
                learner.backbone.eval()
    return time.perf_counter() - began


@torch.inference_mode()
def top1(learner: Learner, x: Tensor, y: np.ndarray) -> float:
    learner.eval()
    answers = torch.cat([learner(part).argmax(1) for part in x.split(200)])
    return float((answers.numpy() == y).mean())


@torch.inference_mode()
def on_the_digit(ram: RAM, x: Tensor, at: np.ndarray) -> list[float]:
    """Share of the photos, glimpse by glimpse, in which its middle lies on the digit."""
    ram.eval()
    places = torch.cat([ram.look(part).places for part in x.split(200)]).numpy()
    inside = (places + 1) / 2 * CANVAS - at[:, None]
    return [float(one) for one in ((inside >= 0) & (inside <= DIGIT)).all(2).mean(0)]


def networks(seed: int) -> tuple[RAM, TextbookCNN]:
    """`ram` on a backbone of random weights, which only says where to look first, and a CNN of as many weights."""
    torch.manual_seed(seed)
    ram = RAM(Backbone(Source("test_resnet", None, "random", {}), CANVAS), (COARSE,), Task(10), SETTINGS)
    ram.add_head(10, 1)
    ram.projection = nn.Identity()
    ram.begin(0)
    return ram, TextbookCNN(
        Options.of({"stages": "24@5/2 48@3 96@3", "hidden": 128, "dropout": 0.0}), 10, CANVAS
    )


def weights(learner: Learner) -> int:
    return sum(p.numel() for p in learner.parameters() if p.requires_grad)


@torch.inference_mode()
def draw(ram: RAM, x: Tensor, path: Path, count: int = 8, zoom: int = 4) -> None:
    """Photos in a row, with the smallest window of each glimpse: the first dark red, the last yellow."""
    ram.eval()
    look, answers = ram.look(x[:count]), ram(x[:count]).argmax(1).tolist()
    side = CANVAS * zoom
    sheet = Image.new("RGB", (count * (side + zoom), side + 16), "white")
    pen = ImageDraw.Draw(sheet)
    for number in range(count):
        grey = ((x[number, 0] * SPREAD + MEAN).clamp(0, 1) * 255).byte().numpy()
        left = number * (side + zoom)
        sheet.paste(Image.fromarray(grey).resize((side, side), Image.Resampling.NEAREST), (left, 16))
        pen.text((left + 2, 2), f"answer: {answers[number]}", fill="black")
        corners = boxes(look.places[number], ram.options.side, (CANVAS, CANVAS)) * side
        for step, box in enumerate(corners.tolist()):
            colour = (
                128 + 127 * step // max(1, len(corners) - 1),
                230 * step // max(1, len(corners) - 1),
                40,
            )
            low = [min(max(v, 0.0), side - 1.0) for v in box]
            pen.rectangle([left + low[0], 16 + low[1], left + low[2], 16 + low[3]], outline=colour, width=2)
            pen.text((left + low[0] + 4, 18 + low[1]), str(step + 1), fill=colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def measure(seed: int, steps: int, results: common.Results, picture: Path) -> None:
    x, y, held, y_held = digits()
    many = np.tile(np.arange(len(held)), 5)
    photos, at = placed(held, many, np.random.default_rng(10_000))
    labels = y_held[many]
    ram, cnn = networks(seed)
    own: dict[str, Any] = {"set": SET, "seed": seed, "n": len(many)}
    learners: list[tuple[str, Learner]] = [("cnn", cnn), ("ram", ram)]
    for name, learner in learners:
        if results.done(f"{name}, top-1", SET, seed):
            continue
        print(f"  {name}: {weights(learner)} weights", file=sys.stderr)

        def tell(learner: Learner = learner) -> str:
            return f"top-1 {top1(learner, photos[:720], labels[:720]):.3f}"

        torch.manual_seed(seed)
        seconds = train(learner, batches(x, y, seed), steps, RATES[name], tell)
        note = f"{weights(learner)} weights, {steps} steps of {BATCH}"
        results.add(f"{name}, seconds", seconds, "s", **own, note=note)
        if isinstance(learner, RAM):
            hits = on_the_digit(learner, photos, at)
            told = "glimpse by glimpse: " + ", ".join(f"{one:.2f}" for one in hits)
            results.add("ram, on the digit", hits[-1], "share", **own, note=told)
            draw(learner, photos, picture)
        results.add(f"{name}, top-1", top1(learner, photos, labels), "share", **own, note=note)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=8000, help="of training  [default: 8000]")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N")
    chosen = parser.parse_args()
    results = common.Results(__file__, chosen)
    trial = chosen.trial or chosen.limit
    picture = (results.work if trial else common.ROOT / "docs" / "pictures") / "ram.png"
    for seed in chosen.seeds:
        measure(seed, chosen.steps, results, picture)


if __name__ == "__main__":
    main()
