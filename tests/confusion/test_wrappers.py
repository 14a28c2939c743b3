"""Whatever the model is wrapped in, and whatever its batches are: honest is silent, a bug is found.

Each case is fitted, validated, tested and predicted with, bare and guarded, and compared bit by
bit; then one bug is planted in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import lightning.pytorch as pl
import pytest
import torch
import torch.ao.quantization as quantization
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuard, EvalGuardError

try:
    from torch.distributed.tensor import DTensor, Replicate, distribute_module
except ImportError:  # torch 2.4
    from torch.distributed._tensor import DTensor, Replicate, distribute_module

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{message}")
    for message in (
        r"torch.ao.quantization is deprecated",
        r"Please use quant_min and quant_max",
        r"torch.quantize_per_tensor",
        # it takes bf16 there
        r"You passed `Trainer\(accelerator='cpu', precision='16-mixed'\)`",
        r"DTensor random operators may not have complete support",
        # Dynamo's own, of a traced input
        r"The .grad attribute of a Tensor that is not a leaf",
        r"None of the inputs have requires_grad",
        r"`torch.cpu.amp.autocast\(args...\)` is deprecated",  # torch 2.4's own checkpointing
        # Distributed is a group of one process
        r"It is recommended to use `self.log\('loss'",
        r"Total length of `CombinedLoader`",
    )
]
Make = Callable[..., pl.Trainer]
SAMPLES = 20  # of which the last batch holds fewer
STAGES = ("validate", "test", "predict")


def samples(n: int = SAMPLES, seed: int = 0) -> TensorDataset:
    made = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 4, generator=made, dtype=torch.float32)
    return TensorDataset(x, (x[:, 0] > 0).long())


def loader(n: int = SAMPLES, seed: int = 0, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(samples(n, seed), batch_size=8, **kwargs)


def net() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    )


class Lit(pl.LightningModule):
    """An honest classifier; a case overrides a piece of it."""

    bug = False  # whether `plant` runs
    checks = frozenset({"modes"})  # which of them must speak then
    stages: tuple[str, ...] = ("fit", *STAGES)
    totals = (SAMPLES, SAMPLES)  # of val and test
    settings: ClassVar[dict[str, Any]] = {}  # of the trainer
    guard: ClassVar[dict[str, Any]] = {}  # of the guard, while a bug is planted
    silent: ClassVar[dict[str, Any]] = {}  # of the guard, always

    def __init__(self) -> None:
        super().__init__()
        self.net = self.build()

    def build(self) -> nn.Module:
        return net()

    def plant(self) -> None:
        """The bug, before the first step of each evaluation."""
        for module in self.modules():
            if isinstance(module, (nn.Dropout, nn.BatchNorm1d)):
                module.training = True

    def forward(self, x: Any) -> Any:
        return self.net(x)

    def read(self, batch: Any) -> tuple[Any, Tensor]:
        x, y = batch
        return x, y

    def loss(self, batch: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, y = self.read(batch)
        logits = self(x)
        return F.cross_entropy(logits, y), logits, y

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.loss(batch)[0]

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        loss, logits, y = self.loss(batch)
        self.log("loss", loss, batch_size=len(y))
        return {"logits": logits, "target": y}

    def test_step(self, batch: Any, batch_idx: int) -> Any:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        return self(self.read(batch)[0])

    def on_validation_epoch_start(self) -> None:
        if self.bug:
            self.plant()

    on_test_epoch_start = on_predict_epoch_start = on_validation_epoch_start

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD((p for p in self.parameters() if p.requires_grad), 0.1)

    def train_dataloader(self) -> Any:
        return loader()

    def val_dataloader(self) -> Any:
        return loader(seed=1)

    test_dataloader = predict_dataloader = val_dataloader


CASES: list[Any] = []


def case(*marks: Any) -> Callable[[type[Lit]], type[Lit]]:
    def add(lit: type[Lit]) -> type[Lit]:
        CASES.append(pytest.param(lit, id=lit.__name__, marks=marks))
        return lit

    return add


class Dropping(Lit):
    """The bug is a functional dropout, for models whose modes nobody can set from outside."""

    checks = frozenset({"stochastic"})

    def plant(self) -> None:
        pass

    def forward(self, x: Any) -> Any:
        logits = super().forward(x)
        return F.dropout(logits, 0.5) if self.bug and not self.training else logits


# compiled, scripted, exported


class Compiled(Lit):
    def __new__(cls) -> Any:
        torch._dynamo.reset()
        return super().__new__(cls)


@case(pytest.mark.slow)
class CompiledSubmodule(Compiled):
    def build(self) -> nn.Module:
        return torch.compile(net(), backend="eager")


@case(pytest.mark.slow)
class CompiledInPlace(Compiled):
    def build(self) -> nn.Module:
        made = net()
        made.compile(backend="aot_eager")
        return made


@case(pytest.mark.slow)
class CompiledPart(Compiled):
    def build(self) -> nn.Module:
        made = net()
        made[4] = torch.compile(made[4], backend="aot_eager")
        return made


@case(pytest.mark.slow)
class CompiledWhole(Compiled):
    """The LightningModule itself, as an OptimizedModule handed to the trainer."""

    def handed(self) -> Any:
        return torch.compile(self, backend="eager")


@case()
class Scripted(Dropping):
    def build(self) -> nn.Module:
        return torch.jit.script(net())


@case(pytest.mark.slow)
class Traced(Dropping):
    """A trace has its mode baked in."""

    def build(self) -> nn.Module:
        return torch.jit.trace(net().eval(), torch.zeros(8, 4))


@case()
class Exported(Dropping):
    """An exported program refuses `train()` and `eval()`: it is kept where they do not reach.

    So no optimizer and no checkpoint has its weights: it is frozen.
    """

    def build(self) -> nn.Module:
        batch = {0: torch.export.Dim("samples")}
        program = torch.export.export(
            net().eval(), (torch.zeros(8, 4),), dynamic_shapes=(batch,)
        )
        self.kept = [program.module().requires_grad_(False)]
        return nn.Linear(3, 3)

    def forward(self, x: Any) -> Any:
        logits = self.net(self.kept[0](x))
        return F.dropout(logits, 0.5) if self.bug and not self.training else logits


# quantized


@case()
class Quantized(Dropping):
    """Weights of int8 have no gradients: only evaluated."""

    stages = STAGES

    def build(self) -> nn.Module:
        return quantization.quantize_dynamic(net().eval(), {nn.Linear}, torch.qint8)


def qat() -> nn.Module:
    made = nn.Sequential(
        quantization.QuantStub(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3),
        quantization.DeQuantStub(),
    )  # fmt: skip
    made.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(made.train())


@case()
class QuantizedAwareTraining(Lit):
    """Observers learn from the training data only.

    No sanity check: an observer sets its sizes at its first call, also a disabled one.
    """

    settings: ClassVar[dict[str, Any]] = {"num_sanity_val_steps": 0}
    checks = frozenset({"state"})

    def build(self) -> nn.Module:
        return qat()

    def on_validation_start(self) -> None:
        if not self.bug:  # the bug: observers learn from the validation data
            self.apply(quantization.disable_observer)

    def on_validation_end(self) -> None:
        self.apply(quantization.enable_observer)

    def plant(self) -> None:
        pass

    on_test_start = on_predict_start = on_validation_start
    on_test_end = on_predict_end = on_validation_end


@case(pytest.mark.slow)
class QuantizedStatically(Dropping):
    stages = STAGES

    def build(self) -> nn.Module:
        calibrated = qat()
        calibrated(samples().tensors[0])
        return quantization.convert(calibrated.eval())


# lazy, parametrized, checkpointed


@case()
class Lazy(Lit):
    """Its sizes are known from a dry run on, after the guard took the module."""

    def build(self) -> nn.Module:
        return nn.Sequential(
            nn.LazyLinear(8),
            nn.LazyBatchNorm1d(),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.LazyLinear(3),
        )

    def setup(self, stage: str) -> None:
        if any(nn.parameter.is_lazy(p) for p in self.parameters()):
            self(torch.ones(8, 4))


@case(pytest.mark.slow)
class WeightNorm(Lit):
    def build(self) -> nn.Module:
        made = net()
        parametrizations.weight_norm(made[0])
        parametrizations.orthogonal(made[4])
        return made


@case()
class SpectralNorm(Lit):
    """Its power iteration writes buffers, in train mode only."""

    guard: ClassVar[dict[str, Any]] = {"modes": "ignore"}
    checks = frozenset({"state"})

    def build(self) -> nn.Module:
        made = net()
        parametrizations.spectral_norm(made[0])
        return made

    def plant(self) -> None:
        self.net[0].train()


class Checkpointed(Lit):
    reentrant = False

    def forward(self, x: Any) -> Any:
        return checkpoint(
            self.net, x.requires_grad_(self.training), use_reentrant=self.reentrant
        )


@case()
class ActivationCheckpointing(Checkpointed):
    pass


@case(pytest.mark.slow)
class ReentrantCheckpointing(Checkpointed):
    reentrant = True


# tensor subclasses and batches


@case()
class Distributed(Lit):
    """Parameters and activations are DTensors, on a mesh of one."""

    def build(self) -> nn.Module:
        self.mesh = [init_device_mesh("cpu", (1,))]
        made = nn.Sequential(
            nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
        )
        return distribute_module(made, self.mesh[0])

    def forward(self, x: Any) -> Any:
        shared = DTensor.from_local(x, self.mesh[0], [Replicate()])
        return self.net(shared).full_tensor()


class Batched(Lit):
    """Batches that are not a pair."""

    @staticmethod
    def collate(items: list[Any]) -> Any:
        raise NotImplementedError

    def of(self, **kwargs: Any) -> Any:
        return loader(**kwargs, collate_fn=self.collate)

    def train_dataloader(self) -> Any:
        return self.of()

    def val_dataloader(self) -> Any:
        return self.of(seed=1)

    test_dataloader = predict_dataloader = val_dataloader


def stacked(items: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])


@case()
class DictBatches(Batched):
    @staticmethod
    def collate(items: list[Any]) -> Any:
        x, y = stacked(items)
        return {"points": x, "more": {"label": y, "names": ["a"] * len(items)}}

    def read(self, batch: Any) -> Any:
        return batch["points"], batch["more"]["label"]


class Pair(NamedTuple):
    points: Tensor
    label: Tensor


@case(pytest.mark.slow)
class NamedTupleBatches(Batched):
    @staticmethod
    def collate(items: list[Any]) -> Any:
        return Pair(*stacked(items))

    def read(self, batch: Any) -> Any:
        return batch.points, batch.label


@dataclasses.dataclass
class Points:
    points: Tensor
    label: Tensor
    name: str = "points"


@case()
class DataclassBatches(Batched):
    @staticmethod
    def collate(items: list[Any]) -> Any:
        return Points(*stacked(items))

    def read(self, batch: Any) -> Any:
        return batch.points, batch.label


@case()
class TensorDictBatches(Batched):
    def __init__(self) -> None:
        self.tensordict = pytest.importorskip("tensordict")
        super().__init__()

    def collate(self, items: list[Any]) -> Any:
        x, y = stacked(items)
        return self.tensordict.TensorDict({"x": x, "y": y}, batch_size=[len(items)])

    def read(self, batch: Any) -> Any:
        return batch["x"], batch["y"]


@case()
class GraphBatches(Lit):
    """Each graph holds two nodes; a batch of graphs is one large graph."""

    def build(self) -> nn.Module:
        geometric = pytest.importorskip("torch_geometric")
        self.conv = geometric.nn.GCNConv(4, 4)
        return net()

    def of(self, seed: int = 0) -> Any:
        geometric = pytest.importorskip("torch_geometric")
        edge = torch.tensor([[0, 1], [1, 0]])
        graphs = [
            geometric.data.Data(torch.stack([x, -x]), edge, y=y)
            for x, y in samples(seed=seed)
        ]
        return geometric.loader.DataLoader(graphs, batch_size=8)

    def train_dataloader(self) -> Any:
        return self.of()

    def val_dataloader(self) -> Any:
        return self.of(1)

    test_dataloader = predict_dataloader = val_dataloader

    def read(self, batch: Any) -> Any:
        return batch, batch.y

    def forward(self, batch: Any) -> Any:
        nodes = self.conv(batch.x, batch.edge_index).relu()
        return self.net(nodes.view(-1, 2, 4).sum(1))


# adapters


class LoRA(nn.Module):
    """A frozen layer with a trained product of two thin ones beside it."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 2, bias=False)
        self.up = nn.Linear(2, layer.out_features, bias=False)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + self.up(self.down(self.dropout(x)))


