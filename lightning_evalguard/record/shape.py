"""Does a file hold a record? Its shape is checked before anything of it is used or shown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

Shape = Callable[[Any, str], None]


def check(record: Any) -> None:
    """Refuse what is no record.

    Raises:
        ValueError: With the place, as in ``report.findings[3].count: expected an integer``.
    """
    _RECORD(record, "")


def why(error: Exception) -> str:
    """What keeps a file from being a record, in words of its own."""
    if isinstance(error, UnicodeDecodeError):
        return "it is no text in UTF-8"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON, from line {error.lineno}, column {error.colno} on"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error)


def _of(kind: type | tuple[type, ...], words: str) -> Shape:
    def shape(value: Any, at: str) -> None:
        wanted = isinstance(value, kind)
        if not wanted or (isinstance(value, bool) and kind is not bool):
            raise ValueError(
                f"{at or 'the file'}: expected {words}, got {type(value).__name__}"
            )

    return shape


def _or_none(inner: Shape) -> Shape:
    def shape(value: Any, at: str) -> None:
        if value is not None:
            inner(value, at)

    return shape


def _list(inner: Shape) -> Shape:
    def shape(value: Any, at: str) -> None:
        _A_LIST(value, at)
        for i, one in enumerate(value):
            inner(one, f"{at}[{i}]")

    return shape


def _map(inner: Shape) -> Shape:
    def shape(value: Any, at: str) -> None:
        _A_MAP(value, at)
        for key, one in value.items():
            inner(one, f"{at}[{key!r}]"[:200])

    return shape


def _fields(
    needed: Mapping[str, Shape], others: Mapping[str, Shape] | None = None
) -> Shape:
    """A mapping that has these fields; those that only later versions write may be absent."""

    def shape(value: Any, at: str) -> None:
        _A_MAP(value, at)
        for name, inner in {**needed, **(others or {})}.items():
            place = name
            if at:
                place = f"{at}.{name}"
            if name in value:
                inner(value[name], place)
            elif name in needed:
                raise ValueError(f"{place}: missing")

    return shape


def _count(value: Any, at: str) -> None:
    _INT(value, at)
    if not 0 <= value < 2**63:
        raise ValueError(f"{at}: expected a count, got {value}")


def _counts(value: Any, at: str) -> None:
    """Counts of any dimension; each list as long as its neighbours."""
    _A_LIST(value, at)
    inner_lists = [one for one in value if isinstance(one, list)]
    if not inner_lists:
        for i, one in enumerate(value):
            _count(one, f"{at}[{i}]")
        return
    if len(inner_lists) != len(value) or len({len(one) for one in inner_lists}) > 1:
        raise ValueError(f"{at}: expected rows of one length")
    for i, one in enumerate(value):
        _counts(one, f"{at}[{i}]")


def _score(value: Any, at: str) -> None:
    _NUMBER(value, at)
    if not math.isfinite(value):
        raise ValueError(f"{at}: expected a finite number, got {value}")


_TEXT = _of(str, "text")
_INT = _of(int, "an integer")
_NUMBER = _of((int, float), "a number")
_BOOL = _of(bool, "true or false")
_A_LIST = _of(list, "a list")
_A_MAP = _of(dict, "a mapping")

_FINDING = _fields(
    {"check": _TEXT, "stage": _TEXT, "fact": _TEXT, "remedy": _TEXT},
    {
        "subject": _or_none(_TEXT),
        "subject_type": _or_none(_TEXT),
        "location": _or_none(_TEXT),
        "expression": _or_none(_TEXT),
        "function": _or_none(_TEXT),
        "leads": _TEXT,
        "epoch": _or_none(_INT),
        "step": _or_none(_INT),
        "rank": _INT,
        "count": _INT,
        "certain": _BOOL,
        "pattern": _or_none(_TEXT),
        "host": _TEXT,
        "excerpt": _or_none(_TEXT),
        "why": _TEXT,
    },
)
_SYNC = _fields(
    {
        "location": _TEXT,
        "expression": _TEXT,
        "owner": _TEXT,
        "stage": _TEXT,
        "op": _TEXT,
        "per_step": _NUMBER,
        "milliseconds": _or_none(_NUMBER),
    },
    {"via": _TEXT, "allowed": _BOOL},
)
_RESULT_FIELDS = _fields(
    {
        "class_names": _list(_TEXT),
        "scores": _map(_or_none(_score)),
        "total": _count,
        "support": _counts,
        "predicted": _counts,
        "true_positives": _counts,
    },
    {
        "task": _TEXT,
        "matrix": _or_none(_counts),
        "judged": _or_none(_counts),
        "pairs": _or_none(_list(_counts)),
        "ignored": _count,
        "out_of_range": _count,
        "nan_preds": _count,
        "unusable_preds": _count,
        "preds_are": _or_none(_TEXT),
        "source": _or_none(_TEXT),
        "epoch": _or_none(_INT),
        "step": _or_none(_INT),
    },
)


def _result(value: Any, at: str) -> None:
    """A confusion matrix whose parts fit one another."""
    _RESULT_FIELDS(value, at)
    n = len(value["class_names"])
    if n < 1 or value.get("task") not in (None, "binary", "multiclass", "multilabel"):
        raise ValueError(
            f"{at}: expected class names and a task, got {value.get('task')!r:.60}"
        )
    for name in ("support", "predicted", "true_positives", "judged"):
        if value.get(name) is not None and len(value[name]) != n:
            raise ValueError(
                f"{at}.{name}: expected {n} counts, got {len(value[name])}"
            )
    matrix = value.get("matrix")
    square = (n, 2, 2) if value.get("task") == "multilabel" else (n, n)
    if matrix is not None and _size(matrix) != square:
        raise ValueError(f"{at}.matrix: expected {square} counts, got {_size(matrix)}")
    pairs = value.get("pairs")
    if pairs is not None and (len(pairs) != 2 or len(pairs[0]) != len(pairs[1])):
        raise ValueError(f"{at}.pairs: expected two lists of one length")


def _size(counts: Any) -> tuple[int, ...]:
    size = []
    while isinstance(counts, list):
        size.append(len(counts))
        counts = counts[0] if counts else None
    return tuple(size)


def _date(value: Any, at: str) -> None:
    _TEXT(value, at)
    try:
        datetime.fromisoformat(value)
    except ValueError as error:
        raise ValueError(f"{at}: expected a date: {error}") from error


_REPORT = _fields(
    {
        "findings": _list(_FINDING),
        "checked": _map(_INT),
        "confusion": _map(_result),
        "syncs": _list(_SYNC),
        "notes": _list(_TEXT),
    }
)
_SEEN = _fields({"samples": _or_none(_count), "hash": _or_none(_TEXT)})
_RUN = _fields(
    {
        "run": _TEXT,
        "started": _TEXT,
        "ended": _date,
        "error": _or_none(_TEXT),
        "evaluated_on": _map(_SEEN),
        "history": _list(_fields({"scores": _map(_or_none(_NUMBER))})),
        "checkpoint": _or_none(_fields({"path": _TEXT, "is": _TEXT})),
        "epoch": _INT,
        "step": _INT,
        "strategy": _TEXT,
        "seed": _fields({"PL_GLOBAL_SEED": _or_none(_TEXT)}, {"torch": _INT}),
        "hyper_parameters": _A_MAP,
        "model": _TEXT,
        "precision": _TEXT,
        "device": _TEXT,
        "world_size": _INT,
        "git": _or_none(_fields({"revision": _TEXT, "changed_files": _INT})),
        "versions": _map(_TEXT),
    },
    {"trained_on": _list(_fields({"of": _TEXT, "hashes": _TEXT}))},
)
_RECORD = _fields(
    {"report": _REPORT}, {"format": _INT, "written": _TEXT, "runs": _list(_RUN)}
)
