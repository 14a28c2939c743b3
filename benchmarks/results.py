"""What every benchmark here shares: its flags, its table on the screen, its JSON in `results/`."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FOLDER = Path(__file__).parent / "results"
ALWAYS = ("lightning-evalguard", "torch", "lightning")
Row = Sequence[Any]


def flags(doc: str | None) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--short", action="store_true", help="a few cases, to see that it runs"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of the JSON; results/ if not --short"
    )
    return parser


def machine() -> str:
    """The machine in general words."""
    cores = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.system()}, {platform.machine()}, {cores} cores, {gpu}"


def versions(*packages: str) -> dict[str, str]:
    """The installed version of each package; those that are not installed are left out."""
    installed = {"python": platform.python_version()}
    for package in (*ALWAYS, *packages):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[package] = importlib.metadata.version(package)
    return installed


def markdown(columns: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [list(columns), ["---"] * len(columns), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell) for cell in line) + " |" for line in lines
    )


def publish(
    name: str,
    options: argparse.Namespace,
    columns: Sequence[str],
    rows: Sequence[Row],
    *,
    raw: Any,
    notes: Sequence[str] = (),
    installed: dict[str, str] | None = None,
    small: tuple[Sequence[str], Sequence[Row]] | None = None,
) -> None:
    """Print the table, and write it with what it was made of.

    Args:
        raw: What was measured, before any rounding.
        notes: What a reader must know of the table.
        installed: Versions; those of this environment if None.
        small: Columns and rows for the README, where the whole table is too large for it.
    """
    print(markdown(columns, rows))
    for note in notes:
        print(f"\n{note}")
    columns_small, rows_small = small or (columns, rows)
    record = {
        "benchmark": name,
        "date": datetime.date.today().isoformat(),
        "versions": installed or versions(),
        "machine": machine(),
        "short": options.short,
        "table": {"columns": list(columns), "rows": [list(row) for row in rows]},
        "readme": {
            "columns": list(columns_small),
            "rows": [list(row) for row in rows_small],
        },
        "notes": list(notes),
        "raw": raw,
    }
    folder = options.out or (None if options.short else FOLDER)
    if folder is None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )
    print(f"\nwritten: {path}")
