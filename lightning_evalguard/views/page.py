"""A record as one page of HTML that needs nothing else: no font, no network, no file beside it.

What stands in the page is made here; how it looks stands in ``page.html`` and ``page.css``, and how
a table of classes is sorted in ``page.js``: the only script that the page lets run, by its hash.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import math
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import starmap
from pathlib import Path, PurePath
from typing import Any

import jinja2
import markupsafe

from lightning_evalguard.checks.registry import page_of, rule_of
from lightning_evalguard.confusion.figure import shown_classes
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.paths import shown_path
from lightning_evalguard.reasons import says
from lightning_evalguard.report import Finding, Report, Sync
from lightning_evalguard.views import terminal
from lightning_evalguard.views.curves import curves
from lightning_evalguard.views.sarif import is_error

HEADLINES = ("accuracy", "hamming_accuracy", "balanced_accuracy", "f1_macro", "mcc")
_CLASSES = 20  # shown in the matrix one by one
_ROWS = 200  # of the table of classes
_DEEP = 0.72  # share from which a cell is dark enough for white digits
# share of a row at which the colour of an error is full, where none is larger
_FULL = 0.2
_CODE = re.compile(r"`([^`]*)`")
_MAY = (
    "allow-scripts allow-popups allow-popups-to-escape-sandbox"  # sort, and open a link
)


def page(record: Mapping[str, Any], title: str = "evalguard.json") -> str:
    """The page of one record.

    Args:
        record: What stands in an ``evalguard.json``.
        title: Where it stands.
    """
    report = Report.from_dict(record["report"])
    runs = record["runs"]
    model = "No run"
    if runs:
        model = runs[-1]["model"].rpartition(".")[2]
    return _rendered(report, runs, title, model, _verdict(report.findings))


def report_frame(report: Report) -> str:
    """A report as a notebook shows it: the page in a frame of its own."""
    return _frame(_rendered(report, [], "", "", _verdict(report.findings)))


def result_frame(result: ConfusionResult) -> str:
    """One confusion matrix as a notebook shows it."""
    report = Report()
    report.confusion = {result.task: result}
    return _frame(_rendered(report, [], "", "", None))


def _frame(text: str) -> str:
    # Styles of the notebook do not reach in, and ours do not reach out.
    inside = markupsafe.escape(text)
    return (
        f'<iframe srcdoc="{inside}" sandbox="{_MAY}" title="lightning-evalguard" '
        'style="width: 100%; height: 36rem; border: 0"></iframe>'
    )


def _rendered(
    report: Report,
    runs: Sequence[Mapping[str, Any]],
    title: str,
    model: str,
    verdict: Mapping[str, str] | None,
) -> str:
    return _template().render(
        name=PurePath(title).parent.name or title,
        title=title,
        style=markupsafe.Markup(_beside("page.css")),
        script=markupsafe.Markup(_beside("page.js")),
        script_hash=_hash(_beside("page.js")),
        verdict=verdict,
        model=model,
        when=f"{terminal.when(runs[-1])} · " if runs else "",
        checked=_checked(report),
        matrices=[_matrix(key, result) for key, result in report.confusion.items()],
        findings=_findings(report.findings),
        curves=curves(runs, ("loss", *HEADLINES)),
        on_device=any(sync.milliseconds is not None for sync in report.syncs),
        syncs=[_sync(sync) for sync in report.syncs],
        runs=_runs(runs),
        notes=report.notes,
    )


def _beside(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    """What a Content-Security-Policy names a script by."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["code"] = _code
    return environment.from_string(_beside("page.html"))


def _code(text: str) -> markupsafe.Markup:
    """`text` with what stands in backticks as code."""
    escaped = str(markupsafe.escape(text))
    return markupsafe.Markup(_CODE.sub(r"<code>\1</code>", escaped))


# the head


def _verdict(findings: Sequence[Finding]) -> dict[str, str]:
    causes = _causes(findings)
    certain = sum(is_error(cause[0]) for cause in causes)
    others = len(causes) - certain
    counted = ((certain, "finding"), (others, "warning"))
    words = [f"{n} {word}{'s' * (n != 1)}" for n, word in counted if n]
    kind = "good"
    if findings:
        kind = "doubt"
        if certain:
            kind = "bad"
    return {"kind": kind, "words": ", ".join(words) or "No findings"}


