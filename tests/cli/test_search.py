"""``embed`` and ``similar`` with a predictor that needs no model."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("ant/a.jpg", "ant/b.jpg", "bee/c.jpg", "bee/d.jpg", "bee/bad.jpg"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def embeddings(fieldmark: Any, model: Path, photos: Path, tmp_path: Path) -> Path:
    done = fieldmark("embed", model, photos, "--out", tmp_path / "e.parquet", "--json")
    assert done.status == 0 and (done.json["photos"], done.json["errors"]) == (5, 1)
    return tmp_path / "e.parquet"


def test_embed(embeddings: Path, photos: Path, fake: Any, fieldmark: Any, model: Path) -> None:
    rows = {Path(row["path"]).name: row for row in pq.read_table(embeddings).to_pylist()}
    assert len(rows) == 5
    assert rows["a.jpg"]["label"] == "ant" and rows["c.jpg"]["label"] == "bee"
    assert rows["bad.jpg"]["embedding"] is None and rows["bad.jpg"]["error"] == "file is truncated"
    expected = fake().embed([str(photos / "ant/a.jpg")])[0]
    assert np.allclose(rows["a.jpg"]["embedding"], expected)
    assert np.linalg.norm(rows["a.jpg"]["embedding"]) == pytest.approx(1, abs=1e-6)
    fake.seen.clear()
    assert fieldmark("embed", model, photos, "--out", embeddings).status == 2
    again = fieldmark("embed", model, photos, "--out", embeddings, "--resume", "--json")
    assert again.json["photos"] == 0 and not fake.seen


def test_embeddings_of_another_precision(
    embeddings: Path, photos: Path, fieldmark: Any, model: Path, tmp_path: Path
) -> None:
    """They are not mixed, and are searched all the same."""
    words = ("embed", model, photos, "--precision", "bf16", "--out")
    refused = fieldmark(*words, embeddings, "--resume")
    assert refused.status == 2 and refused.err.count("\n") == 1
    assert fieldmark(*words, tmp_path / "half.parquet").status == 0
    assert fieldmark("similar", model, photos / "ant/a.jpg", "--in", tmp_path / "half.parquet").status == 0


def test_embed_takes_all_photos(fieldmark: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    """Also those beside class folders; what a table names and is not there says why."""
    Image.new("RGB", (8, 8)).save(photos / "loose.jpg")
    (tmp_path / "more.csv").write_text("path,label\ngone.jpg,bee\n,bee\n")
    out = tmp_path / "all.parquet"
    done = fieldmark("embed", model, photos, tmp_path / "more.csv", "--out", out, "--json")
    found = pq.read_table(out).to_pylist()
    labels = {Path(row["path"]).name: row["label"] for row in found}
    assert labels["loose.jpg"] is None and labels["a.jpg"] == "ant" and labels["c.jpg"] == "bee"
    assert done.json["photos"] == len(found) == 8 and sum(row["error"] is not None for row in found) >= 2


def test_embed_writes_parquet_only(fieldmark: Any, model: Path, photos: Path, tmp_path: Path) -> None:
    done = fieldmark("embed", model, photos, "--out", tmp_path / "e.csv")
    assert done.status == 2 and ".parquet" in done.err


@pytest.mark.parametrize("stored", [True, False])
def test_similar(
    fieldmark: Any, model: Path, photos: Path, embeddings: Path, stored: bool, fake: Any
) -> None:
    query = photos / "ant/a.jpg"
    done = fieldmark("similar", model, query, "--in", embeddings if stored else photos, "-k", 2, "--json")
    found = done.json["similar"]
    others = [str(photos / name) for name in ("ant/b.jpg", "bee/c.jpg", "bee/d.jpg")]
    cosines = fake().embed(others) @ fake().embed([str(query)])[0]
    order = np.argsort(-cosines)[:2]
    assert [one["path"] for one in found] == [others[place] for place in order]
    assert [one["similarity"] for one in found] == pytest.approx(cosines[order].tolist(), abs=1e-6)
    assert found[0]["label"] == Path(found[0]["path"]).parent.name
    shown = fieldmark("similar", model, query, "--in", embeddings, "-k", 99)
    assert shown.status == 0 and "similarity" in shown.out


def test_the_search_itself_is_judged(fieldmark: Any, model: Path, embeddings: Path) -> None:
    done = fieldmark("similar", model, "--in", embeddings, "--json")
    assert done.json["n"] == 4 and done.json["n_classes"] == 2
    assert 0 <= done.json["recall_at"]["1"] <= 1 and 0 <= done.json["roc_auc"] <= 1
    assert "Recall@1" in fieldmark("similar", model, "--in", embeddings).out


def test_embeddings_of_another_model(
    fieldmark: Any, model: Path, photos: Path, embeddings: Path, fake: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fake, "bundle", SimpleNamespace(key="ba9876543210"))
    for words in ([photos / "ant/a.jpg"], []):
        done = fieldmark("similar", model, *words, "--in", embeddings)
        assert done.status == 1 and "another model" in done.err and done.err.count("\n") == 1


def test_similar_to_nothing(
    fieldmark: Any, model: Path, photos: Path, embeddings: Path, tmp_path: Path
) -> None:
    (tmp_path / "text.jpg").write_text("no photo")
    (tmp_path / "bad.parquet").write_text("no parquet")
    done = fieldmark("similar", model, photos / "bee/bad.jpg", "--in", photos)
    assert done.err == f"fieldmark: error: {photos / 'bee/bad.jpg'}: file is truncated\n", "before the others"
    for words in (
        [photos / "bee/bad.jpg", "--in", embeddings],
        [tmp_path / "text.jpg", "--in", tmp_path / "none"],
        [photos / "ant/a.jpg", "--in", tmp_path / "bad.parquet"],
    ):
        done = fieldmark("similar", model, *words)
        assert done.status == 1 and done.err.rstrip("\n").splitlines()[-1].startswith("fieldmark: error: ")
    assert fieldmark("similar", model, photos / "ant/a.jpg").status == 2
