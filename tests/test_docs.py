"""The docs say what the code does: pages and tables that are made from it are fresh, links lead somewhere."""

from __future__ import annotations

import ast
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

HOME = Path(__file__).resolve().parent.parent
PAGES = [
    HOME / "README.md",
    HOME / "README.zh.md",
    HOME / "CONTRIBUTING.md",
    *sorted((HOME / "docs").glob("*.md")),
]
tables = SimpleNamespace(**runpy.run_path(str(HOME / "benchmarks/tables.py")))
commands = SimpleNamespace(**runpy.run_path(str(HOME / "docs/commands.py")))
method_pages = SimpleNamespace(**runpy.run_path(str(HOME / "docs/methods.py")))


def test_errors_are_where_the_docs_say() -> None:
    import fieldmark
    from fieldmark.runtime import errors

    assert fieldmark.FieldmarkError is errors.FieldmarkError and fieldmark.UsageError is errors.UsageError


def test_the_page_of_commands_is_fresh() -> None:
    page = (HOME / "docs/commands.md").read_text(encoding="utf-8")
    assert page == commands.page(), "run: python docs/commands.py"


def test_the_pages_of_methods_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["methods.py", "--check"])
    assert method_pages.main() == 0, "run: python docs/methods.py"


def test_the_tables_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    assert tables.main() == 0, "run: python benchmarks/tables.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\[[^\]]+\]\(([^)#]+)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_imports_in_examples_exist(page: Path) -> None:
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("fieldmark"):
                exec(compile(ast.Module([node], []), page.name, "exec"), {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_in_examples_exist(page: Path) -> None:
    """Every ``fieldmark VERB --flag`` in a code block is a flag that this verb has."""
    helps = dict(re.findall(r"### ([\w-]+)\n\n```text\n(.*?)```", commands.page(), re.DOTALL))
    blocks = re.findall(r"```(?:bash)?\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    for line in "\n".join(blocks).splitlines():
        call = re.match(r"(?:uv run )?fieldmark ([a-z-]+)(.*)", line.split("#")[0].strip())
        if call:
            assert call[1] in helps, line
            for flag in re.findall(r"(?<= )(--?[a-z][\w-]*)", call[2]):
                assert re.search(rf"(?<![\w-]){flag}(?![\w-])", helps[call[1]]), f"{call[1]} has no {flag}"


def test_the_readme_in_two_languages_shows_the_same_commands() -> None:
    def calls(name: str) -> list[str]:
        text = (HOME / name).read_text(encoding="utf-8")
        return [
            line.split("#")[0].rstrip()
            for line in text.splitlines()
            if line.startswith(("fieldmark ", "uv ", "pip "))
        ]

    assert calls("README.md") == calls("README.zh.md")


def test_filling_a_table(tmp_path: Path) -> None:
    (tmp_path / "speed.csv").write_text("set,method,top1\ncub,a|b,0.91\ndigits,c,\n", encoding="utf-8")
    page = (
        "before\n<!-- table speed: top1 as top-1, set -->\nold\n<!-- end -->\n"
        "<!-- table none -->\n<!-- end -->\n"
    )
    filled = tables.fill(page, tmp_path)
    assert filled == (
        "before\n<!-- table speed: top1 as top-1, set -->\n| top-1 | set |\n| ---: | --- |\n| 0.91 | cub |\n"
        "|  | digits |\n<!-- end -->\n<!-- table none -->\n*Not measured yet.*\n<!-- end -->\n"
    )
    assert tables.fill(filled, tmp_path) == filled
    assert "a\\|b" in tables.fill("<!-- table speed -->\n<!-- end -->", tmp_path)
    with pytest.raises(SystemExit, match="nothing"):
        tables.fill("<!-- table speed: nothing -->\n<!-- end -->", tmp_path)


def test_the_method_of_the_example_works(tmp_path: Path) -> None:
    import importlib.util

    import torch

    from fieldmark import methods
    from fieldmark.nn.backbone import Backbone
    from fieldmark.nn.weights import Source

    text = (HOME / "CONTRIBUTING.md").read_text(encoding="utf-8")
    file = tmp_path / "gem.py"
    file.write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], encoding="utf-8")
    card = methods._read(file)
    assert card is not None and card.name == "gem" and card.family in methods.FAMILIES
    spec = importlib.util.spec_from_file_location("gem", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    method = getattr(module, card.cls)(Backbone(Source("test_resnet", None, "random", {}), 64))
    method.add_head(5, 4)
    logits = method(torch.randn(2, 3, 64, 64))
    logits.sum().backward()
    assert logits.shape == (2, 5) and method.power.grad is not None
