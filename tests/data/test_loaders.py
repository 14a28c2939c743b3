"""What loaders say of themselves."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric.utilities.distributed import DistributedSamplerWrapper
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_evalguard.data.loaders import picked

ROWS = TensorDataset(torch.arange(50.0))
SOME = list(range(10, 30))
ALL = list(range(50))
BATCHED = [SOME[:10], SOME[10:]]
DEALT: dict[str, Any] = {"num_replicas": 2, "rank": 1, "shuffle": False}


@pytest.mark.parametrize(
    ("settings", "places"),
    [
        ({}, ALL),
        ({"shuffle": True}, ALL),
        ({"sampler": SOME}, SOME),
        ({"sampler": torch.tensor(SOME)}, SOME),
        ({"sampler": SubsetRandomSampler(SOME)}, SOME),
        ({"sampler": WeightedRandomSampler([1.0] * 50, 20)}, ALL),
        ({"sampler": DistributedSampler(ROWS, **DEALT)}, ALL),
        ({"sampler": DistributedSamplerWrapper(SOME, **DEALT)}, SOME),
        ({"batch_sampler": BATCHED}, SOME),
        ({"batch_sampler": BatchSampler(SOME, 4, False)}, SOME),
    ],
)
def test_a_loader_takes_what_its_sampler_gives(
    settings: dict[str, Any], places: list[int]
) -> None:
    loader = DataLoader(ROWS, **settings)
    taken = picked(loader)
    assert taken is not None
    assert taken.tolist() == places


def test_a_sampler_that_does_not_say_what_it_gives_is_not_known() -> None:
    class Later(SubsetRandomSampler):
        """Gives some samples, and keeps their places elsewhere."""

        def __init__(self) -> None:
            super().__init__(SOME)
            self.kept = self.indices
            del self.indices

        def __len__(self) -> int:
            return len(self.kept)

    assert picked(DataLoader(ROWS, sampler=Later())) is None


@pytest.mark.parametrize("many", [50, 20])
def test_a_sampler_of_the_users_own_is_not_iterated(many: int) -> None:
    class Draws:
        """No `Sampler`, and each pass draws."""

        def __len__(self) -> int:
            return many

        def __iter__(self) -> Any:
            return iter(torch.randperm(50)[:many].tolist())

    loader: Any = DataLoader(ROWS, sampler=Draws())  # type: ignore[arg-type]
    before = torch.get_rng_state()
    taken = picked(loader)
    assert torch.equal(torch.get_rng_state(), before)
    assert (taken is None) == (many < 50)
