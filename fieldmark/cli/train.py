"""``fieldmark train``: a folder of labelled photos becomes a model, in one command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from fieldmark.cli import cnn, fine
from fieldmark.cli.common import (
    Overwrite,
    Precision,
    Resume,
    Source,
    Workers,
    check_free,
    replacing,
    verb,
)
from fieldmark.cli.screen import Screen
from fieldmark.train import processes


@verb(
    examples="""
    fieldmark train photos/ --out runs/mine
    fieldmark train photos/ --out runs/better --budget 10m
    fieldmark train photos.csv --out runs/large --size 224 --size 320
    fieldmark train photos/ --backbone convnext_tiny --out runs/convnext
    fieldmark train digits/ --method cnn --epochs 20 --out runs/digits
    fieldmark train photos/ --config runs/mine.yaml --seed 1 --overwrite
    """
)
def train(
    screen: Screen,
    source: Source,
    out: Annotated[Path | None, typer.Option(help="The run folder.  [default: runs/NAME-OF-SOURCE]")] = None,
    mode: Annotated[
        Literal["instant", "finetune", "scratch"] | None,
        typer.Option(
            metavar="NAME",
            help="instant: a frozen backbone, a head trained in seconds. finetune: the network learns, too."
            " scratch: a new network (--method cnn)."
            "  [default: finetune with --budget or --epochs, else instant]",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Fine-tune within this time, from start to finished model: 90s, 10m, 1h."
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Fine-tune for N passes over the photos; repeatable to the bit."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="See `fieldmark methods`; auto: by our comparison.  [default: the mode's own]",
        ),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="A timm model by name, a .safetensors file or a timm folder; see `fieldmark backbones`."
            "  [default: the embedded EfficientNet-Lite0]",
        ),
    ] = None,
    size: Annotated[
        list[int] | None,
        typer.Option(
            metavar="PIXELS", help="Side of the picture; repeat it for several scales.  [default: chosen]"
        ),
    ] = None,
    resize: Annotated[
        Literal["stretch", "crop", "pad"] | None,
        typer.Option(metavar="HOW", help="stretch, crop or pad to a square.  [default: the backbone's]"),
    ] = None,
    color_space: Annotated[
        Literal["rgb", "grey", "hsv", "lab", "ycbcr"] | None,
        typer.Option(metavar="NAME", help="rgb, grey, hsv, lab or ycbcr.  [default: rgb]"),
    ] = None,
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="instant: squared_error or cross_entropy, of the head. finetune: see docs/losses.md; sums such as"
            " cross_entropy+0.1*triplet.  [default: squared_error; cross_entropy]",
        ),
    ] = None,
    label_smoothing: Annotated[
        float | None,
        typer.Option(metavar="SHARE", min=0, max=0.99, help="With cross_entropy.  [default: 0.1]"),
    ] = None,
    imbalance: fine.Imbalance = None,
    train_size: fine.TrainSize = None,
    cut: fine.Cut = None,
    views: fine.Views = None,
    phases: fine.Phases = None,
    progressive: fine.Progressive = None,
    compile: fine.Compile = None,
    batch: fine.Batch = None,
    lr: fine.Lr = None,
    head_lr: fine.HeadLr = None,
    optimizer: fine.Optimizer = None,
    momentum: fine.Momentum = None,
    clip: fine.Clip = None,
    weight_decay: fine.WeightDecay = None,
    layer_decay: fine.LayerDecay = None,
    average: fine.Average = None,
    patience: fine.Patience = None,
    amp: fine.Amp = None,
    on_nan: fine.OnNan = None,
    cache_gb: fine.CacheGb = None,
    log: fine.Log = None,
    flip: fine.Flip = None,
    crop_scale: fine.CropScale = None,
    rotate: fine.Rotate = None,
    color: fine.Color = None,
    blur: fine.Blur = None,
    erase: fine.Erase = None,
    policy: fine.Policy = None,
    mixup: fine.Mixup = None,
    cutmix: fine.Cutmix = None,
    recipe: cnn.NetRecipe = None,
    stages: cnn.Stages = None,
    activation: cnn.Activation = None,
    pooling: cnn.Pooling = None,
    batch_norm: cnn.BatchNorm = None,
    head: cnn.NetHead = None,
    cell: cnn.Cell = None,
    hidden: cnn.Hidden = None,
    dropout: cnn.Dropout = None,
    shift: cnn.Shift = None,
    search: cnn.Search = False,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=2,
            help="instant: folds that choose the settings. finetune: train N models more, each without a fold that"
            " judges it, for the mean and the spread.  [default: 5; none]",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the split and the training.")] = 0,
    engine: Annotated[
        Literal["auto", "openvino", "onnxruntime", "torch"],
        typer.Option(metavar="NAME", help="What runs the graph: openvino, onnxruntime or torch."),
    ] = "auto",
    precision: Precision = "f32",
    workers: Workers = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask a model hub.")] = False,
    cache: Annotated[bool, typer.Option(help="Use what was computed before of these photos.")] = True,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="A setting of the method, as its page in docs/methods names it; repeat it for several.",
            rich_help_panel="Fine-tuning",
        ),
    ] = None,
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta/--no-tta",
            help="Let the answer look again at a crop, with methods that can; it then takes longer.",
            rich_help_panel="Fine-tuning",
        ),
    ] = None,
    floor: Annotated[
        bool | None,
        typer.Option(
            "--floor/--no-floor",
            help="Give the instant model where it is better on the held-out photos.  [default: floor]",
            rich_help_panel="Fine-tuning",
        ),
    ] = None,
    report: Annotated[bool, typer.Option(help="Write report.html.")] = True,
    resume: Resume = False,
    overwrite: Overwrite = False,
) -> None:
    """Turn a folder of labelled photos into a model.

    The run folder then holds model/ (all that predict needs), report.html, split.csv, skipped.csv and
    run.json. Photos without a given split are divided 70/10/20; look-alike files stay on one side.
    """
    said: dict[str, Any] = dict(locals())  # every flag, by the name that `Recognizer` knows it by
    if out is None:
        out = Path("runs") / (Path(source).resolve().stem or "run")
    if processes.main():
        check_free(out, resume=resume, overwrite=overwrite)
    else:  # one of several processes, of which the first writes and speaks
        screen.quiet, overwrite = True, False
    if resume and (summary := _finished(out)) is not None:
        screen.note(f"{out} is finished already")
        _tell(screen, out, summary)
        return
    for own in ("screen", "source", "out", "resume", "overwrite"):
        del said[own]
    said |= {"settings": settings_of(said.pop("set_")), "search": search or None}
    from fieldmark.recognizer import Recognizer
    from fieldmark.runtime.machine import process_started

    with replacing(out, ("run.json", "split.csv"), overwrite), screen.progress() as progress:
        recognizer = Recognizer(**{name: value for name, value in said.items() if value not in (None, [])})
        recognizer.fit(source, out=out, progress=progress, started=process_started())
    if not processes.main():
        return
    for line in recognizer.warnings:
        screen.warn(line)
    _tell(screen, out, recognizer.run)


def settings_of(words: list[str] | None) -> dict[str, Any] | None:
    """``["maps=16"]`` -> ``{"maps": "16"}``. Raises UsageError for a word without ``=``."""
    from fieldmark.runtime.errors import UsageError

    found = dict(word.partition("=")[::2] for word in words or [])
    for word in words or []:
        if "=" not in word:
            raise UsageError(f"--set {word}: write NAME=VALUE")
    return found or None


def _finished(out: Path) -> dict[str, Any] | None:
    """The summary of a run that ended; None where it did not, and is done again."""
    try:
        run = json.loads((out / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    summary = run.get("result")
    return summary if isinstance(summary, dict) and (out / "model/config.json").is_file() else None


def _tell(screen: Screen, out: Path, summary: dict[str, Any]) -> None:
    if summary["top1"] is not None:
        screen.say(f"top-1     {summary['top1']:.1%} of {summary['n_test']} test photos")
    if summary.get("epochs"):
        screen.say(
            f"mode      {summary['mode']}: {summary['epochs']:.1f} epochs, {summary['photos_per_second']:.0f} photos/s"
        )
    more = f" and {n} of which only a coarser group is known" if (n := summary.get("n_train_coarse")) else ""
    screen.say(f"trained   on {summary['n_train']} photos{more} in {summary['seconds']:.1f} s")
    if summary["skipped"]:
        screen.say(f"skipped   {summary['skipped']} photos; {out / 'skipped.csv'} says why")
    screen.say(f"model     {summary['model']}")
    if (out / "report.html").is_file():
        screen.say(f"report    {out / 'report.html'}")
    screen.note(f"next: fieldmark predict {summary['model']} NEW_PHOTOS --out predictions.csv")
    screen.answer(summary)