def _checked(report: Report) -> str:
    counts = [f"{n:,} {what.replace('_', ' ')}" for what, n in report.checked.items()]
    return ", ".join(counts) or "nothing"


# findings


def _findings(findings: Sequence[Finding]) -> list[dict[str, Any]]:
    """Those of each check, one card a cause: what several stages saw at one place is one."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for cause in _causes(findings):
        groups.setdefault(cause[0].check, []).append(_card(cause))
    cards = []
    for check, group in groups.items():
        why = ""
        rule = rule_of(check)
        if rule:
            why = rule.help
        card = {"check": check, "page": page_of(check), "why": why, "findings": group}
        cards.append(card)
    return cards


def _causes(findings: Sequence[Finding]) -> list[list[Finding]]:
    """Findings that say the same of the same place, together; those that are certain first."""
    causes: dict[tuple[Any, ...], list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: not is_error(f)):
        place = (finding.subject, finding.location, finding.expression)
        said = (finding.check, finding.fact, finding.remedy, is_error(finding))
        causes.setdefault((*place, *said), []).append(finding)
    return list(causes.values())


def _card(cause: Sequence[Finding]) -> dict[str, Any]:
    """What is shown of findings that say the same of the same place."""
    finding = cause[0]
    who = finding.subject_type if finding.subject == "" else finding.subject
    where = None
    if finding.location:
        where = shown_path(finding.location)
    seen: Counter[str] = Counter()
    for each in cause:
        seen[each.stage.replace("_", " ")] += each.count
    said = finding.expression is not None and finding.expression in finding.fact
    lines = _lines(cause)
    return {
        "kind": "bad" if is_error(finding) else "doubt",
        "places": [place for place in (where, who) if place],
        "stages": list(starmap(_times, seen.items())),
        "expression": None if said or lines else finding.expression,
        "lines": lines,
        "fact": finding.fact,
        "why": "" if says(finding.fact, finding.why) else finding.why,
        "remedy": finding.remedy,
    }


def _times(stage: str, count: int) -> str:
    if count > 1:
        return f"{stage}, {count:,}x"
    return stage


def _lines(cause: Sequence[Finding]) -> list[dict[str, Any]]:
    """The source around a finding, as it was recorded: no file is read here."""
    around = next((each.around for each in cause if each.around), {})
    at = (cause[0].location or "").rpartition(":")[2]
    texts = textwrap.dedent("\n".join(around.values())).split("\n")
    return [
        {"number": number, "text": text, "is_it": str(number) == at}
        for number, text in zip(around, texts, strict=False)
    ]


# confusion matrices


def _matrix(key: str, result: ConfusionResult) -> dict[str, Any]:
    is_multilabel = result.task == "multilabel"
    has_cells = result.matrix is not None and not is_multilabel
    return {
        "key": key,
        "counted": f"{result.total:,} {'answers' if is_multilabel else 'samples'}",
        "scores": [_score(result, name) for name in HEADLINES if name in result.scores],
        "insight": result.insight,
        "source": result.source,
        "problems": result.problems(),
        "cells": _cells(result) if has_cells else None,
        "classes": _classes(result),
        "confused": _confused(result, ":" if is_multilabel else " taken for"),
    }


def _score(result: ConfusionResult, name: str) -> dict[str, str]:
    low, high = result.interval(name)
    return {
        "name": name.replace("_", " "),
        "value": f"{result.scores[name]:.3f}",
        "interval": "" if math.isnan(low) else f"{low:.3f} to {high:.3f}",
    }


def _confused(result: ConfusionResult, verb: str) -> list[dict[str, str]]:
    pairs = []
    for true, predicted, count, share in result.most_confused(5):
        pair = {
            "count": f"{count:,}",
            "true": true,
            "verb": verb,  # missed, false alarm
            "predicted": predicted,
            "share": f"{share:.0%}",
        }
        pairs.append(pair)
    return pairs


def _cells(result: ConfusionResult) -> dict[str, Any]:
    matrix, names = shown_classes(result, _CLASSES)
    n = len(names)
    support = matrix.sum(1).tolist()
    shares, full = [], _FULL
    for i, counts in enumerate(matrix.tolist()):
        row = [count / max(1, support[i]) for count in counts]
        full = max([full, *row[:i], *row[i + 1 :]])
        shares.append(row)
    pooled = n
    if n < result.num_classes:
        pooled = n - 1
    rows = []
    for i, name in enumerate(names):
        cells = []
        for j, share in enumerate(shares[i]):
            kind = "other"
            if pooled not in (i, j):
                kind = "wrong"
                if i == j:
                    kind = "right"
            hint = f"{int(matrix[i, j]):,} of {support[i]:,} {name} as {names[j]}"
            cells.append(_cell(kind, share, share if i == j else share / full, hint))
        rows.append({"name": name, "support": f"{support[i]:,}", "cells": cells})
    longest = max(map(len, names))
    is_large = n > 12 or longest > 10
    return {
        "names": names,
        "rows": rows,
        "kind": "large" if is_large else "",
        "upright": longest > (8 if n <= 6 else 3),
    }


def _cell(kind: str, share: float, colour: float, hint: str) -> dict[str, str]:
    deep = ""
    if colour > _DEEP and kind != "other":
        deep = " deep"
    return {
        "kind": kind + deep,
        "share": f"{colour:.3f}",
        "hint": hint,
        "text": _percent(share) if share else "",
    }


def _percent(share: float) -> str:
    text = f"{share * 100:.0f}"
    if text == "0":
        return "<1"
    if text == "100" and share < 1:
        return ">99"
    return text


def _classes(result: ConfusionResult) -> dict[str, Any]:
    table = result.table()
    hidden = len(table) - _ROWS
    if hidden > 0:
        table = sorted(table, key=lambda row: float(row["f1"]))[:_ROWS]
    kinds = []
    if len(table) > _CLASSES:
        kinds.append("tall")
    if max(len(row["class"]) for row in table) > 10:
        kinds.append("large")
    return {
        "noun": "label" if result.task == "multilabel" else "class",
        "kind": " ".join(kinds),
        "has_worst": any(row["confused"] for row in table),
        "rows": [_class(row) for row in table],
        "hidden": f"{hidden:,}" if hidden > 0 else "",
    }


def _class(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": row["class"],
        "support": f"{row['support']:,}",
        "bars": [_bar(row, score) for score in ("precision", "recall", "f1")],
        "worst": row["confused_with"] if row["confused"] else "",
        "times": f"{row['confused']:,}",
    }


def _bar(row: Mapping[str, Any], score: str) -> dict[str, str]:
    low = row[f"{score}_low"]
    high = row[f"{score}_high"]
    return {"value": f"{row[score]:.3f}", "interval": f"{low:.3f} to {high:.3f}"}


# syncs and runs


def _sync(sync: Sync) -> dict[str, str]:
    return {
        "place": shown_path(sync.location) or "autograd",
        "expression": sync.expression,
        "via": sync.via,
        "per_step": f"{sync.per_step:.1f}",
        "cost": f"{sync.milliseconds or 0:.2f}",
        "stage": sync.stage,
        "owner": sync.owner,
    }


def _runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The facts of each run; what stands in the run above is not said again."""
    told = []
    before: dict[str, Any] = {}
    for run in runs:
        facts = _facts(run)
        fresh = [
            (name, value) for name, value in facts.items() if before.get(name) != value
        ]
        told.append({"name": run["run"], "facts": fresh})
        before = facts
    return told


