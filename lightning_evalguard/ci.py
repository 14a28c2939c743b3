"""Runs a script under guard and judges what was found, for CI."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, Literal, get_args

from lightning_evalguard.attach import VARIABLE, policy_of
from lightning_evalguard.record import files as _files
from lightning_evalguard.record import run as record
from lightning_evalguard.report import Finding, Report
from lightning_evalguard.screen import print_coloured
from lightning_evalguard.trainer.verdict import amount, looked_at
from lightning_evalguard.views.github import workflow_commands
from lightning_evalguard.views.sarif import is_error, merged, sarif

Form = Literal["text", "json", "sarif", "github"]
FORMS: tuple[Form, ...] = get_args(Form)
NOTHING_CHECKED = 2
_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_SIGNALS = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
_SITE = Path(__file__).parent / "plain" / "site"


@dataclass
class ScriptOutcome:
    """What became of a script.

    Attributes:
        status: Its exit status.
        report: What all its guards, in all its processes, verified and found.
        runs: Their runs, as in ``evalguard.json``.
    """

    status: int
    report: Report = field(default_factory=Report)
    runs: list[dict[str, Any]] = field(default_factory=list)


def run(
    command: Sequence[str],
    *,
    strict: bool = False,
    sarif_path: Path | None = None,
    json_path: Path | None = None,
    baseline: Path | None = None,
    form: Form = "text",
) -> int:
    """Run ``python *command`` under guard, print what was found, and return the exit status.

    What was found is printed on standard error, as text; in another form, on standard output too.

    Args:
        command: A script and its arguments, or ``-m``, a module and its arguments.
        strict: Whether suspicions and warnings count too.
        sarif_path: Where to write SARIF.
        json_path: Where to write the findings and runs, which may serve as a baseline.
        baseline: Such a file: what stands in it does not count.
        form: How findings are printed: ``"github"`` as annotations of a pull request.

    Returns:
        The script's own status where that is not 0; 1 where something was found that counts; 2
        where nothing was checked; else 0.

    Raises:
        ValueError: If `baseline` is no such file.
    """
    root = _root()
    known = None
    if baseline is not None:
        known = _known(baseline, root)
    outcome = watch_script(command)
    findings = merged(outcome.report.findings, root)
    script = None
    if command[0] != "-m":
        script = Path(command[0])

    def written(form: Form) -> str:
        if form == "json":
            content = record.content(outcome.report, outcome.runs)
            return _files.json_text(content | {"fingerprints": list(findings)}) + "\n"
        if form == "sarif":
            log = sarif(findings, root, script, known, outcome.status)
            return json.dumps(log, indent=1) + "\n"
        new = {
            same: f
            for same, f in findings.items()
            if known is None or same not in known
        }
        return workflow_commands(new, root, script, strict)

    if json_path is not None:
        _files.write_over(json_path, written("json"))
    if sarif_path is not None:
        _files.write_over(sarif_path, written("sarif"))
    if form != "text":
        print(written(form), end="")  # noqa: T201
    fresh = [f for same, f in findings.items() if known is None or same not in known]
    counts = [f for f in fresh if strict or is_error(f)]
    lines = _lines_of(outcome, fresh, counts, len(findings) - len(fresh))
    print_coloured("\n".join(lines), remedies=[f.remedy for f in fresh])
    if outcome.status:
        return outcome.status
    if counts:
        return 1
    if any(outcome.report.checked.values()):
        return 0
    return NOTHING_CHECKED


def _lines_of(
    outcome: ScriptOutcome,
    fresh: Sequence[Finding],
    counts: Sequence[Finding],
    known: int,
) -> list[str]:
    """What is said of a script: its new findings, how it ended, its matrices."""
    checked = outcome.report.checked
    lines = [f"lightning-evalguard: {_summary(fresh, known, checked)}"]
    for finding in fresh:
        doubt = "warning: "
        if finding in counts:
            doubt = ""
        lines.append(f"  {doubt}{finding}")
    if outcome.status:
        lines.append(f"  the script ended with status {_named(outcome.status)}")
    if any(checked.values()):
        return lines + _matrices(outcome)
    lines.append(
        "  nothing was checked: no model of the script was trained or evaluated"
    )
    return lines


def watch_script(command: Sequence[str]) -> ScriptOutcome:
    """Run ``python *command`` with a guard in each of its Trainers and around its plain loops."""
    with tempfile.TemporaryDirectory(prefix="evalguard-") as folder:
        environment = {**os.environ, record.REPORTS: folder}
        environment[VARIABLE] = policy_of(environment.get(VARIABLE, "")) or "warn"
        # Python runs the `sitecustomize` there first; the script itself is run as ever
        paths = [str(_SITE), *filter(None, [environment.get("PYTHONPATH")])]
        environment["PYTHONPATH"] = os.pathsep.join(paths)
        outcome = ScriptOutcome(_status([sys.executable, *command], environment))
        for path in record.found_at(Path(folder)):
            _merge(outcome, path)
    return outcome


def _matrices(outcome: ScriptOutcome) -> list[str]:
    """The matrix of each evaluation of a plain script; a Trainer shows its own."""
    plain = [run["confusion"] for run in outcome.runs if run["run"] == "script"]
    keys = sorted(set().union(*plain))
    return [f"{key}: {outcome.report.confusion[key]}" for key in keys]


def _merge(outcome: ScriptOutcome, path: Path) -> None:
    theirs = Report.load(path)
    all_of_them = outcome.report
    # what several ranks see at one place is one finding
    all_of_them.add(replace(finding, rank=0) for finding in theirs.findings)
    all_of_them.checked.update(theirs.checked)
    all_of_them.confusion.update(theirs.confusion)
    all_of_them.syncs += [
        sync for sync in theirs.syncs if sync not in all_of_them.syncs
    ]
    for note in theirs.notes:
        all_of_them.note(note)
    outcome.runs += record.read(path)["runs"]


def _status(command: Sequence[str], environment: dict[str, str]) -> int:
    with _passed_on() as started, subprocess.Popen(command, env=environment) as script:
        started(script)
        status = script.wait()
    if status >= 0:
        return status
    return 128 - status


@contextmanager
def _passed_on() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Hand the signals that are sent to this process on to a script, which ends as it likes.

    A batch system, `timeout` or a CI job ends what it started, and knows nothing of the script.
    """
    scripts: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def pass_on(number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and _is_in_the_foreground():
            return  # the terminal sends it to the script too
        if not scripts:
            early.append(number)
        for script in scripts:
            script.send_signal(number)

    def started(script: subprocess.Popen[bytes]) -> None:
        scripts.append(script)
        for number in early:
            script.send_signal(number)

    heard = [s for s in _SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
    before = {number: signal.signal(number, pass_on) for number in heard}
    try:
        yield started
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_the_foreground() -> bool:
    """Whether a terminal sends Ctrl-C to this process and to all that it started."""
    if os.name == "nt":
        return True
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)


def _known(baseline: Path, root: Path) -> set[str]:
    """Fingerprints of what stands in a baseline, perhaps of another machine's checkout."""
    written = record.read(baseline)
    if "fingerprints" in written:
        return set(written["fingerprints"])
    return set(merged(Report.load(baseline).findings, root))


def _summary(fresh: Sequence[Finding], known: int, checked: Mapping[str, int]) -> str:
    said = "no findings"
    if fresh:
        said = amount(len(fresh), "finding")
    if checked.get("evaluations") or checked.get("training_steps"):
        said += f" in {looked_at(checked)}"
    if known:
        said += f", {known} more in the baseline"
    return said


def _named(status: int) -> str:
    if status > 128:
        try:
            return f"{status} ({signal.Signals(status - 128).name})"
        except ValueError:
            pass
    return str(status)


def _root() -> Path:
    """Of the checkout, to which review tools relate paths; else the working directory."""
    command = ("git", "rev-parse", "--show-toplevel")
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=5, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return Path.cwd()
    return Path(done.stdout.strip())
