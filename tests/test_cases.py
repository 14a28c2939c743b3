"""The tables of programs with their truth, each run whole in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

CASES = Path(__file__).parent / "cases"


@pytest.mark.slow
@pytest.mark.parametrize("table", ["steps", "honest", "chain"])
def test_every_row_of_the_table_holds(table: str) -> None:
    done = subprocess.run(
        [sys.executable, f"{table}.py"],
        cwd=CASES,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_test_of_the_tables_can_fail(tmp_path: Path) -> None:
    for name in ("steps.py", "steps_common.py"):
        (tmp_path / name).write_text((CASES / name).read_text())
    table = tmp_path / "steps.py"
    table.write_text(
        table.read_text().replace("self.true(z.argmax(1), y)", "self.true(1 - y, y)")
    )
    done = subprocess.run(
        [sys.executable, "steps.py", "returns_outputs_and_labels"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
