"""Module styles as users write them: each gives scikit-learn's matrix with nothing configured."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix
from torch import nn
from torch.nn import functional as F
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MultilabelF1Score,
)
from torchmetrics.wrappers import BootStrapper, ClasswiseWrapper

from driven import Drive, Net, expected, loader
from lightning_evalguard import EvalGuard
from lightning_evalguard.confusion.matrix import ConfusionMetrics
from lightning_evalguard.confusion.taps import classification_metrics_of
from two_ranks import data

C = 5


class Hydra(Net):
    """lightning-hydra-template: a criterion and metric objects, the metric called with labels."""

    def __init__(self) -> None:
        super().__init__()
        self.criterion = nn.CrossEntropyLoss()
        self.val_acc = MulticlassAccuracy(C)
        self.val_loss = MeanMetric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = self(batch[0])
        self.val_loss(self.criterion(logits, batch[1]))
        self.val_acc(logits.argmax(1), batch[1])
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True)


class Updated(Hydra):
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.val_acc.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log("acc", self.val_acc.compute())
        self.val_acc.reset()


class Collection(Hydra):
    def __init__(self) -> None:
        super().__init__()
        self.many = MetricCollection(
            [MulticlassAUROC(C, thresholds=5, average=None), MulticlassAccuracy(C),
             MulticlassF1Score(C), MulticlassConfusionMatrix(C)], prefix="val/",
        )  # fmt: skip

    def validation_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        logits = self(batch[0])
        self.many(logits.softmax(1), batch[1])
        return self.criterion(logits, batch[1])


class CollectionUpdated(Collection):
    """Only the leaders of compute groups are updated from the second batch on."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.many.update(self(batch[0]), batch[1])

    def on_validation_epoch_end(self) -> None:
        self.many.compute()
        self.many.reset()


class LossModule(Hydra):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss = self.criterion(self(batch[0]), batch[1])
        self.log("val/loss", loss)
        return loss


