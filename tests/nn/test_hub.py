"""Weights from a hub: really served, once, as safetensors alone, and each failure is one line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hub import Hub
from pretrained import Bomb, refused, same_network
from safetensors.torch import load_file

from fieldmark.nn import weights
from fieldmark.nn.backbone import Backbone
from fieldmark.nn.weights import DEFAULT_BACKBONE, resolve

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
