"""What all verbs share: help, --config, errors and exit statuses."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from fieldmark import __version__
from fieldmark.cli import VERBS
from fieldmark.cli.common import check_free, model_folder, replacing, verb
from fieldmark.cli.screen import Screen, plain
from fieldmark.runtime.errors import FieldmarkError, UsageError

ALL = [name for group in VERBS.values() for name in group]
HEAVY = ("torch", "timm", "sklearn", "scipy", "pyarrow", "openvino", "onnxruntime", "numpy", "PIL", "rich")


def test_help_lists_every_verb(fieldmark: Any) -> None:
    shown = fieldmark("--help")
    assert shown.status == 0
    for group in VERBS.values():
        for name, line in group.items():
            assert re.search(rf"^  {name} +{re.escape(line)}$", shown.out, re.MULTILINE), "one line a verb"


@pytest.mark.parametrize("name", ALL)
def test_every_verb_has_help_with_examples(fieldmark: Any, name: str) -> None:
    shown = fieldmark(name, "--help")
    assert shown.status == 0
    for flag in ("--config", "--json", "--quiet"):
        assert flag in shown.out
    assert f"  fieldmark {name}" in shown.out.split("Examples:")[1]
    assert all(len(line) <= 110 for line in shown.out.splitlines())


def test_version_and_wrong_usage(fieldmark: Any) -> None:
    assert fieldmark("--version").out == f"fieldmark {__version__}\n"
    assert fieldmark("trian").status == 2
    assert "train" in fieldmark("trian").err
    assert fieldmark("train", "--no-such-flag").status == 2
    assert fieldmark("train").status == 2


def test_help_imports_nothing_heavy() -> None:
    """Neither the list of verbs nor the help of one of them costs what its work will cost."""
    code = (
        "import sys; from fieldmark.cli import app\n"
        "try: app(sys.argv[1:], prog_name='fieldmark')\n"
        f"finally: print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    for words in (["--help"], ["train", "--help"], ["predict", "--help"], ["demo", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True
        )
        assert "LOADED []" in done.stdout


# -- a verb of our own, to see what the frame does with it


@verb(examples="fieldmark work things --seed 3")
def work(
    screen: Screen,
    things: Annotated[list[str], typer.Argument()],
    seed: int = 0,
    rate: float = 0.5,
    size: Annotated[list[int] | None, typer.Option()] = None,
    color_space: str = "rgb",
    report: Annotated[bool, typer.Option()] = True,
    offline: Annotated[bool, typer.Option("--offline")] = False,
) -> None:
    """Do it."""
    screen.say("hello")
    screen.note("a note")
    screen.answer(
        {"things": things, "seed": seed, "rate": rate, "size": size, "color_space": color_space}
        | {"report": report, "offline": offline, "score": math.nan}
    )


def run(function: Any, *words: object) -> Any:
    app = typer.Typer(rich_markup_mode=None)
    app.command()(function)
    return CliRunner().invoke(app, [str(word) for word in words])


def failing(error: BaseException) -> Any:
    @verb(examples="none")
    def fail(screen: Screen) -> None:
        """Fail."""
        raise error

    return fail


def test_json_is_one_line_and_has_no_nan() -> None:
    done = run(work, "a", "--json")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["score"] is None
    assert done.stderr == "a note\n"
    assert run(work, "a", "--quiet").stderr == ""
    assert run(work, "a").stdout == "hello\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("encoding, says", [("cp1252", "\\u732b"), ("ascii", "\\u732b"), ("UTF8", "猫")])
def test_json_keeps_every_letter(encoding: str, says: str) -> None:
    code = (
        "import sys\nfrom fieldmark.cli.screen import Screen\n"
        "sys.stdout.reconfigure(errors='replace')\nScreen(json=True).answer({'label': '猫'})"
    )
    environment = os.environ | {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout) == {"label": "猫"} and says in done.stdout.decode()


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen()
    with screen.progress() as progress:
        progress("[red]reading", 1, 3)
        progress("choosing", 0)
        screen.note("a [note]")
        progress("[red]reading", 3, 3)
        progress("training", 9, 9)
        progress("training", 1, 4)
        assert not screen._bar.tasks[-1].finished, "it runs again"
        progress("training", 4, 4)
        progress("writing", 0, None)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", terminal.getvalue())
    assert "[red]reading" in shown and "3/3" in shown and "a [note]" in shown
    last = shown.rstrip().splitlines()[-4:]
    assert all(line.strip().startswith("✓") for line in last), "all stages have ended"


def test_progress_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", log := io.StringIO())
    with Screen().progress() as progress:
        for done in range(1001):
            progress("reading", done, 1000)
        progress("choosing", 0)
        for done in range(501):  # and again, as training in its next phase
            progress("reading", done, 500)
    assert log.getvalue() == "fieldmark: reading: 1000 of 1000\nfieldmark: reading: 500 of 500\n"
    with Screen(quiet=True).progress() as progress:
        progress("reading", 1000, 1000)
    assert log.getvalue().count("\n") == 2


def test_plain_values() -> None:
    value = {"a": np.float32("nan"), "b": (np.int64(3), Path("x")), 1: np.array([1.5, math.inf]), "c": {"猫"}}
    assert plain(value) == {"a": None, "b": [3, str(Path("x"))], "1": [1.5, None], "c": ["猫"]}


def test_config_stands_in_for_flags(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "things: [x, y]\nseed: 3\nrate: 1e-3\nsize: [224, 320]\n"
        "color-space: lab\nreport: false\noffline: true\n"
    )
    answer = json.loads(run(work, "--config", config, "--json").stdout)
    assert answer == {
        "things": ["x", "y"],
        "seed": 3,
        "rate": 0.001,
        "size": [224, 320],
        "color_space": "lab",
        "report": False,
        "offline": True,
        "score": None,
    }
    words = ("z", "--seed", 4, "--size", 64, "--report", "--color-space", "hsv", "--json")
    for order in ((*words, "--config", config), ("--config", config, *words)):
        answer = json.loads(run(work, *order).stdout)
        assert (answer["things"], answer["seed"], answer["size"]) == (["z"], 4, [64])
        assert (answer["report"], answer["color_space"], answer["rate"]) == (True, "hsv", 0.001)


def test_config_knows_the_other_spellings(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("things: a\ncolor_space: lab\nno-report: true\nsize: 64\nseed:\n")
    answer = json.loads(run(work, "--config", tmp_path / "c.yaml", "--json").stdout)
    assert (answer["things"], answer["report"], answer["size"], answer["seed"]) == (["a"], False, [64], 0)
    (tmp_path / "empty.yaml").write_text("")
    assert run(work, "a", "--config", tmp_path / "empty.yaml").exit_code == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("sead: 3", "did you mean 'seed'"),
        ("config: x.yaml", "no flag is called 'config'"),
        ("- a", "must hold lines"),
        ("seed: [1, 2]", "one value"),
        ("seed: {a: 1}", "one value"),
        ("offline: perhaps", "true or false"),
        ("a: b: c", "not YAML"),
        ("seed: three", "--seed"),
    ],
)
def test_config_that_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "c.yaml").write_text(text)
    done = run(work, "a", "--config", tmp_path / "c.yaml")
    assert done.exit_code == 2
    assert says in " ".join(done.stderr.split())
    assert run(work, "a", "--config", tmp_path / "none.yaml").exit_code == 2


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (FieldmarkError("no photos in x:\n look there"), 1, "fieldmark: error: no photos in x: look there\n"),
        (UsageError("bad flag"), 2, "fieldmark: error: bad flag\n"),
        (KeyboardInterrupt(), 130, "fieldmark: error: interrupted\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), 1, "a/b: the disk is full"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "a/b: permission denied"),
        (ModuleNotFoundError("No module named 'torch'", name="torch.nn"), 1, "fieldmark[train]"),
        (MemoryError(), 1, "not enough memory"),
        (ZeroDivisionError("division by zero"), 1, "unexpected ZeroDivisionError: division by zero"),
    ],
)
def test_errors_are_one_line(
    error: BaseException, status: int, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FIELDMARK_DEBUG", raising=False)
    done = run(failing(error))
    assert done.exit_code == status
    assert says in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    monkeypatch.setenv("FIELDMARK_DEBUG", "1")
    assert "Traceback" in run(failing(error)).stderr


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    code = "from fieldmark.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.stderr.read() == ""
    process.wait()


def test_module_and_names_a_terminal_cannot_show() -> None:
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "fieldmark", "cache", "猫"], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "no cache is called" in done.stderr


# -- what stands at --out


def test_what_exists_is_not_written_over(tmp_path: Path) -> None:
    check_free(tmp_path / "new")
    check_free(tmp_path)  # an empty folder is free
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        with pytest.raises(UsageError, match="exists already"):
            check_free(path)
        check_free(path, resume=True)
        check_free(path, overwrite=True)
    with pytest.raises(UsageError, match="exclude"):
        check_free(tmp_path, resume=True, overwrite=True)


def test_replacing_puts_the_old_back_after_an_error(tmp_path: Path) -> None:
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.json").write_text("old")
    with pytest.raises(RuntimeError), replacing(out, ("run.json",), True):
        out.mkdir()
        (out / "half").touch()
        raise RuntimeError
    assert [path.name for path in out.iterdir()] == ["run.json"]
    with replacing(out, ("run.json",), True):
        assert not out.exists()
        out.mkdir()
        (out / "run.json").write_text("new")
    assert (out / "run.json").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_folder_one_is_in_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("old")
    (tmp_path / "deep").mkdir()
    for place, out in (("", "."), ("deep", "..")):
        monkeypatch.chdir(tmp_path / place)
        with pytest.raises(UsageError, match="folder you are in"), replacing(Path(out), ("run.json",), True):
            raise AssertionError
    assert (tmp_path / "run.json").read_text() == "old"


def test_a_foreign_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(UsageError, match="not made by fieldmark"), replacing(tmp_path, ("run.json",), True):
        raise AssertionError
    assert (tmp_path / "holiday.jpg").exists()


def test_a_run_folder_stands_for_its_model(tmp_path: Path) -> None:
    assert model_folder(tmp_path) == tmp_path
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").touch()
    assert model_folder(tmp_path) == tmp_path / "model"
    assert model_folder(tmp_path / "model") == tmp_path / "model"
