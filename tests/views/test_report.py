"""The words: every message byte for byte, and what a report holds."""

from __future__ import annotations

import json
import os

import pytest

from lightning_evalguard import EvalGuardError, EvalGuardWarning, Finding, Report
from lightning_evalguard.paths import shown_path
from lightning_evalguard.policies import check_policy
from lightning_evalguard.report import Policy, warn, warn_text


def awake(name: str = "backbone.bn1", **more: object) -> Finding:
    return Finding(
        check="modes",
        stage="validate",
        fact="is in train mode, expected eval mode",
        remedy='Call `.eval()` on it, or pass modes="fix".',
        subject=name,
        subject_type="BatchNorm2d",
        leads="subject",
        epoch=3,
        step=1200,
        **more,  # type: ignore[arg-type]
    )


DRAW = Finding(
    check="stochastic",
    stage="validate",
    fact="`F.dropout(x, 0.5)` drew random numbers in eval mode",
    remedy="Pass training=self.training.",
    subject="head",
    subject_type="Head",
    location="src/model.py:41",
    count=12,
    epoch=3,
    step=1200,
)
GOLDEN = """\
2 findings during validation (epoch 3, step 1200)
  `backbone.bn1` (BatchNorm2d): is in train mode, expected eval mode; set at src/model.py:88 \
`self.backbone.train()`. \
It computes something else in this mode. Call `.eval()` on it, or pass modes="fix". \
If it is meant: EvalGuard(allow={"modes": ["backbone.bn1"]}). [modes]
  src/model.py:41 in `head` (Head): `F.dropout(x, 0.5)` drew random numbers in eval mode (12x). \
Scores change from run to run. Pass training=self.training. \
If it is meant: EvalGuard(allow={"stochastic": ["head"]}). [stochastic]"""


def test_an_error_reads_as_the_style_says() -> None:
    first = awake(location="src/model.py:88", expression="self.backbone.train()")
    report = Report()
    report.add([first, DRAW])
    error = EvalGuardError.of([first, DRAW], report)
    assert str(error) == str(report) == GOLDEN
    assert error.report is report


def test_a_location_alone_opens_the_line() -> None:
    sync = Finding(
        "sync",
        "fit",
        "`loss.item()` makes the host wait for the device, 1.0 per training step",
        "Keep the tensor; read it once after the last batch, or log it with self.log.",
        location="src/model.py:57",
    )
    assert str(sync) == (
        "src/model.py:57: `loss.item()` makes the host wait for the device, 1.0 per training "
        "step. The device runs out of work. "
        "Keep the tensor; read it once after the last batch, or log it with self.log. "
        'If it is meant: EvalGuard(allow={"sync": ["*/model.py"]}). [sync]'
    )


def test_the_model_itself_is_named_by_its_class() -> None:
    assert str(awake("")).startswith(
        "`BatchNorm2d` (the whole model): is in train mode"
    )


def test_equal_findings_collapse_and_count() -> None:
    report = Report()
    for _ in range(128):
        report.add([awake()])
    assert len(report.findings) == 1
    assert "expected eval mode (128x)." in str(report)


def test_a_long_list_is_cut_at_ten_lines() -> None:
    findings = [awake(f"layer.{i}") for i in range(22)]
    lines = str(EvalGuardError.of(findings, Report())).splitlines()
    assert len(lines) == 12
    assert lines[-1] == "  ... and 12 more in report.findings"


def test_the_certain_and_the_attributed_come_first() -> None:
    doubt = Finding("stochastic", "test", "draws", "Mend.", "a", certain=False)
    bare = Finding("grad", "test", "records", "Mend.", "b")
    placed = Finding("state", "test", "writes", "Mend.", "c", location="f.py:1")
    text = str(EvalGuardError.of([doubt, bare, placed], Report()))
    assert text.index("writes") < text.index("records") < text.index("draws")


def test_findings_of_several_moments_are_introduced_without_one() -> None:
    report = Report()
    report.add([awake(), Finding("grad", "test", "records a graph", "Mend.", "a")])
    assert str(report).startswith("2 findings\n")


def test_counts_are_words_a_person_reads() -> None:
    report = Report()
    assert str(report) == "nothing was checked yet"
    report.checked.update({"evaluations": 1, "batches": 1, "training_steps": 1200})
    report.note("the rest was inferred")
    report.note("the rest was inferred")
    assert str(report) == (
        "checked: 1 evaluation, 1 batch, 1,200 training steps\nnote: the rest was inferred"
    )


def test_to_dict_is_plain_data() -> None:
    report = Report()
    report.add([awake()])
    report.checked["batches"] += 2
    again = json.loads(json.dumps(report.to_dict()))
    assert again["findings"][0]["subject"] == "backbone.bn1"
    assert again["checked"] == {"batches": 2}


def test_a_warning_points_at_the_line() -> None:
    with pytest.warns(EvalGuardWarning, match=r"\[stochastic\]") as told:
        warn(DRAW)
    assert (told[0].filename, told[0].lineno) == ("src/model.py", 41)
    with pytest.warns(EvalGuardWarning):
        warn_text("a sentence")


def test_a_path_below_the_working_directory_is_shown_relative() -> None:
    assert shown_path(
        os.path.join(os.getcwd(), "src", "model.py") + ":3"
    ) == os.path.join("src", "model.py:3")
    assert shown_path("/elsewhere/model.py:3") == "/elsewhere/model.py:3"


def test_an_unknown_policy_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError, match="sync='fix': expected one of 'error', 'warn', 'ignore'"
    ):
        check_policy("sync", "fix", Policy)
