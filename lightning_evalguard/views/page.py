"""A record as one page of HTML that needs nothing else: no script, no font, no network."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import PurePath
from typing import Any

from lightning_evalguard.checks.registry import rule_of
from lightning_evalguard.confusion.figure import shown
from lightning_evalguard.confusion.result import ConfusionResult
from lightning_evalguard.report import Finding, Report, shown_path
from lightning_evalguard.views import terminal as _show
from lightning_evalguard.views.sarif import is_error

_HEADLINES = ("accuracy", "hamming_accuracy", "balanced_accuracy", "f1_macro", "mcc")
_FIRST = ("loss", *_HEADLINES)
_STAGE = re.compile(r"(?P<stage>train_eval|train|valid|validation|val|test)[/_](?P<score>.+)")
_CLASSES = 20  # shown in the matrix one by one
_ROWS = 200  # of the table of classes
_DEEP = 0.72  # share from which a cell is dark enough for white digits


def page(record: Mapping[str, Any], title: str = "evalguard.json") -> str:
    """The page of one record.

    Args:
        record: What stands in an ``evalguard.json``.
        title: Where it stands.
    """
    report = Report.from_dict(record["report"])
    runs = record["runs"]
    body = [
        _head(report, runs, title),
        _findings(report.findings),
        *(_matrix(key, result) for key, result in report.confusion.items()),
        _curves(runs),
        _syncs(report),
        _runs(runs),
        _notes(report.notes),
    ]
    name = PurePath(title).parent.name or title
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(name)} · evaluation record</title>\n<style>{_STYLE}</style>\n</head>\n"
        f"<body>\n<main>\n{''.join(body)}</main>\n</body>\n</html>\n"
    )


def _head(report: Report, runs: Sequence[Mapping[str, Any]], title: str) -> str:
    certain = sum(is_error(f) for f in report.findings)
    others = len(report.findings) - certain
    kind = "bad" if certain else "doubt" if others else "good"
    counted = ((certain, "finding"), (others, "warning"))
    said = ", ".join(f"{n} {word}{'s' * (n != 1)}" for n, word in counted if n) or "No findings"
    model = runs[-1]["model"].rpartition(".")[2] if runs else "No run"
    counts = ", ".join(f"{n:,} {what.replace('_', ' ')}" for what, n in report.checked.items())
    when = f"{_show.when(runs[-1])} · " if runs else ""
    tiles = []
    for key, result in report.confusion.items():
        scores = [(k, result.scores[k]) for k in _HEADLINES if k in result.scores]
        inside = "".join(_tile(result, name, value) for name, value in scores)
        what = "answers" if result.task == "multilabel" else "samples"
        tiles.append(
            f'<section class="tile"><h2>{escape(key)} <small>{result.total:,} {what}</small></h2>'
            f"<dl>{inside}</dl>"
            + (f"<p>{escape(result.insight)}</p>" if result.insight else "")
            + "</section>"
        )
    return (
        f'<header><p class="verdict {kind}">{said}</p><h1>{escape(model)}</h1>'
        f"<p><code>{escape(title)}</code></p><p>{when}checked: {counts or 'nothing'}</p></header>"
        f'<div class="tiles">{"".join(tiles)}</div>'
    )


def _tile(result: ConfusionResult, name: str, value: float) -> str:
    low, high = result.interval(name)
    interval = "" if math.isnan(low) else f"<small>95 %: {low:.3f} to {high:.3f}</small>"
    label = escape(name.replace("_", " "))
    return f"<div><dt>{label}</dt><dd>{value:.3f}{interval}</dd></div>"


def _findings(findings: Sequence[Finding]) -> str:
    groups: dict[str, list[Finding]] = {}
    for finding in sorted(findings, key=lambda f: not is_error(f)):
        groups.setdefault(finding.check, []).append(finding)
    parts = []
    for check, found in groups.items():
        rule = rule_of(check)
        why = "" if rule is None else f'<p class="why">{_code(rule.help)}</p>'
        items = "".join(map(_finding, found))
        parts.append(f'<h3>{escape(check)}</h3>{why}<ul class="findings">{items}</ul>')
    return _section("Findings", "".join(parts)) if parts else ""


def _finding(finding: Finding) -> str:
    who = finding.subject_type if finding.subject == "" else finding.subject
    where = shown_path(finding.location) if finding.location else None
    place = " in ".join(f"<code>{escape(x)}</code>" for x in (where, who) if x)
    code = ""
    if finding.expression and finding.expression not in finding.fact:
        code = f"<pre><code>{escape(finding.expression)}</code></pre>"
    often = f"{finding.stage.replace('_', ' ')}{f', {finding.count:,}x' * (finding.count > 1)}"
    return (
        f'<li class="{_kind(finding)}"><p>{place} <small>{escape(often)}</small></p>{code}'
        f'<p>{_code(finding.fact)}.</p><p class="mend">{_code(finding.remedy)}</p></li>'
    )


def _kind(finding: Finding) -> str:
    return "bad" if is_error(finding) else "doubt"


def _matrix(key: str, result: ConfusionResult) -> str:
    parts = []
    if result.matrix is not None and result.task != "multilabel":
        parts.append(_cells(result))
    parts.append(_classes(result))
    verb = ":" if result.task == "multilabel" else " taken for"  # missed, false alarm
    confused = "".join(
        f"<li>{count:,} of <b>{escape(true)}</b>{verb} <b>{escape(predicted)}</b> "
        f"<small>{share:.0%}</small></li>"
        for true, predicted, count, share in result.most_confused(5)
    )
    if confused:
        parts.append(f'<div class="confused"><h3>Most confused</h3><ol>{confused}</ol></div>')
    left_out = "".join(f"<p>Left out: {escape(problem)}.</p>" for problem in result.problems())
    said = f"<p>From {_code(result.source)}.</p>" if result.source else ""
    return _section(
        f"Confusion matrix · {key}", f'{said}{left_out}<div class="matrix">{"".join(parts)}</div>'
    )


def _cells(result: ConfusionResult) -> str:
    matrix, names = shown(result, _CLASSES)
    n, pooled = len(names), len(names) < result.num_classes
    support = matrix.sum(1)
    wrong = max(
        (matrix[i, j] / support[i] for i in range(n) for j in range(n) if i != j and support[i]),
        default=0.0,
    )
    head = "".join(f'<th scope="col"><span>{escape(name)}</span></th>' for name in names)
    rows = []
    for i in range(n):
        cells = []
        for j in range(n):
            share = float(matrix[i, j] / support[i]) if support[i] else 0.0
            grey = pooled and n - 1 in (i, j)
            value = share if i == j else share / max(wrong, 0.02)
            kind = "other" if grey else "right" if i == j else "wrong"
            deep = " deep" if value > _DEEP and not grey else ""
            text = _percent(share) if matrix[i, j] else ""
            hint = f"{int(matrix[i, j]):,} of {int(support[i]):,} {names[i]} as {names[j]}"
            cells.append(
                f'<td class="{kind}{deep}" style="--v:{value:.3f}" title="{escape(hint)}">'
                f"{text}</td>"
            )
        rows.append(
            f'<tr><th scope="row">{escape(names[i])} <small>{int(support[i]):,}</small></th>'
            f"{''.join(cells)}</tr>"
        )
    upright = " upright" * (max(map(len, names)) > (8 if n <= 6 else 3))
    return _wide(
        "Confusion matrix",
        f'<table class="cells{upright}"><caption>Rows are true, columns predicted; percent of the '
        f"row</caption><thead><tr><td></td>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>",
        "large" * (n > 12 or max(map(len, names)) > 10),
    )


def _classes(result: ConfusionResult) -> str:
    table = result.table()
    more = len(table) - _ROWS
    if more > 0:
        table = sorted(table, key=lambda row: float(row["f1"]))[:_ROWS]
    has_worst = any(row["confused"] for row in table)
    rows = []
    for row in table:
        scores = "".join(_bar(row, score) for score in ("precision", "recall", "f1"))
        worst = f"{escape(row['confused_with'])} <small>{row['confused']:,}x</small>"
        rows.append(
            f'<tr><th scope="row">{escape(row["class"])}</th><td>{row["support"]:,}</td>{scores}'
            + (f'<td class="text">{worst if row["confused"] else ""}</td>' if has_worst else "")
            + "</tr>"
        )
    kind = "label" if result.task == "multilabel" else "class"
    names = (kind, "support", "precision", "recall", "F1")
    head = "".join(f'<th scope="col">{name}</th>' for name in names)
    head = head.replace("<th", '<th class="text"', 1)
    head += '<th scope="col" class="text">taken for</th>' * has_worst
    hidden = f"<p>{more:,} with a higher F1 are not shown.</p>" if more > 0 else ""
    return _wide(
        "Scores of each class",
        f'<table class="classes"><caption>Each {kind}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table>{hidden}",
        " tall" * (len(table) > _CLASSES) + " large" * (max(len(r["class"]) for r in table) > 10),
    )


def _bar(row: Mapping[str, Any], score: str) -> str:
    low, high = row[f"{score}_low"], row[f"{score}_high"]
    title = f"95 % interval: {low:.3f} to {high:.3f}"
    value = f"{row[score]:.3f}"
    return f'<td class="bar" style="--v:{value}" title="{title}">{value}</td>'


def _curves(runs: Sequence[Mapping[str, Any]]) -> str:
    series: dict[str, dict[str, list[tuple[float, int, float]]]] = {}
    for run in runs:
        if run["run"] != "fit":
            continue
        for moment in run["history"]:
            for name, value in moment["scores"].items():
                parts = _STAGE.fullmatch(name)
                stage, score = (parts["stage"], parts["score"]) if parts else ("", name)
                line = series.setdefault(score, {}).setdefault(stage, [])
                line.append((moment["step"], moment["epoch"], value))
    drawn = {
        score: _curve(score, lines)
        for score, lines in series.items()
        if max(map(len, lines.values())) > 1 and "f1_class" not in score
    }
    if not drawn:
        return ""
    order = sorted(drawn, key=lambda s: _FIRST.index(s) if s in _FIRST else len(_FIRST))
    head, rest = order[:6], order[6:]
    text = f'<div class="curves">{"".join(drawn[s] for s in head)}</div>'
    if rest:
        text += (
            f"<details><summary>{len(rest)} more</summary>"
            f'<div class="curves">{"".join(drawn[s] for s in rest)}</div></details>'
        )
    return _section("Epochs", text)


def _curve(score: str, lines: Mapping[str, Sequence[tuple[float, int, float]]]) -> str:
    points = [point for line in lines.values() for point in line]
    steps, values = [p[0] for p in points], [p[2] for p in points]
    low, high = min(values), max(values)
    first, last = min(steps), max(steps)
    wide, tall, left, top = 300.0, 110.0, 8.0, 10.0

    def at(step: float, value: float) -> tuple[float, float]:
        x = left + (wide - 2 * left) * (step - first) / ((last - first) or 1)
        y = top + (tall - 2 * top) * (1 - (value - low) / ((high - low) or 1))
        return x, y

    drawn, said = [], []
    for i, (stage, line) in enumerate(lines.items()):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(s, v) for s, _, v in line))
        dots = "".join(
            f'<circle cx="{at(s, v)[0]:.1f}" cy="{at(s, v)[1]:.1f}" r="2.5">'
            f"<title>{escape(stage)} epoch {e}: {v:.4f}</title></circle>"
            for s, e, v in (line if len(line) <= 60 else line[-1:])
        )
        drawn.append(f'<g class="line{min(i, 2)}"><polyline points="{path}"/>{dots}</g>')
        said.append(
            f'<span class="line{min(i, 2)}">{escape(stage or score)} {line[-1][2]:.3f}</span>'
        )
    label = (
        f"{score} from epoch {points[0][1]} to {points[-1][1]}, between {low:.4f} and {high:.4f}"
    )
    return (
        f"<figure><figcaption><b>{escape(score.replace('_', ' '))}</b> {' '.join(said)}"
        f'</figcaption><svg viewBox="0 0 {wide:.0f} {tall:.0f}" role="img" '
        f'aria-label="{escape(label)}"><path class="axis" d="M{left} {top}H{wide - left}'
        f'M{left} {tall - top}H{wide - left}"/>{"".join(drawn)}</svg>'
        f'<p class="range"><span>{low:.3f} to {high:.3f}</span>'
        f"<span>epoch {points[0][1]} to {points[-1][1]}</span></p></figure>"
    )


def _syncs(report: Report) -> str:
    if not report.syncs:
        return ""
    on_device = any(site.milliseconds is not None for site in report.syncs)
    rows = []
    for site in report.syncs:
        cost = f"<td>{site.milliseconds or 0:.2f} ms</td>" if on_device else ""
        via = f" <small>{escape(site.via)}</small>" if site.via else ""
        rows.append(
            f'<tr><td class="text"><code>{escape(shown_path(site.location) or "autograd")}</code>'
            f'</td><td class="text"><code>{escape(site.expression)}</code>{via}</td>'
            f"<td>{site.per_step:.1f}</td>{cost}"
            f'<td class="text">{escape(site.stage)}</td>'
            f'<td class="text">{escape(site.owner)}</td></tr>'
        )
    cost = '<th scope="col">waits</th>' if on_device else ""
    verb = "waits" if on_device else "would wait"
    return _section(
        "Syncs",
        _wide(
            "Syncs",
            f"<table><caption>Where the host {verb} for the device</caption><thead><tr>"
            '<th scope="col" class="text">where</th><th scope="col" class="text">what</th>'
            f'<th scope="col">per step</th>{cost}<th scope="col" class="text">stage</th>'
            f'<th scope="col" class="text">whose</th></tr></thead><tbody>{"".join(rows)}</tbody>'
            "</table>",
        ),
    )


def _runs(runs: Sequence[Mapping[str, Any]]) -> str:
    parts = []
    before: dict[str, Any] = {}
    for run in runs:
        facts = _facts(run)
        items = "".join(
            f"<div><dt>{escape(k)}</dt><dd>{escape(str(v))}</dd></div>"
            for k, v in facts.items()
            if before.get(k) != v  # what stands in the run above is not said again
        )
        parts.append(
            f"<details open><summary>{escape(run['run'])}</summary>"
            f'<dl class="facts">{items}</dl></details>'
        )
        before = facts
    return _section("How it was made", "".join(parts)) if parts else ""


def _facts(run: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "ended": _show.when(run),
        "epochs, steps": f"{run['epoch']}, {run['step']:,}",
    }
    if run["error"]:
        facts["ended by"] = run["error"].splitlines()[0]
    for key, seen in run["evaluated_on"].items():
        facts[f"{key} set"] = f"{_show.set_of(seen)} ({seen['hash_of']})"
    if checkpoint := run["checkpoint"]:
        digest = next((f"{k} {v}" for k, v in checkpoint.items() if k.startswith("sha256")), "")
        facts[f"checkpoint, {checkpoint['is']}"] = f"{checkpoint['path']} {digest}"
    seed = run["seed"]["PL_GLOBAL_SEED"]
    facts["seed"] = seed if seed is not None else f"not set; torch drew {run['seed']['torch']}"
    facts["precision"] = run["precision"]
    facts["devices"] = f"{run['world_size']} x {run['device']}, {run['strategy']}"
    if run["git"]:
        n = run["git"]["changed_files"]
        facts["git"] = run["git"]["revision"] + (f", {n} files changed" if n else "")
    facts["versions"] = ", ".join(f"{k} {v}" for k, v in run["versions"].items())
    for name in ("hyper_parameters", "data_hyper_parameters"):
        facts |= dict(_show.flat(run[name]))
    return facts


def _notes(notes: Iterable[str]) -> str:
    items = "".join(f"<li>{_code(note)}</li>" for note in notes)
    return _section("Notes", f'<ul class="notes">{items}</ul>') if items else ""


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{inside}</section>\n"


def _wide(label: str, table: str, kind: str = "") -> str:
    """A table that scrolls in its own box, by keyboard too."""
    return (
        f'<div class="wide {kind}" role="region" aria-label="{escape(label)}" tabindex="0">'
        f"{table}</div>"
    )


def _code(text: str) -> str:
    """`text` with what stands in backticks as code."""
    return re.sub(r"`([^`]*)`", r"<code>\1</code>", escape(text, quote=False))


def _percent(share: float) -> str:
    text = f"{share * 100:.0f}"
    if text == "0":
        return "&lt;1"
    return "&gt;99" if text == "100" and share < 1 else text


_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1b1f24; --soft: #57606a;
  --edge: #d8dee4; --right: #174a86; --wrong: #a63d0a; --good: #1a6b35; --doubt: #8a5300;
  --bad: #b3261e; --code: #eef1f4; --other: #e8eaed; --third: #6a4c93; }
@media (prefers-color-scheme: dark) { :root { --page: #0f1317; --card: #171c22; --ink: #e6eaef;
  --soft: #9aa5b1; --edge: #2f3842; --right: #2f6fbf; --wrong: #bd5216; --good: #57c27a;
  --doubt: #e0a44a; --bad: #ff8a80; --code: #222a33; --other: #262d35; --third: #b79ae0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { margin: .1em 0 .2em; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 0 0 .75rem; font-size: 1.15rem; }
h3 { margin: 0 0 .4rem; font-size: 1rem; }
p { margin: .25rem 0; }
small, header p { color: var(--soft); }
small { font-size: .85em; font-weight: 400; }
code { font: .9em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  background: var(--code); border-radius: 4px; padding: .1em .3em; overflow-wrap: anywhere; }
pre { margin: .4rem 0; overflow-x: auto; }
header .verdict { display: inline-block; margin: 0 0 .5rem; padding: .15rem .7rem;
  border: 1px solid currentColor; border-radius: 99px; font-weight: 600; }
.good { color: var(--good); } .doubt { color: var(--doubt); } .bad { color: var(--bad); }
.verdict.good { color: var(--good); } .verdict.doubt { color: var(--doubt); }
.verdict.bad { color: var(--bad); }
section { background: var(--card); border: 1px solid var(--edge); border-radius: 12px;
  padding: 1.1rem 1.25rem; min-width: 0; }
main > section { margin-top: 1.25rem; }
.tiles { margin-top: 1.25rem; display: grid; gap: 1.25rem;
  grid-template-columns: repeat(auto-fit, minmax(17rem, 1fr)); }
.tile dl { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: 0; }
.tile dt { color: var(--soft); font-size: .85rem; }
.tile dd small { display: block; font-size: .8rem; font-weight: 400; color: var(--soft); }
.tile dd { margin: 0; font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.findings { list-style: none; margin: .6rem 0 1.5rem; padding: 0; display: grid; gap: .9rem; }
.findings:last-child { margin-bottom: 0; }
.findings li { color: var(--ink); padding-left: .9rem; border-left: 4px solid var(--doubt); }
.findings li.bad { border-color: var(--bad); }
.mend { font-weight: 600; } .why { color: var(--soft); max-width: 46rem; }
.matrix { display: grid; gap: 1.5rem; align-items: start; margin-top: .75rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 25rem), 1fr)); }
.wide { overflow-x: auto; } .large { grid-column: 1 / -1; }
.tall { max-height: 36rem; overflow-y: auto; }
.tall thead th { position: sticky; top: 0; background: var(--card); }
 .wide:focus-visible { outline: 2px solid var(--right); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: var(--soft); font-size: .85rem; padding-bottom: .4rem; }
th, td { padding: .3rem .6rem; text-align: right; }
th { font-weight: 600; } thead th { white-space: nowrap; }
td.text, th.text, tbody th { text-align: left; }
table:not(.cells) { width: 100%; }
table:not(.cells) tr { border-bottom: 1px solid var(--edge); }
.cells td { min-width: 2.6rem; height: 2.4rem; padding: .2rem; text-align: center;
  border: 1px solid var(--card); background: color-mix(in srgb, var(--hue, transparent)
  calc(var(--v, 0) * 100%), var(--code)); }
.cells thead td { background: none; }
.cells .right { --hue: var(--right); } .cells .wrong { --hue: var(--wrong); }
.cells .other { --hue: var(--other); --v: 1 !important; } .cells .deep { color: #fff; }
.cells th, .classes th, .classes td { white-space: nowrap; }
.cells tbody th { padding-left: 0; }
.upright thead th { vertical-align: bottom; padding: .3rem .1rem; }
.upright thead span { writing-mode: vertical-rl; transform: rotate(180deg); }
.bar { background: linear-gradient(to right, var(--right) calc(var(--v) * 100%),
  color-mix(in srgb, var(--edge) 60%, transparent) 0) bottom / calc(100% - .6rem) 3px no-repeat; }
.confused ol { margin: 0; padding-left: 1.3rem; }
.curves { display: grid; gap: 1rem 1.5rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); }
figure { margin: 0; } figcaption span { margin-left: .5rem; font-variant-numeric: tabular-nums; }
svg { display: block; width: 100%; height: auto; } .axis { stroke: var(--edge); fill: none; }
polyline { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round; }
circle { fill: currentColor; }
.line0 { color: color-mix(in srgb, var(--right) 75%, var(--ink)); }
.line1 { color: color-mix(in srgb, var(--wrong) 80%, var(--ink)); } .line2 { color: var(--third); }
.range { display: flex; justify-content: space-between; color: var(--soft); font-size: .85rem; }
details { margin-top: .5rem; } summary { cursor: pointer; font-weight: 600; }
.facts { margin: .5rem 0 0; display: grid; gap: .35rem 1.5rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); }
.facts div { display: grid; grid-template-columns: 9rem 1fr; gap: .75rem; min-width: 0; }
.facts dt { color: var(--soft); } .facts dd { margin: 0; overflow-wrap: anywhere; }
.notes { margin: 0; padding-left: 1.2rem; }
@media (max-width: 34rem) { main { padding: 1rem .75rem 3rem; }
  .facts div { grid-template-columns: 1fr; gap: 0; } th, td { padding: .3rem .4rem; }
  .cells td { min-width: 1.8rem; height: 2rem; font-size: .85rem; } }
@media print { body { background: none; } main > section { break-inside: avoid; } }
"""
