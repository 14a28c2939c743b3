"""The data under the numbers: what is honest stays silent, and looking at it leaves no trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.datasets import load_digits, load_iris
from torch import Tensor, nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    DistributedSampler,
    Subset,
    TensorDataset,
    random_split,
)

import words
from lightning_evalguard import EvalGuard, EvalGuardError, EvalGuardWarning
from lightning_evalguard.data.loaders import parts, repeated, shared
from lightning_evalguard.data.samples import (
    Budget,
    SampleRows,
    content_hash,
    digest,
    rows,
    twins,
    undisturbed,
)
from models import data as zoo
from models.program import BATCH, CLASSES, FEATURES, Classifier, samples

Make = Callable[..., pl.Trainer]
ALONE: dict[str, Any] = {"metrics": None, "sync": "ignore"}


def run(
    make: Make, module: pl.LightningModule, guard: EvalGuard, **kwargs: Any
) -> pl.Trainer:
    made = make(callbacks=[guard], **({"max_epochs": 2} | kwargs))
    made.fit(module)
    return made


# --- what is found, in words --------------------------------------------------------------------


def found(make: Make, module: type[Classifier], **kwargs: Any) -> list[str]:
    guard = EvalGuard(data="warn", **ALONE)
    with pytest.warns(EvalGuardWarning):
        run(make, module(), guard, **kwargs)
    return [words.said(f).partition(": ")[2] for f in guard.report.findings]


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (
            zoo.DropsTheLast,
            "drop_last=True leaves out the last 1 of 16 samples, expected all of them. "
            "The score covers only a part. Pass drop_last=False. [data]",
        ),
        (
            zoo.SplitTwice,
            "10 of its 16 samples are the training set's too (samples 0, 3, 4, ...), expected "
            "none. The model knows the answers already. "
            "Split once, before anything is drawn or repeated, and evaluate what training "
            "does not see. [data]",
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_a_message_says_what_is_so_and_the_mend(
    trainer: Make, module: type[Classifier], said: str
) -> None:
    assert found(trainer, module, max_epochs=1) == [said]


def test_a_step_that_ends_the_evaluation_stops_the_run_where_asked(
    trainer: Make,
) -> None:
    with pytest.raises(
        EvalGuardError, match=r"StopIteration.* after 1 of 2 batches"
    ) as stopped:
        run(trainer, zoo.RunsOut(), EvalGuard(data="error", **ALONE))
    (finding,) = stopped.value.report.findings
    assert finding.location is not None
    assert finding.location.startswith(zoo.__file__)


def test_findings_come_once_a_run(trainer: Make) -> None:
    guard = EvalGuard(**ALONE)
    with pytest.warns(EvalGuardWarning, match="drop_last") as told:
        run(trainer, zoo.DropsTheLast(), guard, max_epochs=3)
    assert len([w for w in told if issubclass(w.category, EvalGuardWarning)]) == 1
    assert guard.report.findings[0].count == 1


# --- what is honest -----------------------------------------------------------------------------


class Folder(Dataset[Any]):
    """Images in files, with a deterministic transform."""

    def __init__(self, root: Path, names: list[str]) -> None:
        self.samples = [(str(root / name), i % CLASSES) for i, name in enumerate(names)]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> Any:
        path, label = self.samples[i]
        pixels = torch.from_numpy(np.array(Image.open(path)).astype("float32"))
        return pixels.flatten()[:FEATURES] / 255, label


class Graph:
    """One graph, as torch-geometric holds them: tensors in a store of its own."""

    def __init__(self, x: Tensor, y: int) -> None:
        self._store = {"x": x, "edge_index": torch.tensor([[0, 1], [1, 0]]), "y": y}


class Graphs(Dataset[Any]):
    """Few kinds of atoms: many graphs look alike."""

    def __init__(self, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.graphs = [Graph(torch.eye(2)[torch.randint(2, (2,), generator=draw)], i % CLASSES)
                       for i in range(24)]  # fmt: skip

    def __len__(self) -> int:
        return len(self.graphs)

    def __getitem__(self, i: int) -> Any:
        return self.graphs[i]


class Table(Dataset[Any]):
    """Rows under a transform that is set later, as Hugging Face's datasets have them."""

    def __init__(self, seed: int) -> None:
        self.rows = [{"x": x, "y": y} for x, y in samples(seed)]
        self.transform: Any = None

    def set_transform(self, transform: Any) -> None:
        self.transform = transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Any:
        row = self.transform(self.rows[i]) if self.transform else self.rows[i]
        return row["x"], row["y"]


