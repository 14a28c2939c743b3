"""Evaluations of the wrong samples: others each time, not all, some twice, or training's own."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from models.program import (
    BATCH,
    CLASSES,
    FEATURES,
    SAMPLES,
    Classifier,
    bug,
    near_miss,
    samples,
)

WARNS: dict[str, Any] = {"guard": {"data": "error"}}
OUTSIDE: dict[str, Any] = {**WARNS, "inside": False}
LATER: dict[str, Any] = {**OUTSIDE, "stage": "validate"}
VAL = "val_dataloader"

# --- the same each time -------------------------------------------------------------------------


@bug("data", VAL, **WARNS)
class AugmentedValidation(Classifier):
    """The training transform is on the validation set too: another set each time."""

    class Noisy(Dataset[Any]):
        def __init__(self) -> None:
            self.inner = samples(2)

        def __len__(self) -> int:
            return SAMPLES

        def __getitem__(self, i: int) -> Any:  # <- here
            x, y = self.inner[i]
            return x + 0.1 * torch.randn(FEATURES), y

    def val_dataloader(self) -> Any:
        return DataLoader(self.Noisy(), batch_size=BATCH)


@near_miss
class SeededByIndex(Classifier):
    """Noise that belongs to the sample."""

    class Noisy(AugmentedValidation.Noisy):
        def __getitem__(self, i: int) -> Any:
            x, y = self.inner[i]
            return x + 0.1 * torch.randn(
                FEATURES, generator=torch.Generator().manual_seed(i)
            ), y

    def val_dataloader(self) -> Any:
        return DataLoader(self.Noisy(), batch_size=BATCH)


@near_miss
class AugmentedTraining(Classifier):
    """Random where it should be."""

    def train_dataloader(self) -> Any:
        return DataLoader(AugmentedValidation.Noisy(), batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(3), batch_size=BATCH)


@bug("data", VAL, **LATER)
class RandomCollate(Classifier):
    """Tokens are masked at random in the collate function, as in training."""

    def collate(self, batch: Any) -> Any:
        x, y = torch.stack([x for x, _ in batch]), torch.stack([y for _, y in batch])
        return x * (torch.rand_like(x) > 0.3), y

    def val_dataloader(self) -> Any:
        return DataLoader(
            samples(2), batch_size=BATCH, collate_fn=self.collate
        )  # <- here


@near_miss
class FixedCollate(RandomCollate):
    def collate(self, batch: Any) -> Any:
        x, y = torch.stack([x for x, _ in batch]), torch.stack([y for _, y in batch])
        return x * (x > 0.3), y


@bug("data", VAL, certain=False, **OUTSIDE)
class ShuffledSubset(Classifier):
    """A sampler picks the validation part, and shuffles it."""

    def val_dataloader(self) -> Any:
        sampler = SubsetRandomSampler(range(SAMPLES))
        return DataLoader(samples(2), batch_size=BATCH, sampler=sampler)  # <- here


@near_miss
class OrderedSubset(Classifier):
    def val_dataloader(self) -> Any:
        return DataLoader(Subset(samples(2), range(SAMPLES)), batch_size=BATCH)


@bug("data", VAL, **OUTSIDE)
class DrawnValidation(Classifier):
    """The weighted sampler of training evaluates too: some samples twice, some never."""

    def val_dataloader(self) -> Any:
        sampler = WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)
        return DataLoader(samples(2), batch_size=BATCH, sampler=sampler)  # <- here


@near_miss
class DrawnTraining(Classifier):
    def train_dataloader(self) -> Any:
        sampler = WeightedRandomSampler([1.0] * SAMPLES, SAMPLES)
        return DataLoader(samples(1), batch_size=BATCH, sampler=sampler)


class Stream(IterableDataset[Any]):
    """Batches of one stream, from the start each time, or from where it stood."""

    def __init__(self, restarts: bool) -> None:
        self.inner, self.restarts, self.at = samples(2), restarts, 0

    def __iter__(self) -> Any:
        if self.restarts:
            self.at = 0
        while self.at < SAMPLES:
            self.at += 1
            yield self.inner[self.at - 1]


@bug("data", VAL, **LATER)
class StreamThatRunsOut(Classifier):
    """The sanity check read it to its end: no validation sees a sample."""

    class Once(Stream):
        def __iter__(self) -> Any:  # <- here
            return super().__iter__()

    def val_dataloader(self) -> Any:
        return DataLoader(self.Once(restarts=False), batch_size=BATCH)


@near_miss
class StreamThatRestarts(Classifier):
    def val_dataloader(self) -> Any:
        return DataLoader(Stream(restarts=True), batch_size=BATCH)


@bug("data", VAL, certain=False, trainer={"limit_val_batches": 2}, **LATER)
class StreamThatRunsOn(Classifier):
    """Each evaluation sees the next piece of a stream."""

    class On(Stream):
        def __iter__(self) -> Any:  # <- here
            while True:
                self.at = (self.at + 1) % SAMPLES
                yield self.inner[self.at]

    def val_dataloader(self) -> Any:
        return DataLoader(self.On(restarts=False), batch_size=5)


@near_miss
class StreamThatStartsOver(Classifier):
    class Over(Stream):
        def __iter__(self) -> Any:
            yield from (self.inner[i] for i in range(SAMPLES))

    def val_dataloader(self) -> Any:
        return DataLoader(self.Over(restarts=True), batch_size=5)


# --- all of it, each once -----------------------------------------------------------------------


@bug("data", VAL, **OUTSIDE)
class DropsTheLast(Classifier):
    """``drop_last=True``, copied from the training loader: one sample is never evaluated."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=5, drop_last=True)  # <- here


