"""A model folder to read or to spoil."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from tiny import write_bundle


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "model", method="plain")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(original, tmp_path / "model"))
