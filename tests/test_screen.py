"""Colour and links in a terminal that is one, and the same bytes as ever everywhere else."""

from __future__ import annotations

import io
import os
import pty
import random
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest

import lightning_evalguard
from lightning_evalguard import Finding, Report
from lightning_evalguard.record import run as record
from lightning_evalguard.screen import as_table, coloured, console_of, is_uncaught

pytest.importorskip("rich")

_ROOT = str(Path(lightning_evalguard.__file__).parents[1])
_ESCAPE = re.compile(r"\x1b\[[\d;]*m|\x1b\]8;[^\x1b]*\x1b\\")
_WITHOUT_RICH = "import sys; sys.modules['rich'] = None\n"
FOUND = """
from lightning_evalguard import EvalGuardError, Finding, Report
from lightning_evalguard.report import warn
finding = Finding("sync", "fit", "`loss.item()` makes the host wait", "Keep the tensor.",
                  location=__file__ + ":3", expression="loss.item()")
"""
WARNS = FOUND + "warn(finding)\n"
RAISES = FOUND + "report = Report(); report.add([finding])\n"
RAISES += "raise EvalGuardError.of([finding], report)\n"


def in_a_terminal(*command: str, **environment: str) -> str:
    """What a command prints where standard output and error are one terminal."""
    ours, theirs = pty.openpty()
    kept = {
        k: v
        for k, v in os.environ.items()
        if k not in ("NO_COLOR", "FORCE_COLOR", "COLUMNS")
    }
    paths = os.pathsep.join([_ROOT, *filter(None, [os.environ.get("PYTHONPATH")])])
    env = {**kept, "PYTHONPATH": paths, "TERM": "xterm-256color", **environment}
    child = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, env=env
    )
    os.close(theirs)
    printed = b""
    until = time.monotonic() + 120
    while time.monotonic() < until and select.select([ours], [], [], 120)[0]:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        printed += part
    child.wait(timeout=60)
    os.close(ours)
    return printed.decode().replace("\r\n", "\n")


def through_a_pipe(*command: str) -> str:
    env = {**os.environ, "PYTHONPATH": _ROOT}
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env=env
    ).stderr


def plain(printed: str) -> str:
    return _ESCAPE.sub("", printed)


@pytest.fixture
def script(tmp_path: Path) -> Any:
    def write(text: str) -> str:
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@pytest.mark.parametrize("text", [WARNS, RAISES], ids=["warning", "error"])
def test_a_terminal_shows_colour_and_the_same_words(text: str, script: Any) -> None:
    path = script(text)
    shown = in_a_terminal(sys.executable, path)
    assert "\x1b[36m`loss.item()`" in shown
    assert "\x1b[32mKeep the tensor.\x1b[0m" in shown
    assert f"{Path(path).as_uri()}#3\x1b\\" in shown
    assert "/checks/sync/\x1b\\" in shown
    assert plain(shown) == through_a_pipe(sys.executable, path)


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str)
@pytest.mark.parametrize("text", [WARNS, RAISES], ids=["warning", "error"])
def test_who_wants_none_gets_none(
    text: str, environment: dict[str, str], script: Any
) -> None:
    path = script(text)
    shown = in_a_terminal(sys.executable, path, PYTHON_COLORS="0", **environment)
    assert shown == through_a_pipe(sys.executable, path)


@pytest.mark.parametrize("text", [WARNS, RAISES], ids=["warning", "error"])
def test_without_rich_a_terminal_shows_plain_text(text: str, script: Any) -> None:
    path = script(_WITHOUT_RICH + text)
    shown = in_a_terminal(sys.executable, path, PYTHON_COLORS="0")
    assert shown == through_a_pipe(sys.executable, path)


