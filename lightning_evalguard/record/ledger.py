"""How often was this test set used? One line a test, beside the runs' folders."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lightning_evalguard.record import files as _files

LEDGER_NAME = "evalguard-test-uses.jsonl"
_FREE = 2  # uses that nobody is told of
_SHOWN = 5


def count(book: Path, name: str, run: Mapping[str, Any]) -> Iterator[str]:
    """Write a test into the ledger `book`; a sentence for each set used more than twice.

    Args:
        book: The ledger.
        name: The run's folder, as seen from the ledger's.
        run: The run as plain data.
    """
    checkpoint = run["checkpoint"] or {}
    for key, seen in run["evaluated_on"].items():
        if seen["hash"] is None:
            continue
        entry = {
            "time": run["ended"],
            "set": seen["hash"],
            "samples": seen["samples"],
            "loader": key,
            "run": name,
            "checkpoint": checkpoint.get("sha256", checkpoint.get("path")),
        }
        _files.append_line(book, json.dumps(entry))
        uses = [
            use for use in _files.read_lines(book) if use.get("set") == seen["hash"]
        ]
        if len(uses) > _FREE:
            yield _sentence(key, seen["samples"], [str(use.get("run")) for use in uses])


def _sentence(key: str, samples: int | None, runs: list[str]) -> str:
    each = list(dict.fromkeys(runs))
    listed = ", ".join(each[-_SHOWN:])
    if len(each) > _SHOWN:
        listed = f"{len(each) - _SHOWN} others and {listed}"
    size = ""
    if samples is not None:
        size = f" of {samples:,} samples"
    return (
        f"{key}: the test set{size} was used {len(runs)} times, by {listed}. What is chosen by its "
        "scores is fitted to it: choose on the validation set"
    )