def _facts(run: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ended": terminal.when(run),
        "epochs, steps": f"{run['epoch']}, {run['step']:,}",
    }
    if run["error"]:
        facts["ended by"] = run["error"].splitlines()[0]
    for key, seen in run["evaluated_on"].items():
        facts[f"{key} set"] = f"{terminal.set_words(seen)} ({seen['hash_of']})"
    if checkpoint := run["checkpoint"]:
        digest = next(
            (f"{k} {v}" for k, v in checkpoint.items() if k.startswith("sha256")), ""
        )
        facts[f"checkpoint, {checkpoint['is']}"] = f"{checkpoint['path']} {digest}"
    seed = run["seed"]["PL_GLOBAL_SEED"]
    facts["seed"] = (
        seed if seed is not None else f"not set; torch drew {run['seed']['torch']}"
    )
    facts["precision"] = run["precision"]
    facts["devices"] = f"{run['world_size']} x {run['device']}, {run['strategy']}"
    if run["git"]:
        changed = run["git"]["changed_files"]
        facts["git"] = run["git"]["revision"] + (
            f", {changed} files changed" if changed else ""
        )
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    for name in ("hyper_parameters", "data_hyper_parameters"):
        facts |= dict(terminal.dotted_leaves(run[name]))
    return facts


__all__ = ["page", "report_frame", "result_frame"]
