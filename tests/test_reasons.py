"""Each finding says why it matters, once and in a few words."""

from __future__ import annotations

import runpy
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from torch import nn

from lightning_evalguard import Finding, Report
from lightning_evalguard.checks.modes import consequences
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.reasons import LONGEST, REASONS, why_of
from lightning_evalguard.views.github import workflow_commands
from lightning_evalguard.views.sarif import fingerprint, sarif
from words import badly_reasoned

MESSAGES = runpy.run_path(str(Path(__file__).parent.parent / "docs" / "messages.py"))
GRAPH = Finding(
    "grad", "validate", "returned an autograd graph, expected tensors without `grad_fn`",
    "Return `.detach()`ed tensors.", "", "Net", "model.py:3", leads="subject",
)  # fmt: skip
UNSAVED = Finding(
    "weights", "fit", "is trained and registered nowhere: no checkpoint has its weights",
    "Make `self.heads` an nn.ModuleList.", "heads[0]",
)  # fmt: skip


def sentences_of(check: str) -> Iterator[str]:
    """What a check can say, with what may be filled in where a reason hangs on it."""
    for name, sentences in MESSAGES["by_file"]().items():
        if MESSAGES["check_of"](name) in (check, "scripts"):
            for sentence in sentences:
                yield from (sentence.replace("{}", x) for x in ("{}", "True", "False"))


@pytest.mark.parametrize("check", REASONS)
def test_each_reason_hangs_on_words_that_its_check_says(check: str) -> None:
    sentences = list(sentences_of(check))
    for words, _ in REASONS[check]:
        first = {
            next((w for w, _ in REASONS[check] if w in sentence), "")
            for sentence in sentences
            if words in sentence
        }
        assert words in first, f"{words!r}: nobody says so, or an earlier row has it"


def test_every_reason_is_a_short_sentence() -> None:
    rows = [why for rows in REASONS.values() for _, why in rows]
    rules = [rule.why for rule in RULES.values()]
    for why in (*rows, *rules, *consequences.OF_MODES):
        assert why[0].isupper(), why
        assert why.endswith(".")
        assert 3 <= len(why.split()) <= LONGEST, why


def test_a_reason_stands_between_the_fact_and_the_remedy() -> None:
    assert str(GRAPH).startswith(
        "`Net` (the whole model): returned an autograd graph, expected tensors without "
        "`grad_fn`; set at model.py:3. The graph stays in memory. Return `.detach()`ed "
        "tensors. If it is meant: "
    )
    assert not badly_reasoned(GRAPH)


def test_a_fact_that_says_it_itself_is_not_followed_by_it() -> None:
    assert UNSAVED.why == "No checkpoint has its weights."
    assert "nowhere: no checkpoint has its weights. Make `self.heads`" in str(UNSAVED)
    assert not badly_reasoned(UNSAVED)


def test_a_reason_that_repeats_its_fact_would_be_seen() -> None:
    again = replace(GRAPH, why="An autograd graph was returned.")
    assert "said twice" in badly_reasoned(again)
    assert "too long" in badly_reasoned(replace(GRAPH, why="A" + " b" * LONGEST + "."))
    assert "no sentence" in badly_reasoned(replace(GRAPH, why="of late"))


def test_a_check_that_knows_better_says_so() -> None:
    better = replace(GRAPH, why="It holds 3 GB.")
    assert ". It holds 3 GB. Return" in str(better)


def test_a_record_keeps_the_reason_and_an_old_one_is_given_it() -> None:
    report = Report()
    report.add([replace(GRAPH, why="It holds 3 GB."), UNSAVED])
    plain = report.to_dict()
    assert Report.from_dict(plain) == report
    for finding in plain["findings"]:
        del finding["why"]
    old = Report.from_dict(plain)
    assert [f.why for f in old.findings] == [GRAPH.why, UNSAVED.why]


def test_an_unknown_check_has_no_reason() -> None:
    assert str(Finding("tomorrow", "test", "is so", "Do so.")).startswith(
        "testing: is so. Do so. If it is meant"
    )
    assert why_of("metrics", "x") == RULES["scores"].why  # as older records have it


def test_reasons_are_in_no_fingerprint(tmp_path: Path) -> None:
    for finding in (GRAPH, UNSAVED, replace(GRAPH, location=None)):
        other = replace(finding, why="For another reason.")
        assert fingerprint(other, tmp_path) == fingerprint(finding, tmp_path)
        assert other.identity == finding.identity


def test_annotations_and_sarif_say_why(tmp_path: Path) -> None:
    found = {"a": GRAPH, "b": UNSAVED}
    first, second = sarif(found, tmp_path)["runs"][0]["results"]
    assert ". The graph stays in memory. Return" in first["message"]["text"]
    assert second["message"]["text"].count("no checkpoint has its weights") == 1
    assert "The graph stays in memory." in workflow_commands(found, tmp_path)


@pytest.mark.parametrize(
    ("modules", "why"),
    [
        ([nn.Dropout(0.1)], "Dropout makes its outputs random."),
        (
            [nn.Sequential(nn.BatchNorm1d(2))],
            "Outputs depend on the batch, statistics move.",
        ),
        (
            [nn.Dropout(0.1), nn.BatchNorm1d(2)],
            "Its outputs depend on chance and the batch.",
        ),
        ([nn.Dropout(0.0), nn.RReLU()], ""),
    ],
)
def test_a_mode_matters_by_what_changes_in_it(
    modules: list[nn.Module], why: str
) -> None:
    assert consequences.of_evaluating(modules) == why
    finding = Finding("modes", "test", "is in train mode", "Fix it.", why=why)
    assert asdict(finding)["why"] == why or RULES["modes"].why
