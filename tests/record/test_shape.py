"""Whatever a file holds: it is a record, or it is refused with the place."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger

from lightning_evalguard import EvalGuard, Finding, Report
from lightning_evalguard.__main__ import main
from lightning_evalguard.record import files
from models import modes as zoo

HOSTILE = [
    None,
    True,
    -1,
    2**70,
    0.5,
    "\x1b[2J\x9b31m\u202e",
    [],
    {},
    [[]],
    {"a": None},
    "",
    ["x"],
]


class Scored(zoo.Honest):
    """Returns logits and target."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {"logits": self(batch[0]), "target": batch[1]}


@pytest.fixture
def record(tmp_path: Path, trainer: Callable[..., pl.Trainer]) -> dict[str, Any]:
    guard = EvalGuard()
    guard.report.add(
        [Finding("modes", "validate", "is so", "Do so.", "net", location="a.py:1")]
    )
    logger = CSVLogger(tmp_path / "run")
    run = trainer(logger=logger, log_every_n_steps=1, callbacks=[guard])
    run.fit(Scored(), zoo.loader(), zoo.loader(seed=1))
    (path,) = tmp_path.rglob("evalguard.json")
    made: dict[str, Any] = json.loads(path.read_text())
    assert made["report"]["confusion"]
    return made


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested data; of a list its first alone."""
    if at:
        yield at
    inside = value.items() if isinstance(value, dict) else ()
    inside = enumerate(value[:1]) if isinstance(value, list) else inside
    for key, inner in inside:
        yield from places(inner, (*at, key))


def changed(record: dict[str, Any], at: tuple[Any, ...], value: Any) -> dict[str, Any]:
    made = copy.deepcopy(record)
    inner: Any = made
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    return made


def refused_with(path: Path) -> str:
    try:
        Report.load(path)
    except ValueError as error:
        return str(error)
    return ""


def test_a_changed_record_is_shown_or_refused_with_the_place(
    record: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evalguard.json"
    refused = 0
    for i, at in enumerate(places(record)):
        for value in HOSTILE[i % 4 :: 4]:
            path.write_text(json.dumps(changed(record, at, value)))
            refusal = refused_with(path)
            if refusal:
                refused += 1
                assert str(path) in refusal, at
                assert str(at[0]) in refusal, (at, refusal)
            for command in (["show"], ["html", "-o", str(tmp_path / "page.html")]):
                assert main([*command, str(path)]) in (0, 2), at
            shown = "".join(capsys.readouterr())
            assert not set(shown) & set("\x1b\x9b\u202e"), at
    assert refused > 200


def test_a_missing_field_is_named(record: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "evalguard.json"
    made = copy.deepcopy(record)
    del made["report"]["findings"][0]["fact"]
    path.write_text(json.dumps(made))
    with pytest.raises(ValueError, match=r"report\.findings\[0\]\.fact: missing"):
        Report.load(path)


@pytest.mark.parametrize(
    "text",
    ["", "[", "[]", "null", "1", "[" * 100_000, '{"a":' * 100_000, '{"report": NaN}', "\x00",
     '{"report": {}}', '{"format": 99}', '{"format": "1"}', '{"runs": 3}'],
    ids=lambda text: text[:12],
)  # fmt: skip
def test_what_is_no_record_is_refused(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evalguard.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="is no record of lightning-evalguard"):
        Report.load(path)
    assert main(["show", str(path)]) == 2
    assert capsys.readouterr().err.startswith("lightning-evalguard: ")


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evalguard.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is no record"):
        Report.load(path)


def test_the_ledger_follows_no_link(
    tmp_path: Path,
) -> None:
    precious = tmp_path / "precious.txt"
    precious.write_text("mine\n")
    book = tmp_path / "book.jsonl"
    book.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        files.append_line(book, "{}")
    with pytest.raises(OSError, match="symbolic link"):
        files.read_lines(book)
    assert precious.read_text() == "mine\n"
