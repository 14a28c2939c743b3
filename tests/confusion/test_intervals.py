"""Intervals agree with scipy's, and with drawing the raw predictions again."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from lightning_evalguard.confusion import intervals, scores
from lightning_evalguard.confusion.matrix import ConfusionMatrix
from lightning_evalguard.confusion.result import ConfusionResult


def labels(n: int, classes: int, seed: int = 0, right: float = 0.7) -> tuple[Any, Any]:
    """Predictions and targets."""
    made = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (n,), generator=made)
    other = torch.randint(classes, (n,), generator=made)
    return torch.where(torch.rand(n, generator=made) < right, target, other), target


def result_of(
    preds: torch.Tensor, target: torch.Tensor, classes: int
) -> ConfusionResult:
    confmat = ConfusionMatrix(classes)
    confmat.update(preds, target)
    return confmat.result()


@given(hits=st.integers(0, 500), more=st.integers(0, 500))
def test_proportions_have_the_interval_that_scipy_has(hits: int, more: int) -> None:
    of = hits + more
    low, high = intervals.wilson(torch.tensor(hits), torch.tensor(of))
    if not of:
        assert (float(low), float(high)) == (0.0, 1.0)
        return
    expected = binomtest(hits, of).proportion_ci(0.95, method="wilson")
    assert float(low) == pytest.approx(expected.low, abs=1e-9)
    assert float(high) == pytest.approx(expected.high, abs=1e-9)


def test_accuracy_and_the_scores_of_a_class_are_proportions() -> None:
    preds, target = labels(200, 3)
    result = result_of(preds, target, 3)
    of_class = target == 1
    for name, hits, of in (
        ("accuracy", preds == target, torch.ones(200)),
        ("recall_class/1", of_class & (preds == 1), of_class),
        ("precision_class/1", of_class & (preds == 1), preds == 1),
        ("specificity_class/1", ~of_class & (preds != 1), ~of_class),
    ):
        expected = binomtest(int(hits.sum()), int(of.sum())).proportion_ci(
            method="wilson"
        )
        assert result.interval(name) == pytest.approx(
            (expected.low, expected.high), abs=1e-9
        )
    row = result.table()[1]
    assert (row["recall_low"], row["recall_high"]) == result.interval("recall_class/1")
    assert (row["f1_low"], row["f1_high"]) == result.interval("f1_class/1")
    assert (
        result.interval("f1_class/1")[0] < row["f1"] < result.interval("f1_class/1")[1]
    )


@settings(max_examples=60)
@given(
    classes=st.integers(2, 6),
    n=st.integers(1, 80),
    seed=st.integers(0, 99),
    right=st.floats(0, 1),
)
def test_scores_of_many_matrices_are_those_of_each(
    classes: int, n: int, seed: int, right: float
) -> None:
    result = result_of(*labels(n, classes, seed, right), classes)
    counts = (result.support, result.predicted, result.true_positives)
    many = intervals.batched(*(torch.stack((x, x)).double() for x in counts))
    for name, values in many.items():
        assert values.tolist() == pytest.approx([result.scores[name]] * 2, abs=1e-12), (
            name
        )
    named = {name for name in result.scores if "/" not in name}
    proportions = {
        "accuracy",
        "recall_weighted",
        "majority_baseline",
        "precision",
        "recall",
    }
    assert named - set(many) - proportions <= {"specificity"}


@settings(max_examples=30)
@given(each=st.integers(2, 5), n=st.integers(1, 60), seed=st.integers(0, 99))
def test_scores_of_many_labels_are_those_of_each(each: int, n: int, seed: int) -> None:
    made = torch.Generator().manual_seed(seed)
    confmat = ConfusionMatrix(each, "multilabel", preds_are="probs")
    confmat.update(
        torch.rand(n, each, generator=made), torch.randint(2, (n, each), generator=made)
    )
    result = confmat.result()
    assert result.judged is not None
    counts = (result.support, result.predicted, result.true_positives)
    many = intervals.batched(*(x.double() for x in counts), result.judged.double())
    for name, value in many.items():
        if math.isfinite(result.scores[name]):
            assert float(value) == pytest.approx(result.scores[name], abs=1e-12), name
    assert set(result.scores) - set(many) - {
        "hamming_accuracy", "precision_micro", "recall_micro",
    } == {name for name in result.scores if "_class/" in name}  # fmt: skip


def drawn_again(
    preds: torch.Tensor, target: torch.Tensor, classes: int, draws: int
) -> Any:
    """The scores of `draws` bootstrap samples of the raw predictions."""
    made, n = torch.Generator().manual_seed(1), len(target)
    drawn: dict[str, list[float]] = {}
    for _ in range(draws):
        i = torch.randint(n, (n,), generator=made)
        p, t = preds[i], target[i]
        counts = (torch.bincount(x, minlength=classes) for x in (t, p, t[t == p]))
        for name, value in scores.multiclass(*counts).items():
            drawn.setdefault(name, []).append(value)
    at = torch.tensor((0.025, 0.975), dtype=torch.float64)
    return {
        k: torch.tensor(v, dtype=torch.float64).quantile(at).tolist()
        for k, v in drawn.items()
    }


def assert_agree(result: ConfusionResult, expected: Any, share: float) -> None:
    # of the most and the least frequent class a draw is no fair one: it picks another class
    for name in set(expected) - {"majority_baseline", "recall_min"}:
        low, high = result.interval(name)
        wide = expected[name][1] - expected[name][0]
        assert abs(low - expected[name][0]) < share * wide, name
        assert abs(high - expected[name][1]) < share * wide, name


@pytest.mark.parametrize(("n", "classes"), [(400, 2), (300, 4), (1500, 40)])
def test_intervals_agree_with_drawing_the_predictions_again(
    n: int, classes: int
) -> None:
    preds, target = labels(n, classes)
    assert_agree(
        result_of(preds, target, classes),
        drawn_again(preds, target, classes, 700),
        0.15,
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "classes"), [(400, 2), (300, 5), (2000, 20), (4000, 100)]
)
def test_intervals_agree_with_ten_thousand_draws(n: int, classes: int) -> None:
    preds, target = labels(n, classes)
    expected = drawn_again(preds, target, classes, 10_000)
    assert_agree(result_of(preds, target, classes), expected, 0.1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    # an even accuracy of 0.7 + 0.3 / 4 in four classes: macro F1 is the same in the limit
    covered = 0
    for seed in range(100):
        low, high = result_of(*labels(200, 4, seed), 4).interval("f1_macro")
        covered += low <= 0.775 <= high
    assert 89 <= covered <= 100


def test_intervals_are_the_same_each_time_and_move_no_generator() -> None:
    preds, target = labels(150, 3)
    before = torch.get_rng_state()
    first = dict(result_of(preds, target, 3).intervals)
    assert first == result_of(preds, target, 3).intervals
    assert torch.equal(before, torch.get_rng_state())


def test_many_classes_without_a_matrix_have_those_of_the_matrix() -> None:
    preds, target = labels(5000, 60)
    whole = result_of(preds, target, 60)
    vectors = ConfusionMatrix(60, full=False)
    vectors.update(preds, target)
    result = vectors.result()
    assert result.matrix is None
    assert result.intervals == whole.intervals


def test_perfect_is_not_certain() -> None:
    target = torch.arange(20) % 4
    result = result_of(target, target, 4)
    expected = binomtest(20, 20).proportion_ci(method="wilson")
    for name in ("accuracy", "f1_macro", "mcc", "kappa", "balanced_accuracy"):
        assert result.interval(name) == pytest.approx((expected.low, 1.0), abs=1e-9)


def test_multilabel_results_have_intervals() -> None:
    made = torch.Generator().manual_seed(0)
    target = torch.randint(2, (200, 3), generator=made)
    confmat = ConfusionMatrix(3, "multilabel", preds_are="probs")
    confmat.update((target * 0.4 + torch.rand(200, 3, generator=made) * 0.6), target)
    result = confmat.result()
    for name, value in result.scores.items():
        low, high = result.interval(name)
        assert 0 <= low <= high <= 1, name
        assert low < value < high or name == "recall_min", name
    assert "f1_micro 0." in str(result) or "f1_macro 0." in str(result)


def test_binary_results_have_intervals() -> None:
    confmat = ConfusionMatrix(2, "binary", preds_are="probs")
    confmat.update(
        torch.rand(90, generator=torch.Generator().manual_seed(0)), torch.arange(90) % 2
    )
    result = confmat.result()
    assert set(result.intervals) == set(result.scores)
    low, high = result.interval("f1")
    assert low < result.scores["f1"] < high


def test_nothing_counted_has_no_interval() -> None:
    result = ConfusionMatrix(3).result()
    assert all(math.isnan(bound) for bound in result.interval("f1_macro"))
    assert "interval" not in str(result)


def test_a_score_that_does_not_exist_is_refused() -> None:
    result = result_of(*labels(20, 3), 3)
    for name in ("f2", "recall_class/9", "f2_class/1"):
        with pytest.raises(ValueError, match="expected one of accuracy, "):
            result.interval(name)


def test_a_record_holds_them_and_a_record_without_them_has_them_again() -> None:
    result = result_of(*labels(100, 3), 3)
    plain = json.loads(json.dumps(result.to_dict()))
    assert tuple(plain["intervals"]["accuracy"]) == result.interval("accuracy")
    del plain["intervals"]  # as records were before
    assert ConfusionResult.from_dict(plain).intervals == result.intervals
    assert json.dumps(ConfusionMatrix(3).result().to_dict(), allow_nan=False)


def test_inference_mode_and_a_default_device_do_not_matter() -> None:
    preds, target = labels(400, 30)
    with torch.inference_mode():
        inside = result_of(preds, target, 30).intervals
    assert inside == result_of(preds, target, 30).intervals
    result = result_of(preds, target, 30)
    with torch.device("meta"):
        assert result.intervals == inside


def test_a_result_draws_itself() -> None:
    figure, axes = result_of(*labels(60, 3), 3).plot("val", dpi=50)
    assert axes in figure.axes
    assert figure.texts[0].get_text() == "val"


def test_a_data_frame_needs_pandas(monkeypatch: pytest.MonkeyPatch) -> None:
    result = result_of(*labels(60, 3), 3)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match="pip install pandas"):
        result.to_pandas()


def test_a_data_frame_has_a_row_a_class() -> None:
    pytest.importorskip("pandas")
    frame = result_of(*labels(60, 3), 3).to_pandas()
    assert list(frame.index) == ["0", "1", "2"]
    assert {"recall", "recall_low", "recall_high"} <= set(frame.columns)
