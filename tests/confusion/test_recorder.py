"""One evaluation's matrices in a real Trainer: exact to the sample, told once, reduced once."""

from __future__ import annotations

import gc
import json
import math
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from sklearn.metrics import confusion_matrix
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, DistributedSampler, Subset, TensorDataset

from driven import Drive, Net, expected, loader
from launched import free_port
from lightning_evalguard.confusion.by_batch import Batches
from lightning_evalguard.confusion.differences import Claim, candidates
from lightning_evalguard.confusion.layout import margins
from lightning_evalguard.confusion.matrix import ConfusionMatrix, ConfusionMetrics
from lightning_evalguard.confusion.recorder import Recorder
from two_ranks import CLASSES, Counted, data, rank_of_two


def test_each_epoch_starts_from_zero_and_the_sanity_check_is_not_in_it(
    trainer: Any,
) -> None:
    drive, net = Drive(), Net()
    trainer(callbacks=[drive], max_epochs=3, num_sanity_val_steps=2).fit(
        net, loader(), loader()
    )
    assert [r.results["val"].total for r in drive.recorded] == [101, 101, 101]
    assert drive.results["val"].matrix.tolist() == expected(net, data())
    assert (drive.results["val"].epoch, drive.results["val"].step) == (2, 21)
    json.dumps(drive.results["val"].to_dict())


def test_validate_then_fit_then_test_on_one_recorder(trainer: Any) -> None:
    drive, net = Drive(), Net()
    made = trainer(callbacks=[drive])
    made.validate(net, loader(), verbose=False)
    made.fit(net, loader(), loader())
    made.test(net, loader(), verbose=False)
    assert [list(r.results) for r in drive.recorded] == [["val"], ["val"], ["test"]]
    assert drive.results["test"].matrix.tolist() == expected(net, data())


def test_what_was_inferred_is_said_once(trainer: Any) -> None:
    drive = Drive()
    trainer(callbacks=[drive], max_epochs=2).fit(Net(), loader(), loader())
    assert [r.notes for r in drive.recorded] == [
        ["val: multiclass, 5 classes, from `logits` and `target` of the returned dict"],
        [],
    ]
    assert all(r.warnings == [] for r in drive.recorded)


class TwoLoaders(Net):
    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        return super().validation_step(batch, batch_idx)


def test_each_loader_has_a_matrix_of_its_own(trainer: Any) -> None:
    drive, net = Drive(), TwoLoaders()
    sets = data(40), data(61, seed=1)
    trainer(callbacks=[drive]).validate(net, [loader(s) for s in sets], verbose=False)
    assert list(drive.results) == ["val", "val/dataloader_idx_1"]
    for result, dataset in zip(drive.results.values(), sets, strict=True):
        assert result.matrix.tolist() == expected(net, dataset)


class Returns(Net):
    """Returns whatever `make` says of the batch and the logits."""

    def __init__(
        self, make: Callable[[Any, torch.Tensor], Any], classes: int = CLASSES
    ) -> None:
        super().__init__(classes)
        self.make = make

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self.make(batch, self(batch[0]))


DICTS = {
    "preds": lambda b, z: {"preds": z.argmax(1), "target": b[1]},
    "scores as preds": lambda b, z: {"preds": z, "targets": b[1]},
    "probs": lambda b, z: {"probs": z.softmax(1), "labels": b[1].int()},
    "logits beside a loss": lambda b, z: {
        "loss": F.cross_entropy(z, b[1]),
        "logits": z,
        "y": b[1],
    },
    "preds and logits": lambda b, z: {
        "preds": z.argmax(1),
        "logits": z,
        "target": b[1],
    },
    "numbers in uint8": lambda b, z: {
        "preds": z.argmax(1),
        "target": b[1].to(torch.uint8),
    },
    "half": lambda b, z: {"logits": z.double(), "target": b[1][:, None][:, 0]},
}


@pytest.mark.parametrize("style", DICTS)
def test_a_returned_dict_gives_sklearns_matrix(trainer: Any, style: str) -> None:
    drive, net = Drive(), Returns(DICTS[style])
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].matrix.tolist() == expected(net, data())
    assert drive.recorded[0].warnings == []


SOURCES: dict[str, tuple[Any, Any]] = {
    "a function of the outputs": (lambda out, batch: out, lambda b, z: (z, b[1])),
    "a function of the batch": (lambda out, batch: (out, batch[1]), lambda b, z: z),
    "two keys": ("outputs:score,truth", lambda b, z: {"score": z, "truth": b[1]}),
    "two indices": ("outputs:1,0", lambda b, z: (b[1], z)),
}