def test_a_message_that_somebody_holds_is_plain_and_nothing_stays_replaced(
    script: Any,
) -> None:
    path = script(
        FOUND
        + """
import logging, random, traceback, warnings
state = random.getstate()
kept = warnings.showwarning, warnings.formatwarning
warn(finding)
assert (warnings.showwarning, warnings.formatwarning) == kept
assert random.getstate() == state, "a link took a draw"
with warnings.catch_warnings(record=True) as held:
    warnings.simplefilter("always")
    warn(finding)
logging.basicConfig(format="logged %(message)s")
logging.captureWarnings(True)
warnings.simplefilter("always")
warn(finding)
logging.captureWarnings(False)
try:
    raise EvalGuardError.of([finding], Report())
except EvalGuardError as error:
    texts = [str(held[0].message), str(error), str(finding), error.args[0], traceback.format_exc()]
assert not [text for text in texts if chr(27) in text], texts
print("held", len(held))
"""
    )
    shown = in_a_terminal(sys.executable, path)
    assert shown.endswith("held 1\n"), shown
    assert "\x1b" not in shown[shown.index("logged") :]
    assert "\x1b" in shown[: shown.index("logged")]


def written(folder: Path, location: str, **scores: float) -> Path:
    report = Report()
    fact = "is in train mode, expected eval mode"
    report.add(
        [Finding("modes", "validate", fact, "Call `.eval()`.", "net", "Net", location)]
    )
    report.checked["evaluations"] = 2
    folder.mkdir()
    path = folder / "evalguard.json"
    from views.test_page import run

    history = [{"epoch": 1, "step": 3, "stage": "validate", "scores": scores}]
    path.write_text(_json(record.content(report, [run(history=history)])))
    return path


def _json(content: Any) -> str:
    from lightning_evalguard.record.files import json_text

    return json_text(content)


def test_a_record_is_shown_in_colour_and_several_as_a_table(tmp_path: Path) -> None:
    here = tmp_path / "model.py"
    here.write_text("x = 1\n")
    one = written(tmp_path / "one", f"{here}:1", accuracy=0.5)
    other = written(tmp_path / "other", f"{here}:1", accuracy=0.75)
    command = (sys.executable, "-m", "lightning_evalguard", "show")
    shown = in_a_terminal(*command, str(one))
    assert "\x1b[1;31m1 finding\x1b[0m" in shown
    assert f"{here.as_uri()}#1\x1b\\" in shown
    assert "─" in in_a_terminal(*command, str(one), str(other))
    table = in_a_terminal(*command, str(one), str(other), NO_COLOR="1")
    assert "─" not in table
    assert "\x1b" not in table


def test_a_record_of_others_steers_no_terminal(tmp_path: Path) -> None:
    evil = "\x1b]0;owned\x07"
    path = written(tmp_path / "one", f"/etc/{evil}.py:1", **{f"val/{evil}": 0.5})
    command = (sys.executable, "-m", "lightning_evalguard", "show")
    for paths in ([str(path)], [str(path), str(path)]):
        shown = in_a_terminal(*command, *paths)
        assert "\x1b]0" not in shown
        assert "\x07" not in shown
        assert "\\x1b]0;owned\\x07" in shown


class Terminal(io.StringIO):
    """Says that it is one."""

    def isatty(self) -> bool:
        return True


def test_who_decides_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert console_of(Terminal()) is not None
    assert console_of(io.StringIO()) is None
    assert console_of(None) is None
    closed = Terminal()
    closed.close()
    monkeypatch.setenv("TERM", "unknown")
    assert console_of(Terminal()) is None
    assert coloured("2 findings", io.StringIO()) == "2 findings"
    assert as_table([("", ["a"]), ("x", ["1"])], io.StringIO()) is None


def test_no_line_is_broken_and_no_draw_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    text = f"1 finding\n  {__file__}:3: `{'x' * 400}` is long  and\nhas spaces.  [sync]\n\nnote: so"
    state = random.getstate()
    shown = coloured(text, Terminal())
    assert random.getstate() == state
    assert shown != text
    assert plain(shown) == text


def test_words_before_a_place_are_no_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = coloured(f"  `net` (Net): is so; set at {__file__}:3 `x()`.", Terminal())
    assert "set at \x1b]8;id=" in shown
    assert f"{Path(__file__).as_uri()}#3\x1b\\" in shown
    assert "\x1b]8" not in coloured(
        "  nowhere.py:3: is so", Terminal()
    )  # there is no such file


def test_only_the_interpreter_asks_without_a_caller() -> None:
    assert not is_uncaught(0)
