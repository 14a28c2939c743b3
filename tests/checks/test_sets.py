"""Which samples are evaluated: each lie is found, its honest twin is silent."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import (
    load_breast_cancer,
    load_diabetes,
    load_digits,
    load_iris,
    load_wine,
)
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    Subset,
    TensorDataset,
    get_worker_info,
    random_split,
)

from lightning_evalguard import EvalGuard, EvalGuardWarning
from lightning_evalguard.checks.data import agreement, appearance, groups, repeats
from lightning_evalguard.checks.data.appearance import Appearance
from lightning_evalguard.checks.data.history import History
from lightning_evalguard.checks.data.leaks import Leak
from lightning_evalguard.checks.data.loader_facts import set_of
from lightning_evalguard.data.samples import Budget, is_cheap

pytestmark = pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
Make = Callable[..., pl.Trainer]
X, Y = (torch.tensor(a) for a in load_digits(return_X_y=True))
X = X.float() / 16
_order = torch.randperm(len(X), generator=torch.Generator().manual_seed(0))
X, Y = X[_order], Y[_order]
TRAIN, VAL, TEST = slice(0, 200), slice(200, 260), slice(260, 320)


class Net(pl.LightningModule):
    """Digits by a linear layer; the batch may be a tuple or a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(64, 10)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = (batch["x"], batch["y"]) if isinstance(batch, dict) else batch[:2]
        logits = self.net(x.flatten(1).float())
        target = y if y.is_floating_point() else y % 10
        return F.cross_entropy(logits, target)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.training_step(batch, batch_idx)

    test_step = validation_step

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 0.1)


def of(part: slice) -> TensorDataset:
    return TensorDataset(X[part], Y[part])


def batches(dataset: Any, shuffle: bool = False, **kwargs: Any) -> DataLoader[Any]:
    return DataLoader(dataset, 20, shuffle=shuffle, **kwargs)


class Held(Dataset[Any]):
    """Samples that only reading shows, with what is said of them."""

    def __init__(self, part: slice, change: Any = lambda x: x, **said: Any) -> None:
        self.items = [
            (change(x), y) for x, y in zip(X[part], Y[part].tolist(), strict=True)
        ]
        self.__dict__.update(said)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.items[i]


class Dicts(Held):
    """Samples that are dictionaries."""

    def __getitem__(self, i: int) -> Any:
        x, y = self.items[i]
        return {"x": x, "y": y, "patient": int(self.who[i])}  # type: ignore[attr-defined]


# --- the lies -----------------------------------------------------------------------------------


def mapping(names: Any) -> dict[str, int]:
    return {str(name): i for i, name in enumerate(names)}


def said(
    train: dict[str, Any], lie: dict[str, Any], fixed: dict[str, Any] | None = None
) -> Any:
    """Sets that say something of their numbers."""

    def sets(honest: bool) -> tuple[Any, Any]:
        own = (train if fixed is None else fixed) if honest else lie
        return Held(TRAIN, **train), Held(VAL, **own)

    return sets


def shown(lie: Any, fixed: Any = lambda x: x, train: Any = lambda x: x) -> Any:
    """Sets whose samples are changed."""

    def sets(honest: bool) -> tuple[Any, Any]:
        return Held(TRAIN, train), Held(VAL, fixed if honest else lie)

    return sets


def view(honest: bool) -> tuple[Any, Any]:
    """The mapping stands behind a Subset and in a ConcatDataset."""
    names = mapping(range(10))
    other = names if honest else mapping(reversed(range(10)))
    train = ConcatDataset([Held(TRAIN, class_to_idx=names)])
    return train, Subset(Held(slice(200, 300), class_to_idx=other), range(60))