class Functional(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.log("acc", torchmetrics.functional.accuracy(
            logits.argmax(1), batch[1], task="multiclass", num_classes=C))  # fmt: skip
        return F.cross_entropy(logits, batch[1])


class ImportedByName(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return cross_entropy(input=self(batch[0]), target=batch[1])


class Nll(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.NLLLoss()(F.log_softmax(self(batch[0]), dim=1), batch[1])


class Focal(Net):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        ce = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
        return ((1 - (-ce).exp()) ** 2 * ce).mean()


class InBatchEnd(Hydra):
    """The metric is updated in a hook, after the step."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(batch[0])

    def on_validation_batch_end(
        self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.val_acc(outputs, batch[1])


class BothTwice(Hydra):
    """A metric twice, a loss twice, and labels made anew for each: every sample counts once."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.val_acc(logits.argmax(1), batch[1])
        self.val_acc.update(logits.argmax(dim=1), batch[1].view(-1))
        return self.criterion(logits, batch[1]) + 0.4 * self.criterion(
            logits * 2, batch[1]
        )


class Chunks(Hydra):
    """Each half of a batch by itself: all of them count."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        for x, y in zip(batch[0].split(3), batch[1].split(3), strict=True):
            self.criterion(self(x), y)


class PlainList(Net):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {"val": [MulticlassAccuracy(C)]}
        self.own = [MulticlassAccuracy(C)]

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.own[0].update(self(batch[0]), batch[1])


class Wrapped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.each = ClasswiseWrapper(MulticlassAccuracy(C, average=None))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.each.update(self(batch[0]), batch[1])


class Bootstrapped(Hydra):
    """Its children see the batch resampled."""

    def __init__(self) -> None:
        super().__init__()
        self.a_boot = BootStrapper(MulticlassAccuracy(C), num_bootstraps=2)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.a_boot.update(logits, batch[1])
        return self.criterion(logits, batch[1])


class Own(torchmetrics.Metric):
    def __init__(self) -> None:
        super().__init__()
        self.add_state("n", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, target: torch.Tensor, preds: torch.Tensor) -> None:
        self.n += (preds.argmax(1) == target).sum()

    def compute(self) -> torch.Tensor:
        return self.n


class OwnMetric(Net):
    """Called, such a metric is updated twice: once to keep, once for the batch's value."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = Own()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.metric(batch[1], self(batch[0]))


MULTICLASS = [
    Hydra, Updated, Collection, CollectionUpdated, LossModule, Functional, ImportedByName, Nll,
    Focal, InBatchEnd, BothTwice, Chunks, PlainList, Wrapped, Bootstrapped, OwnMetric,
]  # fmt: skip


@pytest.mark.parametrize("style", MULTICLASS)
def test_every_style_gives_sklearns_matrix(trainer: Any, style: type[Net]) -> None:
    drive, net = Drive(), style()
    made = trainer(callbacks=[drive])
    for _ in range(2):
        made.validate(net, loader(), verbose=False)
        assert drive.results["val"].matrix.tolist() == expected(net, data())
        assert drive.results["val"].total == 101
        assert drive.recorded[-1].warnings == []
    # whose states torchmetrics#1993 breaks
    if not isinstance(net, (Collection, OwnMetric)):
        made.fit(net, loader(), loader())
    assert drive.results["val"].matrix.tolist() == expected(net, data())
    assert drive.recorded[-1].notes == []


@pytest.mark.parametrize("style", [s for s in MULTICLASS if s is not Bootstrapped])
def test_every_style_works_with_a_bare_guard(trainer: Any, style: type[Net]) -> None:
    guard, net = EvalGuard(data="ignore"), style()
    made = trainer(callbacks=[guard])
    made.fit(net, loader(), loader())
    result = guard.report.confusion["val"]
    assert result.matrix.tolist() == expected(net, data())
    assert float(made.callback_metrics["val/accuracy"]) == pytest.approx(
        result.scores["accuracy"]
    )
    assert guard.report.findings == []


class HuggingFace(pl.LightningModule):
    """A model that computes and returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import BertConfig, BertForTokenClassification

        config = BertConfig(
            vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16, num_labels=C,
        )  # fmt: skip
        self.model = BertForTokenClassification(config)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        out = self.model(input_ids=batch[0], labels=batch[1])
        self.log("val/loss", out.loss)
        return out.loss


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_hugging_face_model_that_returns_its_loss(trainer: Any) -> None:
    pytest.importorskip("transformers")
    guard, net = EvalGuard(data="ignore"), HuggingFace()
    x, y = torch.randint(0, 30, (20, 7)), torch.randint(0, C, (20, 7))
    y[:, 5:] = -100
    trainer(callbacks=[guard]).validate(
        net, loader(TensorDataset(x, y), 8), verbose=False
    )
    with torch.no_grad():
        preds = net.eval().model(input_ids=x).logits.argmax(-1)
    keep = y != -100
    result = guard.report.confusion["val"]
    expected = confusion_matrix(y[keep], preds[keep], labels=list(range(C)))
    assert result.matrix.tolist() == expected.tolist()
    assert (result.total, result.ignored) == (100, 40)


class Degenerate(CollectionUpdated):
    """Its first batch makes all metrics look alike: torchmetrics merges them into one group."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        logits = F.one_hot(batch[1], C).float() if batch_idx == 0 else self(batch[0])
        self.many.update(logits, batch[1])


def test_compute_groups_merged_on_a_degenerate_first_batch_lose_nothing(
    trainer: Any,
) -> None:
    drive, net = Drive(), Degenerate()
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    x, y = data().tensors
    with torch.no_grad():
        preds = torch.cat((y[:16], net(x[16:]).argmax(1)))
    expected = confusion_matrix(y, preds, labels=list(range(C)))
    assert drive.results["val"].matrix.tolist() == expected.tolist()


def test_the_source_is_named_where_it_stands(trainer: Any) -> None:
    said = {}
    for style in (Hydra, LossModule, Functional, Collection):
        drive = Drive()
        trainer(callbacks=[drive]).validate(style(), loader(), verbose=False)
        (said[style],) = drive.recorded[0].notes
    assert (
        said[Hydra] == "val: multiclass, 5 classes, from `val_acc` (MulticlassAccuracy)"
    )
    assert "from `many.MulticlassAUROC` (MulticlassAUROC)" in said[Collection]
    line = Functional.validation_step.__code__.co_firstlineno + 4
    assert said[Functional].endswith(
        f"from `cross_entropy` at tests/confusion/test_sources.py:{line}"
    )
    assert (
        "from `cross_entropy` at tests/confusion/test_sources.py:" in said[LossModule]
    )


class Binary(pl.LightningModule):
    """One logit, BCE, targets as floats."""

    def __init__(self, outputs: int = 1) -> None:
        super().__init__()
        self.net = nn.Linear(8, outputs)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0]).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, batch[1].float())


