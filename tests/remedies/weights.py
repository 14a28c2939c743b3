"""Of the checks `weights` and `selection`."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from lightning.pytorch import callbacks as pl_callbacks
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_evalguard import Report
from models.program import CLASSES, FEATURES, Classifier
from models.weights import TwoLayers, checkpoint
from remedies import Make, alone, applied, fitted, heard


def tested(make: Make, module: pl.LightningModule) -> Report:
    guard = alone("weights")
    return heard(guard, lambda: make(callbacks=[guard]).test(module, verbose=False))


@applied('Pass `{"{}" + k: v for k, v in state_dict.items()}`.')
def a_prefix_that_is_missing(make: Make, fixed: bool) -> Report:
    class Outer(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES)
            state = nn.Linear(FEATURES, CLASSES).state_dict()
            if fixed:
                state = {"net." + k: v for k, v in state.items()}
            self.load_state_dict(state, strict=False)

    return tested(make, Outer())


@applied("Leave the `update` of `state_dict()` out and load with `strict=True`.")
def a_state_dict_filled_up_with_its_own(make: Make, fixed: bool) -> Report:
    class FillsUp(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            given = checkpoint() if fixed else checkpoint(head="fc")
            if fixed:
                self.load_state_dict(given, strict=True)
                return
            state = self.state_dict()
            state.update({k: v for k, v in given.items() if k in state})
            self.load_state_dict(state)

    return tested(make, FillsUp())


@applied("Keep `copy.deepcopy(model.state_dict())`, and load that.")
def the_best_weights_by_reference(make: Make, fixed: bool) -> Report:
    class KeepsTheBest(TwoLayers):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                state = self.state_dict()
                self.best = copy.deepcopy(state) if fixed else state

    guard, module = alone("weights"), KeepsTheBest()

    def act() -> None:
        make(callbacks=[guard], max_epochs=3).fit(module)
        module.load_state_dict(module.best)
        make(callbacks=[guard]).test(module, verbose=False)

    return heard(guard, act)


@applied("Call `optimizer.step()` for each optimizer, or leave this one out.")
def an_optimizer_that_never_steps(make: Make, fixed: bool) -> Report:
    class Two(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            optimizers: Any = self.optimizers()
            for optimizer in optimizers:
                optimizer.zero_grad()
            self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
            for optimizer in optimizers if fixed else optimizers[:1]:
                optimizer.step()

        def configure_optimizers(self) -> Any:
            parts = (self.body, self.head)
            return [torch.optim.SGD(part.parameters(), lr=0.1) for part in parts]

    return fitted(make, alone("weights"), Two(), max_epochs=20)


@applied("Let it start earlier: its `should_update` was never true.")
def an_average_that_never_began(make: Make, fixed: bool) -> Report:
    class Late(Classifier):
        def configure_callbacks(self) -> Any:
            start = 0 if fixed else 100
            return [pl_callbacks.EMAWeightAveraging(update_starting_at_step=start)]

    return fitted(make, alone("weights"), Late(), max_epochs=3, limit_val_batches=0)


@applied("Update the average after each step of the optimizer, before it is scored.")
def an_average_of_what_training_began_with(make: Make, fixed: bool) -> Report:
    class Averages(pl.Callback):
        def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
            self.average = copy.deepcopy(pl_module.state_dict())

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            for key, value in pl_module.state_dict().items() if fixed else ():
                self.average[key].lerp_(value, 0.5)

        def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
            self.kept = copy.deepcopy(pl_module.state_dict())
            pl_module.load_state_dict(self.average)

        def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
            pl_module.load_state_dict(self.kept)

    module = Classifier()
    return fitted(make, alone("weights"), module, callbacks=[Averages()], max_epochs=3)


@applied(
    "Let the fit reach `max_epochs`, or copy the average when it stops: "
    "`swa.transfer_weights(swa._average_model, module)`."
)
def an_average_that_is_not_put_in_place(make: Make, fixed: bool) -> Report:
    class Stops(pl.Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            if trainer.current_epoch == 3 and not fixed:
                trainer.should_stop = True

    swa = pl_callbacks.StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=2)
    return fitted(
        make, alone("weights"), Classifier(), callbacks=[swa, Stops()], max_epochs=5
    )


class Tempered(TwoLayers):
    """Its score hangs on an attribute that no checkpoint has."""

    def __init__(self, temperature: float = 1.0, hidden: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters("temperature")
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.hparams["temperature"] * self.hidden


def _other_than_the_record(make: Make, other: Tempered, folder: str) -> Report:
    guard, module = alone("weights"), Tempered()

    def act() -> None:
        root = f"{make().default_root_dir}/{folder}"
        logger = CSVLogger(root)
        make(callbacks=[alone("weights")], logger=logger, max_epochs=2).fit(module)
        other.load_state_dict(module.state_dict())
        make(callbacks=[guard], logger=CSVLogger(root)).validate(other, verbose=False)

    return heard(guard, act)


@applied("Evaluate with the settings of the record, or train and compare under these.")
def other_settings_than_the_record(make: Make, fixed: bool) -> Report:
    return _other_than_the_record(make, Tempered(1.0 if fixed else 3.0), str(fixed))


@applied(
    "Look for what the weights do not hold: an attribute, a global, an order, a clock."
)
def another_score_than_the_record(make: Make, fixed: bool) -> Report:
    return _other_than_the_record(
        make, Tempered(hidden=1.0 if fixed else 3.0), str(fixed)
    )


def _plain(make: Make, many: bool, fixed: bool) -> Report:
    class Scales(Classifier):
        def __init__(self) -> None:
            super().__init__()
            tensor = torch.ones(FEATURES, requires_grad=True)
            if many:
                self.scales: Any = nn.ParameterList([tensor]) if fixed else [tensor]
            else:
                self.scale = nn.Parameter(tensor) if fixed else tensor

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x * (self.scales[0] if many else self.scale))

    return fitted(make, alone("weights"), Scales(), max_epochs=2)


@applied("Make `{}` an nn.{}.")
def plain_tensors_in_a_list(make: Make, fixed: bool) -> Report:
    return _plain(make, True, fixed)


@applied("Make `{}` an {} of the model.")
def a_plain_tensor(make: Make, fixed: bool) -> Report:
    return _plain(make, False, fixed)


# --- selection ----------------------------------------------------------------------------------


class Scored(Classifier):
    """Logs its accuracy."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        self.log("val_loss", F.cross_entropy(self(batch[0]), batch[1]))


