"""Which planted bugs does each tool find, and what does it name?

    python benchmarks/detection.py [--envs DIR] [--peers NAME ...] [--short]

Every program of the zoo (`tests/models`) is one bug with its honest twins. Each tool is asked as
its own documentation says (`peers.py`), in an environment of its own under DIR, which is made
where it is missing. A bug is *found* if the tool says of it what it says of none of its twins;
whatever else it says is chatter. The rows of tools that are not asked this time are kept.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import zoo
from results import FOLDER, flags, publish, versions

HERE = Path(__file__).parent
# The packages of each tool's environment; none: this one. How it is used, and when it speaks.
TOOLS: dict[str, tuple[list[str], str]] = {
    "lightning": ([], "the Trainer alone: its warnings and errors"),
    "pytest-torch": (
        ["pytest-torch==1.1.1", "pytest"],
        "a test: contract, layouts, checkpoint, optimizers, five steps",
    ),
    "torchtest2": (["torchtest2==0.1.0"], 'a test: check_model(plugin="lightning")'),
    "torch-audit": (["torch-audit==0.3.0"], "autopatch in a callback, every step"),
    "traincheck": (
        ["traincheck==0.2.0"],
        "invariants of the first twin, after the run",
    ),
    "torchfix": (["torchfix==0.7.0"], "the source, all rules"),
    "torch-preflight": (["torch-preflight==0.5.0"], "the source"),
    "guard": ([], "EvalGuard() as a callback"),
}
ALSO = ["torch==2.13.0", "lightning", "scikit-learn", "matplotlib"]
EVERY = {"traincheck": 12}  # which takes minutes a program
_CASES = {case.name: case for case in zoo.cases()}


def interpreter(tool: str, folder: Path) -> tuple[str, str]:
    """The Python of a tool's environment, made if it is missing; or why there is none."""
    packages = TOOLS[tool][0]
    if not packages:
        return sys.executable, ""
    home = folder / tool
    python = home / "bin/python"
    if python.exists():
        return str(python), ""
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
    constraints = ["-c", str(HERE.parent / "constraints.txt")]
    pip = [str(python), "-m", "pip", "install", "-q", *constraints, *ALSO, *packages]
    done = subprocess.run(pip, capture_output=True, text=True)
    if done.returncode:
        shutil.rmtree(home)
        return "", (done.stderr.strip().splitlines() or ["pip failed"])[-1][:120]
    return str(python), ""


def answers(tool: str, python: str, every: int) -> list[dict[str, Any]]:
    command = [python, str(HERE / "peers.py"), tool, "--every", str(every)]
    environment = os.environ | {"PYTHONPATH": str(HERE.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode:
        print(done.stderr[-500:], file=sys.stderr)
    return [json.loads(line) for line in lines]


def judged(given: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Of each bug: what was said that is said of no twin, and what that names."""
    of_twins: dict[str, set[str]] = {}
    loud: Counter[str] = Counter()
    twins: Counter[str] = Counter()
    for answer in given:
        if answer["twin"] is not None:
            kinds = {kind for kind, _ in answer["said"]}
            of_twins.setdefault(answer["case"], set()).update(kinds)
            loud[answer["case"]] += bool(kinds)
            twins[answer["case"]] += 1
    verdicts = {}
    for answer in given:
        if answer["twin"] is None:
            name = answer["case"]
            telling = [
                said for said in answer["said"] if said[0] not in of_twins.get(name, ())
            ]
            verdicts[name] = _verdict(name, answer, telling)
            verdicts[name] |= {"twins": twins[name], "loud_twins": loud[name]}
    return verdicts


def _verdict(
    name: str, answer: dict[str, Any], telling: list[list[str]]
) -> dict[str, Any]:
    case = _CASES[name]
    text = "\n".join(text for _, text in telling)
    # "teacher.weight" is named by "teacher" too
    parts = case.subject.split(".")
    names = {case.subject, ".".join(parts[:-1])} - {""}
    line = Path(case.location).name if case.location else ""
    stage = re.search(r"\((\w+), step (\w+)\)", text)
    return {
        "check": case.check,
        "spoke": bool(answer["said"]),
        "found": bool(telling),
        "module": any(
            re.search(rf"(?<![\w.]){re.escape(n)}(?!\w)", text) for n in names
        ),
        "line": bool(line) and re.search(rf"{re.escape(line)}(?!\d)", text) is not None,
        "when": " ".join(stage.groups()) if stage else "",
        "failed": answer.get("failed", ""),
        "said": [
            f"[{kind}] {text}".replace(f"{HERE.parent}/", "")[:200]
            for kind, text in telling[:1]
        ],
    }


def row(tool: str, verdicts: dict[str, dict[str, Any]]) -> list[str]:
    """A line of the table."""
    total = len(verdicts)
    found = [name for name, verdict in verdicts.items() if verdict["found"]]
    with_subject = [name for name in found if _CASES[name].subject]
    with_line = [name for name in found if _CASES[name].location]
    twins = sum(verdict["twins"] for verdict in verdicts.values())
    quiet = twins - sum(verdict["loud_twins"] for verdict in verdicts.values())
    return [
        tool,
        f"{len(found)} of {total}",
        f"{sum(verdicts[n]['module'] for n in with_subject)} of {len(with_subject)}",
        f"{sum(verdicts[n]['line'] for n in with_line)} of {len(with_line)}",
        f"{quiet} of {twins}",
        TOOLS[tool][1],
    ]


def main() -> None:
    parser = flags(__doc__)
    parser.add_argument("--envs", type=Path, default=HERE.parent / "build/peers")
    parser.add_argument("--peers", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--every", type=int, help="each N-th bug alone")
    options = parser.parse_args()
    raw: dict[str, Any] = {}
    kept = FOLDER / "detection.json"
    if kept.exists() and not options.short:
        raw = json.loads(kept.read_text(encoding="utf-8"))["raw"]
    asked = [p for p in options.peers if not options.short or not TOOLS[p][0]]
    for tool in asked:
        python, why = interpreter(tool, options.envs)
        every = 80 if options.short else options.every or EVERY.get(tool, 1)
        raw[tool] = judged(answers(tool, python, every)) if python else why
    columns = [
        "tool",
        "bugs found",
        "module named",
        "line named",
        "twins quiet",
        "used as",
    ]
    rows = [
        row(tool, raw[tool])
        if isinstance(raw[tool], dict)
        else [tool, f"not installed: {raw[tool]}", "", "", "", TOOLS[tool][1]]
        for tool in TOOLS
        if tool in raw
    ]
    publish(
        "detection",
        options,
        columns,
        rows,
        raw=raw,
        notes=notes(raw),
        installed=pinned(),
    )


def notes(raw: dict[str, Any]) -> list[str]:
    said = []
    if isinstance(guard := raw.get("guard"), dict):
        found = [v for v in guard.values() if v["found"]]
        early = [v for v in found if v["when"].endswith(" 0") or "sanity" in v["when"]]
        said.append(
            f"The guard found {len(early)} of {len(found)} before the first training step."
        )
    return said


def pinned() -> dict[str, str]:
    """The versions that were asked for."""
    packages = dict(
        p.split("==") for needs, _ in TOOLS.values() for p in needs if "==" in p
    )
    return versions() | packages


if __name__ == "__main__":
    main()