@pytest.mark.parametrize("style", SOURCES)
def test_an_explicit_source_gives_sklearns_matrix(trainer: Any, style: str) -> None:
    source, make = SOURCES[style]
    drive, net = Drive(ConfusionMetrics(source=source)), Returns(make)
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].matrix.tolist() == expected(net, data())


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "one value": (
        {"source": lambda out, batch: out["logits"]},
        "source returned Tensor",
    ),
    "three values": (
        {"source": lambda out, batch: (1, 2, 3)},
        "source returned 3 values",
    ),
    "no tensors": (
        {"source": lambda out, batch: (None, out)},
        "source gave NoneType and dict",
    ),
    "shapes": (
        {"source": lambda out, batch: (out["logits"], batch[1][:-1])},
        r"source gave preds \(16, 5\)",
    ),
    "no such key": (
        {"source": "outputs:x,target"},
        "source='outputs:x,target': the step returned",
    ),
    "number of classes": (
        {"num_classes": 4},
        "num_classes=4: `logits` and `target` of the return",
    ),
    "names": ({"class_names": list("abc")}, "num_classes=3"),
    "task": ({"task": "multilabel"}, "task='multilabel'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_does_not_fit_stops_at_the_first_batch_naming_the_argument(
    trainer: Any, case: str
) -> None:
    kwargs, message = BAD[case]
    drive = Drive(ConfusionMetrics(**kwargs))
    with pytest.raises(ValueError, match=message):
        trainer(callbacks=[drive]).validate(Net(), loader(), verbose=False)


def test_one_logit_is_binary_and_cut_in_logit_space(trainer: Any) -> None:
    drive = Drive(ConfusionMetrics(class_names=["ham", "spam"], threshold=0.8))
    net = Returns(
        lambda b, z: {"logits": z, "target": b[1].float()[:, None]}, classes=1
    )
    dataset = data(classes=2)
    trainer(callbacks=[drive]).validate(net, loader(dataset), verbose=False)
    x, y = dataset.tensors
    with torch.no_grad():
        preds = net.net(x)[:, 0].sigmoid() > 0.8
    result = drive.results["val"]
    assert result.matrix.tolist() == confusion_matrix(y, preds).tolist()
    assert result.task == "binary"
    assert "f1_class/spam" in result.scores
    assert drive.recorded[0].notes == [
        "val: binary, 2 classes, from `logits` and `target` of the returned dict; "
        "logits cut at probability 0.8"
    ]


def test_labels_alone_are_counted_up_to_the_highest_one_seen(trainer: Any) -> None:
    drive = Drive()
    net = Returns(lambda b, z: {"preds": z.argmax(1), "target": b[1]})
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].matrix.shape == (CLASSES, CLASSES)


def test_more_labels_than_there_is_room_for_ask_for_the_number_of_classes() -> None:
    recorder, labels = Recorder(), torch.arange(300)
    recorder.start("val", nn.Linear(1, 1))
    recorder.before_step(labels)
    recorder.after_step({"preds": labels, "target": labels}, labels)
    recorded = recorder.stop()
    assert recorded.warnings == [
        "val: left out of the confusion matrix: 44 targets outside the 256 classes. "
        "Labels tell up to 256 classes: pass ConfusionMetrics(num_classes=...)"
    ]


class Named(TensorDataset):
    classes = ("ant", "bee", "cat", "dog", "eel")


def test_class_names_come_from_the_dataset(trainer: Any) -> None:
    drive, net = Drive(), Net()
    dataset = Subset(Named(*data().tensors), range(50))
    trainer(callbacks=[drive]).validate(net, loader(dataset), verbose=False)
    assert drive.results["val"].class_names == Named.classes
    assert "f1_class/eel" in drive.results["val"].scores


NOTHING: dict[str, Callable[[Any, torch.Tensor], Any]] = {
    "a loss": lambda b, z: z.mean(),
    "nothing": lambda b, z: None,
    "a regression": lambda b, z: {"preds": z[:, 0], "target": b[0][:, 0]},
    "other keys": lambda b, z: {"x": z, "loss": z.mean()},
    "two scores in a tuple": lambda b, z: (z, z * 2),
}


@pytest.mark.parametrize("case", NOTHING)
def test_where_nothing_is_usable_one_sentence_says_what_was_seen(
    trainer: Any, case: str
) -> None:
    for config in (None, ConfusionMetrics()):
        drive = Drive(config)
        made = trainer(callbacks=[drive])
        made.validate(Returns(NOTHING[case]), loader(), verbose=False)
        made.validate(Returns(NOTHING[case]), loader(), verbose=False)
        assert drive.results == {}
        notes = [text for r in drive.recorded for text in r.notes]
        warnings = [text for r in drive.recorded for text in r.warnings]
        said = warnings if config else notes
        assert len(said) == 1
        assert 'Return {"preds": ..., "target": ...}' in said[0]
        assert not (notes if config else warnings)


