"""Every score against scikit-learn, and the choices where a definition leaves one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from lightning_evalguard.confusion import scores


def counts(
    target: list[int], preds: list[int], classes: int
) -> tuple[torch.Tensor, ...]:
    matrix = torch.as_tensor(
        sk.confusion_matrix(target, preds, labels=list(range(classes)))
    )
    return matrix.sum(1), matrix.sum(0), matrix.diagonal()


def test_the_textbook_case_is_exact() -> None:
    # 200 messages, 40 spam: TP 30, FP 6, FN 10, TN 154.
    result = scores.multiclass(
        torch.tensor([160, 40]), torch.tensor([164, 36]), torch.tensor([154, 30])
    )
    assert result["accuracy"] == 0.92
    assert result["recall"] == 0.75
    assert result["precision"] == pytest.approx(30 / 36, abs=1e-15)
    assert result["f1"] == pytest.approx(60 / 76, abs=1e-15)
    assert result["specificity"] == 154 / 160
    assert result["majority_baseline"] == 0.8


@settings(max_examples=40)
@given(
    st.integers(2, 9).flatmap(
        lambda c: st.tuples(
            st.just(c),
            st.lists(
                st.tuples(st.integers(0, c - 1), st.integers(0, c - 1)),
                min_size=1,
                max_size=80,
            ),
        )
    )
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.UndefinedMetricWarning")
@pytest.mark.filterwarnings("ignore:A single label was found")
@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
@pytest.mark.filterwarnings("ignore:invalid value encountered")
def test_any_labels_give_sklearns_scores(
    case: tuple[int, list[tuple[int, int]]],
) -> None:
    classes, pairs = case
    target, preds = (list(x) for x in zip(*pairs, strict=True))
    ours = scores.multiclass(*counts(target, preds, classes))
    expected = {
        "accuracy": sk.accuracy_score(target, preds),
        "balanced_accuracy": sk.balanced_accuracy_score(target, preds),
        "mcc": sk.matthews_corrcoef(target, preds),
    }
    for average in ("macro", "weighted"):
        for name, function in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            expected[f"{name}_{average}"] = function(
                target, preds, average=average, zero_division=0
            )
    if len({*target, *preds}) > 1:  # else 0/0: sklearn's kappa is NaN, ours 0.0
        expected["kappa"] = sk.cohen_kappa_score(target, preds)
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_a_class_never_predicted_has_precision_zero() -> None:
    each = scores.per_class(
        torch.tensor([3, 2]), torch.tensor([5, 0]), torch.tensor([3, 0])
    )
    assert each.precision.tolist() == [0.6, 0.0]
    assert scores.multiclass(
        torch.tensor([3, 2]), torch.tensor([5, 0]), torch.tensor([3, 0])
    )["precision_macro"] == pytest.approx(0.3)


def test_a_class_never_present_is_left_out_of_macro_averages() -> None:
    seen = torch.tensor([4, 4])
    result = scores.multiclass(*(torch.tensor([4, 4, 0]),) * 3)
    assert (
        result["f1_macro"]
        == result["recall_macro"]
        == result["balanced_accuracy"]
        == 1.0
    )
    assert result == pytest.approx({k: result[k] for k in result})
    assert scores.multiclass(seen, seen, seen)["f1_macro"] == 1.0


def test_an_empty_epoch_is_nan_in_every_score() -> None:
    for classes in (2, 5):
        zero = torch.zeros(classes, dtype=torch.long)
        assert all(math.isnan(v) for v in scores.multiclass(zero, zero, zero).values())
        assert all(
            math.isnan(v) for v in scores.multilabel(zero, zero, zero, zero).values()
        )


def test_one_class_only_gives_mcc_and_kappa_zero() -> None:
    result = scores.multiclass(*(torch.tensor([7, 0]),) * 3)
    assert result["mcc"] == result["kappa"] == 0.0
    assert result["accuracy"] == 1.0


def test_mcc_of_a_hundred_million_samples_is_exact() -> None:
    # torchmetrics' float32 loses the products (measured: 0.0 where it is 0.971).
    support = torch.tensor([60_000_000, 40_000_000])
    predicted = torch.tensor([60_200_000, 39_800_000])
    hits = torch.tensor([59_400_000, 39_200_000])
    tp, fp, fn, tn = 39_200_000, 600_000, 800_000, 59_400_000
    expected = (tp * tn - fp * fn) / math.sqrt(
        (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    )
    assert scores.multiclass(support, predicted, hits)["mcc"] == pytest.approx(
        expected, abs=1e-14
    )


@settings(max_examples=40)
@given(st.integers(1, 5), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_any_multilabel_answers_give_sklearns_scores(
    labels: int, n: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    target, preds = rng.integers(0, 2, (2, n, labels))
    # no label is absent: ours are left out of macro, sklearn's count 0
    target[0] = preds[0] = 1
    s, p, tp = (torch.as_tensor(x.sum(0)) for x in (target, preds, target & preds))
    ours = scores.multilabel(s, p, tp, torch.full((labels,), n))
    for average in ("macro", "micro", "weighted"):
        for name, function in (
            ("precision", sk.precision_score),
            ("recall", sk.recall_score),
            ("f1", sk.f1_score),
        ):
            expected = function(target.ravel() if labels == 1 else target,
                                preds.ravel() if labels == 1 else preds,
                                average="binary" if labels == 1 else average)  # fmt: skip
            assert ours[f"{name}_{average}"] == pytest.approx(expected, abs=1e-12)
    assert ours["hamming_accuracy"] == pytest.approx(
        (target == preds).mean(), abs=1e-12
    )
