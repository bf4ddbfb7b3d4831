"""What tests of catalogs share: folders and tables to read, what was read, and why something was not."""

from __future__ import annotations

from pathlib import Path

import pytest

from fieldmark.runtime.catalog import Catalog
from fieldmark.runtime.errors import FieldmarkError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def table(root: Path, text: str | bytes, name: str = "metadata.csv") -> Path:
    (root / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return root / name


def rows(catalog: Catalog, root: Path) -> list[tuple]:
    paths = [Path(path).relative_to(root).as_posix() for path in catalog.paths]
    return list(zip(paths, catalog.labels, catalog.splits, strict=True))


def why_not(source, **options) -> str:
    with pytest.raises(FieldmarkError) as caught:
        Catalog.read(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)
