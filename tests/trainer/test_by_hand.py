"""What a user's own code evaluates inside a fit is judged; what it may well mean is left alone."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import _BaseDataLoaderIter

from lightning_evalguard import EvalGuard, EvalGuardWarning, Report, allow

Make = Callable[..., pl.Trainer]
made = torch.Generator().manual_seed(0)
TRAIN = TensorDataset(torch.randn(16, 4, generator=made), torch.arange(16) % 2)
HELD_OUT = TensorDataset(torch.randn(12, 4, generator=made), torch.arange(12) % 2)


class Net(pl.LightningModule):
    """Dropout, batch norm, and a counter that a flag lets move."""

    def __init__(self, drops: bool = False, counts: bool = False) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.3))
        self.head = nn.Linear(8, 2)
        self.register_buffer("seen", torch.zeros(()))
        self.drops, self.counts = drops, counts

    def forward(self, x: Tensor) -> Any:
        if self.counts and not self.training:
            self.get_buffer("seen").add_(1)
        h = self.net(x)
        return self.head(F.dropout(h, 0.5) if self.drops and not self.training else h)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loop(model: nn.Module, data: Any = HELD_OUT) -> float:
    right = 0.0
    for x, y in DataLoader(data, 4):
        right += float((model(x).argmax(1) == y).sum())
    return right / len(data)


class AtEpochEnd(pl.Callback):
    def __init__(self, act: Callable[[Any], Any]) -> None:
        self.act = act
        self.kept: list[Any] = []

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.kept.append(self.act(pl_module))


class AtBatchEnd(AtEpochEnd):
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        pass

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if trainer.global_step % 2:
            self.kept.append(self.act(pl_module))


def fitted(
    trainer: Make,
    module: Net,
    *callbacks: Any,
    guard: bool = True,
    metrics: Any = None,
) -> Report:
    torch.manual_seed(0)
    guards = EvalGuard(
        modes="warn", grad="warn", state="warn", stochastic="warn", batch="warn", data="ignore",
        weights="ignore", metrics=metrics, sync="ignore",
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EvalGuardWarning)
        made = trainer(
            callbacks=[*callbacks, *([guards] if guard else [])], max_epochs=2
        )
        made.fit(module, DataLoader(TRAIN, 4))
    return guards.report


def honest(m: Any) -> float:
    m.eval()
    with torch.no_grad():
        score = loop(m)
    m.train()
    return score


def in_train_mode(m: Any) -> float:
    with torch.no_grad():
        return loop(m)


def with_a_graph(m: Any) -> float:
    m.eval()
    score = loop(m)
    m.train()
    return score


def forgets_train(m: Any) -> float:
    m.eval()
    with torch.no_grad():
        return loop(m)


def samples_with_a_graph(m: Any) -> Any:
    m.eval()
    sample = m(torch.ones(3, 4)).argmax(1)
    m.train()
    return sample


FOUND: dict[str, tuple[Callable[[], Net], Any, Any, str]] = {
    "in train mode": (Net, AtEpochEnd, in_train_mode, "modes"),
    "in train mode, every few batches": (Net, AtBatchEnd, in_train_mode, "modes"),
    "with a graph": (Net, AtEpochEnd, with_a_graph, "grad"),
    "a sample with a graph": (Net, AtBatchEnd, samples_with_a_graph, "grad"),
    "train() forgotten": (Net, AtEpochEnd, forgets_train, "modes"),
    "dropout that ignores the mode": (
        lambda: Net(drops=True),
        AtEpochEnd,
        honest,
        "stochastic",
    ),
    "a buffer that counts": (lambda: Net(counts=True), AtEpochEnd, honest, "state"),
}


@pytest.mark.parametrize("case", FOUND)
def test_an_evaluation_by_hand_that_lies_is_found(case: str, trainer: Make) -> None:
    make, hook, act, check = FOUND[case]
    report = fitted(trainer, make(), hook(act))
    assert {f.check for f in report.findings} == {check}, report


def restores_each(m: Any) -> float:
    flags = [(part, part.training) for part in m.modules()]
    m.eval()
    with torch.no_grad():
        score = loop(m)
    for part, flag in flags:
        part.training = flag
    return score


def samples(m: Any) -> Any:
    m.eval()
    with torch.inference_mode():
        sample = m(torch.randn(3, 4)) + torch.randn(3, 2)
    m.train()
    return sample


def averages(m: Any) -> float:
    teacher = copy.deepcopy(m).eval()
    with torch.no_grad():
        return loop(teacher)


def calibrates(m: Any) -> None:
    with torch.no_grad():
        for x, _ in DataLoader(HELD_OUT, 4):
            m(x)


def saliency(m: Any) -> Any:
    m.eval()
    x = torch.ones(3, 4, requires_grad=True)
    (grad,) = torch.autograd.grad(m(x).sum(), x)
    m.train()
    return grad


def features(m: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat([m.net[0](x) for x, _ in DataLoader(HELD_OUT, 4)])


def norms(m: Any) -> Tensor:
    return torch.stack([p.norm().detach() for p in m.parameters()])


class FrozenPart(Net):
    """A part that stays in eval mode while the rest trains."""

    def __init__(self) -> None:
        super().__init__()
        self.part = (
            nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
            .eval()
            .requires_grad_(False)
        )

    def forward(self, x: Tensor) -> Any:
        return super().forward(self.part(x))


def test_a_frozen_part_that_train_wakes_after_it_is_found(trainer: Make) -> None:
    report = fitted(trainer, FrozenPart(), AtEpochEnd(honest))
    found = {(f.check, (f.subject or "").partition(".")[0]) for f in report.findings}
    assert found == {("modes", "part")}, report


def test_a_frozen_part_that_is_put_back_is_none(trainer: Make) -> None:
    assert fitted(trainer, FrozenPart(), AtEpochEnd(restores_each)).findings == []


def mc_dropout(m: Any) -> Any:
    with torch.no_grad():
        total = torch.zeros(2)
        for x, _ in DataLoader(HELD_OUT, 4):
            total += m(x).mean(0)
        return total


def test_monte_carlo_is_a_suspicion_with_its_switch(trainer: Make) -> None:
    report = fitted(trainer, Net(), AtEpochEnd(mc_dropout))
    assert [(f.check, f.certain) for f in report.findings] == [("modes", False)], report
    assert "mc_dropout" in report.findings[0].switch


def test_the_trainers_own_validation_set_in_train_mode_is_certain(
    trainer: Make,
) -> None:
    class Validated(Net):
        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self(batch[0])

        def val_dataloader(self) -> Any:
            return DataLoader(HELD_OUT, 4)

    report = fitted(trainer, Validated(), AtEpochEnd(in_train_mode))
    assert [(f.check, f.certain) for f in report.findings] == [("modes", True)], report


def as_tensor(kept: Any) -> Tensor:
    return torch.as_tensor(0.0 if kept is None else kept)


SILENT: dict[str, Any] = {
    "eval and no_grad": honest,
    "modes put back one by one": restores_each,
    "a sampler": samples,
    "a copy": averages,
    "calibration": calibrates,
    "gradients wanted": saliency,
    "features of a layer that no mode changes": features,
    "norms of the weights": norms,
}


@pytest.mark.parametrize("hook", [AtEpochEnd, AtBatchEnd])
@pytest.mark.parametrize("case", SILENT)
def test_an_honest_one_is_silent_and_changes_nothing(
    case: str, hook: Any, trainer: Make
) -> None:
    bare, guarded = Net(), Net()
    guarded.load_state_dict(bare.state_dict())
    one, two = hook(SILENT[case]), hook(SILENT[case])
    call = nn.Module.__call__
    fitted(trainer, bare, one, guard=False)
    report = fitted(trainer, guarded, two)
    assert report.findings == []
    assert nn.Module.__call__ is call
    assert all(
        map(torch.equal, bare.state_dict().values(), guarded.state_dict().values())
    )
    assert len(one.kept) == len(two.kept)
    for a, b in zip(map(as_tensor, one.kept), map(as_tensor, two.kept), strict=True):
        assert torch.equal(a, b)


class Logs(AtEpochEnd):
    """Logs what comes of the loop, as a mean over batches that a loop counts too."""

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        pl_module.log("holdout_acc", self.kept[-1])


def infers(m: Any) -> float:
    m.eval()
    with torch.inference_mode():
        score = loop(m)
    m.train()
    return score


def with_gradients(m: Any) -> float:
    m.eval()
    with allow("grad"):
        score = loop(m)
    m.train()
    return score


@pytest.mark.parametrize("act", [honest, infers, with_gradients])
def test_counting_what_a_loop_predicts_changes_nothing(act: Any, trainer: Make) -> None:
    bare, guarded = Net(), Net()
    guarded.load_state_dict(bare.state_dict())
    one, two = Logs(act), Logs(act)
    entries = [
        (nn.Module, "__call__"),
        (DataLoader, "__iter__"),
        (_BaseDataLoaderIter, "__next__"),
        (Tensor, "__eq__"),
        (F, "cross_entropy"),
    ]
    before = [getattr(owner, name) for owner, name in entries]
    fitted(trainer, bare, one, guard=False)
    report = fitted(trainer, guarded, two, metrics="auto")
    assert report.findings == []
    assert not any("failed inside" in note for note in report.notes)
    assert [getattr(owner, name) for owner, name in entries] == before
    assert one.kept == two.kept
    assert all(
        map(torch.equal, bare.state_dict().values(), guarded.state_dict().values())
    )


def loop_that_lets_go(model: Any) -> list[bool]:
    """Whether what a batch gave is gone, with its graph, once the next one took its name."""
    gone, right, before = [], 0.0, lambda: None
    for x, y in DataLoader(HELD_OUT, 4):
        loss = F.cross_entropy(model(x), y)
        gone.append(before() is None)
        before = weakref.ref(loss)
        right += float((model(x).argmax(1) == y).sum())
    model.log("val_acc", right / len(HELD_OUT))
    return gone


def test_a_loop_that_is_followed_keeps_nothing_alive(trainer: Make) -> None:
    watch = AtEpochEnd(loop_that_lets_go)
    run = trainer(callbacks=[watch, EvalGuard(grad="ignore")], max_epochs=3)
    run.fit(Net(), DataLoader(TRAIN, 4))
    assert watch.kept == [[True, True, True]] * 3


def test_an_error_within_a_loop_leaves_nothing_behind(trainer: Make) -> None:
    def fails(m: Any) -> Any:
        for x, _ in DataLoader(HELD_OUT, 4):
            m(x)
            raise KeyError("mine")

    fetch = _BaseDataLoaderIter.__next__
    with pytest.raises(KeyError, match="mine"):
        fitted(trainer, Net(), AtEpochEnd(fails), metrics="auto")
    assert _BaseDataLoaderIter.__next__ is fetch


def test_a_policy_of_ignore_follows_no_loop(trainer: Make) -> None:
    guard = EvalGuard(scores="ignore", sync="ignore", data="ignore")
    module = Net()
    hook = AtEpochEnd(honest)
    trainer(callbacks=[hook, guard], max_epochs=1).fit(module, DataLoader(TRAIN, 4))
    assert len(hook.kept) == 1
    assert guard.report.findings == []
