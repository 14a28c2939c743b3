"""Scripts that know nothing of the guard: evaluations are found, and judged at their lines."""

from __future__ import annotations

import re
import runpy
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import lightning_evalguard
from lightning_evalguard import EvalGuardError, Report, evaluating, watch
from lightning_evalguard.__main__ import main
from lightning_evalguard.checks.sync.overrides import SUPPORTED
from lightning_evalguard.record import run as record

SCRIPTS = Path(__file__).parents[1] / "scripts"
HONEST = sorted((SCRIPTS / "honest").glob("*.py"))
FAULTY = sorted((SCRIPTS / "faulty").glob("*.py"))
_MARK = re.compile(r"# (\w+): ([a-z? ]+)$")
# A script may read a number at every step; that is said, and stops nothing.
_READS = re.compile(
    r"\.item\(\)|\.numpy\(\)|float\(|isfinite|Categorical|log_prob|print\(|int\(|bool\(|tolist"
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(path: Path, *arguments: str, **policies: Any) -> Report:
    """Run a script in this process, watched from before its first line."""
    before, sys.argv = sys.argv, [str(path), *arguments]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with watch(**policies) as report:
                runpy.run_path(str(path), run_name="__main__")
    finally:
        sys.argv = before
    assert not [note for note in report.notes if "failed inside" in note]
    return report


def found(report: Report) -> set[tuple[int, str]]:
    """Line and check of each finding; with ``?`` where it warns only."""
    return {
        (int((f.location or ":0").rpartition(":")[2]), f.check + "?" * _warns(f))
        for f in report.findings
    }


def without_reads(report: Report) -> Report:
    """Without the numbers that a script reads, where it is not about them."""
    left = Report()
    left.add(
        f
        for f in report.findings
        if f.check != "sync" or not _READS.search(f.expression or "")
    )
    return left


def _warns(finding: Any) -> bool:
    return finding.check == "sync" or not finding.certain


def marked(path: Path) -> dict[str, set[tuple[int, str]]]:
    """By the name of each fault, the lines and checks that are to be found."""
    faults: dict[str, set[tuple[int, str]]] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if (mark := _MARK.search(line)) is not None:
            checks = mark[2].replace("sync", "sync?").replace("??", "?").split()
            faults.setdefault(mark[1], set()).update(
                (number, check) for check in checks
            )
    return faults


FAULTS = [(path, name) for path in FAULTY for name in marked(path)]


@pytest.mark.parametrize("path", HONEST, ids=lambda path: path.stem)
def test_an_honest_script_is_silent(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = run(path)
    assert without_reads(report).findings == []
    assert report.checked["evaluations"] + report.checked["training_steps"] > 0


@pytest.mark.parametrize(
    ("path", "name"), FAULTS, ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_fault_is_found_at_its_line_and_its_fixed_twin_is_silent(
    path: Path, name: str
) -> None:
    expected = marked(path)[name]
    reads = any(check == "sync?" for _, check in expected)
    if reads and not SUPPORTED:
        pytest.skip("torch < 2.9: no syncs are listened for")
    report, fixed = run(path, name), run(path, name, "--fixed")
    assert found(report if reads else without_reads(report)) == expected
    assert found(fixed if reads else without_reads(fixed)) == set()


def test_there_are_faults_of_all_five_kinds() -> None:
    assert len(HONEST) >= 20
    checks = {check for path, name in FAULTS for _, check in marked(path)[name]}
    assert {"modes", "grad", "stochastic", "state", "sync?"} <= checks


def test_the_spam_case_comes_out_without_a_line_changed() -> None:
    result = run(SCRIPTS / "honest" / "spam.py").confusion["evaluate"]
    assert result.matrix is not None
    assert result.matrix.tolist() == [[154, 6], [10, 30]]
    scores = {
        k: round(result.scores[k], 4) for k in ("accuracy", "recall", "precision")
    }
    assert scores == {"accuracy": 0.92, "recall": 0.75, "precision": 0.8333}
    assert "hides that recall of `1` is 0.75" in result.insight


@pytest.mark.parametrize(
    ("script", "stage", "kind", "total"),
    [
        ("mnist", "test", "`nll_loss`", 397),
        ("whole_set", "evaluate", "`binary_cross_entropy_with_logits`", 80),
        ("k_fold", "predict", "`sklearn.metrics.f1_score`", 190),
        ("inference", "evaluate", "`accuracy` (MulticlassAccuracy)", 150),
        ("ensemble", "evaluate", "the comparison `probs.argmax(1) == yb`", 50),
        ("nano_gpt", "estimate_loss", "`cross_entropy`", 960),
    ],
)
def test_the_matrix_comes_from_what_the_script_computes(
    script: str, stage: str, kind: str, total: int
) -> None:
    result = run(SCRIPTS / "honest" / f"{script}.py").confusion[stage]
    assert result.source.startswith(kind)
    assert result.total == total


def trained() -> tuple[nn.Module, torch.Tensor, list[bool]]:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)
    )
    optimizer = torch.optim.Adam(net.parameters(), 0.1)
    loader = DataLoader(torch.randn(64, 4), 8, shuffle=True)
    held_out = DataLoader(torch.randn(40, 4), 8)
    for _ in range(3):
        net.train()
        for x in loader:
            optimizer.zero_grad()
            net(x).logsumexp(1).mean().backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            outputs = [net(x) for x in held_out]
    return (
        net,
        torch.cat([*outputs, torch.rand(3, 2)]),
        [m.training for m in net.modules()],
    )


def test_a_watched_script_computes_the_same_bit_for_bit() -> None:
    bare, bare_outputs, bare_modes = trained()
    with watch() as report:
        net, outputs, modes = trained()
    assert torch.equal(bare_outputs, outputs)
    assert bare_modes == modes
    twins = zip(bare.state_dict().values(), net.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in twins)
    assert report.checked["evaluations"] == 3
    assert report.findings == []


def test_nothing_stays_behind() -> None:
    places = (
        nn.Module,
        torch.Tensor,
        torch.autograd,
        torch.inference_mode,
        nn.functional,
    )
    before = [dict(vars(place)) for place in places]
    run(SCRIPTS / "honest" / "mnist.py")
    assert [dict(vars(place)) for place in places] == before


def test_a_block_that_evaluates_keeps_its_own_guard() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    with watch(sync="ignore") as report, evaluating(net) as inner:
        for x in DataLoader(torch.ones(8, 4), 2):
            net(x)
    assert inner.checked["batches"] == 4
    assert report.checked["evaluations"] == 0


def test_the_policy_error_stops_at_the_second_batch() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))
    seen = 0
    fact = "is in train mode while it is evaluated"
    with pytest.raises(EvalGuardError, match=fact), watch("error"), torch.no_grad():
        for x in DataLoader(torch.ones(8, 4), 2):
            seen += len(net(x))
    assert seen == 2


