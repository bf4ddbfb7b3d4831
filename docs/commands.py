"""Write ``docs/commands.md`` from the command line itself; with ``--check`` only look whether it is so."""

from __future__ import annotations

import sys
from pathlib import Path

PAGE = Path(__file__).with_name("commands.md")
_FRONT = """# Commands

<!-- Made by docs/commands.py from the command line itself: change the verb's own help, then run it. -->

Every verb takes `--config FILE.yaml` (keys are flag names; a flag on the command line overrides the
file), `--json` (one JSON object as the last line of standard output) and `--quiet`. Progress and notes go
to standard error. The exit status is 0 (done), 1 (failed), 2 (wrong usage) or 130 (interrupted). What exists
at `--out` is never written over unless you say `--resume` or `--overwrite`.

With `FIELDMARK_DEBUG=1` an error shows its traceback.
"""


def page() -> str:
    """The page: the help of every verb, in the order of ``fieldmark --help``."""
    from typer.testing import CliRunner

    from fieldmark.cli import VERBS, app

    parts = [_FRONT]
    runner = CliRunner(env={"COLUMNS": "100", "TERMINAL_WIDTH": "100"})
    for title, verbs in VERBS.items():
        parts.append(f"## {title}\n")
        for name in verbs:
            shown = runner.invoke(app, [name, "--help"], prog_name="fieldmark")
            if shown.exit_code:
                raise SystemExit(f"fieldmark {name} --help failed: {shown.output}")
            parts.append(f"### {name}\n\n```text\n{shown.output.strip()}\n```\n")
    return "\n".join(parts)


def main() -> int:
    text = page()
    fresh = PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text
    if "--check" in sys.argv:
        return 0 if fresh else 1
    PAGE.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
