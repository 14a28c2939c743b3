"""Records in a terminal: one in full, several side by side."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import Any

from lightning_evalguard.report import Report
from lightning_evalguard.screen import as_table, coloured
from lightning_evalguard.views.comparison import differences

Record = Mapping[str, Any]
_WIDE = 28  # characters of a cell


def printable(text: str) -> str:
    """`text` without what would steer a terminal: control characters are written as escapes."""
    return "".join(map(_harmless, text))


def _harmless(character: str) -> str:
    # Cc: controls; Cf: what turns the direction of writing; Cs: halves of a character
    steers = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    if steers and character not in "\n\t":
        return ascii(character)[1:-1]
    return character


def one(path: Path, record: Record, stream: Any = None) -> str:
    """A record in full: its runs, one line each, then the report.

    Args:
        path: Where it stands.
        record: What it holds.
        stream: Where it is printed: on a terminal in colour.
    """
    lines = [str(path)]
    for run in record["runs"]:
        said = [
            run["run"],
            when(run),
            run["model"],
            f"{run['precision']} on {run['device']}",
        ]
        said += [f"{k} {set_words(seen)}" for k, seen in run["evaluated_on"].items()]
        if run["checkpoint"]:
            said.append(
                f"{run['checkpoint']['is']} {Path(run['checkpoint']['path']).name}"
            )
        if run["git"]:
            said.append(revision(run["git"]))
        if run["error"]:
            said.append(f"ended by {run['error'].splitlines()[0]}")
        lines.append("  " + " · ".join(said))
    report = Report.from_dict(record["report"])
    text = printable("\n".join([*lines, str(report)]))
    return coloured(
        text, stream, [printable(finding.remedy) for finding in report.findings]
    )


def beside(found: Sequence[tuple[Path, Record]], stream: Any = None) -> str:
    """Several records as one table, a column each, and what keeps them from being compared.

    Args:
        found: The records, and where they stand.
        stream: Where the table is printed: on a terminal it is a drawn one.
    """
    columns = [column(record) for _, record in found]
    names = _names([path for path, _ in found])
    rows = [("", names)]
    for label in _labels(columns):
        cells = [each.get(label, "") for each in columns]
        if any(cells) and (not label.startswith("hparams.") or len(set(cells)) > 1):
            rows.append((label, cells))
    for number, (label, cells) in enumerate(rows):
        rows[number] = printable(label), [printable(_cut(cell)) for cell in cells]
    lines = list(_unlike(columns))
    _, first = found[0]
    for (_, other), name in zip(found[1:], names[1:], strict=True):
        lines += differences(first, other, (names[0], name))
    table = as_table(rows, stream) or _aligned(rows)
    return "\n".join([table, *map(printable, lines)])


def _labels(columns: Iterable[Mapping[str, str]]) -> list[str]:
    """Those of all columns, in the order in which they come first."""
    return list(dict.fromkeys(chain.from_iterable(columns)))


def _aligned(rows: Sequence[tuple[str, Sequence[str]]]) -> str:
    columns = zip(*[cells for _, cells in rows], strict=True)
    widths = [max(map(len, cells)) for cells in columns]
    left = max(len(label) for label, _ in rows)
    lines = []
    for label, cells in rows:
        aligned = [cell.rjust(w) for cell, w in zip(cells, widths, strict=True)]
        lines.append("  ".join([label.ljust(left), *aligned]).rstrip())
    return "\n".join(lines)


def column(record: Record) -> dict[str, str]:
    """What is compared between records, by label: circumstances first, then scores."""
    runs = record["runs"]
    cells: dict[str, str] = {"runs": ", ".join(run["run"] for run in runs)}
    if runs:
        last = runs[-1]
        cells |= {
            "ended": when(last),
            "model": last["model"].rpartition(".")[2],
            "seed": last["seed"]["PL_GLOBAL_SEED"] or "not set",
            "precision": last["precision"],
            "device": f"{last['device']} x{last['world_size']}",
            "git": revision(last["git"]) if last["git"] else "",
            "torch": last["versions"].get("torch", ""),
        }
    findings = Counter(f["check"] for f in record["report"]["findings"])
    cells["findings"] = (
        ", ".join(f"{n} {check}" for check, n in findings.items()) or "none"
    )
    for run in runs:
        cells |= {
            f"hparams.{k}": str(v) for k, v in dotted_leaves(run["hyper_parameters"])
        }
    for run in runs:
        for key, seen in run["evaluated_on"].items():
            cells[f"{key} set"] = set_words(seen)
        if run["history"]:
            scores = run["history"][-1]["scores"]
            cells |= {k: f"{v:.4f}" for k, v in scores.items() if "/f1_class/" not in k}
    return cells


def when(run: Mapping[str, Any]) -> str:
    """When a run ended, to the minute, in its own time zone."""
    return datetime.fromisoformat(run["ended"]).strftime("%Y-%m-%d %H:%M %Z").strip()


def set_words(seen: Mapping[str, Any]) -> str:
    """An evaluation set: how many samples, and the head of its hash."""
    samples = ""
    if seen["samples"] is not None:
        samples = f"{seen['samples']:,} samples "
    if seen["hash"]:
        return f"{samples}#{seen['hash'][:8]}"
    return f"{samples}no hash"


def revision(git: Mapping[str, Any]) -> str:
    """A git revision, with a plus where files differ from it."""
    return f"git {git['revision'][:8]}{'+' * bool(git['changed_files'])}"


def _unlike(columns: Sequence[Mapping[str, str]]) -> Iterable[str]:
    for label in _labels(columns):
        sets = {each[label] for each in columns if label in each}
        if label.endswith(" set") and len(sets) > 1:
            key = label.removesuffix(" set")
            yield f"{key}: scored on {len(sets)} different sets; its scores do not compare"


def _names(paths: Sequence[Path]) -> list[str]:
    """The shortest tails of the paths that tell them apart."""
    parts = [path.parts for path in paths]
    for n in range(1, max(map(len, parts)) + 1):
        # the file's own name says nothing where all are evalguard.json
        tails = ["/".join(p[-n - 1 : -1] or p[-1:]) for p in parts]
        if len(set(tails)) == len(tails):
            return tails
    return [str(path) for path in paths]


def dotted_leaves(value: Any, name: str = "") -> Iterable[tuple[str, Any]]:
    """The leaves of nested mappings, by dotted name."""
    if not isinstance(value, Mapping):
        yield name, value
        return
    for key, inner in value.items():
        yield from dotted_leaves(inner, f"{name}.{key}" if name else str(key))


def _cut(text: str) -> str:
    if len(text) <= _WIDE:
        return text
    return "…" + text[1 - _WIDE :]
