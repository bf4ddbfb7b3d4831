"""A model folder becomes a PyTorch module that says the same, and can be trained on."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import logits_of, picture, write_bundle

from fieldmark.methods.base import Method
from fieldmark.methods.restore import restore
from fieldmark.runtime.bundle import Bundle
from fieldmark.runtime.bundle_files import seal
from fieldmark.runtime.engine import OnnxRuntimeEngine
from fieldmark.runtime.errors import FieldmarkError

KINDS = {
    "several scales": {"scales": (64, 48)},
    "low rank": {"rank": 3},
    "plain": {"backbone": "test_resnet", "method": "plain"},
    "a transformer at another size": {"backbone": "test_vit", "size": 96},
}


@pytest.fixture(scope="module", params=KINDS)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(write_bundle(tmp_path_factory.mktemp("restore") / "model", **KINDS[request.param]))


@pytest.fixture(scope="module")
def module(bundle: Bundle) -> Method:
    return restore(bundle)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def test_it_says_what_the_graph_says(bundle, module):
    photos = [picture(seed) for seed in range(10, 14)]
    preprocess = bundle.section.preprocess
    images = np.stack([preprocess(photo) for photo in photos])
    engine = OnnxRuntimeEngine(bundle.file("model.onnx"), ["logits", "embedding"], "f32", 1)
    logits, embedding = engine.run(images, ["logits", "embedding"])
    assert relative(logits_of(module, preprocess, photos), logits) < 1e-3
    with torch.inference_mode():
        features = module.features(torch.from_numpy(images))
    assert relative(features["embedding"].numpy(), embedding) < 1e-3
    assert features["descriptor"].shape == (4, sum(bundle.section.widths))


def test_golden_answers(bundle, module):
    golden = bundle.golden()
    with torch.inference_mode():
        logits = module(torch.from_numpy(bundle.section.preprocess.normalise(golden["images"])))
    assert relative(logits.numpy(), golden["logits"]) < 1e-3


def test_it_is_what_the_config_says(bundle, module):
    assert not module.training
    assert module.scales == bundle.section.scales and module.widths == bundle.section.widths
    assert module.backbone.size == bundle.section.preprocess.size


def test_training_can_go_on(bundle, module):
    """Two steps on two photos lower their loss; every trainable tensor has a part in it."""
    torch.manual_seed(0)
    module = restore(bundle)
    images = torch.from_numpy(np.stack([bundle.section.preprocess(picture(seed)) for seed in (20, 21)]))
    labels = torch.tensor([0, 1])
    optimizer = torch.optim.SGD(module.parameters(), 1e-5)
    losses = []
    for _ in range(3):
        loss = torch.nn.functional.cross_entropy(module(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    untouched = [n for n, p in module.named_parameters() if p.grad is None and not n.startswith("projection")]
    assert untouched == []
    assert all(p.grad.isfinite().all() for p in module.parameters() if p.grad is not None)


def test_changes_stay_in_the_module(bundle):
    """The module owns its tensors: training it does not write into the folder's."""
    one, other = restore(bundle), restore(bundle)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter.zero_()
    assert any(parameter.any() for parameter in other.head.parameters())
    bundle.verify()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("restore") / "model"
    return write_bundle(folder, method="plain", backbone="test_resnet")


def spoiled(plain: Path, folder: Path, **section: object) -> Bundle:
    """A copy whose config says something else."""
    folder = Path(shutil.copytree(plain, folder))
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    raw["fieldmark"].update({k: v for k, v in section.items() if k != "architecture"})
    raw["architecture"] = section.get("architecture", raw["architecture"])
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return Bundle(folder)


@pytest.mark.parametrize(
    "section, says",
    [
        ({"architecture": "test_efficientnet"}, "does not hold the tensors"),
        ({"architecture": "no_such_network"}, "no_such_network"),
        ({"architecture": "hf-hub:someone/network"}, "no architecture"),
        ({"method": "isqrt_cov"}, "does not hold the tensors"),
        ({"method": "magic"}, "magic"),
        ({"embedding": 9}, "does not hold the tensors"),
        ({"scales": [900]}, "scales"),
        ({"training": {"model_args": {"checkpoint_path": "evil.pth"}}}, "checkpoint_path"),
        ({"training": {"model_args": {"no_such_option": 1}}}, "no_such_option"),
    ],
)
def test_a_config_that_does_not_fit(plain, tmp_path, section, says):
    with pytest.raises(FieldmarkError, match=says) as caught:
        restore(spoiled(plain, tmp_path / "model", **section))
    assert "\n" not in str(caught.value)


def test_missing_tensors(plain, tmp_path):
    from safetensors.numpy import load_file, save_file

    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    state = load_file(folder / "model.safetensors")
    del state["head.bias"]
    save_file(state, folder / "model.safetensors")
    seal(folder, Bundle(folder).config)
    with pytest.raises(FieldmarkError, match=r"does not hold the tensors.*head\.bias"):
        restore(Bundle(folder))
