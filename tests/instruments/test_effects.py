"""What writes is not run again, and nothing stays in the process of a step that does not write."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "effects.py"


@pytest.mark.skipif(
    not hasattr(os, "fork"), reason="each way needs a process of its own"
)
def test_no_way_of_writing_is_run_again_and_an_honest_step_leaves_no_hook(
    tmp_path: Path,
) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    )
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [name for name, *_ in rows] == [
        *("opened", "held", "mapped", "raw", "pickled", "by_path", "by_descriptor"),
        *("renamed", "of_numpy", "sent", "nothing", "shown"),
    ], done.stderr
    for name, written, steps, hook in rows:
        writes = name not in ("nothing", "shown")
        assert written == (steps if writes else "0"), name
        assert hook == str(writes), name
