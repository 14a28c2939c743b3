"""The errors that TrainCheck's evaluation published, under the guard.

    python benchmarks/traincheck.py [--only NAME ...] [--workloads DIR] [--short]

Ten of its eighteen errors need no GPU, or two processes at most: `published.py` tells them again,
each with its fixed twin. An error is found if the guard says of it what it does not say of the
twin. With DIR, a checkout of OrderLab/TrainCheck-Evaluation-Workloads, its eighteen correct
programs run too, as they are, under `python -m lightning_evalguard run`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from correct import correct_programs, sentence
from published import PROGRAMS, Program
from results import FOLDER, flags, publish

from lightning_evalguard import EvalGuard, EvalGuardError

HERE = Path(__file__).parent
BY_NAME = {program.error: program for program in PROGRAMS}


def findings(program: Program, fixed: bool) -> list[dict[str, Any]]:
    """What a bare `EvalGuard()` finds in one process of a program."""
    torch.manual_seed(0)
    guard = EvalGuard(record=None)
    with tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="cpu", devices=program.ranks, max_epochs=2, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, callbacks=[guard], **program.trainer(fixed),
        )  # fmt: skip
        try:
            quiet = {"verbose": False} if program.entry == "validate" else {}
            getattr(trainer, program.entry)(program.module(fixed), **quiet)
        except EvalGuardError:
            pass  # its findings stand in the report
    return [
        {
            "check": f.check,
            "stage": f.stage,
            "step": f.step,
            "subject": f.subject,
            "location": Path(f.location).name if f.location else None,
            "fact": f.fact,
        }
        for f in guard.report.findings
    ]


def one_rank(name: str, fixed: bool) -> None:
    """One process of several; the first prints what the guard found."""
    found = findings(BY_NAME[name], fixed)
    if os.environ["RANK"] == "0":
        print(json.dumps(found))


def on_ranks(program: Program, fixed: bool) -> list[dict[str, Any]]:
    """What the guard finds where several processes run a program, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    world = str(program.ranks)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": world}
    shared |= {
        "LOCAL_WORLD_SIZE": world,
        "GROUP_RANK": "0",
        "TORCHELASTIC_RUN_ID": "none",
    }
    shared |= {"OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        __file__,
        "--rank-of",
        program.error,
        *["--fixed"] * fixed,
    ]
    processes = [
        subprocess.Popen(
            command,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(program.ranks)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    lines = [line for line in outputs[0][0].splitlines() if line.startswith("[")]
    if not lines:
        raise RuntimeError(outputs[0][1][-800:])
    return json.loads(lines[-1])


def both(program: Program) -> dict[str, Any]:
    """What is found in an error, and in its fixed twin."""
    run = on_ranks if program.ranks > 1 else findings
    of_error, of_twin = run(program, False), run(program, True)
    alike = {(f["check"], f["subject"]) for f in of_twin}
    telling = [f for f in of_error if (f["check"], f["subject"]) not in alike]
    return {"found": telling, "all": of_error, "twin": of_twin}


def row(program: Program, result: dict[str, Any]) -> list[str]:
    """A line of the table."""
    first = next(iter(result["found"]), None)
    found, named = "not found", ""
    if first:
        found = f"{first['check']}: {first['stage']}, step {first['step']}"
        named = f"`{first['location'] or first['subject']}`"
    quiet = "quiet" if not result["twin"] else f"{len(result['twin'])} findings"
    where = "two gloo ranks" if program.ranks > 1 else "Lightning"
    return [program.error, program.fault, where, found, named, quiet]


def kept() -> dict[str, Any]:
    """What an earlier run measured: errors that are not asked this time keep their rows."""
    path = FOLDER / "traincheck.json"
    if not path.exists():
        return {"errors": {}}
    return json.loads(path.read_text(encoding="utf-8"))["raw"]


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--only", nargs="+", choices=BY_NAME, metavar="NAME")
    parser.add_argument(
        "--workloads", type=Path, help="checkout of TrainCheck's workloads"
    )
    parser.add_argument(
        "--python", default=sys.executable, help="interpreter for those programs"
    )
    parser.add_argument("--rank-of", choices=BY_NAME, help=argparse.SUPPRESS)
    parser.add_argument("--fixed", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.ERROR)
    torch.set_num_threads(1)
    if options.rank_of:
        one_rank(options.rank_of, options.fixed)
        return
    raw = {"errors": {}} if options.short else kept()
    for program in PROGRAMS:
        wanted = (
            program.ranks == 1
            if options.short
            else program.error in (options.only or BY_NAME)
        )
        if wanted:
            raw["errors"][program.error] = both(program)
    if options.workloads:
        raw["correct"] = correct_programs(options.workloads, options.python)
    results = raw["errors"]
    rows = [
        row(program, results[program.error])
        for program in PROGRAMS
        if program.error in results
    ]
    found = sum(bool(result["found"]) for result in results.values())
    quiet = sum(not result["twin"] for result in results.values())
    notes = [
        f"{found} of {len(results)} errors found, {quiet} of {len(results)} fixed twins quiet."
    ]
    if "correct" in raw:
        notes.append(sentence(raw["correct"]))
    columns = ["error", "fault", "run as", "found by, first at", "names", "fixed twin"]
    publish("traincheck", options, columns, rows, raw=raw, notes=notes)


if __name__ == "__main__":
    main()