class Batches:
    """No DataLoader at all."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __iter__(self) -> Any:
        return iter(DataLoader(samples(self.seed), batch_size=BATCH))


def of_graphs(batch: Any) -> Any:
    graphs = [
        torch.cat([g._store["x"].flatten(), torch.zeros(FEATURES - 4)]) for g in batch
    ]
    return torch.stack(graphs), torch.tensor([g._store["y"] for g in batch])


def honest(kind: str, root: Path) -> tuple[Any, Any]:
    """Training and validation loaders."""
    batch: dict[str, Any] = {"batch_size": BATCH}
    if kind in ("digits", "iris"):
        x, y = (load_digits if kind == "digits" else load_iris)(return_X_y=True)
        x = F.pad(
            torch.tensor(x, dtype=torch.float32)[:, -FEATURES:],
            (0, max(0, FEATURES - x.shape[1])),
        )
        full = TensorDataset(x, torch.tensor(y) % CLASSES)
        train, val = random_split(full, [0.8, 0.2], torch.Generator().manual_seed(0))
    elif kind == "concatenated":
        train = ConcatDataset([Subset(samples(1), range(8)), samples(3)])
        val = ConcatDataset([samples(2), samples(4)])
    elif kind == "folder":
        draw = np.random.default_rng(0)
        for i in range(24):
            Image.fromarray(draw.integers(0, 255, (4, 4), "uint8")).save(
                root / f"{i}.png"
            )
        names = [f"{i}.png" for i in range(24)]
        train, val = Folder(root, names[:16]), Folder(root, names[16:])
    elif kind == "graphs":
        train, val = Graphs(0), Graphs(1)
        batch["collate_fn"] = of_graphs
    elif kind == "table":
        train, val = Table(1), Table(2)
        val.set_transform(lambda row: row | {"x": row["x"] * 2})
    elif kind == "stream":
        train, val = zoo.Stream(restarts=True), zoo.Stream(restarts=True)
        train.inner = samples(1)
        return DataLoader(train, **batch), DataLoader(val, **batch)
    elif kind == "workers":
        train, val = zoo.Listed(samples(1)), zoo.Listed(samples(2))
        return DataLoader(train, num_workers=1, **batch), DataLoader(
            val, num_workers=1, **batch
        )
    else:
        return Batches(1), Batches(2)
    return DataLoader(train, shuffle=True, **batch), DataLoader(val, **batch)


@pytest.mark.parametrize(
    "kind",
    [
        "digits",
        "iris",
        "concatenated",
        "folder",
        "graphs",
        "table",
        "stream",
        "workers",
        "batches",
    ],
)
def test_honest_data_is_left_alone(trainer: Make, kind: str, tmp_path: Path) -> None:
    guard = EvalGuard(data="error", **ALONE)
    train, val = honest(kind, tmp_path)
    trainer(callbacks=[guard], max_epochs=2).fit(Classifier(), train, val)
    assert guard.report.findings == []
    said = [n for n in guard.report.notes if "val_dataloader" in n]
    assert said == (
        ["the samples of `val_dataloader` were not compared with training's, because workers read "
         "them"] if kind == "workers" else []
    )  # fmt: skip


def test_a_gan_and_a_variational_autoencoder_are_left_alone(trainer: Make) -> None:
    class Variational(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.noise = nn.Linear(2, FEATURES)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            loss = F.mse_loss(self.noise(torch.randn(len(batch[0]), 2)), batch[0])
            self.optimizers().zero_grad()
            self.manual_backward(loss)
            self.optimizers().step()

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            made = self.noise(torch.randn(len(batch[0]), 2))
            self.log("val_loss", F.mse_loss(made, batch[0]))

    guard = EvalGuard(data="error", stochastic="ignore", **ALONE)
    run(trainer, Variational(), guard)
    assert guard.report.findings == []


def test_what_is_meant_to_be_small_is_left_alone(trainer: Make) -> None:
    for kwargs in (
        {"fast_dev_run": True},
        {"overfit_batches": 1},
        {"limit_val_batches": 1},
    ):
        guard = EvalGuard(data="error", **ALONE)
        run(trainer, Classifier(), guard, **kwargs)
        assert guard.report.findings == []


# --- workers, and no trace ----------------------------------------------------------------------


def test_augmentation_in_workers_is_found_by_the_second_evaluation(
    trainer: Make,
) -> None:
    class Workers(zoo.AugmentedValidation):
        def val_dataloader(self) -> Any:
            return DataLoader(self.Noisy(), batch_size=BATCH, num_workers=1)

    guard = EvalGuard(data="error", **ALONE)
    with pytest.raises(EvalGuardError, match="other samples in its first batches"):
        run(trainer, Workers(), guard)


class Traced(Dataset[Any]):
    """Counts its reads, opens a file late, and draws from every generator there is."""

    def __init__(self, seed: int, own: bool) -> None:
        self.inner, self.reads, self.handle, self.cache = samples(seed), 0, None, {}
        self.own = random.Random(0) if own else random

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        self.reads += 1
        self.handle = self.handle or object()
        self.cache[i] = True
        x, y = self.inner[i]
        noise = torch.rand(()) + np.random.rand() + self.own.random()
        return x + 0.1 * float(noise), y


@pytest.mark.parametrize("own", [False, True])
def test_reading_leaves_no_trace(own: bool) -> None:
    dataset, draws = Traced(0, own), []
    for read in (False, True):
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        dataset.own.seed(0)
        if read:
            with undisturbed(Subset(dataset, range(4))):
                assert digest(dataset[0]) != digest(dataset[0])
        assert (dataset.reads, dataset.handle, dataset.cache) == (0, None, {})
        draws.append((float(torch.rand(())), np.random.rand(), dataset.own.random()))
    assert draws[0] == draws[1]


def test_training_is_the_same_bit_for_bit_with_and_without_the_check(
    trainer: Make,
) -> None:
    class Draws(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.train_set, self.val_set = Traced(1, True), Traced(2, True)

        def train_dataloader(self) -> Any:
            return DataLoader(self.train_set, batch_size=4, shuffle=True)

        def val_dataloader(self) -> Any:
            return DataLoader(self.val_set, batch_size=4, shuffle=False)

    def trained(policy: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        random.seed(0)
        np.random.seed(0)
        module, guard = Draws(), EvalGuard(data=policy, stochastic="ignore", **ALONE)
        run(trainer, module, guard, max_epochs=3)
        reads = module.train_set.reads, module.val_set.reads
        weights = [t.tolist() for t in module.state_dict().values()]
        return weights, reads, torch.get_rng_state().tolist(), random.getstate()

    with pytest.warns(EvalGuardWarning, match="read twice differs"):
        watched = trained("warn")
    assert watched == trained("ignore")


def test_a_slow_or_unreadable_dataset_is_not_read(trainer: Make) -> None:
    class Refuses(zoo.Listed):
        fine = True

        def __getitem__(self, i: int) -> Any:
            if not self.fine:
                raise OSError("the disk is gone")
            return super().__getitem__(i)

    class Broken(Classifier):
        def __init__(self) -> None:
            super().__init__()
            self.held = Refuses(samples(2))

        def val_dataloader(self) -> Any:
            return DataLoader(self.held, batch_size=BATCH)

        def on_validation_end(self) -> None:
            self.held.fine = False

        def on_validation_start(self) -> None:
            self.held.fine = True

    guard = EvalGuard(data="error", **ALONE)
    trainer(callbacks=[guard]).validate(Broken(), verbose=False)
    assert any("were not read twice: OSError" in note for note in guard.report.notes)


# --- the pieces ---------------------------------------------------------------------------------


def test_samples_are_followed_through_views_of_a_dataset() -> None:
    base = samples(1)
    a = Subset(Subset(base, range(4, 12)), [0, 3, 5])  # 4, 7, 9
    b = ConcatDataset([samples(2), Subset(base, [7, 9, 1])])
    (mine,), theirs = parts(DataLoader(a)), parts(DataLoader(b))
    assert mine.indices.tolist() == [4, 7, 9]
    assert [shared(mine, part).tolist() for part in theirs] == [[], [1, 2]]


def test_a_padded_sampler_says_what_it_repeats() -> None:
    sampler = DistributedSampler(range(15), num_replicas=4, rank=0, shuffle=False)
    assert repeated(DataLoader(samples(1), sampler=sampler)) == (1, 15, 4)
    even = DistributedSampler(range(16), num_replicas=4, rank=0, shuffle=False)
    assert repeated(DataLoader(samples(1), sampler=even))[0] == 0


def test_equal_rows_are_found_and_blank_ones_are_not() -> None:
    table = torch.rand(500, 40)
    queries = torch.rand(20, 40)
    queries[3], queries[4], table[9] = table[77], 0.0, 0.0
    every = (torch.arange(n) for n in (20, 500))
    a, b = (
        SampleRows(t, chosen) for t, chosen in zip((queries, table), every, strict=True)
    )
    assert twins(a, b, 1, Budget()).nonzero().flatten().tolist() == [3]
    assert not twins(b, b, 2, Budget()).any()
    assert twins(b, b, 1, Budget()).sum() == 499


def test_files_are_compared_by_name(tmp_path: Path) -> None:
    a, b = (
        Folder(tmp_path, names)
        for names in (["a/1.png", "a/2.png"], ["a/2.png", "a/3.png"])
    )
    left, right = rows(a, torch.arange(2)), rows(b, torch.arange(2))
    assert left is not None
    assert right is not None
    assert twins(left, right, 1, Budget()).tolist() == [False, True]


def test_a_label_or_a_number_is_not_what_makes_a_sample() -> None:
    x = torch.rand(8)
    assert content_hash({"x": x, "y": 1, "id": 7}) == content_hash(
        {"x": x.clone(), "y": 0, "id": 8}
    )
    assert content_hash({"x": x, "y": 1}) != content_hash({"x": x + 1, "y": 1})
    assert content_hash((torch.zeros(8), 1)) is None