def test_the_sentence_names_the_keys(trainer: Any) -> None:
    drive = Drive()
    trainer(callbacks=[drive]).validate(
        Returns(NOTHING["other keys"]), loader(data(16)), verbose=False
    )
    assert drive.recorded[0].notes == [
        "val: no confusion matrix, because the step returned a dict with `x` (16, 5), `loss` (). "
        'Return {"preds": ..., "target": ...}, or pass ConfusionMetrics(source=...)'
    ]


def test_out_of_range_targets_and_nan_are_reported_once_with_their_number(
    trainer: Any,
) -> None:
    def make(batch: Any, logits: torch.Tensor) -> Any:
        logits, target = logits.clone(), batch[1].clone()
        logits[0], target[1] = math.nan, 99
        return {"logits": logits, "target": target}

    drive = Drive()
    made = trainer(callbacks=[drive])
    for _ in range(2):
        made.validate(Returns(make), loader(), verbose=False)
    assert [r.warnings for r in drive.recorded] == [
        [
            "val: left out of the confusion matrix: 7 targets outside the 5 classes; "
            "7 predictions that are NaN"
        ],
        [],
    ]
    assert drive.results["val"].total == 101 - 14


def test_an_epoch_in_which_nothing_counts_is_nan_with_one_warning(trainer: Any) -> None:
    drive = Drive()
    net = Returns(lambda b, z: {"logits": z, "target": torch.full_like(b[1], -100)})
    made = trainer(callbacks=[drive])
    for _ in range(2):
        made.validate(net, loader(), verbose=False)
    assert [r.warnings for r in drive.recorded] == [
        ["val: no sample was counted, so every score is NaN"],
        [],
    ]
    assert all(math.isnan(v) for v in drive.results["val"].scores.values())
    assert drive.results["val"].ignored == 101


def test_a_result_reads_well_in_a_terminal() -> None:
    recorder = Recorder(ConfusionMetrics(class_names=["ham", "spam"]))
    target = torch.tensor([1] * 40 + [0] * 160)
    preds = torch.tensor([1] * 30 + [0] * 10 + [1] * 6 + [0] * 154)
    recorder.start("val", nn.Linear(1, 1))
    recorder.before_step(target)
    recorder.after_step({"preds": preds, "target": target}, target)
    assert str(recorder.stop().results["val"]) == (
        "accuracy 0.9200, precision 0.8333, recall 0.7500, f1 0.7895, f1_macro 0.8700, "
        "mcc 0.7418 (200 samples, 2 classes)\n"
        "  95 % intervals: accuracy 0.874 to 0.950, precision 0.681 to 0.921, "
        "recall 0.598 to 0.858, f1 0.667 to 0.889, f1_macro 0.801 to 0.929, mcc 0.613 to 0.861\n"
        "  accuracy 0.920 hides that recall of `spam` is 0.75\n"
        "  class  support  precision  recall     f1  most confused with\n"
        "  ham        160      0.939   0.963  0.951  spam (6x)\n"
        "  spam        40      0.833   0.750  0.789  ham (10x)"
    )


def test_two_ranks_count_every_sample_once_in_one_reduction(tmp_path: Path) -> None:
    mp.spawn(rank_of_two, (free_port(), str(tmp_path)), nprocs=2)
    (first, pairs), (second, theirs) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)
    )
    assert first == second
    assert pairs == theirs
    x, y = data(33).tensors
    once = confusion_matrix(y, x[:, :CLASSES].argmax(1), labels=list(range(CLASSES)))
    for calls, results, _, warnings in first.values():
        # DistributedSampler repeats one sample; it does not count, shuffled or not.
        for key in ("val", "val/dataloader_idx_1", "val/dataloader_idx_2"):
            assert results[key][:2] == (once.tolist(), Counted.classes)
        assert results["val/dataloader_idx_3"][2] == "logits"
        assert calls == ["all_reduce"]
        assert warnings == []
    off = 2 * (once - np.diag(np.diag(once)))
    assert sum(p.count for p in pairs) == off.sum()
    assert pairs[0].count == off.max()


