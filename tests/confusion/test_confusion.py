"""The state against scikit-learn and torchmetrics: nothing is lost, and nothing is guessed."""

from __future__ import annotations

import math
import pickle
import weakref
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.classification import BinaryStatScores, MultilabelStatScores
from torchmetrics.functional import classification as tm

from lightning_evalguard.confusion.matrix import ConfusionMatrix, ConfusionMetrics
from lightning_evalguard.confusion.sources import Pair, layout_of

INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


@settings(max_examples=80)
@given(
    classes=st.integers(2, 50),
    n=st.integers(1, 60),
    extra=st.sampled_from([(), (3,), (2, 3)]),
    scores=st.sampled_from([None, torch.float16, torch.bfloat16, torch.float32]),
    integer=st.sampled_from(INTEGERS),
    ignore=st.sampled_from([None, -100, 0, 1]),
    parts=st.integers(1, 5),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_labels_in_any_batching_give_sklearns_matrix(
    classes: int, n: int, extra: tuple[int, ...], scores: Any, integer: Any, ignore: int | None,
    parts: int, seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(0, classes, (n, *extra), generator=g).to(integer)
    if scores is None:
        preds = labels = torch.randint(0, classes, (n, *extra), generator=g)
        preds = preds.to(integer)
    else:
        preds = torch.randn(n, classes, *extra, generator=g).to(scores)
        labels = preds.argmax(1)
    if ignore == -100 and integer != torch.uint8:
        target = torch.where(
            torch.rand(target.shape, generator=g) < 0.2, -100, target.long()
        )
    confmat = ConfusionMatrix(classes, ignore_index=-100 if ignore is None else ignore)
    for p, t in zip(preds.chunk(parts), target.chunk(parts), strict=True):
        confmat.update(p, t)
    keep = target.long() != (-100 if ignore is None else ignore)
    expected = np.zeros((classes, classes), dtype=int)
    if keep.any():  # sklearn refuses nothing at all
        expected = confusion_matrix(
            target[keep], labels[keep], labels=list(range(classes))
        )
    result = confmat.result()
    assert result.matrix.tolist() == expected.tolist()
    assert result.total + result.ignored == target.numel()
    assert result.out_of_range == result.nan_preds == result.unusable_preds == 0
    if ignore is None:
        theirs = tm.multiclass_confusion_matrix(preds, target.long(), classes)
        assert result.matrix.tolist() == theirs.tolist()


@settings(max_examples=40)
@given(
    n=st.integers(1, 60),
    kind=st.sampled_from(["logits", "probs", "labels"]),
    threshold=st.sampled_from([0.5, 0.1, 0.73, 0.9]),
    dtype=st.sampled_from(
        [torch.float16, torch.bfloat16, torch.float32, torch.float64]
    ),
    target_dtype=st.sampled_from([*INTEGERS, torch.bool, torch.float32]),
    labels=st.integers(1, 4),
    seed=st.integers(0, 2**31 - 1),
)
def test_any_yes_or_no_answers_give_sklearns_matrix(
    n: int,
    kind: str,
    threshold: float,
    dtype: Any,
    target_dtype: Any,
    labels: int,
    seed: int,
) -> None:
    g = torch.Generator().manual_seed(seed)
    preds = torch.randn(n, labels, generator=g).mul(2).to(dtype)
    exact = preds.double().sigmoid() > threshold
    if kind == "probs":
        preds = preds.sigmoid()
        exact = preds.double() > threshold
    if kind == "labels":
        preds = exact.long()
    target = torch.randint(0, 2, (n, labels), generator=g).to(target_dtype)
    expected = multilabel_confusion_matrix(target.long(), exact) if labels > 1 else None
    if expected is not None:
        many = ConfusionMatrix(
            labels, "multilabel", preds_are=kind, threshold=threshold
        )
        many.update(preds, target)
        assert many.compute().tolist() == expected.tolist()
    first = confusion_matrix(target[:, 0].long(), exact[:, 0], labels=[0, 1])
    for by_batch in (False, kind == "logits"):
        one = ConfusionMatrix(
            2, "binary", preds_are=kind, threshold=threshold, by_batch=by_batch
        )
        for p, t in zip(preds[:, 0].split(7), target[:, :1].split(7), strict=True):
            one.update(p, t)
        assert one.compute().tolist() == first.tolist()


@pytest.mark.parametrize("preds_are", ["logits", "probs", "unknown"])
def test_many_scores_at_once_fall_where_few_do(preds_are: str) -> None:
    edges = [
        math.nan,
        math.inf,
        -math.inf,
        0.0,
        -0.0,
        0.5,
        1.0,
        -1e-30,
        1 + 1e-6,
        1e-30,
    ]
    preds = torch.cat((torch.tensor(edges), torch.randn(10_000)))
    target = torch.randint(2, preds.shape)
    few, many = (ConfusionMatrix(2, "binary", preds_are=preds_are) for _ in range(2))
    many.update(preds, target)
    for p, t in zip(preds.split(1000), target.split(1000), strict=True):
        few.update(p, t)
    assert few.counts.tolist() == many.counts.tolist()


@settings(max_examples=60)
@given(
    batches=st.lists(
        st.tuples(st.floats(-2, 2), st.floats(0.1, 3)), min_size=1, max_size=5
    ),
    threshold=st.sampled_from([0.5, 0.3, 0.8]),
    labels=st.integers(1, 3),
    ignored=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    seed=st.integers(0, 2**31 - 1),
)
def test_what_a_guess_by_batch_counts_is_torchmetrics_own(
    batches: list[tuple[float, float]], threshold: float, labels: int, ignored: bool, dtype: Any,
    seed: int,
) -> None:  # fmt: skip
    g = torch.Generator().manual_seed(seed)
    common: dict[str, Any] = {"threshold": threshold, "ignore_index": -100}
    theirs: Any = BinaryStatScores(**common)
    if labels > 1:
        theirs = MultilabelStatScores(labels, average=None, **common)
    task: Any = "multilabel" if labels > 1 else "binary"
    target = torch.randint(0, 2, (3, labels)[: 1 + (labels > 1)])
    layout = layout_of(
        Pair(target.to(dtype), target, "", task), ConfusionMetrics(**common)
    )
    assert (layout.rounded is None) == (dtype == torch.float32)
    ours = ConfusionMatrix.of(replace(layout, preds_are="logits", by_batch=True))
    inside = 0
    for low, spread in batches:
        shape = (4, labels) if labels > 1 else (4,)
        preds = (low + spread * torch.rand(shape, generator=g)).to(dtype)
        target = torch.randint(0, 2, shape, generator=g)
        target[0] = -100 if ignored else 1
        ours.update(preds, target)
        ours.update(preds[:0], target[:0])  # of which a sampler repeated every sample
        theirs.update(preds, target)
        if ((preds >= 0) & (preds <= 1)).all():
            inside += int((target >= 0).sum())
    tp, fp, tn, fn, _ = theirs.compute().unbind(-1)
    expected = torch.stack((tn, fp, fn, tp), -1).unflatten(-1, (2, 2)).tolist()
    found = {misread.how: misread.matrix for misread in ours.result().misread}
    guessed = [
        matrix for why, matrix in found.items() if "taken for probabilities" in why
    ]
    if not inside:
        assert guessed == []
        rounded = [matrix for why, matrix in found.items() if "rounded" in why]
        assert [*rounded, ours.compute()][0].tolist() == expected
        return
    (matrix,) = guessed
    assert matrix.tolist() == expected
    assert any(f"the logits of {inside} " in why for why in found)


def test_targets_out_of_range_are_counted_and_corrupt_nothing() -> None:
    confmat = ConfusionMatrix(3)
    preds = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    confmat.update(preds, torch.tensor([0, 1, 2, -1, 3, 10**12, -100]))
    result = confmat.result()
    assert result.matrix.tolist() == torch.eye(3, dtype=torch.long).tolist()
    assert (result.out_of_range, result.ignored) == (3, 1)
    assert result.problems() == ["3 targets outside the 3 classes"]


def test_a_nan_prediction_is_not_class_zero() -> None:
    logits = torch.eye(3)
    logits[1] = math.nan
    confmat = ConfusionMatrix(3, preds_are="logits")
    confmat.update(logits, torch.tensor([0, 1, 2]))
    result = confmat.result()
    assert result.nan_preds == 1
    assert result.matrix.tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    binary = ConfusionMatrix(2, "binary", preds_are="logits")
    binary.update(torch.tensor([math.nan, 1.0]), torch.tensor([0, 1]))
    assert binary.result().nan_preds == 1
    assert binary.compute().tolist() == [[0, 0], [0, 1]]


def test_label_predictions_out_of_range_do_not_alias_into_other_cells() -> None:
    confmat = ConfusionMatrix(3)
    confmat.update(torch.tensor([-1, 3, 99, 1]), torch.tensor([0, 0, 2, 1]))
    result = confmat.result()
    assert result.matrix.tolist() == [[0, 0, 0], [0, 1, 0], [0, 0, 0]]
    assert (result.unusable_preds, result.out_of_range) == (3, 0)


def test_logits_are_told_by_the_whole_evaluation_and_never_by_batch() -> None:
    # torchmetrics#1604: 0.2 and 0.3 alone look like probabilities.
    confmat = ConfusionMatrix(2, "binary", preds_are="unknown")
    confmat.update(torch.tensor([0.2, 0.3]), torch.tensor([1, 1]))
    confmat.update(torch.tensor([3.0, -1.0]), torch.tensor([1, 0]))
    result = confmat.result()
    assert result.preds_are == "logits"
    assert result.matrix.tolist() == [[1, 0], [0, 3]]


def test_probabilities_are_told_by_the_whole_evaluation() -> None:
    confmat = ConfusionMatrix(2, "binary", preds_are="unknown", threshold=0.4)
    confmat.update(torch.tensor([0.0, 0.3, 0.45, 1.0]), torch.tensor([0, 1, 1, 1]))
    result = confmat.result()
    assert result.preds_are == "probs"
    assert result.matrix.tolist() == [[1, 0], [1, 2]]


def test_values_that_are_no_probability_are_counted_apart() -> None:
    confmat = ConfusionMatrix(2, "binary", preds_are="probs")
    confmat.update(torch.tensor([0.2, 1.5, -3.0]), torch.tensor([0, 1, 1]))
    result = confmat.result()
    assert (result.total, result.unusable_preds) == (1, 2)
    assert result.problems() == ["2 predictions outside [0, 1]"]


def test_a_bfloat16_logit_just_above_zero_is_positive() -> None:
    # Its bfloat16 sigmoid rounds to 0.5, which is not above the threshold.
    logit = torch.tensor([0.001], dtype=torch.bfloat16)
    assert logit.sigmoid() == 0.5
    confmat = ConfusionMatrix(2, "binary", preds_are="logits")
    confmat.update(logit, torch.tensor([1]))
    assert confmat.compute().tolist() == [[0, 0], [0, 1]]


class NoDataDependence(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        assert torch.Tag.data_dependent_output not in func.tags, func
        assert torch.Tag.dynamic_output_shape not in func.tags, func
        return func(*args, **kwargs or {})


CASES: list[tuple[dict[str, Any], torch.Tensor, torch.Tensor]] = [
    ({"num_classes": 5}, torch.randn(8, 5), torch.randint(5, (8,))),
    ({"num_classes": 5}, torch.randint(5, (8,)), torch.randint(5, (8,))),
    (
        {"num_classes": 5, "top_k": (1, 3)},
        torch.randn(8, 5, 2),
        torch.randint(5, (8, 2)),
    ),
    ({"num_classes": 5, "full": False}, torch.randn(8, 5), torch.randint(5, (8,))),
    (
        {"task": "binary", "preds_are": "unknown"},
        torch.randn(8),
        torch.randint(2, (8,)),
    ),
    (
        {"task": "binary", "preds_are": "unknown", "by_batch": True},
        torch.randn(5000),
        torch.randint(2, (5000,)),
    ),
    (
        {"num_classes": 3, "task": "multilabel", "preds_are": "logits"},
        torch.randn(8, 3),
        torch.randint(2, (8, 3)).float(),
    ),
]


@pytest.mark.parametrize(("kwargs", "preds", "target"), CASES)
def test_the_update_never_depends_on_the_data(
    kwargs: dict[str, Any], preds: torch.Tensor, target: torch.Tensor
) -> None:
    confmat = ConfusionMatrix(**kwargs)
    with NoDataDependence():
        confmat.update(preds, target)
    confmat.to("meta").update(preds.to("meta"), target.to("meta"))


def test_the_detector_of_data_dependence_finds_one() -> None:
    with NoDataDependence(), pytest.raises(AssertionError, match="_local_scalar_dense"):
        torch.ones(1).item()


def test_the_state_holds_no_reference_to_the_batch() -> None:
    for kwargs, preds, target in CASES:
        confmat = ConfusionMatrix(**kwargs)
        p, t = preds.clone(), target.clone()
        refs = weakref.ref(p), weakref.ref(t)
        confmat.update(p, t)
        del p, t
        assert refs[0]() is None
        assert refs[1]() is None


def test_a_state_made_and_reset_in_inference_mode_counts_outside_of_it() -> None:
    # torchmetrics#1993: reset inside trainer.validate(), used in the next fit.
    with torch.inference_mode():
        confmat = ConfusionMatrix(2)
        confmat.update(torch.tensor([0, 1]), torch.tensor([0, 1]))
        confmat.reset()
    confmat.update(torch.tensor([0, 1]), torch.tensor([1, 1]))
    assert not confmat.counts.is_inference()
    assert confmat.compute().tolist() == [[0, 0], [1, 1]]


def test_it_is_an_ordinary_metric() -> None:
    confmat = ConfusionMatrix(2)
    batch = torch.tensor([0, 1]), torch.tensor([1, 1])
    assert confmat(*batch).tolist() == [[0, 0], [1, 1]]
    assert confmat.state_dict() == {}
    for copy in (deepcopy(confmat), pickle.loads(pickle.dumps(confmat))):
        copy.update(*batch)
        assert copy.compute().tolist() == [[0, 0], [2, 2]]
    assert confmat.compute().tolist() == [[0, 0], [1, 1]]


def test_top_k_counts_targets_among_the_best() -> None:
    scores = torch.tensor([[3.0, 2, 1], [3.0, 2, 1], [3.0, 2, 1], [math.nan, 2, 1]])
    confmat = ConfusionMatrix(3, preds_are="logits", top_k=(1, 2))
    confmat.update(scores, torch.tensor([0, 1, 2, 1]))
    result = confmat.result()
    assert (
        result.scores["top1_accuracy"]
        == result.scores["accuracy"]
        == pytest.approx(1 / 3)
    )
    assert result.scores["top2_accuracy"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16]
)
@pytest.mark.parametrize("classes", [100, 300, 1000, 1024])
def test_the_highest_of_many_classes_is_torchs_argmax(
    dtype: torch.dtype, classes: int
) -> None:
    """They are compared block by block: ties, NaN, infinities and strides change nothing."""
    scores = torch.randn(70, classes).to(dtype)
    scores[0, 5] = scores[0, -1] = 99  # a tie in two blocks: the first counts
    scores[1, -1] = torch.nan
    scores[2] = -torch.inf
    scores[3, 63:65] = torch.inf
    for preds in (
        scores,
        torch.randint(3, scores.shape).to(dtype),
        scores.t().clone().t(),
    ):
        confmat, expected = (ConfusionMatrix(classes) for _ in range(2))
        target = torch.arange(len(preds))
        confmat.update(preds, target)
        best = preds.argmax(dim=1).masked_fill(preds.isnan().any(dim=1), classes)
        expected.update(best, target)
        result, like = confmat.result(), expected.result()
        assert torch.equal(result.matrix, like.matrix)
        assert result.total == len(preds) - int(preds.isnan().any())


def test_many_classes_keep_exact_vectors_and_exact_confused_pairs() -> None:
    classes = 3000
    rng = np.random.default_rng(0)
    target = rng.integers(0, classes, 5000)
    preds = np.where(rng.random(5000) < 0.5, target, rng.integers(0, 40, 5000))
    sparse, full = ConfusionMatrix(classes, full=False), ConfusionMatrix(classes)
    for confmat in (sparse, full):
        for part in np.array_split(np.arange(5000), 7):
            confmat.update(torch.as_tensor(preds[part]), torch.as_tensor(target[part]))
    a, b = sparse.result(), full.result()
    assert a.matrix is None
    for name in ("support", "predicted", "true_positives"):
        assert torch.equal(getattr(a, name), getattr(b, name))
    assert a.scores == b.scores
    assert [p.count for p in a.most_confused(9)] == [
        p.count for p in b.most_confused(9)
    ]
    assert sum(p.count for p in a.most_confused(10**6)) == int((target != preds).sum())


def test_a_full_key_buffer_is_compacted_without_losing_a_pair(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning_evalguard.confusion.matrix._PAIRS", 16)
    confmat = ConfusionMatrix(10, full=False)
    preds, target = torch.randint(10, (40, 25)), torch.randint(10, (40, 25))
    for p, t in zip(preds, target, strict=True):
        confmat.update(p, t)
    result = confmat.result()
    expected = confusion_matrix(
        target.flatten(), preds.flatten(), labels=list(range(10))
    )
    for pair in result.most_confused(100):
        assert expected[int(pair.true), int(pair.predicted)] == pair.count
    assert sum(p.count for p in result.most_confused(100)) == int(
        (preds != target).sum()
    )


def test_128_256_classes_take_tens_of_mebibytes() -> None:
    confmat = ConfusionMatrix(128_256, full=False)
    confmat.update(torch.randint(128_256, (4096,)), torch.randint(128_256, (4096,)))
    assert confmat.counts.nbytes + confmat._pairs.buffer.nbytes < 16 * 2**20
    assert confmat.result().total == 4096


def test_room_that_was_not_used_is_cut_off() -> None:
    confmat = ConfusionMatrix(256, exact=False)
    confmat.update(torch.tensor([0, 3]), torch.tensor([0, 1]))
    assert confmat.result().matrix.shape == (4, 4)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"num_classes": 1}, "num_classes=1: expected an integer of 2 or more"),
        ({"num_classes": 2.5}, "num_classes=2.5"),
        ({"num_classes": True}, "num_classes=True"),
        (
            {"num_classes": 3, "task": "binary"},
            "num_classes=3: expected 2 with task='binary'",
        ),
        (
            {"num_classes": 3, "class_names": ["a", "b"]},
            "class_names has 2 names, expected 3",
        ),
        ({"class_names": ["a"]}, "class_names has 1 names"),
        ({"class_names": ["a", "a"]}, "class_names repeats a name"),
        (
            {"task": "regression"},
            "task='regression': expected one of 'binary', 'multiclass'",
        ),
        ({"preds_are": "scores"}, "preds_are='scores'"),
        ({"threshold": 1.0}, "threshold=1.0: expected a probability between 0 and 1"),
        ({"ignore_index": "x"}, "ignore_index='x'"),
        ({"source": "outputs:logits"}, "source='outputs:logits': expected a function"),
        ({"source": "metric:"}, "source='metric:'"),
        ({"source": 3}, "source=3"),
        ({"top_k": 0}, "top_k=0"),
        ({"top_k": 7, "num_classes": 5}, "top_k=7: expected 1 to num_classes"),
        ({"max_full_classes": 1}, "max_full_classes=1"),
        ({"per_class": -1}, "per_class=-1"),
    ],
)
def test_a_bad_argument_is_named(kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        ConfusionMetrics(**kwargs)


def test_good_arguments_are_taken() -> None:
    config = ConfusionMetrics(
        class_names=["ham", "spam"], top_k=[1, 2], source="metric:val_acc"
    )
    assert (config.num_classes, config.top_k) == (2, (1, 2))
    ConfusionMetrics(1, task="multilabel")
    ConfusionMetrics(source=lambda outputs, batch: outputs)
