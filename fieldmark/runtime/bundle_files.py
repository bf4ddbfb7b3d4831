"""A model folder as it is written: in one step, sealed by hashes, and without taking what is not ours."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

from fieldmark.runtime.bundle import CARD, FILES, Config
from fieldmark.runtime.errors import FieldmarkError


@contextlib.contextmanager
def building(target: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of ``target`` in one step, or vanishes: never half a model.

    What the folder at ``target`` holds beside the files of the format (.git, a licence) moves into the new one.
    Raises FieldmarkError where ``target`` holds something else than a model, which is left as it is, and where
    it cannot be written (no room, no permission).
    """
    target = Path(target).resolve()  # behind a link, and with a name where it is "."
    if target.exists() and not _replaceable(target):
        raise FieldmarkError(
            f"{target} exists and is no model folder: it is left as it is; choose another place"
        )
    draft, old = (target.with_name(f".{target.name}-{uuid.uuid4().hex[:8]}{end}") for end in ("", "-old"))
    try:
        draft.mkdir(parents=True)
        yield draft
        if target.exists():
            target.rename(old)
        try:
            draft.rename(target)
        except BaseException:
            if old.exists():
                old.rename(target)
            raise
        _move_strangers(old, target)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FieldmarkError(
                f"the disk is full: no model was written to {target}; free some room"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise FieldmarkError(f"cannot write {target}: {error.strerror}; choose another place") from error
        raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _move_strangers(old: Path, new: Path) -> None:
    """Move what is no part of the format from a model's former folder (which may not exist) into its new one."""
    for path in [*old.iterdir()] if old.exists() else []:
        if path.name not in (*FILES, CARD, "config.json") and not os.path.lexists(new / path.name):
            try:
                path.rename(new / path.name)
            except OSError as error:
                raise FieldmarkError(
                    f"the model is written to {new}, but {path.name} could not be moved there ({error.strerror}): "
                    f"it is in {old}"
                ) from error


def _replaceable(target: Path) -> bool:
    """An empty folder, or one that holds a model of ours, be it damaged."""
    if not target.is_dir():
        return False
    with contextlib.suppress(OSError):
        return b'"fieldmark"' in (target / "config.json").read_bytes()
    return not any(target.iterdir())


def seal(folder: Path, config: Config) -> Config:
    """Hash the files that stand in ``folder`` and write config.json beside them, last."""
    files = {}
    for name in FILES:
        path = folder / name
        if path.exists():
            with path.open("rb") as handle:
                files[name] = hashlib.file_digest(handle, "sha256").hexdigest()
    section = config.fieldmark.model_copy(update={"files": files})
    sealed = config.model_copy(update={"fieldmark": section})
    text = json.dumps(sealed.model_dump(mode="json"), indent=2, ensure_ascii=False)
    file = folder / "config.json"
    with file.open("w", encoding="utf-8") as handle:
        handle.write(text + "\n")
        handle.flush()
        os.fsync(handle.fileno())
    return sealed


def write_splits(path: Path, splits: Mapping[str, str]) -> None:
    """Content hash -> split, as Parquet, sorted by hash so that the order of the photos is not told."""
    import pyarrow as pa
    from pyarrow import parquet

    names = sorted(splits)
    table = pa.table({"content": names, "split": pa.array([splits[n] for n in names], pa.string())})
    parquet.write_table(table, path, compression="zstd")