@pytest.mark.parametrize("chunk", [16, 5])
@pytest.mark.parametrize(("n", "ranks"), [(33, 2), (10, 4), (7, 3), (64, 4)])
def test_what_a_distributed_sampler_repeats_is_cut_by_arithmetic(
    n: int, ranks: int, chunk: int
) -> None:
    dataset = data(n)
    total = torch.zeros(CLASSES, CLASSES, dtype=torch.long)
    for rank in range(ranks):
        sampler = DistributedSampler(dataset, ranks, rank, shuffle=False)
        recorder, net = Recorder(), nn.Linear(8, CLASSES)
        one = DataLoader(dataset, 16, sampler=sampler)
        recorder.start("val", net, one)
        for x, y in one:
            recorder.before_step((x, y))
            for part_x, part_y in zip(x.split(chunk), y.split(chunk), strict=True):
                F.cross_entropy(part_x[:, :CLASSES], part_y)
            recorder.after_step(None, (x, y))
        total += recorder.stop().results["val"].matrix
    x, y = dataset.tensors
    once = confusion_matrix(y, x[:, :CLASSES].argmax(1), labels=list(range(CLASSES)))
    assert total.tolist() == once.tolist()


def test_what_cannot_be_cut_is_said() -> None:
    dataset = TensorDataset(torch.randn(7, 6, 8), torch.randint(0, CLASSES, (7, 6)))
    sampler = DistributedSampler(dataset, 2, 1, shuffle=False)
    one = DataLoader(dataset, 4, sampler=sampler)
    recorder = Recorder()
    recorder.start("val", nn.Linear(8, CLASSES), one)
    for x, y in one:
        recorder.before_step((x, y))
        F.cross_entropy(x[..., :CLASSES].flatten(0, 1), y.flatten())
        recorder.after_step(None, (x, y))
    recorded = recorder.stop()
    assert recorded.results["val"].total == 4 * 6
    assert recorded.notes[1] == (
        "val: 1 of the samples counted are DistributedSampler's repetitions, because dim 0 of the "
        "target is not the batch"
    )


def test_a_replayed_step_is_not_counted() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    recorder.start("val", net)
    x, y = data(16).tensors
    recorder.before_step((x, y))
    F.cross_entropy(net(x), y)
    with recorder.paused():
        F.cross_entropy(net(x), y.clone())
    recorder.after_step(None, (x, y))
    assert recorder.stop().results["val"].total == 16


def test_a_loss_under_vmap_is_counted_as_without() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    x, y = data(16).tensors
    for _ in range(2):
        recorder.start("val", net)
        recorder.before_step((x, y))
        losses = torch.vmap(F.cross_entropy)(net(x), y)
        recorder.after_step(None, (x, y))
        assert losses.shape == (16,)
        recorded = recorder.stop()
        assert (
            recorded.results["val"].matrix.tolist()
            == confusion_matrix(
                y, net(x).argmax(1), labels=list(range(CLASSES))
            ).tolist()
        )
        assert recorded.warnings == []


def test_a_loss_of_several_models_under_vmap_costs_the_matrix_nothing() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    x, y = data(16).tensors
    several = torch.stack((net(x), net(x) + 1, -net(x)))
    recorder.start("val", net)
    recorder.before_step((x, y))
    losses = torch.vmap(F.cross_entropy, (0, None))(several, y)
    recorder.after_step({"logits": net(x), "target": y}, (x, y))
    assert losses.shape == (3,)
    recorded = recorder.stop()
    assert recorded.results["val"].total == 16
    assert recorded.findings == []


def test_a_tap_that_fails_leaves_the_step_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    x, y = data(16).tensors
    monkeypatch.setattr(recorder._first, "consider", lambda *_: 1 / 0)
    recorder.start("val", net)
    recorder.before_step((x, y))
    loss = F.cross_entropy(net(x), y)
    recorder.after_step(None, (x, y))
    assert loss.ndim == 0
    recorded = recorder.stop()
    assert recorded.results == {}
    assert recorded.warnings == []
    assert "division by zero" in recorded.notes[0]


def test_scores_of_another_number_of_classes_are_left_out_and_reported() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    x, y = data(16).tensors
    recorder.start("val", net)
    for classes in (CLASSES, CLASSES + 1):
        recorder.before_step((x, y))
        F.cross_entropy(x[:, :classes], y)
        recorder.after_step(None, (x, y))
        recorder.before_step((x, y))
        recorder.after_step({"logits": x[:, :classes], "target": y}, (x, y))
    recorded = recorder.stop()
    assert recorded.results["val"].total == 32
    (finding,) = recorded.findings
    assert finding.fact.startswith(
        "counts 32 of the 64 samples that the loader gave; left out are 32, first in batch 2"
    )


