"""Tiny networks are quickest on one thread each; and a cache and a network for tests of weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FIELDMARK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def network() -> Any:
    import timm

    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=5).eval()