@near_miss
class DropsNothing(Classifier):
    """The batches come out even."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=BATCH, drop_last=True)


@near_miss
class KeepsTheLast(Classifier):
    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=5)


@bug("data", VAL, certain=False, trainer={"limit_val_batches": 0.5}, **OUTSIDE)
class Limited(Classifier):
    """``Trainer(limit_val_batches=0.5)`` was left from debugging."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=4)  # <- here


@near_miss
class LimitedToAll(Classifier):
    def setup(self, stage: str) -> None:
        self.trainer.limit_val_batches = 1.0


@bug("data", VAL, **OUTSIDE)
class StopsAtTheShortest(Classifier):
    """``CombinedLoader``'s default mode for training: the longer set is cut."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        for part in batch:
            if part is not None:
                self(part[0])

    def val_dataloader(self) -> Any:
        short = Subset(samples(3), range(BATCH))
        loaders = [DataLoader(data, batch_size=4) for data in (samples(2), short)]
        return CombinedLoader(loaders, "min_size")  # <- here


@near_miss
class StopsAtTheLongest(StopsAtTheShortest):
    def val_dataloader(self) -> Any:
        short = Subset(samples(3), range(BATCH))
        loaders = [DataLoader(data, batch_size=4) for data in (samples(2), short)]
        return CombinedLoader(loaders, "max_size")


@near_miss
class AsLongAsEachOther(StopsAtTheShortest):
    def val_dataloader(self) -> Any:
        loaders = [DataLoader(samples(seed), batch_size=4) for seed in (2, 3)]
        return CombinedLoader(loaders, "min_size")


@bug("data", None, **WARNS)
class RunsOut(Classifier):
    """The step takes from an iterator of its own, which is empty after one batch: end of data."""

    def on_validation_start(self) -> None:
        self.negatives = iter(torch.zeros(1, FEATURES))

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        zero = next(self.negatives)  # <- here
        return super().validation_step([batch[0] + zero, batch[1]], batch_idx)


@near_miss
class HasADefault(RunsOut):
    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        zero = next(self.negatives, torch.zeros(FEATURES))
        return Classifier.validation_step(self, [batch[0] + zero, batch[1]], batch_idx)


# --- apart from training ------------------------------------------------------------------------


class Whole(Classifier):
    """Splits one dataset."""

    def __init__(self) -> None:
        super().__init__()
        x = torch.randn(64, FEATURES, generator=torch.Generator().manual_seed(4))
        self.whole = TensorDataset(x, torch.arange(64) % CLASSES)

    def split(self) -> tuple[Any, Any]:
        return tuple(
            random_split(self.whole, [48, 16], torch.Generator().manual_seed(0))
        )

    def train_dataloader(self) -> Any:
        return DataLoader(self.split()[0], batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.split()[1], batch_size=BATCH)


@bug("data", VAL, **LATER)
class SplitTwice(Whole):
    """Each loader splits anew, each with another seed."""

    def val_dataloader(self) -> Any:
        split = random_split(self.whole, [48, 16], torch.Generator().manual_seed(1))
        return DataLoader(split[1], batch_size=BATCH)  # <- here


@near_miss
class SplitOnce(Whole):
    """One seed for both."""


@bug("data", VAL, **LATER)
class RepeatedBeforeTheSplit(Whole):
    """Rare classes are repeated, then the set is split: copies fall on both sides."""

    def __init__(self) -> None:
        super().__init__()
        x, y = self.whole.tensors
        self.x, self.y = torch.cat([x[:32]] * 2), torch.cat([y[:32]] * 2)

    def train_dataloader(self) -> Any:
        return DataLoader(TensorDataset(self.x[:48], self.y[:48]), batch_size=BATCH)

    def val_dataloader(self) -> Any:
        return DataLoader(
            TensorDataset(self.x[48:], self.y[48:]), batch_size=BATCH
        )  # <- here


@near_miss
class RepeatedAfterTheSplit(Whole):
    def train_dataloader(self) -> Any:
        return DataLoader(ConcatDataset([self.split()[0]] * 2), batch_size=BATCH)


@near_miss
class FewValues(Whole):
    """Samples of two bits: equal ones are everywhere, by nature."""

    def __init__(self) -> None:
        super().__init__()
        x, y = self.whole.tensors
        self.whole = TensorDataset((x > 1).float(), y)

    def train_dataloader(self) -> Any:
        return DataLoader(
            TensorDataset(*(t[:48] for t in self.whole.tensors)), batch_size=BATCH
        )

    def val_dataloader(self) -> Any:
        return DataLoader(
            TensorDataset(*(t[48:] for t in self.whole.tensors)), batch_size=BATCH
        )


class Listed(Dataset[Any]):
    """Samples that only reading shows."""

    def __init__(self, items: Any) -> None:
        self.items = list(items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


@bug("data", VAL, **LATER)
class CopiesInAnotherDataset(Whole):
    """The validation set was read from the file of all."""

    class Read(Listed):
        def __getitem__(self, i: int) -> Any:  # <- here
            return super().__getitem__(i)

    def train_dataloader(self) -> Any:
        return DataLoader(Listed(self.whole), batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.Read(self.split()[1]), batch_size=BATCH)


@near_miss
class NoCopiesInAnotherDataset(CopiesInAnotherDataset):
    def train_dataloader(self) -> Any:
        return DataLoader(Listed(self.split()[0]), batch_size=BATCH, shuffle=True)
