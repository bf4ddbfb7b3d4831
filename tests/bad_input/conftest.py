"""Bad input, through the command line: one clear line where nothing can be done, a warning where much still can.

The fourth part of the work's contract: what is wrong with a photo is listed, and never ends a run; what is
wrong with a run never leaves half a model.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from commands import call


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny network as a timm folder, so that the command line needs no hub and no time."""
    import timm
    import torch
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("backbone")
    torch.manual_seed(0)
    save_file(timm.create_model("test_efficientnet").state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text('{"architecture": "test_efficientnet"}')
    return folder


@pytest.fixture
def train(backbone: Path) -> Any:
    def run(source: Path, out: Path, *words: object) -> SimpleNamespace:
        flags = ["--backbone", backbone, "--size", 64, "--json", "--no-report", "--quiet"]
        return call("train", source, "--out", out, *flags, *words)

    return run


@pytest.fixture
def photos(photo_folder: Path, tmp_path: Path) -> Path:
    """A copy of four classes of photos, to be spoilt."""
    return shutil.copytree(photo_folder, tmp_path / "photos")
