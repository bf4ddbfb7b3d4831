"""Weights come from where they should, whole, without pickles, and without asking anyone who was not to be asked."""

from __future__ import annotations

import json
import os
import pickle
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from pretrained import Bomb, refused, same_network
from safetensors.torch import load_file, save_file

from fieldmark.nn import weights
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import DEFAULT_BACKBONE, EMBEDDED, PICKLES, resolve
from fieldmark.runtime.errors import FieldmarkError

# -- the embedded default


def published() -> dict[str, torch.Tensor]:
    pinned = EMBEDDED[DEFAULT_BACKBONE]
    spec = find_spec(pinned.package)
    assert spec and spec.origin
    return torch.load(Path(spec.origin).parent / pinned.file, map_location="cpu", weights_only=True)


def test_the_default_is_the_published_network():
    """The package's tensors, in their order, under timm's names."""
    source, theirs = resolve(DEFAULT_BACKBONE), published()
    assert source.file is not None and source.file.suffix == ".safetensors"
    ours, names = load_file(source.file), list(timm.create_model(DEFAULT_BACKBONE).state_dict())
    assert len(names) == len(theirs) == len(ours) == 296
    for name, (key, tensor) in zip(names, theirs.items(), strict=True):
        assert torch.equal(ours[name], tensor), f"{name} is not {key}"
        assert name.rsplit(".", 1)[1] == key.rsplit(".", 1)[1], "weight to weight, bias to bias, mean to mean"


def test_the_backbone_holds_it():
    state, theirs = Backbone(resolve(DEFAULT_BACKBONE), 64).model.state_dict(), list(published().values())
    assert len(state) == 294, "all but the classifier"
    assert all(torch.equal(a, b) for a, b in zip(state.values(), theirs, strict=False))


def test_it_knows_photos_from_noise():
    """An end-to-end sign of life: trained batch statistics fit a natural-looking input, random weights' do not."""
    network = timm.create_model(DEFAULT_BACKBONE)
    source = resolve(DEFAULT_BACKBONE)
    assert source.file is not None
    network.load_state_dict(load_file(source.file))
    y, x = torch.meshgrid(torch.linspace(-1, 1, 224), torch.linspace(-1, 1, 224), indexing="ij")
    ball = ((x**2 + y**2) < 0.4).float() * torch.tensor([0.9, 0.4, 0.1])[:, None, None] - 0.2
    with torch.inference_mode():
        sure = network.eval()(ball[None]).softmax(1).max()
    assert 0.02 < sure < 1, "far above one in a thousand"


def test_aliases_and_the_second_time(monkeypatch):
    first = resolve(DEFAULT_BACKBONE)
    monkeypatch.setattr(weights, "find_spec", lambda _: pytest.fail("the package is not needed again"))
    assert resolve("efficientnet_lite0") == first == resolve(DEFAULT_BACKBONE, offline=True)
    assert first.file is not None
    os.utime(first.file, (0, 0))
    resolve(DEFAULT_BACKBONE)
    assert first.file.stat().st_mtime > 0, "used just now: it is pruned late"
    assert first.digest == EMBEDDED[DEFAULT_BACKBONE].sha256[:32]


def test_another_file_is_refused_unopened(tmp_path, own_cache, monkeypatch):
    pinned = EMBEDDED[DEFAULT_BACKBONE]
    file = tmp_path / "package" / pinned.file
    file.parent.mkdir(parents=True)
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    monkeypatch.setattr(
        weights, "find_spec", lambda _: SimpleNamespace(origin=str(tmp_path / "package/__init__.py"))
    )
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was opened"))
    assert "not the file that was pinned" in refused(DEFAULT_BACKBONE)
    assert not (tmp_path / "opened").exists() and not list(own_cache.rglob("*.safetensors"))
    file.unlink()
    assert "reinstall" in refused(DEFAULT_BACKBONE)


