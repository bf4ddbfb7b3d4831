"""The house keeps its floors (DESIGN.md): a module imports only from its own floor or below."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldmark import _HOMES

HOME = Path(__file__).resolve().parent.parent / "fieldmark"

#: The floor of every package and of the modules that stand outside one.
FLOORS = {
    "runtime": 0,
    "data": 1,
    "nn": 2,
    "losses": 2,
    "methods": 3,
    "train": 4,
    "evaluate": 5,
    "explain": 5,
    "export": 5,
    "check": 5,
    "report": 5,
    "serve": 6,
    "scale": 6,
    "recognizer": 7,
    "run": 7,
    "run_folder": 7,
    "run_photos": 7,
    "cli": 7,
}
#: What a floor may not import at all, wherever the import stands: the base is installed without it.
FORBIDDEN = {
    0: {"torch", "torchvision", "timm", "scipy", "sklearn", "onnx", "onnxscript", "accelerate", "pandas"}
}
#: What takes seconds to import: never at the top of a module that every command passes through.
SLOW = {
    "torch",
    "torchvision",
    "timm",
    "sklearn",
    "scipy",
    "onnx",
    "onnxscript",
    "accelerate",
    "torchmetrics",
}
QUICK_FLOORS = {0, 5, 7}
#: Packages on those floors that are imported only where torch is at work anyway.
SLOW_ANYWAY = {"explain"}

MODULES = sorted(path for path in HOME.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = ("fieldmark", *path.relative_to(HOME).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor_of(module: str) -> int | None:
    """None for the lazy front door and ``__main__``, which belong to no floor."""
    parts = module.split(".")
    if parts[-1] in _HOMES:  # from fieldmark import Recognizer
        parts = _HOMES[parts[-1]].split(".")
    if len(parts) == 1 or parts[1] in ("__main__", "__version__"):
        return None
    return FLOORS[parts[1]]


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """(module, at the top) of every import; those for type checkers alone are passed over."""

    def walk(node: ast.AST, top: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from walk(other, top)
            elif isinstance(child, ast.Import):
                yield from ((alias.name, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield absolute(child, path), top
                yield from ((f"{absolute(child, path)}.{alias.name}", top) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, top and not inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), True)


def absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    parts = name_of(path).split(".")
    package = parts if path.name == "__init__.py" else parts[:-1]
    package = package[: len(package) - node.level + 1]
    return ".".join([*package, *([node.module] if node.module else [])])


def test_every_package_has_a_floor() -> None:
    packages = {path.relative_to(HOME).parts[0].removesuffix(".py") for path in MODULES}
    assert packages - {"__init__", "__main__"} <= set(FLOORS)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_floor(path: Path) -> None:
    own = floor_of(name_of(path))
    quick = own in QUICK_FLOORS and not SLOW_ANYWAY & set(name_of(path).split("."))
    for module, top in imports(path):
        head = module.partition(".")[0]
        if head == "fieldmark":
            above = floor_of(module)
            assert own is None or above is None or above <= own, f"{module} is on floor {above}"
        elif own is not None:
            assert head not in FORBIDDEN.get(own, ()), f"floor {own} does without {head}"
            assert not (top and quick and head in SLOW), f"import {head} inside the function"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_knows_the_commands(path: Path) -> None:
    if name_of(path).startswith("fieldmark.cli") or name_of(path) == "fieldmark.__main__":
        return
    assert not any(module.startswith("fieldmark.cli") for module, _ in imports(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_nothing_that_one_system_lacks(path: Path) -> None:
    """No module that exists on one system only, no fork, no pickle."""
    lacking = {
        "fcntl",
        "resource",
        "pwd",
        "grp",
        "termios",
        "msvcrt",
        "winreg",
        "pickle",
        "dill",
        "cloudpickle",
    }
    assert not lacking & {module.partition(".")[0] for module, _ in imports(path)}
    text = path.read_text(encoding="utf-8")
    assert "os.fork" not in text and '"fork"' not in text


def test_the_rule_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of imports sees relative ones, those in functions, and those of ``from a import b``."""
    monkeypatch.setattr(sys.modules[__name__], "HOME", tmp_path)
    (tmp_path / "runtime").mkdir()
    module = tmp_path / "runtime/bad.py"
    module.write_text(
        "from typing import TYPE_CHECKING\n"
        "from fieldmark import recognizer\n"
        "from ..train import instant\n"
        "if TYPE_CHECKING:\n    import timm\n"
        "def f():\n    import torch.nn\n"
    )
    seen = dict(imports(module))
    assert seen["fieldmark.recognizer"] and seen["fieldmark.train.instant"]
    assert seen["torch.nn"] is False
    assert "timm" not in seen


def test_the_front_door_costs_nothing() -> None:
    code = (
        "import sys, fieldmark; print([m for m in ('numpy', 'torch', 'PIL', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_no_torch_where_predict_runs() -> None:
    """Importing all of floor 0 and the command line, whatever they import in turn, loads nothing slow."""
    names = ["fieldmark.cli", *(name_of(path) for path in MODULES if floor_of(name_of(path)) == 0)]
    code = f"import sys, {', '.join(names)}; print(sorted({SLOW!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