@applied("Make a new {} for each fit.")
def one_stop_for_two_fits(make: Make, fixed: bool) -> Report:
    def stopping() -> pl.Callback:
        return pl_callbacks.EarlyStopping(monitor="val_loss")

    guard, first = alone("selection"), stopping()

    def act() -> None:
        make(callbacks=[first, guard]).fit(Scored())
        second = stopping() if fixed else first
        make(callbacks=[second, guard]).fit(Scored())

    return heard(guard, act)


@applied(
    "Choose among them with `trainer.validate(ckpt_path=...)` and test the chosen one."
)
def checkpoints_chosen_on_the_test_set(make: Make, fixed: bool) -> Report:
    guard, module = alone("selection"), Scored()

    def act() -> None:
        keep = pl_callbacks.ModelCheckpoint(save_top_k=-1, monitor="val_loss")
        made = make(callbacks=[keep, guard], max_epochs=3, enable_checkpointing=True)
        made.fit(module)
        paths = sorted(keep.best_k_models)
        assert len(paths) == 3
        for path in paths:
            run = made.validate if fixed else made.test
            run(module, ckpt_path=path, verbose=False, weights_only=False)
        if fixed:
            made.test(module, ckpt_path=paths[0], verbose=False, weights_only=False)

    return heard(guard, act)


class Normed(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.BatchNorm1d(CLASSES))


@applied(
    "Save and load `model.state_dict()`, which holds them, in place of the parameters."
)
def statistics_that_were_not_saved(make: Make, fixed: bool) -> Report:
    before, module = Normed(), Normed()
    before.net(torch.randn(8, FEATURES))
    saved = before.state_dict() if fixed else dict(before.named_parameters())
    module.load_state_dict(saved, strict=fixed)
    return tested(make, module)


@applied(
    "Run a batch through it in train mode first, or make it with "
    "`torch.nn.utils.parametrizations.spectral_norm`."
)
def a_spectral_norm_that_saw_no_batch(make: Make, fixed: bool) -> Report:
    old, new = nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm
    module = TwoLayers()
    module.load_state_dict(checkpoint())
    module.body = (new if fixed else old)(module.body)
    return tested(make, module)


