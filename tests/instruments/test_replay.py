"""A step is run again and leaves nothing behind, whatever it does and however it ends."""

from __future__ import annotations

import gc
import importlib
import random
import warnings
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchmetrics
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard
from lightning_evalguard.instruments.dispatch import Op, Subscriber
from lightning_evalguard.instruments.effects import Effects
from lightning_evalguard.instruments.generators import (
    Generators,
    generator_state,
    same_state,
)
from lightning_evalguard.instruments.replay import CannotReplay, Look, replaying

MODES = pytest.mark.parametrize(
    "mode", [torch.no_grad, torch.inference_mode, torch.enable_grad]
)


@dataclass
class Meter:
    """State beside the module tree."""

    total: float = 0.0
    seen: list[int] = field(default_factory=list)


class Busy(nn.Module):
    """A model with one of everything that a step can change."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        self.register_buffer("queue", torch.zeros(3, 4))
        self.plain = torch.zeros(2)
        self.array = np.zeros(3)
        self.meter = Meter()
        self.history: list[Any] = []
        self.by_key: dict[str, Any] = {"a": [1]}
        self.ordered: OrderedDict[str, int] = OrderedDict(a=1, b=2)
        self.recent: deque[int] = deque([1], maxlen=3)
        self.names = {"x"}
        self.counts: Counter[str] = Counter(x=1)
        self.steps = 0
        self.torchs = torch.Generator()
        self.pythons = random.Random(0)
        self.numpys = np.random.default_rng(0)
        self.optimizer = torch.optim.Adam(self.parameters())

        calls = 0

        def count() -> int:
            nonlocal calls
            calls += 1
            return calls

        self.count = count


def writes(m: Busy, b: Tensor) -> None:
    b.add_(1)
    m.queue[1] = 1.0
    m.plain += 1
    m.net[0].weight.data.mul_(2)
    m.net[1].train()(b)
    m.array += 1


def replaces(m: Busy, b: Tensor) -> None:
    m.queue = m.queue + 1
    m.net[0].bias = nn.Parameter(torch.ones(4))
    m.net[0].weight.data = torch.zeros(4, 4)
    m.plain.set_(torch.ones(7))
    m.net[1] = nn.Identity()
    del m.history


def keeps(m: Busy, b: Tensor) -> None:
    m.steps += 1
    m.new = b
    m.meter.total += 1
    m.meter.seen.append(1)
    m.history += [b, b]
    m.by_key["a"].append(2)
    m.by_key["b"] = b
    m.ordered.move_to_end("a")
    m.recent.extend([2, 3, 4])
    m.names.add("y")
    m.counts.update("xyz")
    m.count()


def draws(m: Busy, b: Tensor) -> None:
    torch.rand(2)
    torch.rand(2, generator=m.torchs)
    random.random()
    np.random.rand()
    m.pythons.random()
    m.numpys.random()


def sets(m: Busy, b: Tensor) -> None:
    torch.manual_seed(0)
    torch.set_grad_enabled(True)
    torch.set_default_dtype(torch.float64)
    torch.use_deterministic_algorithms(True)
    m.net.register_forward_hook(lambda *_: None)
    m.requires_grad_(False)


def learns(m: Busy, b: Tensor) -> None:
    with torch.inference_mode(False), torch.enable_grad():
        m.net[0](torch.ones(2, 4)).sum().backward()
        m.optimizer.step()
        m.optimizer.param_groups[0]["lr"] = 1.0
        m.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})


def fails(m: Busy, b: Tensor) -> None:
    writes(m, b)
    keeps(m, b)
    raise RuntimeError("half way")


STEPS = [writes, replaces, keeps, draws, sets, learns, fails]


def privates(m: Busy) -> tuple[Any, ...]:
    return m.torchs, m.pythons, m.numpys


def everything(m: Busy, batch: Tensor) -> dict[str, Any]:
    """The model, its surroundings and the process, as values."""
    held = [
        *m.named_parameters(),
        *m.named_buffers(),
        ("plain", m.plain),
        ("batch", batch),
    ]
    return {
        "contents": {n: t.detach().clone().tolist() for n, t in held},
        "identities": {n: (id(t), t.data_ptr(), t.shape, t.stride()) for n, t in held},
        "versions": {n: t._version for n, t in held if not t.is_inference()},
        "flags": {n: t.requires_grad for n, t in held},
        "gradients": {n: None if t.grad is None else t.grad.tolist() for n, t in held},
        "modules": {n: (id(s), s.training, sorted(vars(s))) for n, s in m.named_modules()},
        "hooks": [len(s._forward_hooks) for s in m.modules()],
        "plain": (
            m.array.tolist(), repr(m.meter), len(m.history), repr(m.by_key), repr(m.ordered),
            repr(m.recent), repr(m.names), repr(m.counts), m.steps,
            m.count.__closure__[0].cell_contents,
        ),
        "optimizer": repr(m.optimizer.state_dict()),
        "private": repr([generator_state(g) for g in privates(m)]),
        "process": (
            torch.is_grad_enabled(), torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
        ),
    }  # fmt: skip


def look_at(m: Busy, step: Callable[..., Any], batch: Tensor, **kwargs: Any) -> Look:
    return Look(
        m, lambda *a: step(m, *a), (batch,), before=Generators.capture(), beside=[m.optimizer],
        **kwargs,
    )  # fmt: skip


@MODES
@pytest.mark.parametrize("step", STEPS, ids=lambda s: s.__name__)
def test_what_a_step_does_is_undone(
    step: Callable[..., Any], mode: Callable[[], AbstractContextManager[None]]
) -> None:
    m = Busy()
    with mode():
        batch = torch.zeros(2, 4)
        before, generators = everything(m, batch), Generators.capture()
        with look_at(m, step, batch) as look:
            for _ in range(2):
                outcome = look.again()
                assert (type(outcome.error) is RuntimeError) == (step is fails)
        after = everything(m, batch)
    assert {k: after[k] for k in after if after[k] != before[k]} == {}
    assert Generators.capture().moved(generators) == []


def test_a_graph_that_waits_for_its_backward_still_can_run_it() -> None:
    m = Busy()
    loss = (m.net[0](torch.ones(2, 4)) ** 2).sum()
    with look_at(m, writes, torch.zeros(2, 4)) as look, torch.no_grad():
        look.again()
    loss.backward()


@given(st.lists(st.sampled_from(STEPS), min_size=1, max_size=4))
def test_any_steps_one_after_the_other_are_undone(
    steps: list[Callable[..., Any]],
) -> None:
    m, batch = Busy(), torch.zeros(2, 4)

    def all_of_them(m: Busy, b: Tensor) -> None:
        for step in steps:
            if (
                hasattr(m, "history")
                and isinstance(m.net[1], nn.BatchNorm1d)
                and len(m.plain) == 2
            ):
                step(m, b)

    with torch.no_grad():
        before = everything(m, batch)
        with look_at(m, all_of_them, batch) as look:
            look.again()
        assert everything(m, batch) == before


def test_nothing_is_copied_but_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    from lightning_evalguard.instruments import rollback as _rollback

    copied: list[int] = []
    as_bytes = _rollback._as_bytes

    def counted(storage: Any) -> Tensor:
        copied.append(storage.nbytes())
        return as_bytes(storage)

    monkeypatch.setattr(_rollback, "_as_bytes", counted)
    m = nn.ModuleList([nn.Linear(64, 64), nn.Linear(2, 2)])

    def step() -> None:
        for _ in range(3):
            m[1].weight.add_(1)

    with torch.no_grad(), Look(m, step, (), before=Generators.capture()) as look:
        look.again()
    assert copied == [16, 16]  # saved once, put back once


def test_replays_start_from_the_same_generators_or_from_a_seed() -> None:
    before = Generators.capture()
    step = lambda: (torch.rand(1).item(), random.random(), np.random.rand())  # noqa: E731
    kept = step()
    with Look(nn.Linear(1, 1), step, (), before=before) as look:
        assert look.again().outputs == kept
        seeded = look.again(seed=5).outputs
        assert seeded == look.again(seed=5).outputs != kept


def test_private_generators_run_on_between_replays_and_are_put_back() -> None:
    m = Busy()
    states = [generator_state(g) for g in privates(m)]

    def step() -> tuple[float, ...]:
        return (
            torch.rand(1, generator=m.torchs).item(),
            m.pythons.random(),
            m.numpys.random(),
        )

    with Look(m, step, (), before=Generators.capture()) as look:
        first, second = look.again().outputs, look.again().outputs
        assert all(a != b for a, b in zip(first, second, strict=True))
    assert all(map(same_state, states, [generator_state(g) for g in privates(m)]))


def test_an_iterator_among_the_arguments_is_left_alone() -> None:
    batches = iter([1, 2])
    with pytest.raises(CannotReplay, match="list_iterator"):
        Look(nn.Linear(1, 1), next, (batches,), before=Generators.capture())
    assert next(batches) == 1


def test_a_write_that_cannot_be_saved_does_not_happen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(storage: Any) -> Tensor:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr("lightning_evalguard.instruments.rollback._as_bytes", full)
    m = nn.Linear(2, 2)
    before = m.weight.clone()

    def stubborn() -> None:
        try:
            m.weight.add_(1)
        except Exception:
            m.weight.add_(2)

    with torch.no_grad(), Look(m, stubborn, (), before=Generators.capture()) as look:
        outcome = look.again()
    assert isinstance(outcome.error, CannotReplay)
    assert "no room" in str(outcome.error)
    assert torch.equal(m.weight, before)


def test_what_a_subscriber_raises_is_raised_after_all_is_undone() -> None:
    class Fails(Subscriber):
        def before(self, op: Op) -> None:
            raise KeyError(op.name)

    m, batch = Busy(), torch.zeros(2, 4)
    with torch.no_grad(), look_at(m, writes, batch) as look:
        with pytest.raises(KeyError):
            look.again(Fails())
        assert len(look.again(Fails(), strict=False).watch.failures) == 1
    assert batch.sum() == 0


def test_a_replay_says_that_it_is_one_and_prints_nothing(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def step() -> bool:
        print("twice")
        warnings.warn("twice", stacklevel=1)
        return replaying()

    with Look(nn.Linear(1, 1), step, (), before=Generators.capture()) as look:
        assert look.again().outputs is True
    assert not replaying()
    assert capfd.readouterr().out == ""


def test_a_compiled_module_runs_its_python_code_and_is_not_recompiled() -> None:
    compiled = []

    def backend(graph: Any, inputs: Any) -> Any:
        compiled.append(graph)
        return graph.forward

    seen = []

    class Names(Subscriber):
        def after(self, op: Op) -> None:
            seen.append((op.name, type(op.module).__name__))

    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU()).eval()
    model = torch.compile(net, backend=backend)
    with torch.no_grad():
        expected = model(torch.ones(1, 2))
        with Look(
            model, model, (torch.ones(1, 2),), before=Generators.capture()
        ) as look:
            assert torch.equal(look.again(Names()).outputs, expected)
        assert torch.equal(model(torch.ones(1, 2)), expected)
    assert len(compiled) == 1
    assert ("relu", "ReLU") in seen


# under the Trainer


class Logs(pl.LightningModule):
    """Everything that a validation step may touch of Lightning's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)
        )
        self.accuracy = torchmetrics.Accuracy(task="multiclass", num_classes=3)
        self.mean = torchmetrics.MeanMetric()
        self.outputs: list[Tensor] = []
        self.calls = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.calls += 1
        logits = self.net(batch[0])
        self.accuracy(logits, batch[1])
        self.mean.update(logits.mean())
        self.outputs.append(logits)
        self.log("loss", F.cross_entropy(logits, batch[1]), prog_bar=True, on_step=True)
        self.log_dict({"accuracy": self.accuracy, "mean": self.mean})
        if self.logger is not None:
            self.logger.log_metrics({"direct": float(self.calls)}, step=self.calls)
            self.logger.experiment.log_metrics({"more": 1.0}, step=self.calls)
        return logits

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(shuffle: bool = False) -> DataLoader[Any]:
    made = torch.Generator().manual_seed(0)
    x, y = torch.randn(32, 4, generator=made), torch.randint(3, (32,), generator=made)
    return DataLoader(TensorDataset(x, y), 8, shuffle=shuffle)


