"""Makes the pictures of README.md and the docs from real runs: ``python docs/pictures.py``.

The message is what ``examples/broken.py`` prints, the matrix what ``examples/digits.py`` counts.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
import textwrap
import xml.sax.saxutils as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / "docs" / "pictures"
_COMMAND = "python examples/broken.py --bug NormLeftOn"
_WIDTH, _LINE, _LETTER, _EDGE = 96, 19, 7.83, 16  # columns; the rest in pixels
# What stands out in a message, first match first.
_COLOURS = (
    (re.compile(r"EvalGuardError"), "#ff7b72"),
    (re.compile(r"\[\w+\]$"), "#d2a8ff"),
    (re.compile(r"[\w/]+\.py:\d+"), "#79c0ff"),
    (re.compile(r"`[^`]+`"), "#a5d6ff"),
    (re.compile(r"EvalGuard\(.*\)\.?"), "#7ee787"),
)


def printed(command: str) -> list[str]:
    """The lines of the message that an example ends with."""
    _, *arguments = command.split()
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "examples").symlink_to(ROOT / "examples")
        done = subprocess.run(
            [sys.executable, *arguments], cwd=folder, capture_output=True, text=True, check=False,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
        text = done.stderr.replace(f"{Path(folder).resolve()}/", "")
    message = text[text.index("EvalGuardError") :]
    lines = [f"$ {command}"]
    for line in message.replace(f"{ROOT}/", "").splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        lines += textwrap.wrap(
            line,
            _WIDTH,
            subsequent_indent=indent,
            break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def terminal(lines: list[str]) -> str:
    """A terminal that shows `lines`, as SVG."""
    width, height = int(_WIDTH * _LETTER) + 2 * _EDGE, len(lines) * _LINE + 2 * _EDGE
    rows = [
        f'<text x="{_EDGE}" y="{_EDGE + _LINE * number + 14}" xml:space="preserve">'
        f"{coloured(line)}</text>"
        for number, line in enumerate(lines)
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img" aria-label="{_COMMAND}">',
            f'<rect width="{width}" height="{height}" rx="8" fill="#0d1117" stroke="#30363d"/>',
            "<g font-family=\"ui-monospace, Menlo, Consolas, 'DejaVu Sans Mono', monospace\" "
            'font-size="13" fill="#e6edf3">',
            *rows,
            "</g>",
            "</svg>\n",
        ]
    )


def coloured(line: str) -> str:
    """A line with its parts in the colours of the terminal."""
    spans = []
    at = 0
    while at < len(line):
        matches = [(m.start(), -m.end(), colour, m) for pattern, colour in _COLOURS
                   if (m := pattern.search(line, at))]  # fmt: skip
        if not matches:
            break
        *_, colour, match = min(matches, key=lambda each: each[:2])
        spans.append(xml.escape(line[at : match.start()]))
        spans.append(f'<tspan fill="{colour}">{xml.escape(match[0])}</tspan>')
        at = match.end()
    return "".join([*spans, xml.escape(line[at:])])


def matrix(path: Path) -> None:
    """The confusion matrix of the digits, as the dashboards get it."""
    os.environ["COLUMNS"] = "100"
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.path.insert(0, str(ROOT / "examples"))
        names = runpy.run_path(
            str(ROOT / "examples" / "digits.py"), run_name="__main__"
        )
        figure, _ = names["guard"].report.confusion["val"].plot()
        figure.savefig(path, dpi=80)
        os.chdir(ROOT)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    HERE.mkdir(exist_ok=True)
    (HERE / "message.svg").write_text(terminal(printed(_COMMAND)), encoding="utf-8")
    matrix(HERE / "matrix.png")
