"""Steps whose answers are seen in their metrics: torchmetrics objects, functions, scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass

import sklearn.metrics
import torch
import torchmetrics
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import classification as tmc
from torchmetrics import functional as tmf

from models.forms import form
from models.forms_losses import TOKENS, attribute


@form(
    build=attribute(
        "metrics",
        lambda: torchmetrics.MetricCollection(
            {
                "acc": tmc.MulticlassAccuracy(3, average="micro"),
                "f1": tmc.MulticlassF1Score(3),
            }
        ),
    )
)
def collection_logged_as_a_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.metrics.update(z, y)
    self.log_dict(self.metrics)


@form(
    build=attribute(
        "metrics",
        lambda: nn.ModuleDict({"val": nn.ModuleList([tmc.MulticlassAccuracy(3)])}),
    )
)
def metric_deep_in_containers(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.metrics["val"][0](z.softmax(1), y)


@form(
    build=attribute(
        "acc", lambda: torchmetrics.Accuracy(task="multiclass", num_classes=3)
    )
)
def metric_given_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc(z.argmax(1), y)
    self.log("val_acc", self.acc)


@form(
    build=attribute("acc", lambda: torchmetrics.Accuracy(task="binary", threshold=0.7)),
    classes=1,
)
def metric_with_another_threshold_beside_bce(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).long()
    self.true(z.sigmoid() > 0.7, t.bool())
    self.acc(z.sigmoid(), t)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t.float()))


@form(build=attribute("f1", lambda: tmc.MultilabelF1Score(4, threshold=0.3)), classes=4)
def multilabel_metric_with_a_threshold(self, x, y):
    z = self.net(x)
    t = (x[:, :4] > 0).long()
    self.true(z.sigmoid() > 0.3, t.bool())
    self.f1(z.sigmoid(), t)
    self.log("val_f1", self.f1)


@form(
    build=attribute("acc", lambda: tmc.MulticlassAccuracy(4, ignore_index=-1)), **TOKENS
)
def token_metric_that_ignores(self, x, y):
    z = self.net(x)
    y = y.masked_fill(x[..., 1] > 0, -1)
    keep = y != -1
    self.true(z.argmax(-1)[keep], y[keep])
    self.acc(z.reshape(-1, 4), y.reshape(-1))


class Doubled(torchmetrics.classification.MulticlassF1Score):
    """Renames its arguments."""

    def update(self, preds, target):
        super().update(preds.softmax(-1), target.long())


@form(build=attribute("f1", lambda: Doubled(num_classes=3)))
def subclass_that_normalises(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.f1.update(z, y.float())
    self.log("val_f1", self.f1)


@form(
    build=attribute("acc", lambda: torchmetrics.MinMaxMetric(tmc.MulticlassAccuracy(3)))
)
def wrapped_in_min_max(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc.update(z, y)


@form(
    build=attribute(
        "acc",
        lambda: torchmetrics.ClasswiseWrapper(tmc.MulticlassAccuracy(3, average=None)),
    )
)
def wrapped_by_class(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc.update(z, y)


class Evaluator:
    """A plain object that holds its metrics."""

    def __init__(self):
        self.accuracy = tmc.MulticlassAccuracy(3)

    def add(self, logits, labels):
        self.accuracy.update(logits, labels)


@form(
    says="it is the mean of 3 batches' accuracy_macro",
    build=attribute("evaluator", Evaluator),
)
def metric_in_a_plain_helper(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.evaluator.add(z, y)
    self.log("val_acc", self.evaluator.accuracy.compute())
    self.evaluator.accuracy.reset()


@form()
def function_of_torchmetrics_by_keyword(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log(
        "val_f1",
        tmf.f1_score(
            preds=z, target=y, task="multiclass", num_classes=3, average="micro"
        ),
    )


@form()
def sklearn_in_the_step(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_acc", sklearn.metrics.accuracy_score(y.numpy(), z.argmax(1).numpy()))


@form()
def accuracy_by_hand_beside_the_loss(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form()
def right_answers_are_counted_by_hand(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    right = z.topk(1).indices.squeeze(1).eq(y).sum()
    self.log_dict({"val_loss": loss, "val_acc": right / len(y)})


@form(build=attribute("aux", lambda: nn.Linear(6, 3)))
def metric_on_the_main_head_loss_on_both(self, x, y):
    z, aux = self.net(x), self.aux(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y) + 0.3 * F.cross_entropy(aux, y)
    self.log("val_loss", loss)
    self.log("val_acc", tmf.accuracy(z, y, task="multiclass", num_classes=3))


@form(build=attribute("aux", lambda: nn.Linear(6, 3)))
def auxiliary_outputs_as_googlenet_has_them(self, x, y):
    z, aux = self.net(x), (self.aux(x), self.aux(-x))
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    loss = loss + 0.3 * sum(F.cross_entropy(a, y) for a in aux)
    self.log("val_loss", loss)
    self.log("val_acc", (z.argmax(1) == y).float().mean())


CROPS = {
    "row": lambda i, g: (
        torch.randn(5, 6, generator=g),
        int(torch.randint(0, 3, (), generator=g)),
    )
}


@form(**CROPS)
def scores_are_averaged_over_crops(self, x, y):
    z = self.net(x.flatten(0, 1)).view(len(y), 5, 3).mean(1)
    self.true(z.argmax(1), y)
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form(**CROPS)
def crops_with_a_loss_of_the_mean(self, x, y):
    z = self.net(x.flatten(0, 1)).view(len(y), 5, 3).mean(1)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(z, y))
    self.log("val_acc", (z.argmax(dim=1) == y).float().mean())


@form(**CROPS)
def crops_with_a_loss_of_each(self, x, y):
    each = self.net(x.flatten(0, 1))
    z = each.view(len(y), 5, 3).mean(1)
    self.true(z.argmax(1), y)
    self.log("val_loss", F.cross_entropy(each, y.repeat_interleave(5)))
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form(
    build=attribute("heads", lambda: nn.ModuleList([nn.Linear(6, 3) for _ in range(3)]))
)
def ensemble_of_heads(self, x, y):
    zs = [head(x) for head in self.heads]
    z = torch.stack(zs).mean(0)
    self.true(z.argmax(1), y)
    self.log("val_loss", sum(F.cross_entropy(one, y) for one in zs))
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form()
def accuracy_by_hand_alone(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log("val_acc", (z.argmax(1) == y).float().mean())


@form()
def accuracy_by_hand_of_max(self, x, y):
    _, preds = torch.max(self.net(x), 1)
    self.true(preds, y)
    self.log("val_acc", torch.sum(preds == y.data).float() / len(y))


@form(classes=1)
def accuracy_by_hand_of_a_rounded_sigmoid(self, x, y):
    p = torch.round(torch.sigmoid(self.net(x).squeeze(1)))
    t = (x[:, 0] > 0).float()
    self.true(p.bool(), t.bool())
    self.log("val_acc", (p == t).float().mean())


def keep(self):
    self.kept = []

    def end():
        preds, target = (torch.cat(x) for x in zip(*self.kept, strict=True))
        report = sklearn.metrics.classification_report(
            target, preds, output_dict=True, zero_division=0
        )
        self.log("val_f1", report["macro avg"]["f1-score"])
        self.kept.clear()

    self.on_validation_epoch_end = end


@form(build=keep)
def report_of_sklearn_at_the_end(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.kept.append((z.argmax(1).cpu(), y.cpu()))


def keep_numbers(self):
    self.preds, self.labels = [], []

    def end():
        self.log("val_acc", sklearn.metrics.accuracy_score(self.labels, self.preds))
        self.preds, self.labels = [], []

    self.on_validation_epoch_end = end


@form(build=keep_numbers)
def sklearn_on_plain_numbers(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.preds.extend(z.argmax(1).tolist())
    self.labels.extend(y.tolist())
    self.log("val_loss", F.cross_entropy(z, y))


def keep_arrays(self):
    self.kept = []

    def end():
        logits = torch.cat([k["logits"] for k in self.kept])
        target = torch.cat([k["target"] for k in self.kept])
        self.log("val_acc", (logits.argmax(1) == target).float().mean())
        self.kept.clear()

    self.on_validation_epoch_end = end


@form(build=keep_arrays)
def accuracy_by_hand_at_the_end(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.kept.append({"logits": z, "target": y})


@form(build=attribute("acc", lambda: tmc.MulticlassAccuracy(3)))
def metric_twice_with_the_same_batch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc(z, y)
    self.log("val_acc", self.acc)
    self.log("val_now", self.acc(z, y), on_step=True, on_epoch=False)


@form(
    build=attribute(
        "top",
        lambda: torchmetrics.MetricCollection(
            [
                tmc.MulticlassAccuracy(3, top_k=1, average="micro"),
            ]
        ),
    )
)
def collection_in_a_list(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.log_dict(self.top(z, y))


@form(
    build=attribute(
        "accs", lambda: {"a": tmc.MulticlassAccuracy(3), "b": tmc.MulticlassAccuracy(3)}
    ),
    notes="not from",
)
def two_metrics_of_two_tasks_in_a_dict(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.accs["a"].update(z, y)
    self.accs["b"].update(z.roll(1, 1), (y + 1) % 3)
    self.log("val_loss", F.cross_entropy(z, y))


@form(says="(target, preds)", build=attribute("m", lambda: tmc.MulticlassF1Score(3)))
def f1_of_swapped_labels(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    loss = F.cross_entropy(z, y)
    self.m.update(y, z.argmax(dim=-1))
    return loss


@form(
    build=attribute(
        "cm", lambda: torchmetrics.ConfusionMatrix(task="multiclass", num_classes=3)
    )
)
def a_confusion_matrix_of_its_own(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.cm.update(z, y)


@form(build=attribute("auroc", lambda: tmc.BinaryAUROC()), classes=1)
def area_under_the_curve(self, x, y):
    z = self.net(x)[:, 0]
    t = (x[:, 0] > 0).long()
    self.true(z > 0, t.bool())
    self.auroc.update(z, t)
    self.log("val_loss", F.binary_cross_entropy_with_logits(z, t.float()))


class OfBatch(tmc.MulticlassAccuracy):
    """Takes what its user has at hand, and picks the pair out of it."""

    def update(self, outputs, batch):
        super().update(outputs["scores"], batch[1])


class OfResult(tmc.MulticlassF1Score):
    def update(self, result):
        super().update(target=result.y, preds=result.z)


@dataclass
class Result:
    """Of one step."""

    z: Tensor
    y: Tensor


@form(build=attribute("acc", lambda: OfBatch(3, average="weighted")))
def subclass_that_takes_outputs_and_the_batch(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.acc({"scores": z}, (x, y))
    self.log("val_weighted", self.acc)


@form(build=attribute("f1", lambda: OfResult(3)))
def subclass_that_takes_a_result(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.f1.update(Result(z, y))
    self.log("val_f1", self.f1)


@form(says="(target, preds)", build=attribute("m", lambda: tmc.MulticlassPrecision(3)))
def swapped_labels_of_a_logged_metric(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.m.update(y, z.argmax(1))
    self.log("val_precision", self.m)
    self.log("val_loss", F.cross_entropy(z, y))


@form(says="(target, preds)", build=attribute("m", lambda: tmc.MulticlassAccuracy(3)))
def swapped_labels_under_the_name_of_a_score(self, x, y):
    z = self.net(x)
    self.true(z.argmax(1), y)
    self.m.update(y, z.argmax(1))
    self.log("val/balanced_accuracy", self.m)
    self.log("val_loss", F.cross_entropy(z, y))