@case()
class Adapted(Lit):
    def build(self) -> nn.Module:
        made = net()
        made[0] = LoRA(made[0])
        return made


@case()
class AdaptedByPeft(Lit):
    def build(self) -> nn.Module:
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(target_modules=["0", "2"], lora_dropout=0.1, r=2)
        # no batch norm: it would be frozen by `get_peft_model` and learn on, which the guard says
        return peft.get_peft_model(
            nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), config
        )


# loops and loaders


class Iterating(Lit):
    """Its steps fetch their batches themselves."""

    def training_step(self, dataloader_iter: Iterator[Any]) -> Any:
        batch, _, _ = next(dataloader_iter)
        return super().training_step(batch, 0)

    def validation_step(self, dataloader_iter: Iterator[Any]) -> Any:
        batch, _, _ = next(dataloader_iter)
        return super().validation_step(batch, 0)

    def test_step(self, dataloader_iter: Iterator[Any]) -> Any:
        return self.validation_step(dataloader_iter)


@case(pytest.mark.filterwarnings("ignore:.*`dataloader_iter"))
class DataloaderIter(Iterating):
    stages = ("fit", "validate", "test")
    settings: ClassVar[dict[str, Any]] = {"num_sanity_val_steps": 1}


class Combined(Lit):
    mode = ""
    stages = ("fit", "validate", "test")  # Lightning predicts from a sequence only

    def of(self, seed: int = 0) -> Any:
        return CombinedLoader([loader(20, seed), loader(12, seed + 5)], self.mode)

    def train_dataloader(self) -> Any:
        return self.of()

    def val_dataloader(self) -> Any:
        return self.of(1)

    test_dataloader = predict_dataloader = val_dataloader

    def read(self, batch: Any) -> Any:
        """All that the loaders gave at once."""
        pairs = [pair for pair in batch if pair is not None]
        return torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])


