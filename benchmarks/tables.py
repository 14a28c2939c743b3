"""Writes the tables of README.md from the JSON in `results/`.

python benchmarks/tables.py            # between the markers, for each result that there is
python benchmarks/tables.py --check    # fails where README.md says something else
"""

from __future__ import annotations

import datetime
import json
import re
import sys
from pathlib import Path
from typing import Any

from results import FOLDER, markdown

README = Path(__file__).parent.parent / "README.md"
_MARKED = re.compile(r"(<!-- benchmark: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def day(date: str) -> str:
    at = datetime.date.fromisoformat(date)
    return f"{at.day} {at:%B %Y}"


def table(record: dict[str, Any]) -> str:
    """What the README shows of a result."""
    shown = record["readme"]
    pinned = {k: v for k, v in record["versions"].items() if k != "lightning-evalguard"}
    said = ", ".join(f"{package} {version}" for package, version in pinned.items())
    source = (
        f"`python benchmarks/{record['benchmark']}.py`, {day(record['date'])}: {said}."
    )
    parts = [markdown(shown["columns"], shown["rows"]), *record["notes"]]
    return "\n\n".join([*parts, f"{source} {record['machine']}."]) + "\n"


def filled(text: str, folder: Path = FOLDER) -> str:
    """`text` with the table of each result between its markers."""

    def write(found: re.Match[str]) -> str:
        start, name, old, end = found.groups()
        path = folder / f"{name}.json"
        if not path.exists():
            return f"{start}{old}{end}"
        return f"{start}{table(json.loads(path.read_text(encoding='utf-8')))}{end}"

    return _MARKED.sub(write, text)


def main() -> None:
    text = README.read_text(encoding="utf-8")
    if "--check" not in sys.argv:
        README.write_text(filled(text), encoding="utf-8")
    elif filled(text) != text:
        sys.exit(
            "README.md says something else than benchmarks/results: run benchmarks/tables.py"
        )


if __name__ == "__main__":
    main()