class Wrapped(Dataset[Any]):
    """A transform around another dataset."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, i: int) -> Any:
        return self.inner[i]


def wrapped(honest: bool) -> tuple[Any, Any]:
    train, val = said({"classes": list("abc")}, {"classes": list("bca")})(honest)
    return Wrapped(train), Wrapped(val)


class Tokenizer:
    def __init__(self, vocab: dict[str, int], pad_id: int) -> None:
        self.vocab, self.pad_id = vocab, pad_id


def padded(honest: bool) -> tuple[Any, Any]:
    def rows(pad: int) -> Any:
        tokens = torch.randint(
            2, 90, (len(X), 64), generator=torch.Generator().manual_seed(3)
        )
        tokens[:, 40:] = pad
        return tokens

    train, val = rows(0), rows(0 if honest else 1)
    return TensorDataset(train[TRAIN], Y[TRAIN]), TensorDataset(val[VAL], Y[VAL])


def layout(honest: bool) -> tuple[Any, Any]:
    images = torch.rand(300, 2, 4, 8, generator=torch.Generator().manual_seed(3))
    train = TensorDataset(images[:200], Y[:200])
    val = images[200:] if honest else images[200:].permute(0, 2, 3, 1)
    return train, TensorDataset(val, Y[200:300])


def patients(name: str, samples: int = 4) -> Any:
    def sets(honest: bool) -> tuple[Any, Any]:
        who = torch.arange(260) // samples
        if not honest:
            who = who[torch.randperm(260, generator=torch.Generator().manual_seed(1))]
        return Held(TRAIN, **{name: who[TRAIN].tolist()}), Held(
            VAL, **{name: who[VAL].numpy()}
        )

    return sets


def whole_split(honest: bool) -> tuple[Any, Any]:
    """One dataset with a speaker a sample, split by sample."""
    full = Held(slice(0, 260))
    full.speaker_id = [f"s{i // 4}" for i in range(260)]  # type: ignore[attr-defined]
    if honest:
        return Subset(full, range(200)), Subset(full, range(200, 260))
    parts = random_split(full, [200, 60], torch.Generator().manual_seed(0))
    return parts[0], parts[1]


SETS: dict[str, Any] = {
    "class_to_idx": said(
        {"class_to_idx": mapping(range(10))}, {"class_to_idx": mapping(range(1, 10))}
    ),
    "fewer classes, same indices": said(
        {"classes": list("abcd")}, {"classes": list("acbd")}, {"classes": list("abc")}
    ),
    "a class that training has not": said({"classes": list("abc")}, {"classes": list("abcd")}),
    "id2label": said({"id2label": {0: "cat", 1: "dog"}}, {"id2label": {0: "dog", 1: "cat"}}),
    "number of classes": said({"num_classes": 10}, {"num_classes": 9}),
    "vocabulary": said({"vocab": mapping("abc")}, {"vocab": mapping("cab")}),
    "tokenizer": said(
        {"tokenizer": Tokenizer(mapping("abc"), 0)}, {"tokenizer": Tokenizer(mapping("acb"), 0)}
    ),
    "padding id": said({"pad_token_id": 0}, {"pad_token_id": 1}),
    "behind views": view,
    "behind a transform": wrapped,
    "padding of the rows": padded,
    "layout": layout,
    "scale": shown(lambda x: x * 255),
    "small scale": shown(lambda x: x / 255),
    "normalised in training": shown(
        lambda x: x.reshape(1, 8, 8), lambda x: (x.reshape(1, 8, 8) - 0.3) / 0.1,
        lambda x: (x.reshape(1, 8, 8) - 0.3) / 0.1,
    ),
    "integers": shown(lambda x: (x * 16).long()),
    "patients": patients("patient_ids"),
    "subjects": patients("subjects"),
    "users": patients("user", 5),
    "speakers": whole_split,
}  # fmt: skip


def fitted(make: Make, train: Any, val: Any, **kwargs: Any) -> EvalGuard:
    guard = EvalGuard(metrics=None, sync="ignore", scores="ignore", **kwargs)
    made = make(callbacks=[guard], max_epochs=1)
    train = train if isinstance(train, DataLoader) else batches(train, shuffle=True)
    made.fit(Net(), train, val if isinstance(val, DataLoader) else batches(val))
    return guard


def of_data(guard: EvalGuard) -> list[str]:
    return [f.fact for f in guard.report.findings if f.check == "data"]


@pytest.mark.parametrize("name", SETS)
def test_sets_that_do_not_agree_are_found_and_their_twins_are_silent(
    name: str, trainer: Make
) -> None:
    assert len(of_data(fitted(trainer, *SETS[name](False)))) == 1
    assert of_data(fitted(trainer, *SETS[name](True))) == []


def test_groups_are_named_by_a_key_or_a_callable(trainer: Make) -> None:
    who = torch.arange(260) // 4
    mixed = who[torch.randperm(260, generator=torch.Generator().manual_seed(1))]
    for asked in ("patient", lambda sample: sample["patient"]):
        for ids, expected in ((who, 0), (mixed, 1)):
            train, val = Dicts(TRAIN, who=ids[TRAIN]), Dicts(VAL, who=ids[VAL])
            assert len(of_data(fitted(trainer, train, val, groups=asked))) == expected


def test_an_attribute_of_few_values_names_no_group(trainer: Make) -> None:
    """A fold, a sex, a site."""
    train, val = Held(TRAIN, group=[0, 1] * 100), Held(VAL, group=[0, 1] * 30)
    assert of_data(fitted(trainer, train, val)) == []


def test_groups_that_cannot_be_had_are_noted(trainer: Make) -> None:
    guard = fitted(trainer, Held(TRAIN), Held(VAL), groups="patient")
    assert any("groups='patient' gives no group" in note for note in guard.report.notes)


# --- across runs --------------------------------------------------------------------------------


def after_fit(
    make: Make, test: Any, same_trainer: bool = True, forget: bool = False
) -> list[str]:
    guard = EvalGuard(metrics=None, sync="ignore", scores="ignore")
    made, net = make(callbacks=[guard], max_epochs=1), Net()
    train, val = TensorDataset(X[TRAIN].clone(), Y[TRAIN]), of(VAL)
    made.fit(net, batches(train, shuffle=True), batches(val))
    assert of_data(guard) == []
    if callable(test):
        test = test(train, val)
    if not same_trainer or forget:
        made = make(callbacks=[guard])
    if forget:
        del train, val
        gc.collect()
    made.test(net, batches(test), verbose=False)
    return of_data(guard)


def partly(seen: slice) -> TensorDataset:
    """New samples, and some that are not."""
    return TensorDataset(torch.cat([X[TEST], X[seen]]), torch.cat([Y[TEST], Y[seen]]))


@pytest.mark.parametrize(
    ("test", "fact"),
    [
        (lambda train, val: train, "200 of its 200 samples belong to the training set"),
        (
            lambda train, val: Subset(train, range(30)),
            "30 of its 30 samples belong to the tr",
        ),
        (
            lambda train, val: copy.deepcopy(train),
            "200 of its 200 samples stand in the training",
        ),
        (
            lambda train, val: Held(TRAIN),
            "of its 200 samples stand in the training set of an",
        ),
        (
            lambda train, val: partly(slice(150, 200)),
            "50 of its 110 samples stand in the training",
        ),
        (
            lambda train, val: val,
            "60 of its 60 samples belong to the validation set of an ear",
        ),
        (
            lambda train, val: of(VAL),
            "60 of its 60 samples stand in the validation set of an",
        ),
    ],
)
@pytest.mark.parametrize("same_trainer", [True, False])
def test_testing_on_what_a_fit_has_seen_is_found(
    test: Any, fact: str, same_trainer: bool, trainer: Make
) -> None:
    facts = after_fit(trainer, test, same_trainer)
    assert len(facts) == 1
    assert fact in facts[0]


def test_a_training_set_that_is_gone_is_still_known(trainer: Make) -> None:
    facts = after_fit(trainer, of(slice(100, 320)), forget=True)
    assert any("of its 220 samples stand in the training set" in fact for fact in facts)


def test_testing_on_new_samples_is_silent(trainer: Make) -> None:
    assert after_fit(trainer, of(TEST)) == []
    assert after_fit(trainer, of(TEST), same_trainer=False) == []
    assert after_fit(trainer, of(TEST), forget=True) == []


def test_folds_under_one_guard_are_silent(trainer: Make) -> None:
    """Each fold is validated on what the others trained on, and each by its own model."""
    full, guard = (
        of(slice(0, 300)),
        EvalGuard(metrics=None, sync="ignore", scores="ignore"),
    )
    for fold in range(3):
        inside = [i for i in range(300) if i % 3 != fold]
        outside = [i for i in range(300) if i % 3 == fold]
        made = trainer(callbacks=[guard], max_epochs=1)
        made.fit(Net(), batches(Subset(full, inside)), batches(Subset(full, outside)))
    made.test(Net(), batches(of(slice(300, 400))), verbose=False)
    assert of_data(guard) == []


def test_the_history_keeps_no_dataset_alive() -> None:
    history, dataset = History(), Held(TRAIN)
    history.begin(Net())
    history.add("train", batches(dataset))
    del dataset
    gc.collect()
    (side,) = history.sides("train", None, True)
    assert (side.dataset, side.parts) == (None, [])


# --- given twice --------------------------------------------------------------------------------


class Repeating(Sampler[int]):
    """Gives every third index twice."""

    def __init__(self, n: int, step: int) -> None:
        self.n, self.step = n, step

    def __iter__(self) -> Iterator[int]:
        for i in range(self.n):
            yield i
            if i % self.step == 0:
                yield i

    def __len__(self) -> int:
        return self.n + len(range(0, self.n, self.step))


class Stream(IterableDataset[Any]):
    """One stream, shared out among the workers or read by each of them."""

    def __init__(self, part: slice, shares: bool) -> None:
        self.part, self.shares = part, shares

    def __iter__(self) -> Any:
        info = get_worker_info()
        step, first = (
            (info.num_workers, info.id) if info is not None and self.shares else (1, 0)
        )
        for i in range(self.part.start + first, self.part.stop, step):
            yield X[i], Y[i]


class Doubled(Dataset[Any]):
    """Counts to twice its length."""

    def __init__(self, part: slice, times: int) -> None:
        self.x, self.y, self.times = X[part], Y[part], times

    def __len__(self) -> int:
        return self.times * len(self.x)

    def __getitem__(self, i: int) -> Any:
        return self.x[i % len(self.x)], self.y[i % len(self.x)]


def twice(name: str, honest: bool) -> DataLoader[Any]:
    val = of(VAL)
    if name == "concatenated":
        return batches(val if honest else ConcatDataset([val, val]))
    if name == "overlapping":
        second = Subset(val, range(30 if honest else 20, 60))
        return batches(ConcatDataset([Subset(val, range(30)), second]))
    if name == "indices":
        return batches(Subset(val, [*range(60), *([] if honest else range(7))]))
    if name == "a sampler":
        sampler: Any = range(60) if honest else Repeating(60, 3)
        return batches(val, sampler=sampler)
    if name == "a batch sampler":
        picked = [list(range(i, i + 10)) for i in range(0, 60, 10)]
        return DataLoader(
            val, batch_sampler=Batches(picked if honest else picked + picked[:2])
        )
    if name == "a stream":
        return DataLoader(Stream(VAL, honest), 20, num_workers=2)
    if name == "a copy":
        return batches(ConcatDataset([val, of(TEST) if honest else Held(VAL)]))
    if name == "a table":
        other = TEST if honest else VAL
        return batches(
            TensorDataset(torch.cat([X[VAL], X[other]]), torch.cat([Y[VAL], Y[other]]))
        )
    return batches(Doubled(VAL, 1 if honest else 2))


class Batches(Sampler[list[int]]):
    def __init__(self, picked: list[list[int]]) -> None:
        self.picked = picked

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.picked)

    def __len__(self) -> int:
        return len(self.picked)


TWICE = {
    "concatenated": "60 of the 120", "overlapping": "10 of the 70", "indices": "7 of the 67",
    "a sampler": "20 of the 80", "a batch sampler": "20 of the 80", "a stream": "60 of the 120",
    "a copy": "60 of the 120", "a table": "60 of the 120", "a length": "60 of the 120",
}  # fmt: skip


@pytest.mark.parametrize("name", TWICE)
def test_samples_given_twice_are_counted_and_their_twins_are_silent(
    name: str, trainer: Make
) -> None:
    facts = of_data(fitted(trainer, of(TRAIN), twice(name, False)))
    assert len(facts) == 1, facts
    assert facts[0].startswith(f"{TWICE[name]} samples that it gives are repetitions")
    assert of_data(fitted(trainer, of(TRAIN), twice(name, True))) == []


def test_equal_samples_by_nature_are_no_repetitions() -> None:
    draw = torch.Generator().manual_seed(0)
    for values in (2, 5, 16, 50, 300, 2000):
        for n in (20, 60, 300, 1500):
            for skew in (1, 3):
                drawn = (torch.rand(n, generator=draw) ** skew * values).long()
                _, counts = drawn.unique(return_counts=True)
                assert not repeats.is_repeated(counts), (values, n)
    blank = torch.tensor([1] * 500 + [40])
    assert not repeats.is_repeated(blank)
    assert repeats.is_repeated(torch.tensor([2] * 40))
    assert repeats.is_repeated(torch.tensor([3] * 40))
    assert repeats.is_repeated(torch.tensor([1] * 100 + [2] * 100))


# --- what splits of one set and augmentations show ----------------------------------------------


def look(x: Tensor, size: int = 32) -> Appearance:
    seen = Appearance()
    for i in range(0, len(x), size):
        seen.add((x[i : i + size], torch.zeros(len(x[i : i + size]), dtype=torch.long)))
    return seen


def tables() -> dict[str, tuple[Tensor, Tensor]]:
    loaded = {"digits": load_digits, "iris": load_iris, "wine": load_wine,
              "cancer": load_breast_cancer, "diabetes": load_diabetes}  # fmt: skip
    found = {k: tuple(map(torch.tensor, f(return_X_y=True))) for k, f in loaded.items()}
    return {k: (x.float(), y) for k, (x, y) in found.items()}


def test_no_split_of_a_set_looks_like_another_set() -> None:
    """More than 200 splits: unequal, small, imbalanced, sorted by class."""
    draw, splits = torch.Generator().manual_seed(0), 0
    for name, (x, y) in tables().items():
        for share in (0.5, 0.8, 0.9):
            for _ in range(6):
                order = torch.randperm(len(x), generator=draw)
                n = int(share * len(x))
                train, val = order[:n], order[n:]
                classes = y[val].unique()
                pick = classes[torch.randint(len(classes), (1,), generator=draw)]
                rare = val[
                    (y[val] == pick) | (torch.rand(len(val), generator=draw) < 0.1)
                ]
                for part in (val, rare, val[:20], val[y[val].argsort()]):
                    assert not appearance.difference_in_looks(
                        look(x[part]), look(x[train])
                    ), name
                    splits += 1
                a, b = TensorDataset(x[train], y[train]), TensorDataset(x[val], y[val])
                assert found_by_leaks(a, b) == [], name
                one = set_of(batches(b), "val", 0, 1)
                assert agreement.disagreements_of(one, [a]) == []
                watched = repeats.Repeats(one, None)
                for batch in batches(b):
                    watched.add(batch)
                assert watched.facts() == [], name
    assert splits > 200


def found_by_leaks(train: Any, val: Any) -> list[Any]:
    history = History()
    history.begin(None)
    loader, trained = batches(val), batches(train)
    history.add("train", trained)
    (side,) = history.sides("train", None, True)
    return Leak(set_of(loader, "val", 0, 1), side).look(Budget(1024))


def augment(kind: str, x: Tensor) -> Tensor:
    """The training side of 8 by 8 images."""
    n, images = len(x), x.reshape(len(x), 1, 8, 8)
    if kind == "flip":
        return torch.where(torch.rand(n, 1, 1, 1) < 0.5, images, images.flip(3))
    if kind == "crop":
        padded = F.pad(images, (2, 2, 2, 2))
        starts = torch.randint(5, (n,)).tolist()
        return torch.stack(
            [p[:, i : i + 8, i : i + 8] for i, p in zip(starts, padded, strict=True)]
        )
    if kind == "jitter":
        return (images * (0.6 + 0.8 * torch.rand(n, 1, 1, 1))).clamp(0, 1)
    if kind == "mixup":
        share = torch.rand(n, 1, 1, 1)
        return share * images + (1 - share) * images[torch.randperm(n)]
    if kind == "noise":
        return images + 0.1 * torch.randn_like(images)
    if kind == "erasing":
        return images * (torch.rand_like(images) > 0.2)
    return images


@pytest.mark.parametrize(
    "kind", ["flip", "crop", "jitter", "mixup", "noise", "erasing"]
)
def test_usual_augmentations_of_training_are_silent(kind: str) -> None:
    torch.manual_seed(0)
    for normalised in (False, True):
        train, val = augment(kind, X[:1000]), X[1000:1300].reshape(-1, 1, 8, 8)
        if normalised:
            train, val = (train - 0.3) / 0.37, (val - 0.3) / 0.37
        assert not appearance.difference_in_looks(look(val), look(train))


def test_labels_that_mixup_makes_soft_are_silent() -> None:
    train, val = Appearance(), Appearance()
    train.add((torch.rand(64, 2), torch.rand(64, 10)))
    val.add((torch.rand(64, 2), torch.zeros(64, dtype=torch.long)))
    assert not appearance.difference_in_looks(val, train)


def test_a_trend_in_time_is_silent() -> None:
    series = torch.arange(400.0) * 1.2 + 30 * torch.sin(torch.arange(400.0) / 6)
    windows = series.unfold(0, 24, 1)
    assert not appearance.difference_in_looks(look(windows[300:]), look(windows[:300]))


@pytest.mark.parametrize("cut", [300, 400, 450])
@pytest.mark.parametrize("gap", [0, 25])
def test_a_table_s_column_of_time_goes_on(cut: int, gap: int) -> None:
    torch.manual_seed(0)
    time = torch.arange(500.0)[:, None] / 500
    table = torch.cat([time, torch.randn(500, 2)], 1)
    assert not appearance.difference_in_looks(
        look(table[cut + gap :]), look(table[:cut])
    )


def test_windows_of_the_last_days_are_silent() -> None:
    """Of each series the same few days, whose level has never been seen and varies little."""
    torch.manual_seed(0)
    days = torch.arange(120.0).repeat(20, 1) / 120
    series = torch.stack([days, torch.randn(20, 1) + 0 * days], 2)
    windows = series.unfold(1, 30, 1).transpose(2, 3)
    train, val = windows[:, :60].flatten(0, 1), windows[:, 80:].flatten(0, 1)
    assert not appearance.difference_in_looks(look(val), look(train))


@pytest.mark.parametrize(
    "other", [lambda x: (x - 60) / 23, lambda x: x * 100, lambda x: x + 500]
)
def test_the_column_of_another_scale_is_named_with_its_own_range(other: Any) -> None:
    torch.manual_seed(0)
    table = torch.rand(500, 3) * 80 + 20
    train, val = table[:400], table[400:].clone()
    val[:, 1] = other(val[:, 1])
    said = appearance.difference_in_looks(look(val), look(train))
    assert "1 of 3 columns or channels have another range" in said
    shown = f"{float(val[:, 1].min()):.3g} to {float(val[:, 1].max()):.3g}"
    assert f"number 1 has values of {shown}" in said


# --- budgets are counts -------------------------------------------------------------------------


def test_a_leak_is_the_same_number_on_a_busy_machine() -> None:
    train, val = Held(slice(0, 900)), Held(slice(300, 1000))
    first = found_by_leaks(train, val)
    assert [f.fact for f in first] == [f.fact for f in found_by_leaks(train, val)]
    assert first[0].fact.startswith("at least ")
    exact = found_by_leaks(of(slice(0, 900)), of(slice(300, 1000)))
    assert exact[0].fact.startswith("600 of its 700 samples stand in")


def test_what_a_read_costs_is_told_by_what_it_calls(tmp_path: Path) -> None:
    class OnDisk(Held):
        def __getitem__(self, i: int) -> Any:
            return torch.from_numpy(np.load(tmp_path / "x.npy")), 0

    class Busy(Held):
        def __getitem__(self, i: int) -> Any:
            return sum(map(lambda k: abs(k), range(1000))), 0  # noqa: C417 - calls

    np.save(tmp_path / "x.npy", np.zeros(3))
    assert is_cheap(Held(VAL), 0)
    assert not is_cheap(OnDisk(VAL), 0)
    assert not is_cheap(Busy(VAL), 0)


def test_groups_unknown_to_one_side_are_no_finding() -> None:
    history = History()
    history.begin(None)
    train, val = batches(Held(TRAIN)), batches(Held(VAL, patient=list(range(60))))
    history.add("train", train)
    (side,) = history.sides("train", None, True)
    assert groups.shared_groups(set_of(val, "val", 0, 1), side, None, 0) == ([], "")
    assert EvalGuardWarning is not None
