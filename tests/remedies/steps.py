"""Of the checks `sync`, `state`, `stochastic`, `batch` and `grad`: what a step does."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchmetrics
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lies.batches import GraphNet, Graphs, graphs, pooled
from lightning_evalguard import Report
from models.padding import Tokens
from models.program import BATCH, CLASSES, FEATURES, Classifier
from remedies import Make, alone, applied, fitted


@applied(
    "Compute it from each graph alone: pass `batch`, the graph of each node, to norms and "
    "poolings, as in `norm(x, data.batch)`."
)
def nodes_are_centred(make: Make, fixed: bool) -> Report:
    class Centred(GraphNet):
        def nodes(self, h: Tensor, g: Graphs) -> Tensor:
            if not fixed:
                return h - h.mean(0)
            return h - pooled(h, g.batch, g.num_graphs)[g.batch]

        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(graphs(32, 0), 16, collate_fn=Graphs.from_data_list)

        val_dataloader = train_dataloader

    return fitted(make, alone("batch"), Centred())


def waits(make: Make, module: type[Classifier]) -> Report:
    return fitted(make, alone("sync"), module())


@applied(
    "Update it under `torch.random.fork_rng(devices=[])`, after `torch.manual_seed(0)`."
)
def a_metric_resamples(make: Make, fixed: bool) -> Report:
    class Resamples(Classifier):
        def __init__(self) -> None:
            super().__init__()
            accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=CLASSES)
            self.boot = torchmetrics.wrappers.BootStrapper(accuracy, num_bootstraps=4)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if not fixed:
                self.boot.update(self(batch[0]), batch[1])
                return
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                self.boot.update(self(batch[0]), batch[1])

        def on_validation_epoch_end(self) -> None:
            self.log("val_spread", self.boot.compute()["std"])
            self.boot.reset()

    return fitted(make, alone("stochastic"), Resamples())


@applied("Keep the tensor; read it once after the last batch, or log it with self.log.")
def a_number_is_read(make: Make, fixed: bool) -> Report:
    class Reads(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            if fixed:
                self.log("val_loss", loss)
            else:
                self.total = loss.item()

    return waits(make, Reads)


@applied("Keep the tensor; read it once after the last batch, or log it with self.log.")
def numbers_are_read_at_the_end(make: Make, fixed: bool) -> Report:
    class Reads(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.kept: list[Any] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.kept.append(loss if fixed else float(loss))

        def on_validation_epoch_end(self) -> None:
            self.total = float(sum(self.kept))

    return waits(make, Reads)


@applied("Print after the last batch, or log it with self.log.")
def a_tensor_is_printed(make: Make, fixed: bool) -> Report:
    class Prints(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            if fixed:
                self.log("val_loss", loss)
            else:
                self.said = f"{loss:.3f}"

    return waits(make, Prints)


@applied("Collect the tensors; take their unique values once after the last batch.")
def unique_values_of_each_batch(make: Make, fixed: bool) -> Report:
    class Classes(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.kept: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.kept.append(batch[1] if fixed else batch[1].unique())

        def on_validation_epoch_end(self) -> None:
            self.classes = torch.cat(self.kept).unique()

    return waits(make, Classes)


@applied("Choose with torch.where, or decide on a number that the host has.")
def a_branch_on_a_tensor(make: Make, fixed: bool) -> Report:
    class Branches(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.cross_entropy(self(batch[0]), batch[1])
            if fixed:
                loss = torch.where(loss > 5, 5.0, loss)
            elif loss > 5:
                loss = loss.clamp(max=5)
            self.log("val_loss", loss)

    return waits(make, Branches)


@applied("Choose with torch.where, or decide on a number that the host has.")
def a_branch_on_what_the_host_has(make: Make, fixed: bool) -> Report:
    class Branches(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            few = (
                len(batch[1]) < BATCH
                if fixed
                else torch.ones_like(batch[1]).sum() < BATCH
            )
            if few:
                return
            self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))

    return waits(make, Branches)


@applied(
    "The size of the result is known to the device alone: use torch.where, or weigh by the mask."
)
def a_mask_that_selects(make: Make, fixed: bool) -> Report:
    class Selects(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            losses = F.cross_entropy(self(batch[0]), batch[1], reduction="none")
            mask = batch[1] > 0
            if fixed:
                self.log("val_loss", (losses * mask).sum() / mask.sum())
            else:
                self.log("val_loss", losses[mask].mean())

    return waits(make, Selects)


@applied("Keep it on the device; copy it once after the last batch.")
def a_copy_to_the_host_in_each_step(make: Make, fixed: bool) -> Report:
    class Copies(Classifier):
        def on_validation_epoch_start(self) -> None:
            self.kept: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            self.kept.append(logits if fixed else logits.cpu())

        def on_validation_epoch_end(self) -> None:
            self.all = torch.cat(self.kept).cpu()

    return waits(make, Copies)


@applied(
    "Make it once in __init__ with self.register_buffer, or copy from pinned memory with "
    "non_blocking=True."
)
def a_constant_made_in_each_step(make: Make, fixed: bool) -> Report:
    class Weighs(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("weights", torch.tensor([1.0, 2.0, 3.0]))

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            weights = (
                self.weights
                if fixed
                else torch.tensor([1.0, 2.0, 3.0], device=self.device)
            )
            self.log(
                "val_loss", F.cross_entropy(self(batch[0]), batch[1], weight=weights)
            )

    return waits(make, Weighs)


@applied(
    "Count with torch.zeros(n, device=x.device).scatter_add_(0, x, ones): its size is known."
)
def counted_by_bincount(make: Make, fixed: bool) -> Report:
    class Counts(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[1]
            if fixed:
                ones = torch.ones(len(x), device=x.device)
                counts = torch.zeros(CLASSES, device=x.device).scatter_add_(0, x, ones)
            else:
                counts = x.bincount(minlength=CLASSES).float()
            self.log("most", counts.max())

    return waits(make, Counts)


@applied("Keep (a == b).all() as a tensor.")
def tensors_compared_as_a_whole(make: Make, fixed: bool) -> Report:
    class Compares(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            a, b = self(batch[0]).argmax(1), batch[1]
            same = (a == b).all() if fixed else torch.equal(a, b)
            self.log("same", same.float() if isinstance(same, Tensor) else 1.0 * same)

    return waits(make, Compares)


@applied("Pass output_size=.")
def repeated_without_a_size(make: Make, fixed: bool) -> Report:
    class Repeats(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            twice = torch.full_like(batch[1], 2)
            size = {"output_size": 2 * len(batch[1])} if fixed else {}
            more = batch[1].repeat_interleave(twice, **size)
            self.log("more", more.float().mean())

    return waits(make, Repeats)


@applied(
    "Pass targets, joined to one dimension, and lengths as int32 tensors on the CPU: cuDNN takes "
    "them so."
)
def ctc_with_long_targets(make: Make, fixed: bool) -> Report:
    class Speech(Classifier):
        def __init__(self) -> None:
            super().__init__()
            kind = torch.int32 if fixed else torch.int64
            self.lengths = (
                torch.full((BATCH,), 4, dtype=kind),
                torch.full((BATCH,), 2, dtype=kind),
            )
            self.targets = torch.ones(BATCH * 2, dtype=kind)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            scores = self(batch[0]).log_softmax(1).expand(4, BATCH, CLASSES)
            self.log("val_loss", F.ctc_loss(scores, self.targets, *self.lengths))

    return waits(make, Speech)


@applied(
    "Let the batch hold the lengths as a list: `pack_padded_sequence` takes one, and nothing moves "
    "it to the device."
)
def lengths_copied_to_pack_a_sequence(make: Make, fixed: bool) -> Report:
    class Packs(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.GRU(FEATURES, CLASSES, batch_first=True)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            x = batch[0][:, None]
            lengths: Any = torch.ones_like(batch[1])
            lengths = [1] * len(x) if fixed else lengths.cpu()
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            self.log("val_loss", F.cross_entropy(self.rnn(packed)[1][0], batch[1]))

    return waits(make, Packs)


@applied("Pass validate_args=False.")
def a_distribution_that_validates(make: Make, fixed: bool) -> Report:
    class Normal(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            normal = torch.distributions.Normal(0.0, 1.0, validate_args=not fixed)
            self.log("val_loss", -normal.log_prob(self(batch[0])).mean())

    return waits(make, Normal)


@applied("Pass error_if_nonfinite=False.")
def clipping_that_checks(make: Make, fixed: bool) -> Report:
    class Clips(Classifier):
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            nn.utils.clip_grad_norm_(
                self.parameters(), 1.0, error_if_nonfinite=not fixed
            )

    return waits(make, Clips)


@applied("Train in bfloat16, which needs no scaler; a scaler needs this one read.")
def a_scaler_of_gradients(make: Make, fixed: bool) -> Report:
    class Scales(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.scaler = torch.amp.GradScaler("cpu")

        def training_step(self, batch: Any, batch_idx: int) -> None:
            optimizer: Any = self.optimizers(use_pl_optimizer=False)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(self(batch[0]), batch[1])
            if fixed:
                self.manual_backward(loss)
                optimizer.step()
                return
            self.manual_backward(self.scaler.scale(loss))
            self.scaler.step(optimizer)
            self.scaler.update()

    return waits(make, Scales)


def _of_metrics(make: Make, module: Classifier, **settings: Any) -> Report:
    """Syncs of torchmetrics' own are listed; nobody is warned of them."""
    guard = alone("sync", **settings)
    report = fitted(make, guard, module)
    report.findings += [sync for sync in report.syncs if sync.remedy]  # type: ignore[misc]
    return report