@pytest.mark.parametrize("audit", ["auto", "full"])
@pytest.mark.parametrize("entry", ["fit", "validate"])
def test_a_guarded_run_is_the_bare_run_bit_for_bit(
    entry: str, audit: Any, trainer: Callable[..., pl.Trainer], tmp_path: Any
) -> None:
    def run(name: str, *callbacks: pl.Callback) -> tuple[Logs, pl.Trainer, str]:
        torch.manual_seed(0)
        module = Logs()
        logger = CSVLogger(tmp_path, name=name, version="0")
        made = trainer(
            callbacks=list(callbacks), logger=logger, max_epochs=2, log_every_n_steps=1
        )
        if entry == "fit":
            made.fit(module, loader(shuffle=True), loader())
        else:
            made.validate(module, loader(), verbose=False)
        return module, made, (tmp_path / name / "0" / "metrics.csv").read_text()

    guard = EvalGuard(
        data="ignore",
        scores="ignore",
        audit=audit,
        metrics=None,
        sync="ignore",
        grad="ignore",
    )
    bare, bare_trainer, bare_log = run("bare")
    module, made, log = run("guarded", guard)
    assert guard.report.findings == []
    assert guard.report.checked["replayed_steps"] == (entry == "fit" or audit == "full")
    assert log == bare_log
    assert module.calls == bare.calls
    for one, other in zip(bare.outputs, module.outputs, strict=True):
        assert torch.equal(one, other)
    for name, tensor in bare.state_dict().items():
        assert torch.equal(tensor, module.state_dict()[name]), name
    assert made.callback_metrics == bare_trainer.callback_metrics
    state = torch.get_rng_state()
    run("once more")
    assert torch.equal(torch.get_rng_state(), state)