class BinaryMetric(Binary):
    """The metric alone: torchmetrics guesses by batch what its preds are."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = BinaryAccuracy()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc(self.net(batch[0]), batch[1][:, None])


class BinarySigmoid(Binary):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.BCELoss()(self.net(batch[0]).sigmoid(), batch[1][:, None].float())


class BinaryMetricSigmoid(BinaryMetric):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.acc(self.net(batch[0]).sigmoid(), batch[1][:, None])


@pytest.mark.parametrize(
    "style", [Binary, BinaryMetric, BinarySigmoid, BinaryMetricSigmoid]
)
def test_a_single_logit_is_binary(trainer: Any, style: Any) -> None:
    drive, net, dataset = Drive(), style(), data(classes=2)
    made = trainer(callbacks=[drive])
    for _ in range(2):
        made.validate(net, loader(dataset), verbose=False)
        with torch.no_grad():
            preds = net.net(dataset.tensors[0])[:, 0] > 0
        result = drive.results["val"]
        assert result.task == "binary"
        assert (
            result.matrix.tolist()
            == confusion_matrix(dataset.tensors[1], preds).tolist()
        )
        assert result.preds_are == (
            "probs" if "Sigmoid" in style.__name__ else "logits"
        )


class Beginner(Binary):
    """Its logits all lie in [0, 1] at first, as those of a model that has hardly learned."""

    def __init__(self, step: Callable[[Any, torch.Tensor, torch.Tensor], Any]) -> None:
        super().__init__()
        self.acc = BinaryAccuracy()
        self.step, self.scale, self.counts = step, 0.1, True

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self.net(batch[0])[:, 0].tanh() * self.scale + 0.3
        return self.step(self, logits, batch[1])


LOSS = F.binary_cross_entropy_with_logits
BEGINNERS: dict[str, tuple[Callable[..., Any], list[str]]] = {
    "metric": (lambda m, z, y: m.acc(z, y), ["probs", "logits"]),
    "metric and loss": (
        lambda m, z, y: (m.acc(z, y), LOSS(z, y.float())),
        ["logits"] * 2,
    ),
    "loss and metric": (
        lambda m, z, y: (LOSS(z, y.float()), m.acc(z, y)),
        ["logits"] * 2,
    ),
    "of sigmoid": (
        lambda m, z, y: (LOSS(z, y.float()), m.acc(z.sigmoid(), y)),
        ["probs"] * 2,
    ),
    "of the sigmoid the loss is given": (
        lambda m, z, y: (lambda p: (m.acc(p, y), F.binary_cross_entropy(p, y.float())))(
            z.sigmoid()
        ),
        ["probs"] * 2,
    ),
    "returned": (lambda m, z, y: {"preds": z, "target": y}, ["probs", "logits"]),
    "returned beside a loss": (
        lambda m, z, y: {"preds": z, "target": y, "loss": LOSS(z, y.float())},
        ["logits"] * 2,
    ),
    "returned sigmoid": (
        lambda m, z, y: {"preds": z.sigmoid(), "target": y, "loss": LOSS(z, y.float())},
        ["probs"] * 2,
    ),
}


@pytest.mark.parametrize("case", BEGINNERS)
def test_logits_of_a_beginner_are_told_by_the_loss_or_as_soon_as_one_lies_outside(
    trainer: Any, case: str
) -> None:
    step, read_as = BEGINNERS[case]
    drive, net, dataset = Drive(), Beginner(step), data(classes=2)
    made = trainer(callbacks=[drive])
    for scale, kind in zip((0.1, 9.0, 0.1), [*read_as, read_as[-1]], strict=True):
        net.scale = scale
        made.validate(net, loader(dataset), verbose=False)
        with torch.no_grad():
            logits = net.net(dataset.tensors[0])[:, 0].tanh() * scale + 0.3
        cut = 0.5 if case in ("metric", "returned") and kind == "probs" else 0.0
        result = drive.results["val"]
        assert result.preds_are == kind
        expected = confusion_matrix(dataset.tensors[1], logits > cut, labels=[0, 1])
        assert result.matrix.tolist() == expected.tolist()
    warned = [text for recorded in drive.recorded for text in recorded.warnings]
    assert len(warned) == (read_as == ["probs", "logits"])
    assert all('Pass ConfusionMetrics(preds_are="logits")' in text for text in warned)


def test_an_evaluation_of_nothing_settles_no_doubt(trainer: Any) -> None:
    net = Beginner(
        lambda m, z, y: {"preds": z, "target": y if m.counts else y * 0 - 100}
    )
    drive = Drive()
    made = trainer(callbacks=[drive])
    for net.counts in (True, False, True):
        made.validate(net, loader(data(classes=2)), verbose=False)
    warned = [text for recorded in drive.recorded for text in recorded.warnings]
    assert warned == ["val: no sample was counted, so every score is NaN"]
    assert drive.results["val"].preds_are == "probs"


class TwoBinary(Binary):
    """One metric of two loaders, of which only the second has logits outside [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.acc = BinaryAccuracy()

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        logits = self.net(batch[0])[:, 0]
        self.acc(logits * 9 if dataloader_idx else logits.tanh() / 10 + 0.3, batch[1])


def test_what_one_loader_shows_of_a_source_holds_for_the_other(trainer: Any) -> None:
    drive, net, dataset = Drive(), TwoBinary(), data(classes=2)
    trainer(callbacks=[drive]).validate(
        net, [loader(dataset), loader(dataset)], verbose=False
    )
    with torch.no_grad():
        logits = net.net(dataset.tensors[0])[:, 0]
    inside, beyond = logits.tanh() / 10 + 0.3, logits * 9
    for key, scores in (("val", inside), ("val/dataloader_idx_1", beyond)):
        result = drive.results[key]
        assert ((scores < 0) | (scores > 1)).any() == (key != "val")
        assert result.preds_are == "logits"
        assert (
            result.matrix.tolist()
            == confusion_matrix(dataset.tensors[1], scores > 0).tolist()
        )


class Multilabel(Binary):
    def __init__(self) -> None:
        super().__init__(3)
        self.f1 = MultilabelF1Score(3)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return nn.BCEWithLogitsLoss()(self.net(batch[0]), batch[1].float())


class MultilabelMetric(Multilabel):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.f1(self.net(batch[0]), batch[1])


@pytest.mark.parametrize("style", [Multilabel, MultilabelMetric])
def test_many_labels_are_multilabel(trainer: Any, style: Any) -> None:
    drive, net = Drive(), style()
    dataset = TensorDataset(torch.randn(50, 8), torch.randint(0, 2, (50, 3)))
    trainer(callbacks=[drive]).validate(net, loader(dataset), verbose=False)
    with torch.no_grad():
        preds = net.net(dataset.tensors[0]) > 0
    result = drive.results["val"]
    assert result.task == "multilabel"
    assert (
        result.matrix.tolist()
        == multilabel_confusion_matrix(dataset.tensors[1], preds).tolist()
    )
    assert result.total == 150


class Segmentation(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Conv2d(3, 4, 1)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return F.cross_entropy(self.net(batch[0]), batch[1], ignore_index=255)


def test_a_segmentation_net_counts_pixels_and_ignores_what_its_loss_ignores(
    trainer: Any,
) -> None:
    drive, net = Drive(), Segmentation()
    x, y = torch.randn(10, 3, 6, 7), torch.randint(0, 4, (10, 6, 7)).to(torch.uint8)
    y[:, 0] = 255
    trainer(callbacks=[drive]).validate(
        net, loader(TensorDataset(x, y.long()), 4), verbose=False
    )
    with torch.no_grad():
        preds = net.net(x).argmax(1)
    result = drive.results["val"]
    keep = y != 255
    assert result.matrix.tolist() == confusion_matrix(y[keep], preds[keep]).tolist()
    assert (result.total, result.ignored) == (10 * 5 * 7, 70)
    assert drive.recorded[0].notes[0].endswith("; targets of 255 ignored")


class Tokens(pl.LightningModule):
    """A Hugging Face token classifier in miniature: it computes and returns its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, C)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        loss = nn.CrossEntropyLoss()(logits.view(-1, C), labels.view(-1))
        return {"loss": loss, "logits": logits}

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return self(*batch)["loss"]


class TokensReturned(Tokens):
    """Classes in the last dimension, as transformers has them."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        return {**self(*batch), "labels": batch[1]}


@pytest.mark.parametrize("style", [Tokens, TokensReturned])
def test_a_token_classifier_ignores_padding(trainer: Any, style: Any) -> None:
    drive, net = Drive(), style()
    x, y = torch.randn(10, 6, 8), torch.randint(0, C, (10, 6))
    y[:, 4:] = -100
    trainer(callbacks=[drive]).validate(
        net, loader(TensorDataset(x, y), 4), verbose=False
    )
    with torch.no_grad():
        preds = net.net(x).argmax(-1)
    result = drive.results["val"]
    keep = y != -100
    labels = list(range(C))
    expected = confusion_matrix(y[keep], preds[keep], labels=labels)
    assert result.matrix.tolist() == expected.tolist()
    assert (result.total, result.ignored) == (40, 20)


class TwoLoaders(Hydra):
    """A metric for each loader."""

    def __init__(self) -> None:
        super().__init__()
        self.accs = nn.ModuleList([MulticlassAccuracy(C), MulticlassAccuracy(C)])

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.accs[dataloader_idx](self(batch[0]), batch[1])


def test_each_loader_finds_its_own_metric(trainer: Any) -> None:
    drive, net = Drive(), TwoLoaders()
    sets = data(40), data(61, seed=1)
    trainer(callbacks=[drive]).validate(net, [loader(s) for s in sets], verbose=False)
    for result, dataset in zip(drive.results.values(), sets, strict=True):
        assert result.matrix.tolist() == expected(net, dataset)
    assert list(drive.results) == ["val", "val/dataloader_idx_1"]


class Heads(Net):
    """Two tasks: the larger question is not mixed with the other."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        return F.cross_entropy(logits, batch[1]) + F.cross_entropy(
            logits[:, :3], batch[1] % 3
        )


def test_a_second_head_is_not_mixed_in_and_is_named(trainer: Any) -> None:
    drive, net = Drive(), Heads()
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].matrix.tolist() == expected(net, data())
    assert "(not from `cross_entropy` at " in drive.recorded[0].notes[0]


def test_a_metric_can_be_named(trainer: Any) -> None:
    net = Heads()
    net.other = MulticlassAccuracy(3)
    net.validation_step = lambda batch, batch_idx: (
        Heads.validation_step(net, batch, batch_idx),
        net.other(net(batch[0])[:, :3], batch[1] % 3),
    )[0]
    drive = Drive(ConfusionMetrics(source="metric:other"))
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].num_classes == 3
    drive = Drive(ConfusionMetrics(source="loss"))
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].num_classes == 5


def test_a_metric_that_is_not_there_is_refused(trainer: Any) -> None:
    drive = Drive(ConfusionMetrics(source="metric:val_f1"))
    with pytest.raises(
        ValueError, match="source='metric:val_f1': the module has val_acc"
    ):
        trainer(callbacks=[drive]).validate(Hydra(), loader(), verbose=False)


def silent(step: Callable[[Any, Any], Any]) -> type[Net]:
    class Silent(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return step(self, batch)

    return Silent


NEAR: dict[str, Callable[[Any, Any], Any]] = {
    "contrastive": lambda m, b: F.cross_entropy(b[0] @ b[0].T, torch.arange(len(b[0]))),
    "autoencoder": lambda m, b: F.binary_cross_entropy_with_logits(
        b[0] * 2, (b[0] > 0).float() / 2
    ),
    "regression": lambda m, b: F.mse_loss(m(b[0])[:, 0], b[1].float()),
    "its own input": lambda m, b: F.binary_cross_entropy_with_logits(
        b[0] * 3, b[0].clamp_(1, 1)
    ),
}


@pytest.mark.parametrize("case", NEAR)
def test_what_is_no_classification_gives_no_matrix_and_no_warning(
    trainer: Any, case: str
) -> None:
    drive, net = Drive(), silent(NEAR[case])()
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results == {}
    assert drive.recorded[0].warnings == []
    assert len(drive.recorded[0].notes) == 1


class Regression(Net):
    def __init__(self) -> None:
        super().__init__()
        self.mse = torchmetrics.MeanSquaredError()
        self.mae = torchmetrics.MetricCollection([torchmetrics.MeanAbsoluteError()])

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        out = self(batch[0])[:, 0]
        self.mse(out, batch[1])
        self.mae(out, batch[1])


def test_a_regression_metric_is_not_a_source(trainer: Any) -> None:
    drive = Drive()
    trainer(callbacks=[drive]).validate(Regression(), loader(), verbose=False)
    assert drive.results == {}
    assert list(classification_metrics_of(Regression())) == []


def test_metrics_behave_as_without_a_tap(trainer: Any) -> None:
    logged = []
    for callbacks in ([], [Drive()]):
        torch.manual_seed(0)
        net = CollectionUpdated()
        made = trainer(callbacks=callbacks)
        made.validate(net, loader(), verbose=False)
        with torch.inference_mode():
            net.many.update(net(data().tensors[0]), data().tensors[1])
        logged.append(
            (net.many.compute(), net.many.compute_groups, list(net.state_dict()))
        )
        assert "update" not in vars(net.many["MulticlassAccuracy"]) or not hasattr(
            net.many["MulticlassAccuracy"].update, "__evalguard_wrap__"
        )
    assert str(logged[0]) == str(logged[1])


class Copies(Hydra):
    """Copies and pickles its metric in the step."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        twin = copy.deepcopy(self.val_acc)
        twin.update(self(batch[0]), batch[1])
        pickle.loads(pickle.dumps(self.val_acc)).update(self(batch[0]), batch[1])
        pickle.dumps(copy.deepcopy(self.criterion))


def test_a_metric_can_be_copied_and_pickled_while_tapped(trainer: Any) -> None:
    drive, net = Drive(), Copies()
    trainer(callbacks=[drive]).validate(net, loader(), verbose=False)
    assert drive.results["val"].total == 101


class Fails(Hydra):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        super().validation_step(batch, batch_idx)
        raise RuntimeError("no")


def test_nothing_stays_tapped_after_an_evaluation_nor_an_exception(
    trainer: Any,
) -> None:
    before = F.cross_entropy, cross_entropy
    for net, fails in ((LossModule(), False), (Hydra(), False), (Fails(), True)):
        drive = Drive()
        made = trainer(callbacks=[drive])
        if fails:
            with pytest.raises(RuntimeError, match="no"):
                made.validate(net, loader(), verbose=False)
            drive.recorder.abort()
        else:
            made.validate(net, loader(), verbose=False)
        assert (F.cross_entropy, cross_entropy) == before
        for _, metric in classification_metrics_of(net):
            assert not hasattr(metric.update, "__evalguard_wrap__")


class Compiled(Net):
    """Its loss is compiled, and so not seen; its metric is."""

    def __init__(self) -> None:
        super().__init__()
        self.val_acc = MulticlassAccuracy(C)
        self.frames = 0
        self.loss = torch.compile(
            lambda z, y: F.cross_entropy(z, y), backend=self.backend, fullgraph=True
        )

    def backend(self, graph: Any, inputs: Any) -> Any:
        self.frames += 1
        return graph.forward

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.val_acc(logits, batch[1])
        return self.loss(logits, batch[1])


def test_a_compiled_loss_stays_one_graph(trainer: Any) -> None:
    frames = []
    for callbacks in ([], [Drive()]):
        torch._dynamo.reset()
        net = Compiled()
        made = trainer(callbacks=callbacks)
        for _ in range(2):
            made.validate(net, loader(data(96)), verbose=False)
        frames.append(net.frames)
    assert frames[0] == frames[1] == 1
    assert callbacks[0].results["val"].matrix.tolist() == expected(net, data(96))


def test_two_columns_are_cut_at_the_threshold(trainer: Any) -> None:
    drive = Drive(ConfusionMetrics(threshold=0.3))
    net = LossModule()
    net.net = nn.Linear(8, 2)
    dataset = data(classes=2)
    trainer(callbacks=[drive]).validate(net, loader(dataset), verbose=False)
    with torch.no_grad():
        preds = net.net(dataset.tensors[0]).softmax(1)[:, 1] > 0.3
    expected = confusion_matrix(dataset.tensors[1], preds).tolist()
    assert drive.results["val"].matrix.tolist() == expected