@case(pytest.mark.slow)
class CombinedMinSize(Combined):
    """It leaves samples out, which the data check says."""

    silent: ClassVar[dict[str, Any]] = {"data": "ignore"}
    mode = "min_size"
    totals = (16 + 12, 16 + 12)


@case()
class CombinedMaxSize(Combined):
    mode = "max_size"
    totals = (20 + 12, 20 + 12)


@case(pytest.mark.slow)
class CombinedMaxSizeCycle(Combined):
    """It repeats samples, which the data check says."""

    silent: ClassVar[dict[str, Any]] = {"data": "ignore"}
    mode = "max_size_cycle"
    totals = (20 + 12 + 8, 20 + 12 + 8)


@case()
class CombinedSequential(Combined):
    mode = "sequential"
    stages = ("fit", *STAGES)

    def train_dataloader(self) -> Any:
        return loader()  # Lightning trains from no sequence

    def read(self, batch: Any) -> Any:
        return batch

    def validation_step(
        self, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> Any:
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return super().test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> Any:
        return super().predict_step(batch, batch_idx)


@case()
class ManualOptimization(Lit):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(batch)[0])
        optimizer.step()


# precision


class Precise(Lit):
    def loss(self, batch: Any) -> Any:
        x, y = self.read(batch)
        logits = self(x)
        return F.cross_entropy(logits.float(), y), logits, y