def test_scores_that_grow_between_evaluations_are_counted_in_the_wider_matrix() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    x, y = data(16).tensors
    for classes in (CLASSES, CLASSES + 2):
        recorder.start("val", net)
        recorder.before_step((x, y))
        F.cross_entropy(x[:, :classes], y)
        recorder.after_step(None, (x, y))
        recorded = recorder.stop()
        once = confusion_matrix(
            y, x[:, :classes].argmax(1), labels=list(range(classes))
        )
        assert recorded.results["val"].matrix.tolist() == once.tolist()
        assert recorded.findings == []
    assert f"(which had {CLASSES} classes before)" in recorded.notes[0]


def test_the_batch_and_the_outputs_are_let_go() -> None:
    recorder, net = Recorder(), nn.Linear(8, CLASSES)
    recorder.start("val", net)
    for _ in range(2):
        x, y = data(16).tensors
        x, y = x.clone(), y.clone()
        recorder.before_step((x, y))
        out = net(x)
        F.cross_entropy(out, y)
        recorder.after_step(out, (x, y))
        refs = [weakref.ref(t) for t in (x, y, out)]
        del x, y, out
        gc.collect()
        assert [ref() for ref in refs] == [None] * 3
    recorder.abort()


def test_a_value_that_differs_is_explained_where_it_can_be() -> None:
    confmat = ConfusionMatrix(4)
    preds = torch.tensor([0, 0, 0, 1, 1, 2, 0, 0])
    confmat.update(preds, torch.tensor([0, 0, 0, 1, 2, 2, 2, 0]))
    result = confmat.result()
    said = {
        "micro": result.difference("f1_macro", result.scores["accuracy"]),
        "percent": result.difference("accuracy", 100 * result.scores["accuracy"]),
        "absent": result.difference(
            "recall_macro", result.scores["recall_macro"] * 3 / 4
        ),
        "weighted": result.difference("f1_macro", result.scores["f1_weighted"]),
        "unknown": result.difference("accuracy", 0.123),
        "rounded": result.difference("accuracy", round(result.scores["accuracy"], 4)),
        "no such score": result.difference("loss", 0.3),
    }
    reasons = {case: fact.partition("; ")[2] for case, fact in said.items()}
    assert reasons == {
        "micro": "0.7500 is the accuracy, which micro averaging gives",
        "percent": "it is in percent",
        "absent": "classes that do not occur count as 0 in it",
        "weighted": f"{result.scores['f1_weighted']:.4f} is f1_weighted",
        "unknown": "",  # no reason where none is reproduced
        "rounded": "",
        "no such score": "",
    }


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel"])
def test_the_scores_of_each_batch_are_those_of_its_own_matrix(task: Any) -> None:
    made = torch.Generator().manual_seed(0)
    whole, batches = (
        ConfusionMatrix(3, task, ignore_index=1 if task == "multiclass" else -1),
        [],
    )
    each = Batches()
    for _ in range(4):
        shape = (7, 3) if task == "multilabel" else (7,)
        high = 3 if task == "multiclass" else 2
        preds, target = (torch.randint(high, shape, generator=made) for _ in range(2))
        alone = ConfusionMatrix.of(whole.layout)
        for state in (whole, alone):
            state.count(preds, target)
        each.take(whole.counts.clone()[None])
        batches.append(alone.result())
    each.close(task, partial(margins, whole.layout, whole.layout.num_classes, "labels"))
    assert each.totals() == [one.total for one in batches]
    for family in (
        "accuracy",
        "f1",
        "precision",
        "recall",
        "specificity",
        "mcc",
        "kappa",
    ):
        claim = Claim(family, "", "")
        for name, values in each.series(claim).items():
            assert values == pytest.approx(
                [candidates(one, claim)[name] for one in batches]
            )


class Tuned(nn.Module):
    """Names a threshold, so that scores are kept as long as they are few."""

    def __init__(self) -> None:
        super().__init__()
        self.threshold = 0.3


def test_scores_that_were_too_many_in_one_evaluation_are_kept_in_the_next() -> None:
    recorder, module = Recorder(), Tuned()
    batch = [torch.randn(40_000), torch.randint(0, 2, (40_000,)).float()]
    read = []
    for batches in (4, 1):  # 160,000 scores are too many, 40,000 are not
        recorder.start("val", module, [None])
        for _ in range(batches):
            recorder.before_step(batch)
            F.binary_cross_entropy_with_logits(*batch)
            recorder.after_step(None, batch)
        recorder.steps_over()
        result = recorder.stop().results["val"]
        assert result.total == batches * 40_000
        read.append([one for one in result.misread if "threshold" in str(one)])
    assert not read[0]
    assert read[1]
