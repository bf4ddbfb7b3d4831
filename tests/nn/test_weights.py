"""Weights come from where they should, whole, without pickles, and without asking anyone who was not to be asked."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from hub import Hub
from safetensors.torch import load_file, save_file

from fieldmark.nn import weights
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import DEFAULT_BACKBONE, EMBEDDED, PICKLES, resolve
from fieldmark.runtime.errors import FieldmarkError


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def refused(name: str, **options: Any) -> str:
    with pytest.raises(FieldmarkError) as caught:
        resolve(name, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


class Bomb:
    """A pickle that leaves a trace when it is opened."""

    def __init__(self, trace: Path):
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.trace,)


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


@pytest.fixture(scope="module")
def network() -> Any:
    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=5).eval()


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


def same_network(source: weights.Source, network: Any) -> bool:
    images = torch.rand(2, 3, 96, 96)
    with torch.inference_mode():
        ours = Backbone(source, 96)(images).embedding
        return torch.allclose(ours, network.forward_head(network.forward_features(images), pre_logits=True))


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


# -- a hub

ASK = """
import contextlib, json, os, sys, urllib.error, urllib.request
from fieldmark.nn.weights import resolve

def ask(name, **options):
    with contextlib.suppress(urllib.error.HTTPError):  # a line in the hub's notes
        urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/mark/" + str(len(answers)))
    try:
        source = resolve(name, **options)
        answers.append({"file": str(source.file), "architecture": source.architecture, "options": source.options})
    except Exception as error:
        answers.append({"error": str(error), "kind": type(error).__name__})

answers = []
for name, options in json.loads(sys.argv[1]):
    os.environ.update(options.pop("environment", {}))
    ask(name, **options)
    os.environ.pop("HF_HUB_OFFLINE", None)
print(json.dumps(answers))
"""
OWN = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 96, 96]}
#: In this order, in one process that knows the hub only by HF_ENDPOINT.
QUESTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "offline": ("test_resnet", {"offline": True}),
    "offline by environment": ("test_resnet", {"environment": {"HF_HUB_OFFLINE": "1"}}),
    "first": ("test_resnet", {}),
    "second": ("test_resnet", {}),
    "second, offline": ("test_resnet", {"offline": True}),
    "someone's": ("hf-hub:someone/beetles", {}),
    "someone's, offline": ("hf-hub:someone/beetles", {"offline": True}),
    "missing": ("test_vit", {}),
    "failing": ("test_efficientnet", {}),
    "a pickle": ("hf-hub:someone/pickle", {}),
    "no config": ("hf-hub:someone/weights", {}),
    "a trap": ("hf-hub:someone/trap", {}),
    "nonsense": ("hf-hub:someone/nonsense", {}),
    "unknown": ("no_such_network", {}),
}


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, network: Any
) -> Iterator[tuple[dict[str, Any], dict[str, list[str]]]]:
    """What every question was answered, and what the hub was asked for it."""
    from safetensors.torch import save

    torch.manual_seed(8)
    whole, small = save(timm.create_model("test_resnet").state_dict()), save(network.state_dict())

    def config(**more: Any) -> bytes:
        return json.dumps(
            {"architecture": "test_resnet", "num_classes": 5, "pretrained_cfg": OWN, **more}
        ).encode()

    hub = Hub(
        {
            "timm/test_resnet.r160_in1k/model.safetensors": whole,
            "timm/test_resnet.r160_in1k/config.json": b"{}",
            "someone/beetles/config.json": config(),
            "someone/beetles/model.safetensors": small,
            "someone/pickle/config.json": config(),
            "someone/pickle/pytorch_model.bin": pickle.dumps(Bomb(Path("opened"))),
            "someone/weights/model.safetensors": small,
            "someone/trap/config.json": config(model_args={"checkpoint_path": "evil.pth"}),
            "someone/trap/model.safetensors": small,
            "someone/nonsense/config.json": config(),
            "someone/nonsense/model.safetensors": b"nonsense",
        },
        broken=("timm/test_efficientnet.r160_in1k",),
    )
    home = tmp_path_factory.mktemp("hub")
    environment = {
        k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")
    }
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home / "hf"),
        "FIELDMARK_CACHE": str(home / "cache"),
    }
    questions = json.dumps(list(QUESTIONS.values()))
    done = subprocess.run(
        [sys.executable, "-c", ASK, questions],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        cwd=home,
    )
    hub.close()
    assert done.returncode == 0, done.stderr
    asked: dict[str, list[str]] = {}
    titles = list(QUESTIONS)
    for line in hub.asked:
        if "/mark/" in line:
            current = asked[titles[int(line.rsplit("/", 1)[1])]] = []
        elif "agent-harnesses" not in line:  # huggingface_hub's own question, once a day
            current.append(line)
    answers = dict(zip(QUESTIONS, json.loads(done.stdout), strict=True))
    yield answers, asked
    assert not (home / "opened").exists()


def test_a_hub_really_serves(served, network):
    answers, asked = served
    assert asked["first"][-1] == "GET /timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
    torch.manual_seed(8)
    source = weights.Source("test_resnet", Path(answers["first"]["file"]), "", answers["first"]["options"])
    assert same_network(source, timm.create_model("test_resnet").eval())
    assert list(load_file(source.file)) and source.file.suffix == ".safetensors"


def test_someones_repository(served, network):
    """Its architecture is timm's name, so that the model folder can be read by others, and without a hub."""
    answers, asked = served
    mine = answers["someone's"]
    assert mine["architecture"] == "test_resnet"
    assert "GET /someone/beetles/resolve/main/model.safetensors" in asked["someone's"]
    source = weights.Source("test_resnet", Path(mine["file"]), "", mine["options"])
    assert same_network(source, network)
    assert Backbone(source).preprocess().mean == (0.1, 0.2, 0.3) and Backbone(source).native == 96


