"""Every example as a newcomer runs it: what it prints, what it leaves, how it stops."""

from __future__ import annotations

import json
import os
import re
import runpy
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_evalguard import EvalGuardWarning, watch

EXAMPLES = Path(__file__).parent.parent / "examples"


@dataclass
class Done:
    status: int
    stdout: str
    stderr: str


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run an example as ``python NAME ARGUMENTS`` would, in an empty folder."""

    def example(name: str, *arguments: str) -> Done:
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(EXAMPLES)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        status, said = 0, ""
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        except SystemExit as end:
            said = end.code if isinstance(end.code, str) else ""
            status = 1 if said else int(end.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err + said)

    return example


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda p: p.stem)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


def test_digits_learns_and_leaves_its_matrix_in_tensorboard(
    run: Callable[..., Done], tmp_path: Path
) -> None:
    done = run("digits.py")
    assert done.status == 0, done.stderr
    assert "EvalGuardWarning" not in done.stderr
    (accuracy,) = re.findall(r"^val: accuracy ([\d.]+)", done.stdout, re.MULTILINE)
    assert float(accuracy) > 0.95
    assert "tensorboard --logdir logs" in done.stdout
    events = EventAccumulator(
        str(tmp_path / "logs" / "digits" / "version_0"), size_guidance={"images": 0}
    ).Reload()
    scalars = events.Scalars("val/accuracy")
    assert scalars[-1].value == pytest.approx(float(accuracy), abs=1e-4)
    assert [e.step for e in events.Images("val/confusion_matrix")] == [
        e.step for e in scalars
    ]


BUGS = {
    "TrainInStep": (
        r"`TrainInStep` \(the whole model\): is in train mode",
        "self.train()",
    ),
    "NormLeftOn": (
        r"`features.1` \(BatchNorm2d\): is in train mode",
        "self.features[1].train()",
    ),
    "EvalWithoutSuper": (r"`EvalWithoutSuper.eval` is overridden", "def eval"),
    "ForwardWakesDropout": (
        r"`head` \(Sequential\): was in train mode",
        "self.head.train()",
    ),
    "LoadedInEval": (r"is in eval mode \(", ""),
    "NeverPutBack": (
        r"after the sanity check, expected train mode",
        "on_validation_model_train",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_each_planted_bug_is_stopped_with_its_message(
    bug: str, run: Callable[..., Done]
) -> None:
    done = run("broken.py", "--bug", bug)
    words, line = BUGS[bug]
    assert done.status == 1
    assert re.search(words, done.stderr), done.stderr
    assert "[modes]" in done.stderr
    if line:
        source = (EXAMPLES / "broken.py").read_text(encoding="utf-8").splitlines()
        (at,) = [i for i, text in enumerate(source, 1) if line in text]
        assert f"broken.py:{at} " in done.stderr


def test_every_bug_of_the_example_is_tested_and_runs_unguarded(
    run: Callable[..., Done],
) -> None:
    done = run("broken.py", "--help")
    listed, *_ = re.findall(r"--bug \{([^}]+)\}", " ".join(done.stdout.split()))
    assert set(listed.split(",")) == set(BUGS)
    silent = run("broken.py", "--bug", "TrainInStep", "--unguarded")
    assert silent.status == 0, silent.stderr


def test_the_textbook_case_is_exact(run: Callable[..., Done]) -> None:
    done = run("spam.py")
    assert done.stdout.splitlines() == [
        "accuracy  0.9200",
        "precision 0.8333",
        "recall    0.7500",
        "f1        0.7895",
        "A quarter of the spam slipped through: 10 of 40 messages.",
    ]


def test_tumours_says_what_accuracy_hid(run: Callable[..., Done]) -> None:
    done = run("tumours.py")
    assert "EvalGuardWarning" not in done.stderr
    assert re.search(r"^accuracy 0\.\d+, recall 0\.\d+$", done.stdout, re.MULTILINE), (
        done.stderr
    )
    assert re.search(
        r"^Accuracy hid that \d+ of 63 malignant tumours were",
        done.stdout,
        re.MULTILINE,
    )


def test_the_plain_loop_reports_a_clean_evaluation(run: Callable[..., Done]) -> None:
    done = run("plain_loop.py")
    assert "\nchecked: 1 evaluation" in done.stdout, done.stderr
    # the matrix of what the block scores
    assert "\nevaluate: accuracy 0.9" in done.stdout
    assert done.stderr == ""


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
def test_plain_script_has_four_bugs_that_are_found_from_outside(
    run: Callable[..., Done],
) -> None:
    with watch() as report:
        assert run("plain_script.py").stdout.count("validation accuracy") == 4
    text = (EXAMPLES / "plain_script.py").read_text().splitlines()
    lines: dict[str, set[str]] = {f.check: set() for f in report.findings}
    for finding in report.findings:
        number = int((finding.location or ":0").rpartition(":")[2])
        lines[finding.check].add(text[number - 1].strip())
    assert lines == {
        "modes": {"right = (model(x).argmax(1) == y).sum()", "model.eval()"},
        "grad": {"total += F.cross_entropy(model(x), y).detach()"},
        "sync": {'correct += right.item() if "item" in BUGS else right'},
    }
    assert report.confusion["validate"].total == 100
    with watch() as report:
        run("plain_script.py", "none")
    assert report.findings == []
    assert report.checked["evaluations"] == 8


def test_fabric_evaluates_honestly_and_finds_dropout_awake(
    run: Callable[..., Done],
) -> None:
    done = run("fabric.py")
    assert done.status == 0, done.stderr
    assert done.stdout.count("dropout trains again: True") == 3
    assert "`3` (Dropout): is in train mode" in done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_huggingface_chooses_by_a_score_of_the_matrix(run: Callable[..., Done]) -> None:
    pytest.importorskip("accelerate")
    done = run("huggingface.py")
    assert done.status == 0, done.stderr
    assert "'eval_f1_macro': " in done.stdout
    assert "150 samples, 2 classes" in done.stdout


@pytest.mark.slow
def test_text_is_split_by_file_and_scored_by_package(run: Callable[..., Done]) -> None:
    done = run("text.py")
    assert "EvalGuardWarning" not in done.stderr
    assert "4 classes)" in done.stdout
    (accuracy,) = re.findall(r"^accuracy (0\.\d+)", done.stdout, re.MULTILINE)
    assert float(accuracy) > 0.6


@pytest.mark.slow
def test_segmentation_leaves_the_grey_pixels_out(run: Callable[..., Done]) -> None:
    done = run("segmentation.py")
    assert "EvalGuardWarning" not in done.stderr
    counted, grey = re.findall(
        r"\((\d+,\d+) samples|^(\d,\d+) grey", done.stdout, re.MULTILINE
    )
    assert int(counted[0].replace(",", "")) + int(grey[1].replace(",", "")) == 359 * 64
    assert done.stdout.count("  ->  ") == 8


@pytest.mark.slow
def test_multilabel_ends_with_an_interval(run: Callable[..., Done]) -> None:
    done = run("multilabel.py")
    assert "EvalGuardWarning" not in done.stderr
    assert "(1,436 answers, 4 labels)" in done.stdout
    assert re.search(
        r"^f1_macro 0\.9\d+, 95 %: 0\.\d+ to 0\.\d+$", done.stdout, re.MULTILINE
    )


@pytest.mark.slow
def test_tokens_counts_no_padding(run: Callable[..., Done]) -> None:
    done = run("tokens.py")
    assert "EvalGuardWarning" not in done.stderr
    assert "6 classes)" in done.stdout
    assert re.search(r"^  name +[\d,]+ ", done.stdout, re.MULTILINE)


@pytest.mark.slow
def test_regression_is_watched_without_a_matrix(run: Callable[..., Done]) -> None:
    done = run("regression.py")
    assert re.search(r"^val/r2 0\.[3-7]", done.stdout, re.MULTILINE)
    assert "checked: 21 evaluations" in done.stdout
    line = 1 + (EXAMPLES / "regression.py").read_text().splitlines().index(
        "        return self.second(F.dropout(self.first(x).relu(), 0.2))[:, 0]"
    )
    assert f"regression.py:{line} in `DropsAlways`" in done.stdout


@pytest.mark.slow
def test_mc_dropout_is_silent_with_one_allow(run: Callable[..., Done]) -> None:
    done = run("mc_dropout.py")
    assert "EvalGuardWarning" not in done.stderr
    assert "findings: 0" in done.stdout
    assert done.stdout.count("least sure of a ") == 3


@pytest.mark.slow
def test_averaged_weights_are_silent_and_stale_ones_are_named(
    run: Callable[..., Done],
) -> None:
    with pytest.warns(EvalGuardWarning, match="weights that training began with"):
        done = run("ema.py")
    good, _, bad = done.stdout.partition("accuracy of the averaged weights: ")[
        2
    ].partition("accuracy of the averaged weights: ")
    assert float(good.split()[0]) > float(bad.split()[0])
    assert "[weights]" not in good
    assert "is scored with the weights that training began with" in bad


@pytest.mark.slow
def test_two_processes_count_each_sample_once(tmp_path: Path) -> None:
    paths = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "ddp.py")],
        capture_output=True, text=True, check=False, cwd=tmp_path, timeout=300,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "counted on both processes: 359 of 359" in done.stdout
    assert "DistributedSampler repeats 1 of 359 samples" in done.stderr


@pytest.mark.slow
def test_a_baseline_lets_only_new_findings_fail(
    run: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = os.pathsep.join([str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", paths)
    done = run("ci.py")
    assert re.findall(
        r"^exit status (\d)  lightning-evalguard: (.*)$", done.stdout, re.MULTILINE
    ) == [
        ("1", "2 findings in 8 evaluations"),
        ("0", "no findings in 8 evaluations, 2 more in the baseline"),
        ("1", "1 finding in 8 evaluations, 2 more in the baseline"),
    ]
    assert done.stdout.count("::error file=") == 1


@pytest.mark.slow
def test_a_graph_is_scored_by_its_nodes(run: Callable[..., Done]) -> None:
    pytest.importorskip("torch_geometric")
    done = run("graph.py")
    assert "(30 samples, 4 classes)" in done.stdout


def _cells() -> list[str]:
    notebook = json.loads((EXAMPLES / "notebook.ipynb").read_text(encoding="utf-8"))
    return ["".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "code"]


@pytest.mark.slow
def test_the_notebook_runs_and_names_its_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cell by cell as IPython does it: each is code of a name of its own."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    for number, cell in enumerate(_cells(), 1):
        exec(compile(cell, f"<ipython-input-{number}-0a1b2c3d>", "exec"), names)
    printed = capsys.readouterr().out
    assert "cell 5, line 3" in printed, traceback.format_exc()
    assert "self.net[1].train()" in _cells()[4].splitlines()[2]
    assert "<iframe" in names["report"]._repr_html_()  # type: ignore[attr-defined]


def test_every_example_stands_in_the_list() -> None:
    listed = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    there = {
        path.name for path in EXAMPLES.iterdir() if path.suffix in (".py", ".ipynb")
    }
    assert {name for name in there if f"({name})" not in listed} == set()
