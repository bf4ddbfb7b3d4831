"""The frozen graph: exported once, found again without PyTorch, and never trusted where it is not whole."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fieldmark.methods import descriptor
from fieldmark.methods.descriptor import OUTPUT, DescriptorGraph, build, descriptor_graph
from fieldmark.nn.weights import Source
from fieldmark.runtime.engine import ENGINES, compile_graph
from fieldmark.runtime.errors import FieldmarkError, UsageError


def get(**changes: object) -> DescriptorGraph:
    options = {"size": 64, "scales": (64, 48), "pretrained": False, **changes}
    return descriptor_graph("test_resnet", "isqrt_cov", **options)  # type: ignore[arg-type]


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each export that was made."""
    made, real = [], descriptor._export

    def counted(*arguments: object) -> None:
        made.append(str(arguments[1]))
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(descriptor, "_export", counted)
    return made


def test_the_graph_is_the_module():
    graph = get()
    module = build(Source("test_resnet", None, "random", {}), "isqrt_cov", 64, (64, 48))
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = module.describe(x).numpy()
    assert expected.shape[1] == sum(graph.widths) and graph.scales == (64, 48) and graph.parity < 1e-3
    for engine in ENGINES:
        (ours,) = compile_graph(graph.path, outputs=[OUTPUT], engine=engine).run(x.numpy(), [OUTPUT])
        assert np.abs(ours - expected).max() / np.abs(expected).max() < 1e-3
    state, kept = module.state_dict(), load_file(graph.weights)
    assert state.keys() == kept.keys() and all(torch.equal(state[name], kept[name]) for name in state)


def test_it_is_frozen():
    module = build(Source("test_resnet", None, "random", {}), "plain", 64, ())
    assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_a_hit_makes_no_export(exports):
    first = get()
    exports.clear()
    assert get() == first == get(scales=(48, 64)) and exports == []


HIT = """
import json, sys
from fieldmark.methods.descriptor import descriptor_graph
graph = descriptor_graph("test_resnet", "isqrt_cov", size=64, scales=(64, 48), pretrained=False)
slow = sorted({"torch", "timm", "onnx", "sklearn", "scipy"} & set(sys.modules))
print(json.dumps({"path": str(graph.path), "widths": graph.widths, "slow": slow}))
"""


def test_a_hit_imports_no_torch():
    graph = get()
    done = subprocess.run([sys.executable, "-c", HIT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found == {"path": str(graph.path), "widths": list(graph.widths), "slow": []}


def test_a_hit_with_the_default_weights_imports_no_torch():
    """The embedded network, too, is known by its pinned hash without being opened."""
    from fieldmark.nn.weights import DEFAULT_BACKBONE, resolve

    resolve(DEFAULT_BACKBONE)
    code = (
        "import sys; from fieldmark.nn.weights import resolve, DEFAULT_BACKBONE; "
        "resolve(DEFAULT_BACKBONE); print({'torch', 'timm'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


ENDINGS = (".onnx", ".json", ".safetensors")


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("damage", ["gone", "empty", "cut", "other"])
def test_what_is_not_whole_is_made_again(own_cache, monkeypatch, ending, damage):
    whole = {end: f"the {end} file".encode() for end in ENDINGS}
    whole[".json"] = b'{"native": 64, "widths": [5], "scales": [64], "preprocess": {"size": 64}, "parity": 0}'
    made = []

    def write(*arguments: object) -> None:
        made.append(arguments)
        for path in arguments[-3:]:
            path.write_bytes(whole[path.suffix])  # type: ignore[attr-defined]

    monkeypatch.setattr(descriptor, "_export", write)
    graph = get()
    sealed = graph.path.with_suffix(".json").read_bytes()
    victim = graph.path.with_suffix(ending)
    data = victim.read_bytes()
    match damage:
        case "gone":
            victim.unlink()
        case "empty":
            victim.write_bytes(b"")
        case "cut":
            victim.write_bytes(data[: len(data) // 2])
        case _:
            victim.write_bytes(
                whole[".json"].replace(b"64", b"32") if ending == ".json" else data[:-1] + b"!"
            )
    assert get() == graph and len(made) == 2
    whole[".json"] = sealed
    assert all(graph.path.with_suffix(end).read_bytes() == whole[end] for end in ENDINGS)
    assert get() == graph and len(made) == 2


def test_an_export_that_was_killed_leaves_nothing_that_counts(own_cache, monkeypatch, exports):
    """Graph, weights and a first note are there, the last word is not."""
    monkeypatch.setattr(descriptor, "_seal", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        get(scales=())
    monkeypatch.undo()
    monkeypatch.setenv("FIELDMARK_CACHE", str(own_cache))
    assert (
        descriptor._facts(*(next(own_cache.rglob(f"*{e}")) for e in (".onnx", ".json", ".safetensors")))
        is None
    )
    assert sum(get(scales=()).widths) > 0


def test_a_hit_is_touched():
    """So that pruning takes what was not used for longest."""
    graph = get()
    old = time.time() - 1000
    for ending in ENDINGS:
        os.utime(graph.path.with_suffix(ending), (old, old))
    get()
    for ending in ENDINGS:
        assert graph.path.with_suffix(ending).stat().st_mtime > old + 500


def test_preprocess_is_overruled_without_an_export(exports):
    plain = get()
    exports.clear()
    other = get(preprocess={"resize": "pad", "color_space": None})
    assert exports == [] and other.path == plain.path
    assert other.preprocess == plain.preprocess.model_copy(update={"resize": "pad"})


def test_keys_tell_weights_apart(tmp_path):
    import timm
    from safetensors.torch import save_file

    names = []
    for seed in range(2):
        torch.manual_seed(seed)
        home = tmp_path / str(seed)
        home.mkdir()
        save_file(timm.create_model("test_resnet").state_dict(), home / "model.safetensors")
        (home / "config.json").write_text('{"architecture": "test_resnet"}')
        names.append(descriptor_graph(str(home), "plain", size=64))
    assert names[0].key != names[1].key and names[0].path != names[1].path
    x = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    one, two = (compile_graph(g.path, outputs=[OUTPUT]).run(x, [OUTPUT])[0] for g in names)
    assert np.abs(one - two).max() > 1e-3


def test_refusals_are_one_line(own_cache):
    for call, kind in (
        (lambda: descriptor_graph("test_resnet", "magic", pretrained=False), UsageError),
        (lambda: descriptor_graph("no_such_network", "plain"), FieldmarkError),
        (lambda: descriptor_graph("no_such_network", "plain", pretrained=False), FieldmarkError),
        (lambda: get(size=64, scales=(96,)), FieldmarkError),
        (lambda: get(size=3), FieldmarkError),
        (lambda: descriptor_graph("test_vit", "plain", offline=True), FieldmarkError),
    ):
        with pytest.raises(kind) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list((own_cache / "graphs").glob("*.json"))