def test_no_package(own_cache, monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    assert "fieldmark[train]" in refused(DEFAULT_BACKBONE)
    assert "fieldmark[backbones]" in refused("tf_efficientnet_lite2")


def test_random_weights_need_nothing(monkeypatch):
    monkeypatch.setattr(weights, "find_spec", lambda _: pytest.fail("no package is needed"))
    assert resolve(DEFAULT_BACKBONE, pretrained=False).file is None


# -- files and folders


@pytest.mark.parametrize("ending", [*sorted(PICKLES), ".PTH", ".pth.tar"])
def test_pickles_are_refused_by_their_name(tmp_path, ending):
    file = tmp_path / f"weights{ending}"
    file.write_bytes(pickle.dumps(Bomb(tmp_path / "opened")))
    assert "may be a pickle" in refused(str(file))
    assert not (tmp_path / "opened").exists()


@pytest.fixture
def folder(tmp_path: Path, network: Any) -> Path:
    """A timm folder, as timm writes it."""
    home = tmp_path / "beetles"
    home.mkdir()
    save_file(network.state_dict(), home / "model.safetensors")
    config = {
        "architecture": "test_resnet",
        "num_classes": 5,
        "pretrained_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]},
        "model_args": {"num_classes": 5},
    }
    (home / "config.json").write_text(json.dumps(config))
    return home


def test_a_timm_folder(folder, network):
    source = resolve(str(folder))
    assert source.architecture == "test_resnet" and same_network(source, network)
    backbone = Backbone(source)
    assert backbone.native == 96
    preprocess = backbone.preprocess()
    assert preprocess.mean == (0.1, 0.2, 0.3) and preprocess.std == (0.4, 0.5, 0.6)


def test_a_file_is_its_folder_or_its_name(folder, network, tmp_path):
    assert resolve(str(folder / "model.safetensors")) == resolve(str(folder))
    alone = tmp_path / "alone"
    alone.mkdir()
    (folder / "model.safetensors").rename(alone / "test_resnet.safetensors")
    source = resolve(str(alone / "test_resnet.safetensors"))
    assert source.architecture == "test_resnet" and same_network(source, network)


def test_the_digest_is_the_files(folder, network):
    before = resolve(str(folder)).digest
    changed = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    next(iter(changed.values())).view(-1)[0] += 1
    save_file(changed, folder / "model.safetensors")
    assert resolve(str(folder)).digest != before


def test_a_folder_called_like_a_network(folder, tmp_path, monkeypatch):
    """In the working folder: it is meant only if it holds weights."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "test_vit").mkdir()
    assert resolve("test_vit", pretrained=False).architecture == "test_vit"
    assert resolve("beetles").architecture == "test_resnet"
    assert "holds config.json" in refused(str(tmp_path / "test_vit"))
    assert "holds config.json" in refused("./test_vit")


@pytest.mark.parametrize(
    "config",
    ["", "{", "[]", "null", "{}", '{"architecture_of": "x"}', '{"architecture": "x", "model_args": 5}'],
)
def test_configs_that_name_no_architecture(folder, config):
    (folder / "config.json").write_text(config)
    assert "does not say which architecture" in refused(str(folder))


def test_no_weights_there(tmp_path, folder):
    assert "no weights at" in refused(str(tmp_path / "gone.safetensors"))
    (folder / "config.json").unlink()
    assert "holds config.json" in refused(str(folder))
    assert "holds config.json" in refused(str(tmp_path))


@pytest.mark.parametrize(
    "change, says",
    [
        ({"architecture": "test_efficientnet"}, "does not hold the weights"),
        ({"architecture": "hf-hub:someone/net"}, "no architecture"),
        ({"architecture": "local-dir:somewhere"}, "no architecture"),
        ({"model_args": {"checkpoint_path": "evil.pth"}}, "checkpoint_path"),
        ({"model_args": {"pretrained": True}}, "pretrained"),
    ],
)
def test_configs_that_would_mislead(folder, change, says):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(FieldmarkError, match=says):
        Backbone(resolve(str(folder)), 64)


def test_a_damaged_file(folder):
    data = (folder / "model.safetensors").read_bytes()
    for content in (b"", b"junk" * 100, data[:-100]):
        (folder / "model.safetensors").write_bytes(content)
        with pytest.raises(FieldmarkError, match="damaged or no safetensors"):
            Backbone(resolve(str(folder)), 64)


# -- names


def test_unknown_names_come_with_near_ones():
    assert "near it: efficientnet_lite0, " in refused("efficientnet_lite")
    assert "resnet50" in refused("resnt50"), "a slip of the finger"
    assert "no backbone is called 'zzzz'" in refused("zzzz")


def test_unknown_tags_come_with_known_ones():
    assert "resnet50.a1_in1k" in refused("resnet50.no_such_tag")


def test_offline(monkeypatch):
    monkeypatch.setattr(weights, "_from_hub", lambda *_: pytest.fail("the hub was asked"))
    for name in ("test_vit", "hf-hub:someone/network"):
        assert "--offline" in refused(name, offline=True) and DEFAULT_BACKBONE in refused(name, offline=True)
        for value in ("1", "true", "ON"):
            monkeypatch.setenv("HF_HUB_OFFLINE", value)
            assert "not here" in refused(name)
        monkeypatch.delenv("HF_HUB_OFFLINE")
