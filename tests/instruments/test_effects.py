"""What writes is not run again, and nothing stays in the process of a step that does not write."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "effects.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/io").exists(),
        reason="each way is a fork, and only Linux counts a process's writes",
    ),
]


def rows_of(*arguments: str) -> list[list[str]]:
    """Of each way: its name, how often it wrote, how many steps, whether a hook is in."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return [line.split() for line in done.stdout.splitlines()]


def test_no_way_of_writing_is_run_again_and_an_honest_step_leaves_no_hook(
    tmp_path: Path,
) -> None:
    rows = rows_of(str(tmp_path))
    assert [name for name, *_ in rows] == [
        *("opened", "held", "mapped", "raw", "pickled", "by_path", "by_descriptor"),
        *("renamed", "of_numpy", "sent", "sent_by_native_code", "nothing", "shown"),
    ]
    for name, written, steps, hook in rows:
        writes = name not in ("nothing", "shown")
        assert written == (steps if writes else "0"), name
        # a step that can reach an open socket is not run again, whatever it calls
        assert hook == str(writes and name != "sent_by_native_code"), name


def test_where_the_kernel_does_not_count_writes_the_hook_is_put_in_at_once(
    tmp_path: Path,
) -> None:
    rows = rows_of(str(tmp_path), "pickled", "nothing")
    assert rows == [["pickled", "6", "6", "True"], ["nothing", "0", "6", "True"]]
