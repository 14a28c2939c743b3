"""What an evaluation leaves behind, and what it may leave."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

import words
from lightning_evalguard import EvalGuardError, EvalGuardWarning, Report, allow
from lightning_evalguard.callback import EvalGuard
from lightning_evalguard.model.hashes import PIECE, Prints
from lightning_evalguard.model.tensors import Inventory, kept
from lightning_evalguard.model.tree import registrations
from models.program import BATCH, CLASSES, FEATURES, Classifier, samples

Fit = Callable[..., pl.Trainer]


@pytest.fixture
def report_of(fit: Fit) -> Callable[..., Report]:
    """``report_of(module, **kwargs)``: what a fit of it gives, warnings apart."""

    def run(module: pl.LightningModule, *callbacks: Any, **kwargs: Any) -> Report:
        trainers = {
            k: kwargs.pop(k)
            for k in tuple(kwargs)
            if k not in ("state", "allow", "audit")
        }
        guard = EvalGuard(data="ignore", metrics=None, sync="ignore", **kwargs)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EvalGuardWarning)
            with contextlib.suppress(EvalGuardError):
                fit(module, guard, *callbacks, **trainers)
        return guard.report

    return run


# --- hashes ---------------------------------------------------------------------------------------

DTYPES = [
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.int64,
    torch.int8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
]


@given(
    shape=st.sampled_from(
        [(1,), (7,), (3, 5), (33, 65), (2, 3, 4, 5), (1031,), (4100,)]
    ),
    dtype=st.sampled_from(DTYPES),
    at=st.integers(0, 10**6),
    layout=st.sampled_from(
        ["contiguous", "channels_last", "transposed", "offset", "expanded"]
    ),
)
@settings(max_examples=200)
def test_one_changed_byte_changes_the_hash(
    shape: tuple[int, ...], dtype: torch.dtype, at: int, layout: str
) -> None:
    size = torch.Size(shape).numel()
    flat = (torch.arange(size + 1) % 5).to(dtype)[layout == "offset" :][:size]

    def made() -> Tensor:
        tensor = flat.reshape(shape)
        if layout == "channels_last" and len(shape) == 4:
            return tensor.to(memory_format=torch.channels_last)
        if layout == "transposed":
            return tensor.t() if len(shape) == 2 else tensor
        return tensor[None].expand(3, *shape) if layout == "expanded" else tensor

    before = Prints({"x": made()})
    assert Prints({"x": made()}).differing(before) == []
    before.values()
    flat.view(torch.uint8)[at % (size * flat.element_size())] ^= 1
    assert Prints({"x": made()}).differing(before) == ["x"]


@given(seed=st.integers(0, 1000), size=st.sampled_from([4, 700, 5000]))
@settings(max_examples=40)
def test_exchanged_rows_change_the_hash(seed: int, size: int) -> None:
    rows = torch.randn(size, 256, generator=torch.Generator().manual_seed(seed))
    order = torch.arange(size)
    order[[0, size - 1]] = order[[size - 1, 0]]
    assert Prints({"x": rows[order]}).differing(Prints({"x": rows})) == ["x"]


def test_an_even_number_of_equal_values_is_not_nothing() -> None:
    zeros, ones = torch.zeros(4096), torch.ones(4096)
    assert Prints({"x": ones}).differing(Prints({"x": zeros})) == ["x"]


def test_hashing_leaves_the_tensor_as_it_was() -> None:
    tensor = torch.zeros(8)
    version, state = tensor._version, torch.get_rng_state()
    Prints({"x": tensor}).values()
    assert tensor._version == version
    assert torch.equal(torch.get_rng_state(), state)
    tensor.resize_(1000)  # a numpy view would have forbidden it for good


def test_a_sample_looks_at_every_tensor_and_walks_on() -> None:
    before = {f"p{i}": torch.zeros(100 * PIECE) for i in range(50)}
    swapped = {name: t + 1 for name, t in before.items()}
    for turn in range(5):
        old = Prints(before, whole=(), turn=turn)
        assert set(Prints(swapped, whole=(), turn=turn).differing(old)) == set(before)
    one = torch.zeros(8 * PIECE)
    one[3] = 1
    found = [
        bool(
            Prints({"x": one}, (), turn).differing(
                Prints({"x": torch.zeros(8 * PIECE)}, (), turn)
            )
        )
        for turn in range(40)
    ]
    assert any(found)
    assert not all(found)


def test_what_cannot_be_hashed_is_named_with_the_reason() -> None:
    prints = Prints(
        {"a": torch.zeros(3, device="meta"), "b": torch.zeros(2, 2).to_sparse()}
    )
    assert set(prints.unreadable) == {"a", "b"}
    assert "meta" in prints.unreadable["a"]
    assert prints.differing(prints) == []


def test_tensors_of_other_shapes_and_dtypes_differ() -> None:
    old = Prints({"a": torch.zeros(3), "b": torch.zeros(4), "c": torch.zeros(2)})
    new = {
        "a": torch.zeros(4),
        "b": torch.zeros(4, dtype=torch.float64),
        "c": torch.zeros(2),
    }
    assert Prints(new).differing(old) == ["a", "b"]


# --- what is there --------------------------------------------------------------------------------


@pytest.fixture
def _counted() -> Any:
    registrations.start()
    yield
    registrations.stop()


@pytest.mark.usefixtures("_counted")
def test_the_inventory_is_read_again_when_something_is_registered() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    inventory = Inventory(net)
    inventory.refresh()
    assert list(inventory.held) == ["0.weight", "0.bias"]
    net[0].register_buffer("scale", torch.ones(1))
    assert len(inventory.read().names) == 3
    net.append(nn.BatchNorm1d(2))
    assert len(inventory.read().names) == 8


@pytest.mark.usefixtures("_counted")
def test_the_inventory_reaches_modules_in_containers_and_leaves_metrics_out() -> None:
    net = nn.Sequential(nn.Linear(2, 2))
    net.metric = MeanMetric()
    net.hidden = {"a": [nn.Linear(1, 1)]}
    inventory = Inventory(net)
    inventory.refresh()
    assert list(inventory.modules) == ["", "0"]
    assert list(inventory.unregistered) == ["hidden['a'][0]"]
    assert "hidden['a'][0].weight" in inventory.held
    assert not inventory.held["hidden['a'][0].weight"].registered


@pytest.mark.usefixtures("_counted")
def test_plain_attributes_are_looked_at_without_keeping_them_alive() -> None:
    net = nn.Linear(2, 2)
    net.queue = torch.zeros(3)
    net.lists = [torch.ones(1), {"x": torch.ones(2)}]
    inventory = Inventory(net)
    inventory.refresh()
    found = kept(inventory)
    assert {k: sorted(v) for k, v in found.items()} == {
        "queue": [""],
        "lists": ["[0]", "[1]['x']"],
    }
    gone = weakref.ref(net.queue)
    net.queue = None
    assert gone() is None


# --- what is said ---------------------------------------------------------------------------------


class Normed(Classifier):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("var", torch.ones(FEATURES))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(F.batch_norm(x, self.mean, self.var, training=True))


def test_a_written_buffer_is_named_with_the_line_that_wrote_it(report_of: Any) -> None:
    (finding,) = (f for f in report_of(Normed()).findings if f.check == "state")
    assert (finding.subject, finding.certain) == ("mean", True)
    assert str(finding).startswith(
        "`mean` (buffer of Normed): changed during the step, as did var, expected it to stay as it "
        "was; set at tests/checks/test_state.py:"
    )
    assert words.said(finding).endswith(
        "`F.batch_norm(x, self.mean, self.var, training=True)`. "
        "Evaluating more often gives another model. Pass training=self.training. "
        "[state]"
    )


def test_a_batch_whose_tensors_were_replaced_is_not_taken_for_a_written_one(
    trainer: Any,
) -> None:
    def collated(rows: list[Any]) -> dict[str, Tensor]:
        return {
            "x": torch.stack([x for x, _ in rows]),
            "y": torch.stack([y for _, y in rows]),
        }

    class Named(Classifier):
        """What the loader gave goes as the step replaces it, and its memory is used anew."""

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            batch["y"] = batch["y"].float()
            scratch = [
                torch.empty(BATCH, dtype=torch.int64).fill_(1) for _ in range(64)
            ]
            self.log("val_loss", self(batch["x"]).sum() + scratch[0].sum())

        def val_dataloader(self) -> Any:
            return DataLoader(samples(2), BATCH, collate_fn=collated)

    guard = EvalGuard(weights="ignore", sync="ignore", scores="ignore")
    trainer(callbacks=[guard]).validate(Named(), verbose=False)
    assert guard.report.findings == []


class Average(pl.Callback):
    """An average of the weights and statistics, loaded before each evaluation."""

    def __init__(self, puts_back: bool) -> None:
        self.puts_back = puts_back

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.average = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_train_epoch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        for key, value in pl_module.state_dict().items():
            mean = self.average[key].double().lerp(value.double(), 0.5)
            self.average[key].copy_(mean)

    def on_validation_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        self.own = {k: v.clone() for k, v in pl_module.state_dict().items()}
        pl_module.load_state_dict(self.average)

    def on_validation_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> None:
        if self.puts_back:
            pl_module.load_state_dict(self.own)


class Deep(Classifier):
    """Two layers around a batch norm."""

    def __init__(self) -> None:
        super().__init__()
        first = nn.Linear(FEATURES, FEATURES), nn.BatchNorm1d(FEATURES)
        self.net = nn.Sequential(*first, nn.Linear(FEATURES, CLASSES))  # type: ignore[assignment]


@pytest.mark.parametrize("puts_back", [False, True])
def test_weights_that_are_swapped_and_stay_are_one_finding_a_run(
    puts_back: bool, fit: Fit
) -> None:
    guard = EvalGuard(state="warn", sync="ignore", weights="ignore")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        fit(Deep(), Average(puts_back), guard, max_epochs=4)
    findings = [f for f in guard.report.findings if f.check == "state"]
    if puts_back:
        assert findings == []
        return
    (finding,) = findings
    assert "pl_module.load_state_dict(self.average)" in str(finding)
    assert finding.count >= 3
    assert finding.certain


def test_one_line_that_writes_in_many_modules_is_one_finding(report_of: Any) -> None:
    class Decays(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(FEATURES, FEATURES)

        def forward(self, x: Tensor) -> Tensor:
            self.linear.weight.data.mul_(0.9)
            return self.linear(x)

    class Deep(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(
                *(Decays() for _ in range(5)), nn.Linear(FEATURES, CLASSES)
            )

    (finding,) = (f for f in report_of(Deep()).findings if f.check == "state")
    assert (finding.subject, finding.certain) == ("net.0.linear.weight", True)
    assert "as did net.1.linear.weight, net.2.linear.weight and 2 more" in finding.fact
    assert finding.switch == 'EvalGuard(allow={"state": ["*.linear.weight"]})'


def test_a_bound_that_each_call_sets_is_reported_once_and_stops_nothing(
    trainer: Any,
) -> None:
    class Bounded(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            with torch.no_grad():
                self.net.weight.clamp_(-0.1, 0.1)
            return self.net(x)

    guard = EvalGuard(weights="ignore")
    with pytest.warns(EvalGuardWarning, match="Compute with the bounded value"):
        trainer(callbacks=[guard], max_epochs=3).fit(Bounded())
    (finding,) = guard.report.findings
    assert (finding.check, finding.subject, finding.certain) == (
        "state",
        "net.weight",
        False,
    )


def test_a_step_of_the_optimizer_is_called_one(report_of: Any) -> None:
    class Steps(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            with torch.enable_grad():
                F.cross_entropy(self(batch[0]), batch[1]).backward()
            self.optimizers().step()

    said = [words.said(f) for f in report_of(Steps()).findings if f.check == "state"]
    assert any("Step the optimizer in training only. [state]" in s for s in said), said


def test_a_write_that_no_operator_shows_is_found_line_by_line(report_of: Any) -> None:
    class Rebinds(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(FEATURES))

        def halve(self) -> Any:
            return self.scale.numpy() / 2

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            self.net.weight.data = self.net.weight.data.clone().mul(0.5)
            self.scale.numpy()[:] = self.halve()
            self.net.bias.requires_grad = False
            torch.set_float32_matmul_precision("medium")
            return super().validation_step(batch, batch_idx)

    module = Rebinds()
    weight = module.net.weight.detach().clone()
    try:
        findings = report_of(module).findings
    finally:
        torch.set_float32_matmul_precision("highest")
    assert {f.subject: f.expression for f in findings if f.check == "state"} == {
        "net.weight": "self.net.weight.data = self.net.weight.data.clone().mul(0.5)",
        "scale": "self.scale.numpy()[:] = self.halve()",
        "net.bias": "self.net.bias.requires_grad = False",
        "torch.get_float32_matmul_precision()": 'torch.set_float32_matmul_precision("medium")',
    }
    assert not module.net.bias.requires_grad  # as the step left it
    assert module.net.weight.abs().sum() < weight.abs().sum()


class Writes(Classifier):
    """Halves its bias in the evaluations whose number is in `when`."""

    when: tuple[int, ...] = (1,)

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(FEATURES, 400)
        self.evaluations = 0

    def on_validation_start(self) -> None:
        self.evaluations += 1

    def change(self) -> None:
        with torch.no_grad():
            self.net.bias.mul_(0.5)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        if self.evaluations in self.when and batch_idx == 1:
            self.change()
        return super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("first", [1, 2, 3])
def test_a_write_is_found_in_whichever_evaluation_it_happens(
    first: int, report_of: Any
) -> None:
    module = Writes()
    module.when = (first,)
    (finding,) = report_of(module, max_epochs=3).findings
    assert finding.subject == "net.bias"
    assert finding.expression == "self.net.bias.mul_(0.5)"
    assert module.evaluations == first


def test_a_write_within_allow_is_meant(report_of: Any) -> None:
    class Meant(Writes):
        def change(self) -> None:
            with allow(
                "state", reason="a decay that the paper applies in evaluation too"
            ):
                super().change()

    assert report_of(Meant(), max_epochs=2).findings == []


def test_a_write_to_an_allowed_name_is_meant(report_of: Any) -> None:
    assert report_of(Writes(), allow={"state": ["net.*"]}).findings == []
    assert report_of(Writes(), allow={"state": ["wide.*"]}).findings != []


def test_weights_swapped_in_a_later_evaluation_and_kept_are_found(
    report_of: Any,
) -> None:
    class Swaps(Writes):
        when = (4,)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return Classifier.validation_step(self, batch, batch_idx)

        def on_validation_epoch_start(self) -> None:
            if self.evaluations in self.when:
                self.wide.weight.data = self.wide.weight.data + 1

    (finding,) = report_of(Swaps(), max_epochs=4).findings
    assert (finding.subject, finding.stage) == ("wide.weight", "validate")
    assert "changed during validation, expected it to be as before" in str(finding)


def test_weights_swapped_within_each_step_and_put_back_are_left_alone(
    report_of: Any,
) -> None:
    class Swaps(Classifier):
        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            own = {k: v.clone() for k, v in self.net.state_dict().items()}
            self.net.load_state_dict({k: v + 1 for k, v in own.items()})
            super().validation_step(batch, batch_idx)
            self.net.load_state_dict(own)

    assert report_of(Swaps(), max_epochs=3, audit="full").findings == []


# --- buffers that are no state --------------------------------------------------------------------


class Positions(Classifier):
    """A table that grows with the batch, as rotary and sinusoidal embeddings keep one."""

    persistent = False

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1), persistent=self.persistent)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < len(x):
            self.register_buffer(
                "table", torch.zeros(len(x)), persistent=self.persistent
            )
        return self.net(x + self.table[: len(x), None])


def test_a_table_that_grows_and_is_not_saved_is_left_alone(report_of: Any) -> None:
    assert report_of(Positions()).findings == []


def test_a_table_that_grows_and_is_saved_is_found(report_of: Any) -> None:
    class Saved(Positions):
        persistent = True

    (finding,) = report_of(Saved()).findings
    assert (finding.subject, finding.certain) == ("table", True)


class _FollowsPrecision(Classifier):
    """A table in the precision of what arrives, and `gains` beside it."""

    def __init__(self, persistent: bool, gains: float) -> None:
        super().__init__()
        self.register_buffer("table", torch.rand(FEATURES), persistent=persistent)
        self.gains = gains

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, _ = batch
        self.table = self.table.to(torch.bfloat16) + self.gains
        self(x * self.table)


@pytest.mark.parametrize(
    ("persistent", "gains"), [(False, 0.0), (True, 0.0), (False, 1.0)]
)
def test_a_table_that_follows_the_precision_is_left_alone_unless_it_is_saved_or_gains(
    persistent: bool, gains: float, report_of: Any
) -> None:
    report = report_of(_FollowsPrecision(persistent, gains))
    assert [f.subject for f in report.findings] == ["table"] * bool(persistent or gains)


# --- plain attributes -----------------------------------------------------------------------------


class Queue(Classifier):
    """Scores each sample against the samples of earlier batches."""

    def __init__(self) -> None:
        super().__init__()
        self.queue = torch.ones(2 * BATCH, FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        scores = (x @ self.queue.T).mean(1, keepdim=True)
        self.queue = torch.cat([self.queue, x.detach()])[-2 * BATCH :]
        return self.net(x) + scores


def test_a_queue_in_a_plain_attribute_is_a_suspicion(report_of: Any) -> None:
    findings = report_of(Queue(), max_epochs=1).findings
    assert {(f.check, f.subject, f.certain) for f in findings} == {
        ("state", "queue", False)
    }
    assert "results that do not depend on the batches before" in str(findings[0])
    assert 'allow={"state": ["queue"]}' in str(findings[0])


def test_totals_and_histograms_of_ones_own_are_left_alone(report_of: Any) -> None:
    class Counts(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.total = torch.zeros(())
            self.mean = torch.zeros(CLASSES)
            self.confmat = torch.zeros(CLASSES, CLASSES)
            self.preds = torch.zeros(0, CLASSES)
            self.parts: list[Tensor] = []

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            x, y = batch
            logits = self(x)
            self.total += F.cross_entropy(logits, y)
            self.mean = 0.9 * self.mean + 0.1 * logits.mean(0)
            self.confmat.index_put_(
                (y, logits.argmax(1)), torch.ones(len(y)), accumulate=True
            )
            self.preds = torch.cat([self.preds, logits])
            self.parts.append(logits)
            self.log("share", self.confmat.trace() / self.confmat.sum())
            self.log("diff", (self.confmat / self.confmat.sum(1, keepdim=True)).mean())

        def on_validation_epoch_end(self) -> None:
            self.parts.clear()

    assert report_of(Counts(), max_epochs=2, audit="full").findings == []


def test_attributes_whose_memory_is_reused_are_not_mistaken(fit: Fit) -> None:
    # The weight of the old weight norm goes and comes at each call, each time in freed memory.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        module = Classifier()
        module.net = nn.Sequential(
            nn.utils.weight_norm(nn.Linear(FEATURES, 16)), nn.Linear(16, CLASSES)
        )
    guard = EvalGuard(data="ignore", metrics=None, sync="ignore")
    trainer = fit(module, guard)
    trainer.validate(module, verbose=False)
    assert guard.report.findings == []


# --- optimizers and schedules ---------------------------------------------------------------------


class StepsItsSchedule(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)]

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            self.lr_schedulers().step()


def test_a_schedule_run_by_a_hook_is_certain_under_automatic_optimization(
    report_of: Any,
) -> None:
    findings = report_of(StepsItsSchedule()).findings
    assert {f.subject for f in findings} == {"lr_schedulers[0]", "optimizers[0]"}
    assert all(f.certain for f in findings)


def test_a_schedule_run_by_a_hook_is_a_suspicion_under_manual_optimization(
    report_of: Any,
) -> None:
    class Manual(StepsItsSchedule):
        automatic_optimization = False

        def training_step(self, batch: Any, batch_idx: int) -> None:
            loss = super().training_step(batch, batch_idx)
            self.manual_backward(loss)
            self.optimizers().step()
            self.optimizers().zero_grad()

    findings = report_of(Manual()).findings
    assert findings
    assert not any(f.certain for f in findings)


# --- what the guard must not do -------------------------------------------------------------------


def test_no_batch_is_held_beyond_its_step(fit: Fit) -> None:
    def left(*callbacks: Any) -> list[int]:
        alive: list[int] = []

        class Looks(Classifier):
            refs: tuple[weakref.ref[Tensor], ...] = ()

            def validation_step(self, batch: Any, batch_idx: int) -> Any:
                self.refs = (*self.refs, weakref.ref(batch[0]))
                return super().validation_step(batch, batch_idx)

            def on_validation_end(self) -> None:
                gc.collect()
                alive.append(sum(ref() is not None for ref in self.refs))

        fit(Looks(), *callbacks)
        return alive

    assert left(EvalGuard(data="ignore", metrics=None, sync="ignore")) == left()


def test_a_guarded_fit_gives_the_same_weights_bit_for_bit(fit: Fit) -> None:
    def weights(*callbacks: Any) -> dict[str, Tensor]:
        torch.manual_seed(0)
        module = Classifier()
        module.net = nn.Sequential(
            nn.Linear(FEATURES, 64),
            nn.BatchNorm1d(64),
            nn.Dropout(0.5),
            nn.Linear(64, CLASSES),
        )
        fit(module, *callbacks, max_epochs=2)
        return {**module.state_dict(), "rng": torch.get_rng_state()}

    bare = weights()
    guarded = weights(EvalGuard(data="ignore", metrics=None, sync="ignore"))
    assert all(torch.equal(t, guarded[name]) for name, t in bare.items())


def test_frozen_parameters_and_modules_without_tensors_are_no_trouble(
    report_of: Any,
) -> None:
    module = Classifier()
    module.net.requires_grad_(False)
    module.head = nn.Sequential(
        nn.Identity(), nn.ReLU(), nn.ModuleList(), nn.ParameterList()
    )
    module.scale = nn.Parameter(torch.ones(()))
    module.forward = lambda x: module.net(x) * module.scale  # type: ignore[method-assign]
    assert report_of(module).findings == []


def test_a_tensor_subclass_that_refuses_is_noted_and_skipped(report_of: Any) -> None:
    class Stubborn(Tensor):
        """Knows no operator."""

        @classmethod
        def __torch_dispatch__(
            cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if func is torch.ops.aten.detach.default:
                return args[0]
            raise NotImplementedError(f"{func} is not for me")

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    module = Classifier()
    odd = torch.Tensor._make_wrapper_subclass(Stubborn, (2, 2))
    module.register_buffer("odd", odd, persistent=False)
    report = report_of(module)
    assert report.findings == []
    assert any("`odd`" in note for note in report.notes), report.notes
