"""One verdict on all ranks, exact totals over them, and nobody who waits for nobody."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import words
from launched import free_port, script
from lightning_evalguard import EvalGuardError, EvalGuardWarning, Finding, Report
from lightning_evalguard import ranks as _ranks
from lightning_evalguard.confusion.recorder import Recorder
from lightning_evalguard.ranks import Alone, Ranks, processes, ranks_of

Act = Callable[[Ranks], Any]
POINTS = ("audit", "matrix", "end")


def finding(rank: int, subject: str = "net.1") -> Finding:
    return Finding(
        "modes", "validate", "is in train mode, expected eval mode", "Call `.eval()` on it.",
        subject, "BatchNorm1d", "model.py:7", "self.net.train()", leads="subject", rank=rank,
    )  # fmt: skip


class Meeting:
    """Ranks in threads that share one store: the protocol without processes."""

    def __init__(self, *acts: Act, store: Any = None) -> None:
        self.store = store or dist.HashStore()
        self.outcomes: list[Any] = [None] * len(acts)
        self.reports = [Report() for _ in acts]
        self.seconds = [0.0] * len(acts)
        # opened before any of them acts, as Lightning's setup is
        self.ranks = [
            Ranks(report, rank, len(acts), self.store)
            for rank, report in enumerate(self.reports)
        ]
        threads = [
            threading.Thread(target=self._run, args=(i, act))
            for i, act in enumerate(acts)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _run(self, i: int, act: Act) -> None:
        began = time.monotonic()
        try:
            self.outcomes[i] = act(self.ranks[i])
        except Exception as error:
            self.outcomes[i] = error
        self.seconds[i] = time.monotonic() - began


def evaluation(
    ranks: Ranks, held: Finding | None = None, before: str = "end"
) -> list[Any]:
    said = []
    ranks.expect(*POINTS)
    for point in POINTS:
        if held is not None and point == before:
            ranks.hold([held])
        said.append(ranks.meet(point))
    return said


TEXT = (
    "1 finding during validation\n"
    "  `net.1` (BatchNorm1d): is in train mode, expected eval mode, on rank 1; "
    "set at model.py:7 `self.net.train()`. It computes something else in this mode. "
    "Call `.eval()` on it. [modes]"
)


@pytest.mark.parametrize("before", POINTS)
@pytest.mark.parametrize("world", [2, 5])
def test_what_one_rank_finds_all_ranks_raise_with_one_text(
    world: int, before: str
) -> None:
    def act(ranks: Ranks) -> None:
        evaluation(ranks, finding(1) if ranks.rank == 1 else None, before)

    met = Meeting(*[act] * world)
    assert [words.said(error) for error in met.outcomes] == [TEXT] * world
    assert all(type(error) is EvalGuardError for error in met.outcomes)
    # a rank's own findings are in its report already: the guard puts them there
    assert [len(report.findings) for report in met.reports] == [
        1,
        0,
        *[1] * (world - 2),
    ]
    assert max(met.seconds) < 2


def test_a_clean_evaluation_says_nothing_and_goes_on() -> None:
    met = Meeting(evaluation, evaluation)
    assert met.outcomes == [[{}, {}, {}]] * 2
    assert [report.notes for report in met.reports] == [[], []]


def test_equal_findings_of_several_ranks_are_one_line() -> None:
    def act(ranks: Ranks) -> None:
        ranks.expect("end")
        ranks.hold([finding(ranks.rank)])
        if ranks.rank != 1:
            ranks.hold([finding(ranks.rank, "net.2")])
        ranks.meet("end")

    lines = str(Meeting(act, act, act).outcomes[2]).splitlines()
    assert lines[0] == "2 findings during validation"
    assert (
        "`net.1` (BatchNorm1d): is in train mode, expected eval mode, on all 3 ranks;"
        in lines[1]
    )
    assert (
        "`net.2` (BatchNorm1d): is in train mode, expected eval mode, on ranks 0, 2;"
        in lines[2]
    )


def test_what_each_rank_says_reaches_all() -> None:
    def act(ranks: Ranks) -> Any:
        ranks.expect("matrix")
        return ranks.meet("matrix", {"rank": ranks.rank} if ranks.rank else None)

    assert Meeting(act, act, act).outcomes == [{1: {"rank": 1}, 2: {"rank": 2}}] * 3


def test_a_rank_without_a_batch_is_not_waited_for() -> None:
    def without(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        return ranks.meet("matrix", ()), ranks.meet("end")

    met = Meeting(evaluation, without)
    assert met.outcomes == [[None, {1: ()}, {}], ({1: ()}, {})]
    assert max(met.seconds) < 2


def test_a_rank_that_skips_the_reduction_keeps_all_from_it() -> None:
    def skips(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        ranks.meet("audit")
        ranks.skip("matrix")
        return ranks.meet("end")

    assert Meeting(evaluation, skips).outcomes == [[{}, None, {}], {}]


def test_a_rank_that_skipped_the_verdict_raises_it_at_the_next_point() -> None:
    def skips(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        ranks.skip("matrix")
        time.sleep(0.2)
        return ranks.meet("end")

    def breaks(ranks: Ranks) -> Any:
        return evaluation(ranks, finding(1), "audit")

    met = Meeting(evaluation, breaks, skips)
    assert [words.said(error) for error in met.outcomes] == [TEXT] * 3


@pytest.mark.filterwarnings("ignore::lightning_evalguard.EvalGuardWarning")
def test_a_rank_that_an_exception_ended_is_not_waited_for_and_what_it_found_counts() -> (
    None
):
    def clean(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        ranks.meet("audit")
        ranks.leave()

    def found(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        ranks.meet("audit")
        ranks.hold([finding(1)])
        ranks.leave()
        return ranks.meet("end")

    def twice(ranks: Ranks) -> Any:
        return evaluation(ranks), evaluation(ranks)

    met = Meeting(twice, clean, twice)
    later = [None, None, None]
    assert met.outcomes == [([{}, None, None], later), None, ([{}, None, None], later)]
    assert max(met.seconds) < 3
    met = Meeting(evaluation, found, evaluation)
    assert [words.said(error) for error in met.outcomes] == [TEXT, "None", TEXT]


def test_what_a_rank_holds_when_an_exception_ends_it_is_warned() -> None:
    ranks = Ranks(Report(), 1, 2, dist.HashStore())
    ranks.hold([finding(1)])
    with pytest.warns(EvalGuardWarning, match="is in train mode"):
        ranks.leave()
    ranks.leave()  # once


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_ranks, "_PATIENCE", dict.fromkeys(_ranks._PATIENCE, 0.3) | {
        "matrix": 0.6, "end": 0.6,
    })  # fmt: skip
    monkeypatch.setattr(_ranks, "_LONG", 0.6)


@pytest.mark.usefixtures("impatient")
def test_a_late_first_batch_leaves_the_verdict_to_the_end() -> None:
    def late(ranks: Ranks) -> Any:
        ranks.expect(*POINTS)
        time.sleep(0.8)
        ranks.hold([finding(1)])
        return ranks.meet("audit"), ranks.meet("end")

    met = Meeting(evaluation, late)
    assert [words.said(error) for error in met.outcomes] == [TEXT] * 2


@pytest.mark.usefixtures("impatient")
def test_a_rank_that_never_comes_is_waited_for_once_and_each_stands_for_itself() -> (
    None
):
    def comes(ranks: Ranks) -> Any:
        evaluation(ranks)
        evaluation(ranks)
        ranks.hold([finding(0)])

    def late(ranks: Ranks) -> Any:
        time.sleep(2.5)
        return evaluation(ranks), evaluation(ranks)

    met = Meeting(comes, late)
    assert type(met.outcomes[0]) is EvalGuardError
    assert "on rank" not in str(met.outcomes[0])
    assert met.outcomes[1] == ([None] * 3, [None] * 3)
    assert met.seconds[0] < 2
    assert [report.notes for report in met.reports] == [
        [
            "the ranks no longer coordinate findings, because one of them did not come to the "
            "end of an evaluation: a finding is raised where it is seen, and there is no confusion "
            "matrix over all ranks"
        ]
    ] * 2


class Gone(dist.PrefixStore):
    """A store whose host is gone from the third counter on."""

    counted = 0

    def add(self, key: str, value: int) -> int:
        self.counted += 1
        if self.counted > 3:
            raise RuntimeError("Connection was likely closed.\n0x00")
        return super().add(key, value)


def test_a_store_whose_host_is_gone_ends_the_agreement_and_not_the_run() -> None:
    report = Report()
    ranks = Ranks(report, 0, 1, Gone("", dist.HashStore()))
    assert evaluation(ranks)[2] is None
    assert len(report.notes) == 1
    assert (
        "their key-value store failed: RuntimeError: Connection was likely closed.:"
        in (report.notes[0])
    )
    ranks = Ranks(report, 0, 1, Gone("", dist.HashStore()))
    with pytest.raises(EvalGuardError):  # what it held is not lost
        evaluation(ranks, finding(0))


def test_a_breach_in_training_is_raised_by_all_at_one_step() -> None:
    def act(ranks: Ranks) -> None:
        ranks.expect("train")
        for step in range(200):
            if ranks.rank == 1 and step == 30:
                ranks.hold([finding(1)])
            barrier.wait()  # as the reduction of the gradients
            ranks.trained()
            steps[ranks.rank] = step

    steps, barrier = [0, 0], threading.Barrier(2)
    assert [words.said(error) for error in Meeting(act, act).outcomes] == [TEXT] * 2
    assert steps == [98, 98]


def test_the_store_does_not_grow() -> None:
    counts: list[int] = []

    def act(ranks: Ranks) -> None:
        for i in range(300):
            evaluation(ranks)
            ranks.expect("train")
            ranks.trained()
            ranks.expect("matrix")
            ranks.meet("matrix", "something")
            if ranks.rank == 0 and i % 50 == 9:
                time.sleep(0.01)
                counts.append(store.num_keys())
        ranks.expect("close")
        ranks.meet("close")

    store = dist.HashStore()
    Meeting(act, act, store=store)
    assert max(counts) <= 8
    assert store.num_keys() <= 3  # how many ranks there are, and what was said last


def test_one_process_raises_on_the_spot_and_meets_itself() -> None:
    report = Report()
    alone = ranks_of(report, 0, 1)
    assert type(alone) is Alone
    assert alone.meet("matrix", "x") == {0: "x"}
    with pytest.raises(EvalGuardError, match=r"`net\.1`") as caught:
        alone.hold([finding(0)])
    assert caught.value.report is report
    assert processes() == 1


def test_processes_that_torch_does_not_know_of_are_noted() -> None:
    report = Report()
    assert type(ranks_of(report, 0, 8)) is Alone
    assert report.notes == [
        "8 processes take part that torch.distributed does not know of: each raises its own "
        "findings and counts its own confusion matrix"
    ]


# totals


def swept(folder: Path, world: int, sizes: Any) -> int:
    """How many evaluations over `world` processes gave exactly what one process gives."""
    done = script("two_ranks.py", world, free_port(), folder, *sizes, seconds=900)
    assert done.returncode == 0, done.stderr
    (compared,) = {torch.load(folder / f"{rank}.pt")[0] for rank in range(world)}
    # keys in the store, most of them gloo's
    assert torch.load(folder / "0.pt")[1] < 6 * world
    return int(compared)


def test_totals_f1_and_mcc_equal_those_of_one_process(tmp_path: Path) -> None:
    assert swept(tmp_path, 4, (1, 2, 3, 5, 10, 33)) == 26


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_totals_are_exact_for_every_size(world: int, tmp_path: Path) -> None:
    assert swept(tmp_path, world, range(1, 102)) > 1900


def samples(n: int) -> TensorDataset:
    return TensorDataset(torch.arange(n) % 3)


DROPPED: dict[str, tuple[Callable[[], Any], str]] = {
    "by the loader": (
        lambda: DataLoader(samples(10), 4, drop_last=True),
        "2 of 10 samples: drop_last=True of the DataLoader",
    ),
    "by the sampler": (
        lambda: DataLoader(
            samples(11),
            2,
            sampler=DistributedSampler(samples(11), 4, 1, drop_last=True),
        ),
        "3 of 11 samples: drop_last=True of DistributedSampler",
    ),
    "by both": (
        lambda: DataLoader(
            samples(11),
            2,
            drop_last=True,
            sampler=DistributedSampler(samples(11), 2, 0, drop_last=True),
        ),
        "3 of 11 samples: drop_last=True of the DataLoader and DistributedSampler",
    ),
    "only what was repeated": (
        lambda: DataLoader(
            samples(5), 2, drop_last=True, sampler=DistributedSampler(samples(5), 2, 1)
        ),
        "1 of 5 samples: drop_last=True of the DataLoader",
    ),
    "by the user's batch sampler": (
        lambda: DataLoader(
            samples(10), batch_sampler=BatchSampler(range(10), 3, drop_last=True)
        ),
        "1 of 10 samples: drop_last=True of the DataLoader",
    ),
    "nothing is left": (lambda: DataLoader(samples(12), 4, drop_last=True), ""),
    "a last batch of its own": (lambda: DataLoader(samples(10), 4), ""),
    "even shares": (
        lambda: DataLoader(
            samples(12),
            4,
            sampler=DistributedSampler(samples(12), 4, 1, drop_last=True),
        ),
        "",
    ),
    "no end is known": (lambda: DataLoader(iter([]), 4, drop_last=True), ""),  # type: ignore[arg-type]
    "no loader": (lambda: [torch.zeros(4)], ""),
}


@pytest.mark.parametrize("case", DROPPED)
def test_samples_that_are_never_evaluated_are_noted(case: str) -> None:
    make, note = DROPPED[case]
    recorder = Recorder()
    for _ in range(2):
        recorder.start("val", torch.nn.Linear(1, 1), make())
        labels = torch.arange(4) % 3
        recorder.before_step(labels)
        recorder.after_step({"preds": labels, "target": labels}, labels)
        notes = recorder.stop().notes
        assert [n for n in notes if "left out" in n] == (
            [f"val: left out of each evaluation are {note}"] if note else []
        )
        note = ""


# two processes with a Trainer

PAIR = 200  # seconds after which the scenarios hang


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each scenario did on each rank: value, exception, seconds, report."""
    folder = tmp_path_factory.mktemp("pair")
    done = script("ranks_in_trainer.py", free_port(), folder, seconds=PAIR)
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def _of_the_step(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Findings but the one about what DistributedSampler repeats, which is so in all of these."""
    return [finding for finding in report["findings"] if finding["check"] != "data"]


BREACHES = {
    "sanity check": "1 finding during the sanity check (epoch 0, step 0)",
    "first batch": "1 finding during validation (epoch 0, step 2)",
    "first batch, own collectives": "1 finding during validation (epoch 0, step 2)",
    "last batch": "1 finding during validation (epoch 0, step 2)",
    "after the last batch": "1 finding during validation (epoch 0, step 2)",
    "validate, last batch": "1 finding during validation (epoch 0, step 0)",
    "test, last batch": "1 finding during testing (epoch 0, step 0)",
    "predict, last batch": "1 finding during prediction (epoch 0, step 0)",
    "rank 0 alone": "1 finding during validation (epoch 0, step 0)",
    "first training step": "1 finding during training (epoch 0, step 0)",
    "training step, then validation": "1 finding during training (epoch 0, step 1)",
    "long_training": "1 finding during training (epoch 0, step 20)",
    "empty_rank_and_a_breach": "1 finding during validation (epoch 0, step 0)",
    "both": "2 findings during validation (epoch 0, step 0)",
}


@pytest.mark.parametrize("name", BREACHES)
def test_a_breach_on_one_rank_stops_both_with_one_message(
    happened: list[dict[str, Any]], name: str
) -> None:
    (_, first, waited, _), (_, second, _, _) = (rank[name] for rank in happened)
    assert first == second
    assert first.splitlines()[0] == f"EvalGuardError: {BREACHES[name]}"
    if name != "both":
        guilty = 0 if name in ("rank 0 alone", "empty_rank_and_a_breach") else 1
        assert f", on rank {guilty}" in first
        assert f", on rank {1 - guilty}" not in first
    assert waited < 10


def test_equal_findings_name_all_ranks(happened: list[dict[str, Any]]) -> None:
    lines = happened[0]["both"][1].splitlines()
    assert (
        "`net.1` (BatchNorm1d): is in train mode, expected eval mode, on all 2 ranks;"
        in lines[1]
    )
    assert (
        "`net.3` (Dropout): is in train mode, expected eval mode, on rank 1;"
        in lines[2]
    )


def test_each_report_holds_the_findings_of_all_ranks(
    happened: list[dict[str, Any]],
) -> None:
    for rank in happened:
        (finding,) = _of_the_step(rank["first batch"][3])
        assert finding["rank"] == 1


@pytest.mark.parametrize(
    ("name", "counted"),
    [
        ("user's exception in a step", None),
        ("user's exception before the reduction", None),
        ("user's exception after the reduction", 27),
    ],
)
def test_a_users_exception_on_one_rank_is_no_hang_of_ours(
    happened: list[dict[str, Any]], name: str, counted: int | None
) -> None:
    (value, error, waited, report), (_, theirs, _, _) = (
        rank[name] for rank in happened
    )
    assert (value, error) == (counted, "")
    assert theirs == "ValueError: bad target on rank 1 only"
    assert waited < 10
    if counted is None:
        assert report["notes"][-1] == (
            "val: no confusion matrix in an evaluation, because not every rank took part in it "
            "to the end"
        )


def test_a_clean_evaluation_takes_one_collective_and_leaves_nothing(
    happened: list[dict[str, Any]],
) -> None:
    for rank in happened:
        (started, keys, total), error, _, report = rank["clean"]
        assert error == ""
        assert [
            b - a for a, b in zip(started["bare"], started["guarded"], strict=True)
        ] == [
            # the sanity check and the first epoch's start, which has no evaluation before it
            0,
            *[1] * 4,
        ]
        # a rank may be one meeting ahead: of two meetings who came, the verdict and what each of
        # two ranks said; and how many ranks there are, and how many are gone
        assert keys <= 2 * (2 + 2) + 2
        assert total == 27
        assert _of_the_step(report) == []


def test_pairs_of_many_classes_take_one_more_collective(
    happened: list[dict[str, Any]],
) -> None:
    (count, pairs), error, _, _ = happened[0]["more_classes_than_a_matrix_holds"]
    assert (count, error) == (2, "")
    assert [total for total, _ in pairs] == [27, 16]
    assert happened[1]["more_classes_than_a_matrix_holds"][0] == (count, pairs)


VALUES: dict[str, Any] = {
    "empty_rank": 27,
    "two_guards": [25, 25],
    "one_process_after_several": 27,
}


@pytest.mark.parametrize("name", VALUES)
def test_what_is_unusual_and_right_is_counted(
    happened: list[dict[str, Any]], name: str
) -> None:
    for rank in happened:
        value, error, waited, report = rank[name]
        assert (value, error) == (VALUES[name], "")
        assert _of_the_step(report) == []
        assert waited < 10


def test_a_fault_of_ours_on_one_rank_costs_the_matrix_alone(
    happened: list[dict[str, Any]],
) -> None:
    (notes, results), error, _, _ = happened[0]["our_failure_on_one_rank"]
    assert (results, error) == ([], "")
    assert notes == [
        "val: no confusion matrix in an evaluation, because not every rank took part in it to the "
        "end"
    ]
    (notes, _), error, _, _ = happened[1]["our_failure_on_one_rank"]
    assert error == ""
    assert notes[0].startswith("the confusion matrix failed inside lightning-evalguard")


WITHOUT_A_STORE: dict[str, Any] = {
    "sanity check": EvalGuardError,
    "first batch": EvalGuardError,
    "first batch, own collectives": EvalGuardError,
    "last batch": EvalGuardError,
    "test, last batch": EvalGuardError,
    "rank 0 alone": EvalGuardError,
    "first training step": EvalGuardError,
    "empty_rank_and_a_breach": EvalGuardError,
    "empty_rank": 27,
    "two_guards": [25, 25],
}


def test_without_the_groups_store_the_ranks_agree_over_collectives(
    tmp_path: Path,
) -> None:
    names = [f"without a store, {name}" for name in WITHOUT_A_STORE]
    done = script("ranks_in_trainer.py", free_port(), tmp_path, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for name, expected in zip(names, WITHOUT_A_STORE.values(), strict=True):
        (value, error, waited, _), (other, same, _, _) = (rank[name] for rank in ranks)
        assert (name, error) == (name, same)
        assert waited < 10
        if expected is EvalGuardError:
            assert error.startswith("EvalGuardError: ")
            assert f"on rank {0 if 'rank 0' in name or 'empty' in name else 1}" in error
        else:
            assert (value, other, error) == (expected, expected, "")


def test_a_guard_on_rank_0_alone_waits_once_and_says_so(
    happened: list[dict[str, Any]],
) -> None:
    notes, error, waited, _ = happened[0]["guard_on_rank_0_only"]
    assert error == ""
    assert notes[0].startswith(
        "the ranks no longer coordinate findings, because one of them"
    )
    assert waited < 10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "batch", "catch"),
    [
        ("ddp", 0, []),
        ("ddp", 3, []),
        ("ddp", 3, ["catch"]),
        ("ddp_spawn", 3, []),
        ("ddp_fork", 3, []),  # what notebooks use
        ("ddp_fork", 0, ["catch"]),
    ],
)
def test_every_launcher_ends_all_its_processes(
    strategy: str, batch: int, catch: list[str], tmp_path: Path
) -> None:
    done = script("ranks_launched.py", strategy, batch, tmp_path, *catch, seconds=200)
    said = [(tmp_path / f"{rank}.txt").read_text().partition("\n") for rank in (0, 1)]
    assert said[0][2] == said[1][2]
    assert ", on rank 1; set at" in said[0][2]
    assert max(float(seconds) for seconds, _, _ in said) < 10
    if not catch:
        assert done.returncode != 0
        assert said[0][2].splitlines()[0] in done.stderr
    else:  # rank 0 goes on where it stands, or in the process that launched it
        assert (tmp_path / "caught0").exists()


@pytest.mark.slow
def test_fsdp2_is_guarded_on_its_shards(tmp_path: Path) -> None:
    names = [f"fsdp2, {what}" for what in ("clean", "full", "mode", "shard")]
    done = script("ranks_in_trainer.py", free_port(), tmp_path, *names)
    assert done.returncode == 0, done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    note = (
        "parameters are sharded: writes to the shards were looked for, what they and their "
        "gradients contain was not compared"
    )
    for rank in ranks:
        assert rank["fsdp2, clean"][:2] == ([note], "")
        assert note in rank["fsdp2, full"][0]
        assert rank["fsdp2, full"][1] == ""
        # what its statistics and dropout do in train mode are notes under these two
        assert rank["fsdp2, mode"][1].count(", on rank 1") == 2
        assert "`0.weight`" in rank["fsdp2, shard"][1]
    assert ranks[0]["fsdp2, shard"][1] == ranks[1]["fsdp2, shard"][1]


def test_ranks_that_evaluate_other_weights_are_named(tmp_path: Path) -> None:
    names = [
        f"replicas, {what}" for what in ("equal", "other weights", "other statistics")
    ]
    done = script("ranks_in_trainer.py", free_port(), tmp_path, *names)
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in (0, 1)]
    for rank in ranks:
        equal, weights, statistics = (rank[name][0] for name in names)
        assert equal == []
        assert [found[:2] for found in weights] == [("weights", "net.2")]
        assert "has other weights on rank 1 than on rank 0" in weights[0][2]
        assert [found[:2] for found in statistics] == [("weights", "net.1")]
        assert "has other running statistics on rank 1" in statistics[0][2]