def test_a_step_that_does_not_run_twice_costs_one_note(
    trainer: Callable[..., pl.Trainer], tmp_path: Any
) -> None:
    made = tmp_path / "once"

    class Once(Logs):
        def validation_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 0 and self.trainer.sanity_checking:
                made.mkdir()  # fails where it exists
            return super().validation_step(batch, batch_idx)

    guard = EvalGuard(
        data="ignore", scores="ignore", metrics=None, sync="ignore", grad="ignore"
    )
    trainer(callbacks=[guard]).fit(Once(), loader(), loader())
    assert guard.report.findings == []
    assert [n for n in guard.report.notes if "changes files" in n]


def test_a_check_that_fails_while_it_watches_costs_one_warning(
    trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning_evalguard import EvalGuardWarning
    from lightning_evalguard.checks.stochastic.draws import Draws

    def broken(self: Draws, op: Op) -> None:
        raise AttributeError("our own bug")

    monkeypatch.setattr(Draws, "after", broken)
    guard = EvalGuard(
        data="ignore", scores="ignore", metrics=None, sync="ignore", grad="ignore"
    )
    with pytest.warns(EvalGuardWarning) as said:
        trainer(callbacks=[guard]).fit(Logs(), loader(), loader())
    ours = [str(w.message) for w in said if w.category is EvalGuardWarning]
    assert len(ours) == 1, ours
    assert "the `stochastic` check failed" in ours[0]
    assert guard.report.findings == []
    assert guard.report.checked["evaluations"] == 2


def test_nothing_is_run_again_where_several_processes_evaluate(
    trainer: Callable[..., pl.Trainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    guard = EvalGuard(
        data="ignore", scores="ignore", metrics=None, sync="ignore", grad="ignore"
    )
    monkeypatch.setattr(
        "lightning_evalguard.callback.why_not",
        lambda _: "several processes evaluate together",
    )
    trainer(callbacks=[guard]).fit(Logs(), loader(), loader())
    assert guard.report.checked["replayed_steps"] == 0
    assert guard.report.findings == []


class Makes(OrderedDict[str, Any]):
    """Holds classes, and makes an object of one at each access, as some registries do."""

    def __getitem__(self, key: str) -> Any:
        return super().__getitem__(key)()


MADE = Makes(relu=nn.ReLU, gelu=nn.GELU)


def test_a_mapping_that_makes_what_it_gives_still_holds_what_it_held() -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.registry = MADE

        def step(self, batch: Tensor) -> Tensor:
            made = self.registry["relu"](batch)
            assert isinstance(made, Tensor)
            return made

    module = Asks()
    with Look(
        module, module.step, (torch.ones(2),), before=Generators.capture()
    ) as look:
        assert look.again().error is None
    assert list(OrderedDict.items(MADE)) == [("relu", nn.ReLU), ("gelu", nn.GELU)]


@contextmanager
def scaled(by: float) -> Iterator[float]:
    yield by


class Decorated(nn.Module):
    @scaled(2.0)
    def step(self, batch: Tensor) -> Tensor:
        return batch * 2


def test_a_function_that_a_context_manager_decorates_runs_again() -> None:
    module = Decorated()
    with Look(
        module, module.step, (torch.ones(2),), before=Generators.capture()
    ) as look:
        outcome = look.again()
    assert outcome.error is None
    assert torch.equal(outcome.outputs, torch.full((2,), 2.0))


class Collects(nn.Module):
    """Memory runs low in the middle of its step: the garbage collector ends what is left over."""

    def step(self, batch: Tensor) -> Tensor:
        gc.collect()
        return batch * 2


class Leftover:
    """A generator that stopped halfway, and a file, in a circle of references."""

    def __init__(self, path: Path) -> None:
        self.circle = self
        self.path = path
        self.halfway = (number for number in range(10))
        next(self.halfway)

    def __del__(self) -> None:
        self.path.write_text("ended")


def test_what_the_garbage_collector_ends_is_no_act_of_the_step(tmp_path: Path) -> None:
    Leftover(tmp_path / "file")
    module = Collects()
    with (
        Look(
            module, module.step, (torch.ones(2),), before=Generators.capture()
        ) as look,
        Effects() as effects,
    ):
        outcome = look.again()
    assert outcome.error is None
    assert effects.why is None
    assert (tmp_path / "file").read_text() == "ended"


class NamesAModule(nn.Module):
    """An attribute of it is called like a module that somebody else imported."""

    def __init__(self) -> None:
        super().__init__()
        self.leftover = 2.0

    def step(self, batch: Tensor) -> Tensor:
        return batch * self.leftover


def test_a_module_is_touched_where_it_is_imported_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source = tmp_path / "leftover.py"
    source.write_text("step = open(__file__)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with importlib.import_module("leftover").step:
        module = NamesAModule()
        with Look(
            module, module.step, (torch.ones(2),), before=Generators.capture()
        ) as look:
            assert look.again().error is None
