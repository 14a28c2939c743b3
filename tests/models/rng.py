"""Evaluations after which training is another training: they moved its generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from models.program import BATCH, FEATURES, SAMPLES, Classifier, bug, near_miss, samples

MOVED: dict[str, Any] = {"guard": {"rng": "error"}, "stage": "validate"}


class Shuffled(Classifier):
    """A classifier whose training draws numbers, and whose validation loader draws none."""

    def train_dataloader(self) -> Any:
        return DataLoader(samples(1), batch_size=BATCH, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=BATCH, generator=torch.Generator())


@bug("rng", None, inside=False, **MOVED)
class LoaderDrawsABaseSeed(Shuffled):
    """Each `iter(DataLoader)` draws a seed for its workers from the global generator (PL#16827)."""

    def val_dataloader(self) -> Any:
        return DataLoader(samples(2), batch_size=BATCH)  # <- here


@near_miss
class LoaderWithAGeneratorOfItsOwn(Shuffled):
    def val_dataloader(self) -> Any:
        return DataLoader(
            samples(2), batch_size=BATCH, generator=torch.Generator().manual_seed(0)
        )


@bug("rng", None, **MOVED)
class SeedsForTheEvaluation(Shuffled):
    """Seeded for comparable evaluations: every epoch of training then sees the same numbers."""

    def on_validation_start(self) -> None:
        torch.manual_seed(1234)  # <- here


@near_miss
class SeedsAndPutsBack(Shuffled):
    def on_validation_start(self) -> None:
        self.kept = torch.get_rng_state()
        torch.manual_seed(1234)

    def on_validation_end(self) -> None:
        torch.set_rng_state(self.kept)


@bug("rng", None, **MOVED)
class PythonDrawsInTheEvaluation(Shuffled):
    """Examples to plot are picked by `random`."""

    def on_validation_epoch_end(self) -> None:
        random.sample(range(SAMPLES), 2)  # <- here


@near_miss
class PythonDrawsFromItsOwn(Shuffled):
    def on_validation_epoch_end(self) -> None:
        random.Random(0).sample(range(SAMPLES), 2)


@bug("rng", None, **MOVED)
class NumpyDrawsInTheEvaluation(Shuffled):
    """Examples to plot are picked by numpy."""

    def on_validation_epoch_end(self) -> None:
        np.random.permutation(SAMPLES)  # <- here


@near_miss
class NumpyDrawsFromItsOwn(Shuffled):
    def on_validation_epoch_end(self) -> None:
        np.random.default_rng(0).permutation(SAMPLES)


class Noisy(Dataset[Any]):
    """Samples with noise of python's generator."""

    def __init__(self, draws: Any) -> None:
        self.data, self.draws = samples(2), draws

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, i: int) -> Any:
        x, y = self.data[i]
        return x + self.draws(), y


@bug("rng", None, **MOVED)
class DatasetDraws(Shuffled):
    """A dataset that augments its validation samples in the trainer's own process."""

    def val_dataloader(self) -> Any:
        def draws() -> float:
            return random.random()  # <- here

        return DataLoader(Noisy(draws), batch_size=BATCH, generator=torch.Generator())


@near_miss
class DatasetDrawsFromItsOwn(Shuffled):
    def val_dataloader(self) -> Any:
        return DataLoader(
            Noisy(random.Random(0).random),
            batch_size=BATCH,
            generator=torch.Generator(),
        )


@bug("rng", None, also=("stochastic",), **MOVED)
class StepDraws(Shuffled):
    """A validation step that samples."""

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        noise = torch.randn(FEATURES)  # <- here
        return super().validation_step([batch[0] + noise, batch[1]], batch_idx)


@near_miss
class StepUsesFixedNoise(Shuffled):
    def __init__(self) -> None:
        super().__init__()
        self.noise = torch.randn(FEATURES)

    def validation_step(self, batch: Any, batch_idx: int) -> Any:
        noise: Tensor = self.noise
        return super().validation_step([batch[0] + noise, batch[1]], batch_idx)
