"""Of the check `data`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    get_worker_info,
)

from lies.common import TRAIN, VAL, Net, loader
from lightning_evalguard import Report
from models.program import BATCH, CLASSES, FEATURES, Classifier, samples
from remedies import Make, alone, applied, fitted, heard

N = 64


class Rows(Dataset[Any]):
    """Samples with what datasets have beside them."""

    def __init__(self, seed: int, n: int = N, **attributes: Any) -> None:
        made = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, FEATURES, generator=made)
        self.y = torch.randint(CLASSES, (n,), generator=made)
        vars(self).update(attributes)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i], self.y[i]


class On(Classifier):
    """Trains and validates on what it is given."""

    def __init__(self, train: Any, val: Any, test: Any = None) -> None:
        super().__init__()
        self.sets = train, val, test

    def _loader(self, which: int) -> Any:
        chosen = self.sets[which]
        return chosen if isinstance(chosen, DataLoader) else DataLoader(chosen, BATCH)

    def train_dataloader(self) -> Any:
        return self._loader(0)

    def val_dataloader(self) -> Any:
        return self._loader(1)

    def test_dataloader(self) -> Any:
        return self._loader(2)


def data(make: Make, module: Classifier, **settings: Any) -> Report:
    return fitted(make, alone("data", **settings), module, max_epochs=2)


@applied("Give both sets one `{}`.")
def padded_by_another_number(make: Make, fixed: bool) -> Report:
    return data(make, On(Rows(1, pad_id=0), Rows(2, pad_id=0 if fixed else 1)))


@applied("Make `{}` once, from the training set, and pass it to both.")
def classes_numbered_anew(make: Make, fixed: bool) -> Report:
    train = {"cat": 0, "dog": 1, "fox": 2}
    other = train if fixed else {"cat": 1, "dog": 0, "fox": 2}
    return data(make, On(Rows(1, class_to_idx=train), Rows(2, class_to_idx=other)))


@applied(
    "Give both sets the same preprocessing, except for training's random augmentation."
)
def pixels_on_another_scale(make: Make, fixed: bool) -> Report:
    train, val = Rows(1), Rows(2)
    train.x, val.x = train.x.abs(), val.x.abs() * (1.0 if fixed else 255.0)
    return data(make, On(train, val))


@applied("Give both sets one numbering of the classes, made from the training set.")
def labels_from_one_on(make: Make, fixed: bool) -> Report:
    class Numbered(Net):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(64, 11)

        def train_dataloader(self) -> Any:
            return loader(TRAIN, True, 64)

        def val_dataloader(self) -> Any:
            return loader((VAL[0], VAL[1] + (not fixed)), batch_size=16)

    return fitted(make, alone("data"), Numbered(), max_epochs=1)


@applied("Split by {}, as sklearn's GroupShuffleSplit does.")
def patients_in_both_sets(make: Make, fixed: bool) -> Report:
    class Patients(Rows):
        def __getitem__(self, i: int) -> Any:
            x, y = super().__getitem__(i)
            return {"x": x, "y": y, "patient": self.patients[i]}  # type: ignore[attr-defined]

    class OfPatients(On):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return super().training_step((batch["x"], batch["y"]), batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> Any:
            return super().validation_step((batch["x"], batch["y"]), batch_idx)

    first = list(range(N))
    second = [i + N if fixed else i for i in first]
    sets = Patients(1, patients=first), Patients(2, patients=second)
    return data(make, OfPatients(*sets), groups="patient")


@applied(
    "Keep a set for the test alone: what was chosen by a score is fitted to its samples."
)
def tested_on_what_was_validated(make: Make, fixed: bool) -> Report:
    module = On(Rows(1), Rows(2), Rows(3 if fixed else 2))
    guard = alone("data")

    def act() -> None:
        made = make(callbacks=[guard])
        made.fit(module)
        made.test(module, verbose=False)

    return heard(guard, act)


@applied("Give each sample once: leave the sampler out, or drop the copy of the set.")
def a_set_that_stands_twice(make: Make, fixed: bool) -> Report:
    val = Rows(2)
    twice = val if fixed else torch.utils.data.ConcatDataset([val, val])
    return data(make, On(Rows(1), twice))


@applied("Share the stream out in `__iter__` by `torch.utils.data.get_worker_info()`.")
def a_stream_that_each_worker_reads_whole(make: Make, fixed: bool) -> Report:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
            rows: Iterator[Any] = iter(samples(2))
            worker = get_worker_info()
            if fixed and worker is not None:
                rows = itertools.islice(rows, worker.id, None, worker.num_workers)
            return rows

    module = On(samples(1), DataLoader(Stream(), 4, num_workers=2))
    return data(make, module)


@applied("Start anew in each call of `__iter__`")
def a_stream_of_which_less_is_left(make: Make, fixed: bool) -> Report:
    class Stream(IterableDataset[Any]):
        def __init__(self) -> None:
            self.rows = [tuple(row) for row in samples(2)]
            self.start = 0

        def __iter__(self) -> Iterator[Any]:
            start, self.start = self.start, self.start + 4
            return iter(self.rows[0 if fixed else start % 16 :])

    return data(make, On(samples(1), DataLoader(Stream(), BATCH)))


@applied(
    "Begin each fold with a new model, or with the weights from before the first fit."
)
def one_model_for_all_folds(make: Make, fixed: bool) -> Report:
    guard, rows = alone("data"), Rows(1)
    halves = Subset(rows, range(32)), Subset(rows, range(32, 64))
    module = On(*halves)

    def act() -> None:
        make(callbacks=[guard]).fit(module)
        second = On(*reversed(halves)) if fixed else module
        second.sets = (*reversed(halves), None)
        make(callbacks=[guard]).fit(second)

    return heard(guard, act)


def collating(make: Make, collate: Callable[[list[Any]], Any]) -> Report:
    return data(make, On(Rows(1), DataLoader(Rows(2), BATCH, collate_fn=collate)))


def stacked(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([x for x, _ in samples]), torch.stack([y for _, y in samples])


@applied("Return a row for each sample that it is given.")
def a_collate_function_that_drops_samples(make: Make, fixed: bool) -> Report:
    return collating(make, lambda b: stacked(b if fixed else b[: len(b) // 4 or 1]))


@applied("Compute it from each sample alone, or with numbers of the training set.")
def a_collate_function_that_centres(make: Make, fixed: bool) -> Report:
    mean = Rows(1).x.mean(0)

    def centred(batch: list[Any]) -> tuple[Tensor, Tensor]:
        x, y = stacked(batch)
        return x - (mean if fixed else x.mean(0)), y

    return collating(make, centred)


@applied(
    "Pass both sets through `transform` of a scaler that is fitted to the training set."
)
def sets_scaled_each_by_its_own(make: Make, fixed: bool) -> Report:
    train, val = Rows(0), Rows(1)
    mean, spread = train.x.mean(0), train.x.std(0)
    train.x = (train.x - mean) / spread
    if not fixed:
        mean, spread = val.x.mean(0), val.x.std(0)
    val.x = (val.x - mean) / spread
    return data(make, On(train, val))


@applied(
    "Split the series by time before windows are cut: the first part for training, the last for "
    "the evaluation."
)
def windows_split_at_random(make: Make, fixed: bool) -> Report:
    made = torch.Generator().manual_seed(0)
    whole = Rows(0, 4 * N)
    series = torch.randn(4 * N + 16, generator=made)
    whole.x = series.unfold(0, 16, 1)[: 4 * N].clone()
    order = torch.arange(4 * N)
    if not fixed:
        order = torch.randperm(4 * N, generator=made)
    parts = order[: 3 * N].tolist(), order[3 * N :].tolist()
    module = On(Subset(whole, parts[0]), Subset(whole, parts[1]))
    module.net = nn.Linear(16, CLASSES)
    return data(make, module)


@applied("Remove the column from the inputs of both sets, before they are scaled.")
def a_label_among_the_features(make: Make, fixed: bool) -> Report:
    train, val = Rows(0), Rows(1)
    for rows in (train, val):
        if not fixed:
            rows.x[:, 0] = rows.y
    return data(make, On(train, val))


@applied(
    "Make the masks from one permutation, so that each node or edge is in one of them."
)
def masks_of_one_graph(make: Make, fixed: bool) -> Report:
    made = torch.Generator().manual_seed(0)
    nodes = Rows(0)
    order = torch.randperm(N, generator=made)
    masks = [torch.zeros(N, dtype=torch.bool) for _ in range(2)]
    masks[0][order[:40]] = True
    masks[1][order[40 if fixed else 30 :]] = True
    graph = {
        "x": nodes.x,
        "y": nodes.y,
        "train_mask": masks[0],
        "val_mask": masks[1],
    }
    loader = DataLoader([graph], 1, collate_fn=lambda batch: batch[0])
    return data(make, OnGraph(loader, loader))


class OnGraph(On):
    """Learns from some nodes of a graph, and is evaluated on others."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.loss(batch, "train_mask")

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch, "val_mask"), batch_size=1)

    def loss(self, batch: Any, mask: str) -> Tensor:
        target = torch.where(batch[mask], batch["y"], -100)
        return nn.functional.cross_entropy(self(batch["x"]), target)