def test_nothing_is_asked_twice(served):
    answers, asked = served
    assert answers["second"] == answers["second, offline"] == answers["first"]
    assert answers["someone's, offline"] == answers["someone's"]
    for title in ("second", "second, offline", "someone's, offline"):
        assert asked[title] == []


def test_nothing_is_asked_offline(served):
    answers, asked = served
    for title in ("offline", "offline by environment", "unknown"):
        assert asked[title] == [], title
        assert answers[title]["kind"] == "FieldmarkError"


@pytest.mark.parametrize(
    "title, says",
    [
        ("offline", "--offline"),
        ("missing", "no such repository"),
        ("failing", "500"),
        ("a pickle", "has no model.safetensors"),
        ("a trap", "checkpoint_path"),
        ("no config", "has no config.json"),
        ("nonsense", "cannot fetch"),
        ("unknown", "no backbone is called"),
    ],
)
def test_each_failure_is_one_line(served, title, says):
    answers, asked = served
    error = answers[title]["error"]
    assert answers[title]["kind"] == "FieldmarkError" and says in error and "\n" not in error
    assert len(asked[title]) <= 8, "no endless retries"
    if title in ("missing", "failing", "nonsense"):
        assert DEFAULT_BACKBONE in error, "what works without it"


def test_no_pickle_is_fetched(served):
    _, asked = served
    assert not any(
        line.startswith("GET") and not line.endswith(("json", "safetensors"))
        for q in asked.values()
        for line in q
    )


def test_a_hub_that_is_not_there(own_cache, monkeypatch, tmp_path):
    import huggingface_hub.constants as constants

    hub = Hub({})
    hub.close()  # its address answers no more
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    message = refused("test_resnet")
    assert hub.address in message and DEFAULT_BACKBONE in message


def test_a_damaged_download_is_fetched_again(own_cache, monkeypatch, network):
    config = {"architecture": "test_resnet", "model_args": {}, "pretrained_cfg": OWN}
    monkeypatch.setattr(weights, "_from_hub", lambda *_: (config, network))
    first = resolve("test_resnet")
    assert first.file is not None
    first.file.write_bytes(first.file.read_bytes()[:1000])
    assert "--offline" in refused("test_resnet", offline=True)
    assert resolve("test_resnet") == first and same_network(first, network)
