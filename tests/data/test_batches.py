"""One home for what a batch is: every consumer counts the same samples, sees the same tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence
from torch.utils.data import DataLoader, DistributedSampler

from batch_kinds import KINDS, count_on_two_ranks
from launched import free_port
from lightning_evalguard.checks.check import Moment
from lightning_evalguard.checks.state.check import StateCheck
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.data.batches import (
    common_length,
    leaves,
    map_samples,
    moved_tensors,
    sample_count,
    tensors,
)
from lightning_evalguard.data.fingerprint import Content, columns, whole
from lightning_evalguard.data.loaders import left_out, owned, repeated, shares
from lightning_evalguard.data.samples import content_hash, digest, sketch

N = 6
X, Y = torch.arange(N * 4.0).reshape(N, 4), torch.arange(N) % 3
kinds = pytest.mark.parametrize("kind", KINDS)


def made(kind: str, x: Tensor = X, y: Tensor = Y) -> Any:
    return KINDS[kind](x, y)


# --- every consumer sees the same ---------------------------------------------------------------


def counted_by_the_recorder(batch: Any) -> int:
    recorder = Recorder()
    recorder.start("val", nn.Linear(1, 1), [None])
    recorder.before_step(batch)
    samples = recorder._loader(0).samples
    recorder.abort()
    return samples


def counted_by_the_record(batch: Any) -> int | None:
    content = Content()
    content.add(batch)
    assert whole([content.part()])["samples"] == content.part()[1]
    return content.part()[1]


def counted_by_halving(batch: Any) -> int:
    """What stays where every sample but the first half is taken away, twice over."""
    half = map_samples(batch, N, lambda items: items[: N // 2])
    assert type(half) is type(batch)
    return 2 * (common_length(half) or 0)


@kinds
def test_every_consumer_counts_the_same_samples(kind: str) -> None:
    batch = made(kind)
    assert sample_count(batch) == N
    assert counted_by_the_recorder(batch) == N
    assert counted_by_the_record(batch) == N
    if kind == "graphs":  # whose nodes belong together
        assert common_length(batch) is None
    else:
        assert common_length(batch) == N
        assert counted_by_halving(batch) == N
        assert common_length(batch) == N


@kinds
def test_every_consumer_sees_the_same_tensors(kind: str) -> None:
    batch = made(kind)
    seen = tensors(batch)
    assert any(t is X or t is Y for t in seen)
    assert [id(t) for t in moved_tensors(batch)] == [id(t) for t in seen]
    assert [id(t) for t in leaves(batch) if isinstance(t, Tensor)] == [
        id(t) for t in seen
    ]
    assert [id(t) for t in columns(batch) if t.dtype != torch.int64 or t is Y] == [
        id(t) for t in seen if t.dtype != torch.int64 or t is Y
    ]
    assert len(sketch(batch).tensors) == len(seen)
    assert content_hash(batch) is not None


@kinds
def test_a_batch_changed_in_a_step_is_found_in_every_kind(kind: str) -> None:
    x, y = X.clone(), Y.clone()
    batch = made(kind, x, y)
    check = StateCheck()
    check.open(nn.Linear(4, 3), Moment("validate"))
    check.start(Moment("validate"))
    now = Moment("validate", batch=0)
    check.before_step(now, (batch,))
    for tensor in tensors(batch):
        tensor.add_(1)
    findings = [*check.after_step(now, None), *check.stop(Moment("validate"), None)]
    check.close(Moment("validate"))
    said = [f.fact for f in findings]
    assert any("changed in place" in fact for fact in said), said


@kinds
def test_the_hash_of_a_set_does_not_hang_on_how_its_batches_are_cut(kind: str) -> None:
    if kind == "graphs":  # a batch of graphs is hashed as one
        return
    one, other = Content(), Content()
    one.add(made(kind))
    for part in (slice(4, 6), slice(0, 3), slice(3, 4)):
        other.add(made(kind, X[part], Y[part]))
    assert whole([one.part()]) == whole([other.part()])


@kinds
def test_a_sample_read_twice_is_equal_and_a_changed_one_is_not(kind: str) -> None:
    assert digest(made(kind)) == digest(made(kind, X.clone(), Y.clone()))
    assert digest(made(kind)) != digest(made(kind, X + 1))


# --- padding --------------------------------------------------------------------------------------


@kinds
def test_a_samplers_padding_is_cut_in_every_kind_of_batch(kind: str) -> None:
    x, y = torch.randn(5, 4), torch.arange(5) % 3
    hashed = []
    for rank in range(2):
        sampler = DistributedSampler(range(5), 2, rank, shuffle=False)  # type: ignore[arg-type, var-annotated]
        loader = DataLoader(range(5), 2, sampler=sampler, collate_fn=list)  # type: ignore[arg-type, var-annotated]
        content = Content(owned(loader))
        for places in loader:
            content.add(made(kind, x[places], y[places]))
        hashed.append(content.part())
    assert [samples for _, samples, *_ in hashed] == [3, 2]
    alone = Content()
    for places in ([0, 2], [4], [1, 3]):
        alone.add(made(kind, x[places], y[places]))
    assert whole(hashed) == whole([alone.part()])


def test_two_processes_count_five_samples_in_every_kind_of_batch(
    tmp_path: Path,
) -> None:
    """With padding of one, of which nothing is counted twice."""
    mp.spawn(count_on_two_ranks, (free_port(), str(tmp_path)), nprocs=2)
    for rank in range(2):
        totals = torch.load(tmp_path / f"{rank}.pt")
        assert totals == dict.fromkeys(KINDS, 5)


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_shares_of_ranks_are_what_the_sampler_deals(
    n: int, world: int, drop_last: bool
) -> None:
    if drop_last and n < world:
        return
    dealt = [
        DistributedSampler(range(n), world, rank, shuffle=False, drop_last=drop_last)  # type: ignore[arg-type]
        for rank in range(world)
    ]
    lists = [list(sampler) for sampler in dealt]
    distinct = set().union(*lists)
    assert sum(shares(dealt[0])) == len(distinct)
    loader = DataLoader(list(range(n)), 2, sampler=dealt[0])  # type: ignore[arg-type, var-annotated]
    assert owned(loader) == (None if drop_last else shares(dealt[0])[0])
    assert repeated(loader)[0] == (0 if drop_last else sum(map(len, lists)) - n)
    lost = n - len(distinct)
    assert (
        left_out(loader).startswith(f"{lost} of {n} samples")
        if lost
        else not left_out(loader)
    )


# --- odd ones -------------------------------------------------------------------------------------


class Eager:
    """Answers every name, loudly."""

    def __init__(self) -> None:
        self.x = X

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"asked for {name}")


@dataclasses.dataclass(frozen=True)
class Slotted:
    __slots__ = ("x", "y")
    x: Tensor
    y: Tensor


def test_attributes_are_looked_up_without_the_users_code() -> None:
    assert sample_count(Eager()) == N
    assert tensors(Eager()) == [X]
    assert [t.shape for t in tensors(Slotted(X, Y))] == [X.shape, Y.shape]
    assert sample_count(map_samples(Slotted(X, Y), N, lambda t: t[:2])) == 2


def test_a_batch_that_holds_itself_ends() -> None:
    batch: dict[str, Any] = {"x": X}
    batch["self"] = batch
    assert sample_count(batch) == N
    assert tensors(batch) == [X]


def test_what_is_no_batch_holds_nothing() -> None:
    for thing in (
        None,
        print,
        nn.Linear(2, 2),
        torch.float32,
        torch.Size([3]),
        int,
        object(),
    ):
        assert tensors(thing) == []
        assert sample_count(thing) is None
    assert sample_count("text") is None
    assert sample_count(torch.tensor(3.0)) is None


def test_a_packed_sequence_counts_its_sequences() -> None:
    packed = pack_sequence([torch.ones(3), torch.ones(2), torch.ones(1)])
    assert isinstance(packed, PackedSequence)
    assert sample_count(packed) == 3
    assert sample_count((packed, torch.arange(3))) == 3
    assert common_length(packed) is None


def test_detections_are_counted_by_image() -> None:
    """Lists of images and of dicts, an item a sample, of as many boxes as there are."""
    images = [torch.zeros(3, 8, 8) for _ in range(4)]
    targets = [
        {"boxes": torch.zeros(k, 4), "labels": torch.zeros(k)} for k in (1, 2, 5, 3)
    ]
    assert sample_count((images, targets)) == 4
    assert sample_count({"image": images, "target": targets}) == 4


@dataclasses.dataclass(slots=True)
class Molecules:
    """Some graphs put together, which do not say how many they are."""

    atoms: torch.Tensor
    bonds: torch.Tensor


class Labelled(NamedTuple):
    graphs: Any
    descriptors: Any
    target: torch.Tensor
    weight: torch.Tensor


def test_targets_count_the_objects_that_they_stand_beside() -> None:
    plain = SimpleNamespace(atoms=torch.zeros(40, 7), bonds=torch.zeros(2, 80))
    for graphs in (Molecules(torch.zeros(40, 7), torch.zeros(2, 80)), plain):
        batch = Labelled(graphs, None, torch.zeros(5, 1), torch.ones(5, 1))
        assert sample_count(batch) == 5
        assert sample_count({"x": graphs, "y": torch.zeros(5)}) == 5
        # tensors of several lengths tell nothing
        assert sample_count((graphs, torch.zeros(5), torch.zeros(6))) == 40


def test_texts_and_arrays_are_counted_where_no_tensor_is() -> None:
    assert sample_count({"text": ["a", "b", "c"], "label": [0, 1, 0]}) == 3
    assert sample_count((np.zeros((5, 2)), np.zeros(5))) == 5
    assert (
        sample_count(
            {"text": ["a", "b"], "x": torch.zeros(2, 3), "size": [224, 224, 3]}
        )
        == 2
    )


def test_numbers_beside_the_samples_do_not_count() -> None:
    loose = Content()
    loose.add({"x": X, "y": Y, "temperature": 0.5, "epoch": torch.tensor(3)})
    assert whole([loose.part()])["samples"] == N
