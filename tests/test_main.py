"""The command line: records shown and compared, and scripts that know nothing of the guard."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path

import lightning.pytorch as pl
import pytest
from lightning.pytorch.loggers import CSVLogger

import lightning_evalguard
from lightning_evalguard import EvalGuard, Finding, Report
from lightning_evalguard.__main__ import main
from lightning_evalguard.record import files as _files
from lightning_evalguard.record import run as record
from models import modes as zoo
from models.scored import Scored
from words import said

SCRIPTS = Path(__file__).parent / "scripts"
Make = Callable[..., pl.Trainer]
pytestmark = pytest.mark.filterwarnings("ignore:Experiment logs directory")


@dataclass
class Done:
    status: int
    out: str
    err: str


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Callable[..., Done]:
    """Run one command in an empty folder, as ``python -m lightning_evalguard ...``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("EVALGUARD", raising=False)

    def run(*arguments: object) -> Done:
        status = main([str(argument) for argument in arguments])
        return Done(status, *capfd.readouterr())

    return run


# show and html


@pytest.fixture
def records(trainer: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs outside of any checkout: two on one set, the third on another."""
    # it is asked once a process, wherever that is
    monkeypatch.setattr(record, "git", lambda: None)
    for seed in (1, 1, 2):
        run = trainer(callbacks=[EvalGuard()], logger=CSVLogger(tmp_path))
        module = Scored()
        module.save_hyperparameters({"lr": seed, "depth": 3})
        run.validate(module, zoo.loader(seed=seed), verbose=False)
    return tmp_path / "lightning_logs"


def test_one_record_is_shown_in_full(
    command: Callable[..., Done], records: Path
) -> None:
    done = command("show", records / "version_0")
    assert done.status == 0
    report = Report.load(records / "version_0" / "evalguard.json")
    assert str(report) in done.out
    assert "  validate · " in done.out
    assert "val 32 samples #" in done.out


def test_several_stand_side_by_side_with_what_differs(
    command: Callable[..., Done], records: Path
) -> None:
    out = command("show", records).out
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    assert out.split()[:3] == ["version_0", "version_1", "version_2"]
    assert lines["hparams.lr"].split() == ["hparams.lr", "1", "1", "2"]
    assert "hparams.depth" not in lines
    assert "git" not in lines  # of none
    sets = lines["val set"].split("#")[1:]
    assert sets[0].split()[0] == sets[1].split()[0] != sets[2].split()[0]
    assert "val: scored on 2 different sets; its scores do not compare" in out
    assert "do not compare" not in command("show", *sorted(records.glob("*"))[:2]).out


def test_a_record_becomes_a_page(command: Callable[..., Done], records: Path) -> None:
    done = command("html", records / "version_0")
    assert done.out.strip() == str(records / "version_0" / "evalguard.html")
    assert (
        command("html", records / "version_0", "-o", "p.html").out.strip() == "p.html"
    )
    assert Path("p.html").read_text().startswith("<!doctype html>")


def test_no_error_of_python_is_what_a_wrong_file_is_answered_with(
    command: Callable[..., Done],
) -> None:
    Path("text.json").write_text("not JSON")
    Path("bytes.json").write_bytes(b"\xff\xfe")
    Path("deep.json").write_text("[" * 200_000)
    for given, words in (
        ("text.json", "it is no JSON, from line 1, column 1 on"),
        ("bytes.json", "it is no text in UTF-8"),
        ("deep.json", "it is nested too deeply"),
        ("nowhere", "nowhere: no such file or directory"),
    ):
        done = command("show", given)
        assert done.status == 2
        assert words in done.err
        assert "Errno" not in done.err


def test_a_misspelt_choice_is_answered_with_the_one_that_is_meant(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--format", "gitub", "train.py"])
    assert "Did you mean: github" in capsys.readouterr().err


def test_what_cannot_be_shown_is_said(
    command: Callable[..., Done], records: Path
) -> None:
    for arguments, words in (
        (("show", "nowhere"), "nowhere"),
        (("html", records), "holds 3 records, expected one"),
        (("show", SCRIPTS), "no evalguard.json in"),
        (("run",), "expected a script"),
        (("run", "--baseline", "nowhere.json", "x.py"), "nowhere.json"),
    ):
        done = command(*arguments)
        assert done.status == 2
        assert words in done.err


# run: three scripts that know nothing of the guard


def test_a_clean_script_passes(command: Callable[..., Done]) -> None:
    done = command("run", SCRIPTS / "plain.py")
    assert "guards: ['AttachedGuard']" in done.out
    assert done.status == 0, done.err
    assert done.err.endswith("lightning-evalguard: no findings in 2 evaluations\n")


def test_a_breach_fails_and_is_shown_at_its_line(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    script = SCRIPTS / "plain.py"
    done = command("run", "--json", "f.json", "--sarif", "f.sarif", script, "--bug")
    assert done.status == 1
    assert (
        said(done.err).count("Remove `self.net[1].train()`. [modes]") == 2
    )  # as it ran; at the end
    found = record.read(tmp_path / "f.json")
    assert {f["check"] for f in found["report"]["findings"]} == {"modes"}
    assert found["runs"][0]["run"] == "fit"
    (result,) = json.loads((tmp_path / "f.sarif").read_text())["runs"][0]["results"]
    line = result["locations"][0]["physicalLocation"]["region"]["startLine"]
    assert "self.net[1].train()" in script.read_text().splitlines()[line - 1]


def test_the_scripts_own_status_is_kept_and_its_own_guard_acts_alone(
    command: Callable[..., Done],
) -> None:
    done = command(
        "run", "--json", "f.json", SCRIPTS / "plain.py", "--guard", "--status", "3"
    )
    assert done.status == 3
    assert "guards: ['AttachedGuard', 'EvalGuard']" in done.out
    assert "the script ended with status 3" in done.err
    assert len(record.read(Path("f.json"))["runs"]) == 1


@pytest.mark.slow
def test_the_packages_other_name_is_guarded(command: Callable[..., Done]) -> None:
    done = command("run", SCRIPTS / "other_name.py")
    assert done.status == 1
    assert "Pass training=self.training. [stochastic]" in said(done.err)


def test_a_lightning_cli_is_guarded_as_a_module(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(SCRIPTS), prepend=os.pathsep)
    done = command(
        "run", "--json", "f.json", "-m", "cli", "validate", "--model.bug=true",
        "--model.api_key=hunter2", "--trainer.accelerator=cpu", "--trainer.logger=false",
    )  # fmt: skip
    assert done.status == 1
    assert "[modes]" in done.err
    assert "hunter2" not in Path("f.json").read_text()


# run: what it makes of the records that the guards of a script leave

BREACH = Finding("modes", "validate", "is in train mode", "Call `.eval()`.", "bn",
                 location="train.py:3", expression="self.bn.train()")  # fmt: skip
DOUBT = replace(BREACH, check="stochastic", subject="vae", certain=False)
WAIT = replace(BREACH, check="sync", subject=None, expression="loss.item()")


def leaves(*reports: Sequence[Finding]) -> str:
    """A script in whose processes guards found these; it names the arguments that it got."""
    for i, findings in enumerate(reports):
        report = Report()
        report.checked["batches"] = 1
        report.add(findings)
        Path(f"left-{i}.json").write_text(_files.json_text(record.content(report, [])))
    Path("script.py").write_text(
        "import glob, os, shutil, sys\n"
        "print(sys.argv[1:], os.environ['EVALGUARD'])\n"
        "for i, left in enumerate(sorted(glob.glob('left-*'))):\n"
        "    shutil.copy(left, f\"{os.environ['EVALGUARD_REPORTS']}/evalguard-{i}.json\")\n"
    )
    return "script.py"


@pytest.mark.parametrize(
    ("findings", "status", "strictly"),
    [((), 0, 0), ((DOUBT,), 0, 1), ((WAIT,), 0, 1), ((BREACH,), 1, 1)],
    ids=["clean", "doubt", "sync", "breach"],
)
def test_what_counts(
    findings: Sequence[Finding],
    status: int,
    strictly: int,
    command: Callable[..., Done],
) -> None:
    script = leaves(findings)
    done = command("run", script)
    assert done.status == status
    assert done.err.count("  warning: ") == (0 if status else len(findings))
    assert command("run", "--strict", script).status == strictly


def test_arguments_after_the_script_are_its_own(
    command: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        command("run", leaves(()), "--strict", "-m").out == "['--strict', '-m'] warn\n"
    )
    monkeypatch.setenv("EVALGUARD", "error")
    assert command("run", leaves(())).out == "[] error\n"


def test_what_several_processes_found_at_one_place_is_one_finding(
    command: Callable[..., Done],
) -> None:
    done = command("run", leaves([BREACH], [replace(BREACH, rank=1, stage="test")]))
    assert "lightning-evalguard: 1 finding\n" in done.err
    assert "(2x)" in done.err


def test_a_baseline_lets_pass_what_stood_there_also_in_another_checkout(
    command: Callable[..., Done], tmp_path: Path
) -> None:
    at = str(tmp_path / "train.py:3")
    old, new = (
        replace(BREACH, location=at),
        replace(BREACH, location=at, subject="other"),
    )
    assert command("run", "--json", "old.json", leaves([old])).status == 1
    moved = str(tmp_path / "train.py:97")
    done = command(
        "run", "--baseline", "old.json", leaves([replace(old, location=moved)])
    )
    assert done.status == 0
    assert done.err.endswith(
        "lightning-evalguard: no findings, 1 more in the baseline\n"
    )
    written = Path("old.json").read_text().replace(str(tmp_path), "/elsewhere")
    Path("old.json").write_text(written)
    done = command(
        "run", "--baseline", "old.json", "--sarif", "s.json", leaves([old, new])
    )
    assert done.status == 1
    assert "lightning-evalguard: 1 finding, 1 more in the baseline\n" in done.err
    results = json.loads(Path("s.json").read_text())["runs"][0]["results"]
    assert [r["baselineState"] for r in results] == ["unchanged", "new"]


@pytest.mark.parametrize("form", ["json", "sarif", "github"])
def test_findings_are_printed_in_the_form_that_is_asked_for(
    form: str, command: Callable[..., Done]
) -> None:
    script = leaves([replace(BREACH, fact="is\nin 100%, so"), DOUBT])
    done = command("run", "--format", form, script)
    assert done.status == 1
    assert "lightning-evalguard: 2 findings" in done.err
    printed = done.out.partition("\n")[2]  # the script prints a line of its own
    if form == "github":
        error, warning = printed.splitlines()
        assert error.startswith("::error file=train.py,line=3,title=evalguard[modes]::")
        assert "is%0Ain 100%25, so" in error
        assert warning.startswith(
            "::warning file=train.py,line=3,title=evalguard[stochastic]::"
        )
        strict = command("run", "--strict", "--format", form, script).out
        assert strict.count("::error ") == 2
    else:
        written = json.loads(printed)
        assert ("fingerprints" in written) == (form == "json")
        assert ("$schema" in written) == (form == "sarif")


def test_a_finding_without_a_line_is_annotated_at_the_script(
    command: Callable[..., Done],
) -> None:
    done = command(
        "run", "--format", "github", leaves([replace(BREACH, location=None)])
    )
    assert "::error file=script.py,line=1," in done.out


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (
            ("shw", "x"),
            "'shw' is no command, expected one of show, html, run. Did you mean: show",
        ),
        (("train.py",), "Did you mean: run train.py"),
        (("run", "--sarfi", "x", "train.py"), "Did you mean: --sarif"),
    ],
)
def test_a_misspelt_word_is_guessed(
    arguments: tuple[str, ...], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        sys.exit(main(arguments))
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert (
        capsys.readouterr().out
        == f"lightning-evalguard {lightning_evalguard.__version__}\n"
    )


def test_the_action_and_the_hook_call_what_is_there(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = Path(__file__).parents[1]
    action = (root / "action.yml").read_text()
    hook = (root / ".pre-commit-hooks.yaml").read_text()
    options = set(re.findall(r"--[a-z]+", action))
    assert options == {"--format", "--strict", "--baseline", "--json"}
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    shown = capsys.readouterr().out
    assert [option for option in options if option not in shown] == []
    assert "entry: lightning-evalguard run\n" in hook


def test_a_console_script_is_installed() -> None:
    (script,) = entry_points(group="console_scripts", name="lightning-evalguard")
    assert script.load() is main


def test_a_script_without_a_trainer_does_not_pass(command: Callable[..., Done]) -> None:
    done = command("run", leaves())
    assert done.status == 2
    assert (
        "nothing was checked: no model of the script was trained or evaluated"
        in done.err
    )


def test_a_script_that_a_signal_ended_is_named(command: Callable[..., Done]) -> None:
    Path("killed.py").write_text("import os; os.kill(os.getpid(), 9)")
    killed = command("run", "killed.py")
    assert killed.status == 137
    assert "status 137 (SIGKILL)" in killed.err


_WAITS = """
import signal, sys, time
from pathlib import Path
heard = []
for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
    signal.signal(getattr(signal, name), lambda number, frame: heard.append(number))
Path("ready").touch()
while not Path("enough").exists():
    time.sleep(0.02)
Path("heard").write_text(" ".join(map(str, heard)))
sys.exit(7)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1"])
def test_a_signal_to_the_command_comes_to_the_script_once(
    tmp_path: Path, name: str
) -> None:
    (tmp_path / "waits.py").write_text(_WAITS)
    command = [sys.executable, "-m", "lightning_evalguard", "run", "waits.py"]
    number = getattr(signal, name)
    # what a background job ignores stays ignored
    before = signal.signal(number, signal.SIG_DFL)
    try:
        # without a terminal, as in a batch system
        process = subprocess.Popen(command, cwd=tmp_path, start_new_session=True)
    finally:
        signal.signal(number, before)
    while not (tmp_path / "ready").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    time.sleep(1)
    (tmp_path / "enough").touch()
    assert process.wait() == 7
    assert (tmp_path / "heard").read_text() == str(int(number))


def test_it_is_a_module_of_the_package_that_needs_torch_alone() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n"
        "    runpy.run_module('lightning_evalguard', run_name='__main__')\n"
        "except SystemExit:\n"
        "    print(sorted({'lightning', 'torchmetrics', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "COMMAND" in done.stdout
    assert done.stdout.endswith("[]\n")
