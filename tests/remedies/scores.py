"""Of the check `scores`, the matrix, and differences between them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    MulticlassF1Score,
    MulticlassRecall,
)

from lightning_evalguard import ConfusionMetrics, EvalGuardWarning, Report
from models.program import BATCH, CLASSES, FEATURES, Classifier, samples
from remedies import Make, alone, applied, fitted


def scored(make: Make, module: Classifier, metrics: Any = "auto") -> Report:
    return fitted(make, alone("scores", metrics=metrics), module, max_epochs=2)


def many() -> DataLoader[Any]:
    """Enough samples that no two scores are equal by chance."""
    made = torch.Generator().manual_seed(3)
    x = torch.randn(100, FEATURES, generator=made)
    return DataLoader(
        TensorDataset(x, torch.randint(CLASSES, (100,), generator=made)), BATCH
    )


class Binary(Classifier):
    """Yes or no, by one logit."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(FEATURES, 1)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return F.binary_cross_entropy_with_logits(
            self(batch[0])[:, 0], (batch[1] > 0).float()
        )


class Unclear(Binary):
    """Logits that lie between 0 and 1, which torchmetrics takes for probabilities."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.3 + 0.4 * self.net(x).sigmoid()


@applied("Log it in every step.")
def logged_for_some_batches_alone(make: Make, fixed: bool) -> Report:
    class Some(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            self.log("val_loss", F.cross_entropy(logits, batch[1]))
            right = (logits.argmax(1) == batch[1]).float().mean()
            if fixed or batch_idx < 2:
                self.log("val_acc", right, batch_size=len(batch[1]))

        def val_dataloader(self) -> Any:
            return many()

    return scored(make, Some())


@applied(
    'Update a torchmetrics object with average="none" in each step, and log what it computes when '
    "the epoch ends."
)
def recall_of_each_class_is_a_mean_of_batches(make: Make, fixed: bool) -> Report:
    class EachClass(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.recall = MulticlassRecall(CLASSES, average="none")

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            self.log("val_loss", F.cross_entropy(logits, batch[1]))
            if fixed:
                self.recall.update(logits, batch[1])
                return
            for label, recall in enumerate(self.recall(logits, batch[1])):
                self.log(f"val_recall_{label}", recall, batch_size=len(batch[1]))

        def on_validation_epoch_end(self) -> None:
            recalls = self.recall.compute()
            self.recall.reset()
            if fixed:
                self.log_dict({f"val_recall_{c}": r for c, r in enumerate(recalls)})

        def val_dataloader(self) -> Any:
            return many()

    return scored(make, EachClass())


@applied("Give it `logits{}.sigmoid()`, {}")
def logits_taken_for_probabilities(make: Make, fixed: bool) -> Report:
    class Metric(Unclear):
        def __init__(self) -> None:
            super().__init__()
            self.acc = BinaryAccuracy()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits, y = self(batch[0])[:, 0], (batch[1] > 0).long()
            self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y.float()))
            self.acc.update(logits.sigmoid() if fixed else logits, y)

        def on_validation_epoch_end(self) -> None:
            self.log("val/accuracy", self.acc.compute())
            self.acc.reset()

    return scored(make, Metric())


@applied("Give it `logits.sigmoid()`, {}")
def logits_taken_for_probabilities_under_a_name_of_ones_own(
    make: Make, fixed: bool
) -> Report:
    class Metric(Unclear):
        def __init__(self) -> None:
            super().__init__()
            self.acc = BinaryAccuracy()

        def val_dataloader(self) -> Any:
            return many()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits, y = self(batch[0])[:, 0], (batch[1] > 0).long()
            self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y.float()))
            self.acc(logits.sigmoid() if fixed else logits, y)
            self.log("val_acc", self.acc)

    return scored(make, Metric())


@applied("Pass ConfusionMetrics(threshold={}), {}")
def a_threshold_of_ones_own(make: Make, fixed: bool) -> Report:
    class Cuts(Binary):
        def val_dataloader(self) -> Any:
            return many()

        def on_validation_epoch_start(self) -> None:
            self.right: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits, y = self(batch[0])[:, 0], (batch[1] > 0).long()
            self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y.float()))
            self.right.append((logits.sigmoid() > 0.55) == y.bool())

        def on_validation_epoch_end(self) -> None:
            self.log("val_acc", torch.cat(self.right).float().mean())

    return scored(make, Cuts(), ConfusionMetrics(threshold=0.55) if fixed else "auto")


class Named(Classifier):
    """Logs a value of its own under the name of a score of the matrix."""

    key = "val/f1_macro"

    def __init__(self) -> None:
        super().__init__()
        self.metric = self.made()

    def made(self) -> torchmetrics.Metric:
        raise NotImplementedError

    def value(self) -> Tensor:
        return self.metric.compute()

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        logits = self(batch[0])
        self.log("val_loss", F.cross_entropy(logits, batch[1]))
        self.metric.update(logits, batch[1])

    def on_validation_epoch_end(self) -> None:
        self.log(self.key, self.value())
        self.metric.reset()


@applied("Pass average={} to the metric, or give the key its name.")
def micro_under_the_name_of_macro(make: Make, fixed: bool) -> Report:
    class Micro(Named):
        def made(self) -> torchmetrics.Metric:
            return MulticlassF1Score(CLASSES, average="macro" if fixed else "micro")

    return scored(make, Micro())


@applied("Give the key its name.")
def a_score_under_the_name_of_another(make: Make, fixed: bool) -> Report:
    class Other(Named):
        key = "val/f1_macro" if fixed else "val/mcc"

        def made(self) -> torchmetrics.Metric:
            return MulticlassF1Score(CLASSES, average="macro")

    return scored(make, Other())


@applied("Divide it by 100, {}")
def a_score_in_percent(make: Make, fixed: bool) -> Report:
    class Percent(Named):
        def made(self) -> torchmetrics.Metric:
            return MulticlassF1Score(CLASSES, average="macro")

        def value(self) -> Tensor:
            return self.metric.compute() * (1 if fixed else 100)

    return scored(make, Percent())


@applied("Leave out classes that neither occur nor are predicted, {}")
def classes_that_do_not_occur(make: Make, fixed: bool) -> Report:
    class Wide(Named):
        """Two outputs more than there are classes, one of which is never predicted."""

        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES + 2)
            with torch.no_grad():
                self.net.bias[CLASSES:] = -1e3

        def made(self) -> torchmetrics.Metric:
            return Everyone()

        def value(self) -> Tensor:
            classes = CLASSES if fixed else CLASSES + 2
            return self.metric.compute()[:classes].sum() / classes

    class Everyone(MulticlassF1Score):
        def __init__(self) -> None:
            super().__init__(CLASSES + 2, average="none")

    return scored(make, Wide())


def _of_matrix(make: Make, module: Classifier, metrics: Any = "auto") -> Report:
    """A report whose findings are what the matrix warns of."""
    guard = alone("scores", metrics=metrics)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", EvalGuardWarning)
        report = fitted_loudly(make, guard, module)
    texts = {str(w.message) for w in said}
    known = {f.remedy for f in report.findings}
    for text in texts:
        if not any(remedy in text for remedy in known):
            report.findings.append(_Said(text))  # type: ignore[arg-type]
    return report


class _Said:
    """A warning that is no finding."""

    def __init__(self, text: str) -> None:
        self.remedy = text

    def __repr__(self) -> str:
        return self.remedy


def fitted_loudly(make: Make, guard: Any, module: Classifier) -> Report:
    make(callbacks=[guard], max_epochs=2).fit(module)
    report: Report = guard.report
    return report


def _by_hand(make: Make, how: str) -> Report:
    class ByHand(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            preds = self(batch[0]).argmax(1)
            # sample by sample: no comparison is heard
            pairs = zip(preds, batch[1], strict=True)
            hits = sum(int(p.item()) == int(y.item()) for p, y in pairs)
            self.log("val_acc", hits / len(preds), batch_size=len(preds))
            if how == "returned":
                return {"preds": preds, "target": batch[1]}
            return {"answers": preds} if how == "source" else None

    def source(outputs: Any, batch: Any) -> Any:
        return outputs["answers"], batch[1]

    metrics = (
        ConfusionMetrics(source=source, num_classes=CLASSES)
        if how == "source"
        else "auto"
    )
    report = _of_matrix(make, ByHand(), metrics)
    assert not how or report.confusion["val"].total == 16
    return report


@applied('Return {"preds": ..., "target": ...}, or pass ConfusionMetrics(source=...)')
def nothing_to_count_is_shown(make: Make, fixed: bool) -> Report:
    return _by_hand(make, "returned" if fixed else "")


@applied('Return {"preds": ..., "target": ...}, or pass ConfusionMetrics(source=...)')
def nothing_to_count_is_shown_and_a_source_is_passed(make: Make, fixed: bool) -> Report:
    return _by_hand(make, "source" if fixed else "")


def _sigmoid_twice(make: Make, how: str) -> Report:
    class Twice(Binary):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits, y = self(batch[0])[:, 0], (batch[1] > 0).float()
            probs = logits.sigmoid()
            if how == "logits":
                self.log("val_loss", F.binary_cross_entropy_with_logits(logits, y))
            elif how == "probs":
                self.log("val_loss", F.binary_cross_entropy(probs, y))
            else:
                self.log("val_loss", F.binary_cross_entropy_with_logits(probs, y))
            return {"preds": probs, "target": y.long()}

    return scored(make, Twice())


@applied("Give it the logits, or call `F.binary_cross_entropy`.")
def a_sigmoid_that_stands_twice(make: Make, fixed: bool) -> Report:
    return _sigmoid_twice(make, "logits" if fixed else "")


@applied("Give it the logits, or call `F.binary_cross_entropy`.")
def a_sigmoid_that_stands_once(make: Make, fixed: bool) -> Report:
    return _sigmoid_twice(make, "probs" if fixed else "")


@applied("Return a copy that is made before the change: `.clone()`.")
def targets_changed_after_they_were_used(make: Make, fixed: bool) -> Report:
    class Changes(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            logits = self(x)
            self.log("val_loss", F.cross_entropy(logits, y))
            answer = y.clone() if fixed else y
            y.fill_(0)
            return {"preds": logits, "target": answer}

    return scored(make, Changes())


@applied('Return {"preds": ..., "target": ...} from every step.')
def some_steps_return_nothing(make: Make, fixed: bool) -> Report:
    class Some(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            preds = self(batch[0]).argmax(1)
            if batch_idx or fixed:
                return {"preds": preds, "target": batch[1]}
            return None

    return scored(make, Some())


@applied("Fix or leave out those samples in the dataset.")
def a_batch_that_is_skipped(make: Make, fixed: bool) -> Report:
    class Skips(Classifier):
        def val_dataloader(self) -> Any:
            x, y = samples(2).tensors
            x = x.clone()
            x[13] = torch.nan
            kept = ~x.isnan().any(1) if fixed else torch.ones(len(x), dtype=torch.bool)
            return DataLoader(TensorDataset(x[kept], y[kept]), BATCH // 2)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if batch[0].isnan().any():
                return None
            return super().validation_step(batch, batch_idx)

    return scored(make, Skips(), None)


def lossy(make: Make, loss: Callable[[Tensor, Tensor], Tensor]) -> Report:
    class Lossy(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log(
                "val_loss", loss(self(batch[0]), batch[1]), batch_size=len(batch[1])
            )

    return scored(make, Lossy())


@applied("Give it the logits, or call `F.nll_loss` with the logarithms.")
def a_softmax_before_cross_entropy(make: Make, fixed: bool) -> Report:
    return lossy(make, lambda z, y: F.cross_entropy(z if fixed else z.softmax(1), y))


@applied(
    "Give it `F.log_softmax(logits, 1)`, or call `F.cross_entropy` with the logits."
)
def probabilities_for_nll(make: Make, fixed: bool) -> Report:
    return lossy(
        make, lambda z, y: F.nll_loss(z.log_softmax(1) if fixed else z.softmax(1), y)
    )


@applied("Pass the dim of the classes: `dim=1`.")
def a_softmax_over_the_batch(make: Make, fixed: bool) -> Report:
    class OverTheBatch(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            probs = self(batch[0]).softmax(dim=int(fixed))
            right = (probs.argmax(1) == batch[1]).float().mean()
            self.log("val_acc", right, batch_size=len(batch[1]))

    return scored(make, OverTheBatch())


@applied(
    "Give it probabilities or logits, as they are before `argmax`, `round` or a threshold."
)
def an_area_of_decisions(make: Make, fixed: bool) -> Report:
    class Area(Binary):
        def __init__(self) -> None:
            super().__init__()
            self.auroc = BinaryAUROC()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])[:, 0]
            answers = logits.sigmoid() if fixed else (logits > 0).float()
            self.auroc.update(answers, (batch[1] > 0).long())
            self.log("val_auroc", self.auroc, batch_size=len(batch[1]))

        def val_dataloader(self) -> Any:
            return many()

    return scored(make, Area())


@applied(
    "Add up each batch's mean times its number of samples, or log it in the step, with self.log."
)
def a_total_of_means_over_the_samples(make: Make, fixed: bool) -> Report:
    class Totals(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.total = 0.0

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            mean = F.cross_entropy(self(batch[0]), batch[1])
            self.total += mean.item() * (len(batch[1]) if fixed else 1)

        def on_validation_epoch_end(self) -> None:
            self.log("val_loss", self.total / 100)

        def val_dataloader(self) -> Any:
            return many()

    return scored(make, Totals())


@applied("Divide by the number of samples that the steps were given.")
def a_total_over_full_batches(make: Make, fixed: bool) -> Report:
    class Totals(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.total, self.batches, self.samples = 0.0, 0, 0

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1], reduction="sum")
            self.total += loss.item()
            self.batches += 1
            self.samples += len(batch[1])

        def on_validation_epoch_end(self) -> None:
            full = 16 * self.batches
            self.log("val_loss", self.total / (self.samples if fixed else full))

        def val_dataloader(self) -> Any:
            made = torch.Generator().manual_seed(3)
            x = torch.randn(50, FEATURES, generator=made)
            y = torch.randint(CLASSES, (50,), generator=made)
            return DataLoader(TensorDataset(x, y), 16)

    return scored(make, Totals())


@applied("Give it the probability of the class in question, as it is before `argmax`.")
def indices_of_classes_that_rank(make: Make, fixed: bool) -> Report:
    class Ranks(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.rank = BinaryAUROC()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            scores = logits.softmax(1)[:, 2] if fixed else logits.argmax(1).float()
            self.rank.update(scores, (batch[1] == 2).long())
            self.log("val_rank", self.rank, batch_size=len(batch[1]))

        def val_dataloader(self) -> Any:
            return many()

    return scored(make, Ranks())
