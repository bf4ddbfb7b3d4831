"""Photos in folders: what is listed, in which order, and which layout a folder has."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from fieldmark.runtime.errors import FieldmarkError
from fieldmark.runtime.image import EXTENSIONS
from fieldmark.runtime.results import Skipped

#: Names of splits as people write them, and as a catalog keeps them.
SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
_LEFT_OUT = frozenset({"__MACOSX", "@eaDir", "$RECYCLE.BIN"})  # what systems put beside one's files

Row = tuple[str, str | None, str | None]


class Folder(NamedTuple):
    """One level of a folder tree: visible subfolders and photos by name, as (name, path), sorted."""

    folders: list[tuple[str, str]]
    photos: list[str]


def is_photo(name: str) -> bool:
    """By the file's ending alone: the content is looked at when the photo is read."""
    return name[name.rfind(".") :].lower() in EXTENSIONS


def listed(folder: str, skipped: list[Skipped]) -> Folder:
    """What a folder holds, links followed. A folder that cannot be listed is noted and counts as empty."""
    folders, photos = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                name = entry.name
                if name.startswith(".") or name in _LEFT_OUT:
                    continue
                if _is_folder(entry):
                    folders.append((name, entry.path))
                elif is_photo(name):
                    photos.append(entry.path)
    except OSError as error:
        skipped.append(Skipped(folder, f"folder cannot be listed ({error.strerror})"))
    return Folder(folders, photos)


def photos(folder: str, skipped: list[Skipped], seen: set[tuple[int, int]] | None = None) -> Iterator[str]:
    """All photos below a folder, in a fixed order. No real folder is entered twice: links cannot hang it."""
    seen = set() if seen is None else seen
    waiting = [folder]
    while waiting:
        here = waiting.pop()
        if _enter(here, seen):
            content = listed(here, skipped)
            yield from content.photos
            waiting.extend(path for _, path in reversed(content.folders))


def rows(root: str, skipped: list[Skipped]) -> Iterator[Row]:
    """(path, label, split) of every photo in ``root/class/…`` or ``root/train|val|test/class/…``.

    A folder counts as split when the names of all its subfolders that hold photos are split names and at
    least one of them holds class folders; or when train and another split hold only class folders (what
    lies beside them is left out, and noted). So a class may be called "train". Raises FieldmarkError where
    photos lie in split folders without class folders.
    """
    top = listed(root, skipped)
    splits = _splits(top, root)
    seen: set[tuple[int, int]] = set()
    _enter(root, seen)
    if splits is None:
        yield from _classes(top, None, skipped, seen)
        return
    for name, path in top.folders:
        if name in splits:
            here = set(seen)
            _enter(path, here)
            yield from _classes(listed(path, skipped), splits[name], skipped, here)
        elif next(photos(path, [], set(seen)), None) is not None:
            skipped.append(Skipped(printable(path), "not a split folder (train, val, test): left out"))
    _loose(top, skipped)


def printable(path: str) -> str:
    """A path that can be written as UTF-8, whatever bytes a file system allows in names."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _classes(
    level: Folder, split: str | None, skipped: list[Skipped], seen: set[tuple[int, int]]
) -> Iterator[Row]:
    for name, path in level.folders:
        label = unicodedata.normalize("NFC", name)
        for photo in photos(path, skipped, set(seen)):
            yield photo, label, split
    _loose(level, skipped)


def _loose(level: Folder, skipped: list[Skipped]) -> None:
    skipped.extend(Skipped(printable(photo), "in no class folder") for photo in level.photos)


def _splits(top: Folder, root: str) -> dict[str, str] | None:
    """Which subfolders are splits: {folder name: split}, or None where subfolders are classes."""
    named = {name: path for name, path in top.folders if name.lower() in SPLITS}
    if not named:
        return None
    flat: dict[str, bool] = {}
    deep: dict[str, bool] = {}
    for name, path in named.items():
        level = listed(path, [])
        flat[name] = bool(level.photos)
        deep[name] = any(next(photos(inner, []), None) is not None for _, inner in level.folders)
    named = {name: path for name, path in named.items() if flat[name] or deep[name]}
    others = any(
        next(photos(path, []), None) is not None for name, path in top.folders if name.lower() not in SPLITS
    )
    splits = {name: SPLITS[name.lower()] for name in named}
    if not others:
        if any(deep[name] for name in named):
            return splits
        if len(named) > 1:
            raise FieldmarkError(
                f"{root}: its folders {', '.join(named)} look like splits but hold no class folders: "
                f"put photos in {next(iter(named))}/<class>/, or give a table with file_name, label, split"
            )
    only_classes = all(deep[name] and not flat[name] for name in named)
    if only_classes and "train" in splits.values() and len(set(splits.values())) > 1:
        return splits
    return None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _enter(folder: str, seen: set[tuple[int, int]]) -> bool:
    """Mark a real folder as seen; False where it already was (or is gone)."""
    try:
        status = os.stat(folder)  # noqa: PTH116
    except OSError:
        return True  # listing it will say why
    key = (status.st_dev, status.st_ino)
    if key in seen:
        return False
    seen.add(key)
    return True