def test_what_is_meant_is_allowed_by_the_name_that_the_finding_gives() -> None:
    script = SCRIPTS / "faulty" / "forms.py"
    (finding,) = run(script, "mc_dropout").findings
    assert finding.switch == 'watch(allow={"modes": ["drop"]})'
    assert run(script, "mc_dropout", allow={"modes": ["drop"]}).findings == []
    literature = SCRIPTS / "faulty" / "literature.py"
    (finding,) = run(literature, "no_eval").findings
    assert (
        run(literature, "no_eval", allow={"modes": [finding.pattern or ""]}).findings
        == []
    )


def test_unknown_policies_are_refused() -> None:
    for given in (
        {"policy": "fix"},
        {"modes": "fix"},
        {"mode": "warn"},
        {"allow": {"mode": []}},
    ):
        with pytest.raises((ValueError, KeyError)):
            watch(**given)  # type: ignore[arg-type]


# from outside


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("EVALGUARD", raising=False)

    def act(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        return (status, *capfd.readouterr())

    return act


def test_run_guards_a_plain_script(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    script = SCRIPTS / "faulty" / "literature.py"
    (line,) = (number for number, _ in marked(script)["no_eval"])
    status, out, err = command(
        "run", "--json", "f.json", "--sarif", "f.sarif", script, "no_eval"
    )
    assert status == 1
    assert out.count("accuracy") == 3
    summary = err[err.index("lightning-evalguard:") :]
    assert (
        f"literature.py:{line} in `Sequential` (the whole model): is in train mode"
        in summary
    )
    assert (
        "Call `model.eval()` before this loop and `model.train()` after it." in summary
    )
    printed = out.splitlines()[-1].rpartition(" ")[2]
    counted = re.search(r"evaluate_without_eval: accuracy (0\.\d+)", summary)
    assert counted is not None
    # the script's own, to the digits that the summary has
    assert float(counted[1]) == pytest.approx(float(printed), abs=5.1e-4)
    written = record.read(Path("f.json"))
    assert written["runs"][0]["run"] == "script"
    assert len(written["runs"][0]["history"]) == 3
    assert '"modes"' in Path("f.sarif").read_text()
    assert command("run", "--baseline", "f.json", script, "no_eval")[0] == 0
    status, _, err = command("show", "f.json")
    assert status == 0


def test_a_clean_plain_script_passes_and_shows_its_matrix(
    command: Callable[..., tuple[int, str, str]],
) -> None:
    status, out, err = command("run", SCRIPTS / "honest" / "spam.py")
    assert (status, out) == (0, "accuracy 0.92\n")
    assert err.startswith("lightning-evalguard: no findings in 1 evaluation\n")
    assert "\nevaluate: accuracy 0.9200, precision 0.8333" in err


def test_the_public_name_is_a_function() -> None:
    assert lightning_evalguard.watch is watch


@pytest.mark.parametrize(
    "form", ["sum of equal arrays", "lists of arrays", "lists of numbers"]
)
def test_labels_that_a_script_compares_in_numpy_are_counted(
    form: str, tmp_path: Path
) -> None:
    loops = {
        "sum of equal arrays": "hits += np.sum(net(a).argmax(1).cpu().numpy() == b.numpy())",
        "lists of arrays": "P.append(net(a).argmax(1).numpy()); T.append(b.numpy())",
        "lists of numbers": "P.append(net(a).argmax(1).tolist()); T.append(b.tolist())",
    }
    script = tmp_path / "script.py"
    script.write_text(
        "import numpy as np, torch\n"
        "from torch import nn\n"
        "from torch.utils.data import DataLoader, TensorDataset\n"
        "torch.manual_seed(0)\n"
        "x = torch.randn(70, 8); y = (x[:, 0] > 0).long()\n"
        "net = nn.Linear(8, 2); opt = torch.optim.SGD(net.parameters(), 0.1)\n"
        "for a, b in DataLoader(TensorDataset(x, y), 20):\n"
        "    opt.zero_grad(); nn.functional.cross_entropy(net(a), b).backward(); opt.step()\n"
        "net.eval(); hits = 0; P = []; T = []\n"
        "with torch.no_grad():\n"
        "    for a, b in DataLoader(TensorDataset(x, y), 20):\n"
        f"        {loops[form]}\n"
        "print((np.concatenate(P) == np.concatenate(T)).mean() if P else hits / 70)\n"
    )
    before = vars(torch.Tensor).get("numpy"), vars(torch.Tensor)["__array__"]
    report = run(script)
    assert (vars(torch.Tensor).get("numpy"), vars(torch.Tensor)["__array__"]) == before
    assert report.confusion["evaluate"].total == 70
    assert all(sync.owner == "user" for sync in report.syncs)


def test_a_block_without_an_accelerator_counts_what_it_scores() -> None:
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    y, net = (x[:, 0] > 0).long(), nn.Linear(4, 2)
    right = int((net(x).argmax(1) == y).sum())
    loader = DataLoader(torch.utils.data.TensorDataset(x, y), 20)
    with evaluating(net) as compared:
        for a, b in loader:
            (net(a).argmax(1) == b).sum()
    with evaluating(net) as lost:
        for a, b in loader:
            nn.functional.cross_entropy(net(a), b)
    with evaluating(net) as in_numpy:
        for a, b in loader:
            (net(a).argmax(1).numpy() == b.numpy()).sum()
    with evaluating(net) as unscored:
        for a, _ in loader:
            net(a).softmax(1)
    for report in (compared, lost, in_numpy):
        assert report.confusion["evaluate"].scores["accuracy"] == pytest.approx(
            right / 50
        )
    assert unscored.confusion == {}
    assert not any("confusion" in note for note in unscored.notes)