@case()
class BFloat16Mixed(Precise):
    settings: ClassVar[dict[str, Any]] = {"precision": "bf16-mixed"}


@case(pytest.mark.slow)
class BFloat16True(Precise):
    settings: ClassVar[dict[str, Any]] = {"precision": "bf16-true"}


@case(pytest.mark.slow)
class Float64True(Precise):
    settings: ClassVar[dict[str, Any]] = {"precision": "64-true"}


@case(pytest.mark.slow)
class Float16True(Precise):
    settings: ClassVar[dict[str, Any]] = {"precision": "16-true"}


@case(pytest.mark.slow)
class Float16Mixed(Precise):
    settings: ClassVar[dict[str, Any]] = {"precision": "16-mixed"}


# how they are run


@pytest.fixture(autouse=True)
def _one_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    if "Distributed" not in request.node.name:
        yield
        return
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def run(lit: type[Lit], make: Make, guards: list[EvalGuard], bug: bool = False) -> Any:
    """What is left of a fit and all evaluations: weights, generator, predictions."""
    torch.manual_seed(0)
    module = lit()
    module.bug = bug
    handed = module.handed() if hasattr(module, "handed") else module
    made = make(callbacks=guards, max_epochs=2, **lit.settings)
    predicted: Any = []
    for stage in lit.stages:
        given = getattr(made, stage)(
            handed, **({"verbose": False} if stage in STAGES[:2] else {})
        )
        predicted = given if stage == "predict" else predicted
    weights = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    return weights, torch.get_rng_state(), predicted


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, DTensor):
        a, b = a.full_tensor(), b.full_tensor()
    if nn.parameter.is_lazy(a):
        return nn.parameter.is_lazy(b)
    return (
        torch.equal(a.dequantize(), b.dequantize())
        if a.is_quantized
        else torch.equal(a, b)
    )


@pytest.mark.parametrize("lit", CASES)
def test_honest_is_silent_bit_exact_and_counted(lit: type[Lit], trainer: Make) -> None:
    weights, random_state, predicted = run(lit, trainer, [])
    meant = {"allow": {"data": ["test_dataloader*"]}}  # they test on the validation set
    guard = EvalGuard(**meant | lit.silent)
    theirs = run(lit, trainer, [guard])
    assert same(weights, theirs[0])
    assert torch.equal(random_state, theirs[1])
    assert same(predicted, theirs[2])
    assert guard.report.findings == []
    got = guard.report.confusion
    assert (got["val"].total, got["test"].total) == lit.totals
    if lit is CombinedSequential:
        assert got["val/dataloader_idx_1"].total == 12


@pytest.mark.parametrize("lit", CASES)
def test_a_planted_bug_is_found(lit: type[Lit], trainer: Make) -> None:
    guard = EvalGuard(**lit.silent | lit.guard)
    with pytest.raises(EvalGuardError):
        run(lit, trainer, [guard], bug=True)
    assert {f.check for f in guard.report.findings} >= set(lit.checks)
