"""The example of `watch`, in a process of its own, as a script has it."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path

from lightning_evalguard.plain import entry


def test_the_example_of_watch_prints_what_it_says(tmp_path: Path) -> None:
    examples = doctest.DocTestParser().get_examples(entry.watch.__doc__ or "")
    program = "import torch\nfrom lightning_evalguard import watch\n"
    program += "".join(example.source for example in examples)
    script = tmp_path / "script.py"
    script.write_text(program)
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False
    )
    assert done.stdout == "".join(example.want for example in examples), done.stderr
    assert done.stdout.startswith("checked: 1 evaluation, 4 batches")