class Warmed(Classifier):
    """Its rate rises by epochs."""

    def __init__(self, fixed: bool, by_hand: bool) -> None:
        super().__init__()
        self.fixed, self.by_hand = fixed, by_hand

    def rate(self, epoch: int) -> float:
        return (epoch + self.fixed) / 3

    def on_train_epoch_start(self) -> None:
        if self.by_hand:
            optimizer: Any = self.optimizers()
            for group in optimizer.param_groups:
                group["lr"] = self.rate(self.current_epoch)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.by_hand:
            return optimizer
        return [optimizer], [torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)]


@applied(
    'Let {} count from 1, step with each batch (`"interval": "step"`), or reach 0 only where the '
    "fit ends."
)
def a_warmup_that_begins_at_nothing(make: Make, fixed: bool) -> Report:
    return fitted(make, alone("weights"), Warmed(fixed, by_hand=False), max_epochs=2)


@applied("Give each epoch that trains a learning rate above 0.")
def a_rate_by_hand_that_begins_at_nothing(make: Make, fixed: bool) -> Report:
    return fitted(make, alone("weights"), Warmed(fixed, by_hand=True), max_epochs=2)


@applied(
    "Remove the factor of 0 or the `.detach()` between it and the loss, or the line that zeroes "
    "its gradient, initialise it so that its activation is active, or freeze it with "
    "`.requires_grad_(False)`."
)
def a_layer_whose_output_is_multiplied_by_zero(make: Make, fixed: bool) -> Report:
    class Adds(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(FEATURES, CLASSES)
            self.other = nn.Linear(FEATURES, CLASSES)

        def forward(self, x: Tensor) -> Any:
            if not self.training or fixed:
                return self.net(x) + self.other(x)
            return self.net(x) + 0 * self.other(x)

    return fitted(make, alone("weights"), Adds(), max_epochs=8)


@applied(
    "Draw weights in `__init__`, before a load, or return from the hook that draws them where the "
    "model has its weights already."
)
def weights_drawn_in_setup(make: Make, fixed: bool) -> Report:
    class Draws(TwoLayers):
        def __init__(self) -> None:
            super().__init__()
            if fixed:
                self._draw()

        def _draw(self) -> None:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    module.reset_parameters()

        def setup(self, stage: str) -> None:
            if not fixed:
                self._draw()

    module = Draws()
    module.load_state_dict(checkpoint())
    return tested(make, module)


@applied("Pass a smaller `swa_epoch_start`, or train for more epochs.")
def averaging_that_never_begins(make: Make, fixed: bool) -> Report:
    swa = pl_callbacks.StochasticWeightAveraging(
        swa_lrs=0.1, swa_epoch_start=1 if fixed else 50
    )
    module = Classifier()
    return fitted(make, alone("weights"), module, callbacks=[swa], max_epochs=20)


@applied(
    "Copy or average its buffers, too: go through `state_dict()`, or add "
    "`for a, b in zip(copy.buffers(), model.buffers()): a.copy_(b)`."
)
def an_average_without_buffers(make: Make, fixed: bool) -> Report:
    class Averaged(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(self.net, nn.BatchNorm1d(CLASSES))  # type: ignore[assignment]
            self.average = copy.deepcopy(self.net).eval().requires_grad_(False)

        def on_train_batch_end(self, *_: Any) -> None:
            model, average = self.net, self.average
            with torch.no_grad():
                for a, b in zip(average.parameters(), model.parameters(), strict=True):
                    a.lerp_(b, 0.1)
            if fixed:
                for a, b in zip(average.buffers(), model.buffers(), strict=True):
                    a.copy_(b)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("val_loss", F.cross_entropy(self.average(batch[0]), batch[1]))

    return fitted(make, alone("weights"), Averaged(), max_epochs=2)


@applied(
    "Remove the `.detach()`, `no_grad` or `.data` between it and the loss, or the line that clears "
    "its gradient before the step, or freeze it with `.requires_grad_(False)`."
)
def gradients_that_are_cleared(make: Make, fixed: bool) -> Report:
    class Clears(TwoLayers):
        def on_after_backward(self) -> None:
            if not fixed:
                self.body.zero_grad()

    return fitted(make, alone("weights"), Clears(), max_epochs=3)
