"""README.md shows what the benchmarks measured, and each benchmark that it shows has a result."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks/results").glob("*.json"))


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    try:
        return importlib.import_module("tables")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


def record(**changed: Any) -> dict[str, Any]:
    shown = {"columns": ["tool", "found"], "rows": [["guard", "3 of 3"]]}
    return {
        "benchmark": "detection",
        "date": "2026-11-29",
        "versions": {"torch": "2.13.0"},
        "machine": "Linux, 2 cores",
        "readme": shown,
        "notes": [],
    } | changed


def test_the_readme_shows_the_results_that_there_are(tables: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert tables.filled(text) == text, "run python benchmarks/tables.py"


def test_each_result_has_its_place_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    places = set(re.findall(r"<!-- benchmark: (\w+) -->", text))
    assert {path.stem for path in RESULTS} <= places


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_when_where_and_with_what_it_was_measured(path: Path) -> None:
    result = json.loads(path.read_text(encoding="utf-8"))
    assert result["benchmark"] == path.stem
    assert not result["short"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", result["date"])
    assert {"python", "torch", "lightning"} <= set(result["versions"])
    assert result["machine"]
    assert result["raw"]
    width = len(result["table"]["columns"])
    assert {len(row) for row in result["table"]["rows"]} == {width}


def test_a_table_that_drifted_is_told_from_one_that_did_not(
    tables: ModuleType, tmp_path: Path
) -> None:
    text = "before\n<!-- benchmark: detection -->\n<!-- end -->\nafter\n"
    (tmp_path / "detection.json").write_text(json.dumps(record()), encoding="utf-8")
    written = tables.filled(text, tmp_path)
    assert "| guard | 3 of 3 |" in written
    assert "29 November 2026: torch 2.13.0" in written
    assert tables.filled(written, tmp_path) == written
    other = {"columns": ["tool", "found"], "rows": [["guard", "2 of 3"]]}
    (tmp_path / "detection.json").write_text(
        json.dumps(record(readme=other)), encoding="utf-8"
    )
    assert tables.filled(written, tmp_path) != written