@applied("Pass {} to the metric.")
def a_metric_that_checks_for_nan(make: Make, fixed: bool) -> Report:
    class Means(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.mean = torchmetrics.MeanMetric("disable" if fixed else "warn")

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.mean.update(self(batch[0]).mean())

    return _of_metrics(make, Means())


@applied("Let the guard's own matrix count: it never waits.")
def a_metric_that_counts(make: Make, fixed: bool) -> Report:
    class Counts(Classifier):
        def __init__(self) -> None:
            super().__init__()
            if not fixed:
                self.matrix = torchmetrics.classification.MulticlassConfusionMatrix(
                    CLASSES, validate_args=False
                )

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            logits = self(batch[0])
            if not fixed:
                self.matrix.update(logits, batch[1])
            return {"preds": logits, "target": batch[1]}

    report = _of_metrics(make, Counts(), metrics="auto" if fixed else None)
    assert not fixed or report.confusion["val"].total == 16
    return report


# --- state --------------------------------------------------------------------------------------


@applied("Update it `if self.training:`.")
def a_state_that_is_carried_on(make: Make, fixed: bool) -> Report:
    class Carries(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.GRUCell(FEATURES, FEATURES)
            self.hidden = torch.zeros(BATCH, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.cell(x, self.hidden)
            if self.training or not fixed:
                self.hidden = hidden.detach()
            return self.net(hidden)

    return fitted(make, alone("state"), Carries())


@applied("Step it in training only.")
def a_schedule_that_a_validation_steps(make: Make, fixed: bool) -> Report:
    class Steps(Classifier):
        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            self.schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
            return [optimizer], [self.schedule]

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            if fixed:
                self.schedule.step()
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            if not fixed:
                self.schedule.step()

    return fitted(make, alone("state"), Steps())


@applied("Register it in `__init__`.")
def a_tensor_replaced_in_a_validation(make: Make, fixed: bool) -> Report:
    class Registers(Classifier):
        def __init__(self) -> None:
            super().__init__()
            if fixed:
                self.register_buffer("scale", torch.ones(FEATURES))

        def on_validation_end(self) -> None:
            if not fixed and "scale" not in self._buffers:
                self.register_buffer("scale", torch.ones(FEATURES))

    return fitted(make, alone("state"), Registers())


@applied("Copy into it instead.")
def a_parameter_replaced_for_the_optimizer(make: Make, fixed: bool) -> Report:
    class Averages(Classifier):
        def on_validation_start(self) -> None:
            kept = self.net.weight
            self.kept = kept.detach().clone() if fixed else kept
            if fixed:
                with torch.no_grad():
                    kept.copy_(torch.zeros_like(kept))
            else:
                self.net.weight = nn.Parameter(torch.zeros_like(kept))

        def on_validation_end(self) -> None:
            if fixed:
                with torch.no_grad():
                    self.net.weight.copy_(self.kept)
            else:
                self.net.weight = nn.Parameter(self.kept.detach().clone())

    return fitted(make, alone("state"), Averages(), num_sanity_val_steps=0)


# --- batch --------------------------------------------------------------------------------------


@applied(
    "Leave the padding out of it: pass `ignore_index=`, or `(loss * mask).sum() / mask.sum()`."
)
def a_loss_over_the_padding(make: Make, fixed: bool) -> Report:
    class Tags(Tokens):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            ids, mask, _, _ = batch
            logits = self.net(self.embedding(ids))
            loss = F.cross_entropy(
                logits.transpose(1, 2), ids % CLASSES, reduction="none"
            )
            self.log(
                "val_loss", (loss * mask).sum() / mask.sum() if fixed else loss.mean()
            )

    return fitted(make, alone("batch"), Tags())


@applied("Compute it from the positions that the mask keeps.")
def counted_over_the_padding(make: Make, fixed: bool) -> Report:
    class Spread(Tokens):
        def pooled(self, x: Tensor, mask: Tensor, lengths: Tensor) -> Tensor:
            kept = x.masked_fill(~mask[..., None], torch.nan) if fixed else x
            return kept.nanmedian(1).values

    return fitted(make, alone("batch"), Spread())


# --- stochastic ---------------------------------------------------------------------------------


@applied("Create the module in `__init__`.")
def a_layer_made_anew_in_each_step(make: Make, fixed: bool) -> Report:
    class Makes(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.extra = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            if not fixed:
                self.extra.reset_parameters()
            return self.net(self.extra(x))

    return fitted(make, alone("stochastic"), Makes())


@applied("Set the dropout rate of {}'s module to 0 for evaluation.")
def a_package_that_always_drops(make: Make, fixed: bool) -> Report:
    folder = Path(make().default_root_dir) / "site-packages" / "dropping"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "__init__.py").write_text(_PACKAGE)
    spec = importlib.util.spec_from_file_location("dropping", folder / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    package = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(package)

    class Drops(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.drop = package.Drops()

        def forward(self, x: Tensor) -> Tensor:
            if fixed and not self.training:
                self.drop.rate = 0.0
            out = self.net(self.drop(x))
            self.drop.rate = 0.5
            return out

    return fitted(make, alone("stochastic"), Drops())


_PACKAGE = """
import torch.nn.functional as F
from torch import nn


class Drops(nn.Module):
    rate = 0.5

    def forward(self, x):
        return F.dropout(x, self.rate)
"""
