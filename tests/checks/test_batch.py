"""Outputs that depend on the other samples of the batch are found; losses and metrics are not."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

import words
from lies.batches import GraphNet, Graphs, graphs
from lightning_evalguard import EvalGuard, Report
from lightning_evalguard.checks.batch.rows import Placed, Rows
from lightning_evalguard.checks.batch.samples import samples_of
from lightning_evalguard.data.batches import common_length, map_samples

Make = Callable[..., pl.Trainer]


class Step(pl.LightningModule):
    """Runs `forward` on a batch of features."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(8, 8)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch["x"]).square().mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("loss", self(batch["x"]).square().mean(), batch_size=1)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(samples: int = 16, **kwargs: Any) -> DataLoader[Any]:
    made = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 8, generator=made)
    items = [{"x": x[i], "y": i % 2, "name": str(i)} for i in range(samples)]
    return DataLoader(items, **({"batch_size": samples} | kwargs))  # type: ignore[arg-type]


def guarded(
    trainer: Make, module: pl.LightningModule, data: Any = None, **kwargs: Any
) -> Report:
    guard = EvalGuard(
        data="ignore", **({"batch": "warn", "metrics": None, "sync": "ignore"} | kwargs)
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_evalguard.rulings.warn", lambda *_: None)
        trainer(callbacks=[guard]).fit(
            module, loader(), loader() if data is None else data
        )
    return guard.report


def model(
    forward: Callable[[Any, Tensor], Tensor], **attributes: Any
) -> pl.LightningModule:
    made = type(
        "Model", (Step,), {"forward": lambda self, x: forward(self, self.net(x))}
    )()
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def wide(x: Tensor) -> Tensor:
    return x[:, None].expand(-1, 5, -1) * torch.arange(1, 6)[:, None]


encoder = nn.TransformerEncoder(
    nn.TransformerEncoderLayer(8, 2, 8), 1, enable_nested_tensor=False
)
MIXING: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any], str, bool]] = {
    "standardised": (
        lambda self, x: (x - x.mean(0)) / x.std(0),
        {},
        "x - x.mean(0)",
        False,
    ),
    "largest": (lambda self, x: x / x.abs().max(), {}, "x / x.abs().max()", False),
    "ranked": (
        lambda self, x: x * x[:, :1].argsort(0).argsort(0),
        {},
        "argsort",
        False,
    ),
    "batch norm": (
        lambda self, x: self.norm(x),
        {"norm": nn.BatchNorm1d(8, track_running_stats=False)},
        "self.norm(x)",
        True,
    ),
    "functional": (
        lambda self, x: F.batch_norm(x, None, None, training=True),
        {},
        "F.batch_norm(x, None, None, training=True)",
        True,
    ),
    "in a list": (
        lambda self, x: self.norms[0](x),
        {"norms": [nn.BatchNorm1d(8, track_running_stats=False)]},
        "self.norms[0](x)",
        True,
    ),
    "attention": (
        lambda self, x: self.enc(wide(x)),
        {"enc": encoder},
        "self.enc(wide(x))",
        False,
    ),
    "recurrence": (
        lambda self, x: self.rnn(wide(x))[0],
        {"rnn": nn.GRU(8, 8)},
        "self.rnn(wide(x))",
        False,
    ),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_sample_that_depends_on_the_others_is_found(name: str, trainer: Make) -> None:
    forward, attributes, expression, certain = MIXING[name]
    report = guarded(trainer, model(forward, **attributes))
    assert len(report.findings) == 1, report
    (finding,) = report.findings
    assert expression in (finding.expression or "")
    assert (finding.certain, finding.stage) == (certain, "sanity_check")


def test_the_words(trainer: Make) -> None:
    report = guarded(trainer, model(*MIXING["standardised"][:1]))
    line = report.findings[0].location.rpartition(":")[2]  # type: ignore[union-attr]
    assert words.said(report.findings[0]) == (
        f"tests/checks/test_batch.py:{line} in `Model` (the whole model): `x - x.mean(0)` gives a "
        "sample different outputs when the rest of the batch changes. "
        "Scores depend on batch size and order. Compute it from each sample alone. [batch]"
    )
    forward, attributes, *_ = MIXING["in a list"]
    report = guarded(trainer, model(forward, **attributes))
    assert report.findings[0].subject == "norms[0]"
    assert report.findings[0].remedy == "Make `self.norms` an nn.ModuleList."


class Contrastive(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        z = F.normalize(z, dim=1)
        return F.cross_entropy(z @ z.T, torch.arange(len(z)))


class Decorrelated(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        z = (z - z.mean(0)) / z.std(0)
        return (z.T @ z).square().mean()


def sorted_metric(self: Any, x: Tensor) -> Tensor:
    scores = x[:, 0].detach()
    self.log("auc", scores.sort().values.cumsum(0).mean(), batch_size=1)
    return x


def weight_standardised(self: Any, x: Tensor) -> Tensor:
    weight = F.batch_norm(self.net.weight[None], None, None, training=True)[0]
    return F.linear(x, weight)


def noisy(self: Any, x: Tensor) -> Tensor:
    return x * torch.rand(len(x), 1)


def adapted(self: Any, x: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.enable_grad():
        weight = torch.ones(8, requires_grad=True)
        (gradient,) = torch.autograd.grad((x.clone() * weight).square().mean(), weight)
    return x * (1 - gradient)


batch_first = nn.TransformerEncoder(
    nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), 1
)
HONEST: dict[str, tuple[Callable[[Any, Tensor], Tensor], dict[str, Any]]] = {
    "per sample": (
        lambda self, x: (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True),
        {},
    ),
    "running statistics": (lambda self, x: self.norm(x), {"norm": nn.BatchNorm1d(8)}),
    "instance norm": (
        lambda self, x: self.norm(wide(x)),
        {"norm": nn.InstanceNorm1d(5)},
    ),
    "attention": (lambda self, x: self.enc(wide(x)), {"enc": batch_first}),
    "recurrence": (
        lambda self, x: self.rnn(wide(x))[0],
        {"rnn": nn.GRU(8, 8, batch_first=True)},
    ),
    "convolution": (
        lambda self, x: self.conv(wide(x)),
        {"conv": nn.Conv1d(5, 5, 3, padding=1)},
    ),
    "contrastive loss": (lambda self, x: self.loss(x), {"loss": Contrastive()}),
    "decorrelation loss": (lambda self, x: self.loss(x), {"loss": Decorrelated()}),
    "similarity matrix": (lambda self, x: x @ x.T, {}),
    "metric": (sorted_metric, {}),
    "weights": (weight_standardised, {}),
    "rounded": (
        lambda self, x: self.low(x.half()).float(),
        {"low": nn.Linear(8, 8).half()},
    ),
    "adaptation": (adapted, {}),
}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize("samples", [4, 16, 17])
def test_what_each_sample_gets_alone_is_silent(
    name: str, samples: int, trainer: Make
) -> None:
    forward, attributes = HONEST[name]
    settings = {"grad": "ignore", "state": "ignore", "modes": "ignore"}
    report = guarded(trainer, model(forward, **attributes), loader(samples), **settings)
    assert [str(f) for f in report.findings] == []


def test_noise_is_left_to_the_check_of_noise(trainer: Make) -> None:
    report = guarded(trainer, model(noisy), stochastic="warn")
    assert [f.check for f in report.findings] == ["stochastic"]


@pytest.mark.parametrize("honest", [True, False])
def test_a_step_of_fixed_length_is_judged_by_replacing_samples(
    honest: bool, trainer: Make
) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        x = x.view(16, 8)
        return x if honest else x - x.mean(0)

    report = guarded(trainer, model(forward))
    assert [f.expression for f in report.findings] == (
        [] if honest else ["x - x.mean(0)"]
    )
    assert report.notes == []


def test_what_cannot_be_halved_is_one_note(trainer: Make) -> None:
    one = guarded(trainer, model(lambda self, x: x), loader(1))
    unknown = "batch: whether outputs depend on the batch was not checked"
    assert f"{unknown}: fewer than 2 samples" in one.notes

    def graphs(items: Any) -> Any:
        return {"x": torch.cat([i["x"][None] for i in items] * 2)}

    packed = guarded(
        trainer,
        model(lambda self, x: x / x.abs().max()),
        loader(batch_size=4, collate_fn=graphs, num_workers=0),
    )
    assert packed.findings == []
    assert any("dim 0 of its tensors is not samples" in n for n in packed.notes)


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
@pytest.mark.parametrize("samples", [2, 3, 16])
@pytest.mark.parametrize("honest", [True, False])
def test_graphs_of_torch_geometric_are_halved(
    samples: int, honest: bool, trainer: Make
) -> None:
    geometric = pytest.importorskip("torch_geometric")

    class Graphs(Step):
        def __init__(self) -> None:
            super().__init__()
            self.norm = geometric.nn.GraphNorm(8)

        def forward(self, batch: Any) -> Tensor:
            x = self.norm(self.net(batch.x), batch.batch if honest else None)
            return geometric.nn.global_mean_pool(x.exp(), batch.batch)  # type: ignore[no-any-return]

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self(batch).square().mean()

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("loss", self(batch).square().mean(), batch_size=1)

    made = torch.Generator().manual_seed(0)
    kind = geometric.data.Data
    items = [kind(x=torch.randn(4 + i % 3, 8, generator=made)) for i in range(samples)]
    data = geometric.loader.DataLoader(items, batch_size=samples)
    guard = EvalGuard(data="ignore", batch="warn", metrics=None, sync="ignore")
    trainer(callbacks=[guard]).fit(Graphs(), data, data)
    found = [f.subject for f in guard.report.findings]
    assert found == ([] if honest else ["norm"])
    assert not any("not checked" in note for note in guard.report.notes)


def test_graphs_that_make_another_batch_are_not_halved(trainer: Make) -> None:
    class Changed(GraphNet):
        def nodes(self, h: Tensor, g: Graphs) -> Tensor:
            return h - h.mean(0)

        def on_before_batch_transfer(self, batch: Graphs, index: int) -> Graphs:
            batch.degrees = batch.edges[1].bincount()
            return batch

    data = DataLoader(graphs(16, 0), 16, collate_fn=Graphs.from_data_list)
    guard = EvalGuard(data="ignore", batch="warn", metrics=None, sync="ignore")
    trainer(callbacks=[guard]).fit(Changed(), data, data)
    assert guard.report.findings == []
    note = "its graphs do not make the same batch again"
    assert any(note in said for said in guard.report.notes)


# batches

Pair = namedtuple("Pair", "x y")


@dataclass
class Record:
    x: Tensor
    y: list[str]


@pytest.mark.parametrize(
    "batch",
    [
        torch.arange(6),
        [torch.arange(6), torch.zeros(6, 2)],
        (torch.arange(6), ["a"] * 6, 3, torch.tensor(1.0), None),
        {"x": torch.arange(6), "nested": {"y": [torch.zeros(6), "name"]}},
        Pair(torch.arange(6), tuple("abcdef")),
        Record(torch.arange(6), list("abcdef")),
    ],
    ids=lambda b: type(b).__name__,
)
def test_a_batch_of_any_kind_is_halved(batch: Any) -> None:
    assert common_length(batch) == 6
    half = map_samples(batch, 6, lambda t: t[:3])
    assert type(half) is type(batch)
    assert common_length(half) == 3
    assert common_length(batch) == 6


@pytest.mark.parametrize(
    "batch", [(torch.zeros(3), torch.zeros(4)), "text", 3, None, []]
)
def test_a_batch_without_one_length_is_not(batch: Any) -> None:
    assert common_length(batch) is None


@pytest.mark.parametrize("samples", [4, 5, 6, 7])
def test_other_samples_take_the_place_of_a_half(samples: int) -> None:
    half = samples // 2
    for items in (torch.arange(samples), list(range(samples))):
        whole = samples_of((torch.zeros(samples), items))
        assert whole is not None
        for start in (0, half):
            other = list(whole.made(whole.repeated(start))[1])
            assert len(other) == samples
            kept = list(range(start, start + half))
            assert other[start : start + half] == kept
            assert set(map(int, other)) == set(kept)


def test_rows_of_a_tensor_that_is_gone_are_not_taken_for_those_of_another() -> None:
    four = samples_of(torch.zeros(4, 8))
    assert four is not None
    rows = Rows(Placed.of(four, range(4), (0, 2)))
    # in some rounds the second tensor gets the memory of the first
    for i in range(200):
        rows.returned(torch.full((4, 8), float(i)), nn.Identity())
        rows.returned(torch.full((4, 3), -1.0), nn.Identity())
        kept = rows.modules[-1][1].values.values()
        assert all(bool((values == -1).all()) for values in kept)
        assert {values.shape[1] for values in kept} == {3}
