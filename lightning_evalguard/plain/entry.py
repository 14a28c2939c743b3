"""`watch()`: the first line of a script or notebook whose evaluations are to be checked."""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.util
import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from lightning_evalguard.instruments.tracebacks import trim
from lightning_evalguard.plain.judge import policies_of
from lightning_evalguard.plain.session import Session
from lightning_evalguard.policies import check_allow, check_policies
from lightning_evalguard.record import files as _files
from lightning_evalguard.record import provenance
from lightning_evalguard.record import run as record
from lightning_evalguard.report import Report, warn_text
from lightning_evalguard.screen import print_coloured


class ScriptReport(Report):
    """What `watch` verified and found; as a context manager it watches the block alone.

    Attributes:
        session: What watches; None after the end.
    """

    def __init__(self) -> None:
        super().__init__()
        self.session: Session | None = None
        self._folder: Path | None = None
        self._started = _now()
        self._error: str | None = None

    def __enter__(self) -> ScriptReport:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._error = None if error is None else f"{type(error).__name__}: {error}"
        trim(error, trace)
        self.stop()

    def begin(self, session: Session, folder: Path | None) -> None:
        """Watch until `stop`, at the latest until the process ends."""
        self.session, self._folder = session, folder
        session.start()
        atexit.register(self.stop)
        # such a process runs no `atexit`
        if multiprocessing.parent_process() is not None:
            multiprocessing.util.Finalize(None, self.stop, exitpriority=100)

    def stop(self) -> None:
        """End the watch; print what there is to say, and write the record that is asked for."""
        global _running
        session, self.session = self.session, None
        if session is None:
            return
        if _running is self:
            _running = None
        atexit.unregister(self.stop)
        if session.is_elsewhere():  # a forked worker
            return
        try:
            session.stop()
        finally:
            self._say(session)

    def _say(self, session: Session) -> None:
        self._write(session)
        if os.environ.get(record.REPORTS) is None and self._has_to_say():
            print_coloured(
                f"lightning-evalguard: {self}",
                remedies=[f.remedy for f in self.findings],
            )

    def _has_to_say(self) -> bool:
        return bool(self.findings) or any(
            result.insight for result in self.confusion.values()
        )

    def _write(self, session: Session) -> None:
        into = os.environ.get(record.REPORTS)
        folders = [
            Path(folder) for folder in (into, self._folder) if folder is not None
        ]
        if not folders or not any(self.checked.values()):
            return
        try:
            runs = [_run(self, session, self._started, self._error)]
            text = _files.json_text(record.content(self, runs)) + "\n"
            for folder in folders:
                _files.write_new(folder, record.NAME, text)
        except Exception as error:  # noqa: BLE001 - a full disk must not stop a script
            warn_text(
                f"{record.NAME}.json was not written: {type(error).__name__}: {error}"
            )


_running: ScriptReport | None = None


def watch(
    policy: str = "warn",
    *,
    allow: Mapping[str, Sequence[str]] | None = None,
    folder: str | os.PathLike[str] | None = None,
    **policies: str,
) -> ScriptReport:
    """Guard every training loop and every evaluation that runs from here on.

    A script needs no other change: what is an evaluation is found by `eval()` and `train()`,
    `no_grad`, backward passes, optimizer steps and loaders. Each finding is a warning at its line;
    at the end of the process the report is printed where there is something to say.

    Args:
        policy: What happens where the numbers are wrong: ``"warn"`` or ``"error"``, which stops
            the script.
        allow: Per check, glob patterns of qualified names, source files or functions whose
            findings are meant, e.g. ``{"modes": ["mc_*"]}``.
        folder: Where ``evalguard.json`` goes.
        policies: Policies of single checks, e.g. ``sync="ignore"``.

    Returns:
        The report, which grows; also a context manager, to watch one block alone.

    Raises:
        ValueError: On an unknown policy or check.

    Example:
        >>> with watch(sync="ignore") as report:
        ...     model = torch.nn.Sequential(torch.nn.Linear(4, 2), torch.nn.Dropout(0.5))
        ...     loader = torch.utils.data.DataLoader(torch.ones(16, 4), 4)
        ...     model = model.eval()
        ...     with torch.no_grad():
        ...         outputs = [model(batch) for batch in loader]
        >>> print(report)
        checked: 1 evaluation, 4 batches, 3 modules
    """
    global _running
    if policy not in ("warn", "error"):
        raise ValueError(f"policy={policy!r}: expected 'warn' or 'error'")
    for name, given in policies.items():
        if given == "fix":
            raise ValueError(
                f"{name}='fix': a script is not repaired, expected 'warn' or 'error'"
            )
    found = check_policies(**policies_of(policy, policies))
    check_allow(allow)
    if _running is not None:
        return _running
    report = ScriptReport()
    session = Session(report, found, allow)
    report.begin(session, None if folder is None else Path(folder))
    _running = report
    return report


def _run(
    report: Report, session: Session, started: str, error: str | None
) -> dict[str, Any]:
    """The script as one run of a record, in the words of `record.run`."""
    moment = {"epoch": len(session.history) - 1, "step": session.steps}
    return {
        "run": "script",
        "started": started,
        "ended": _now(),
        "error": error,
        **moment,
        "evaluated_on": {},
        "confusion": {
            name: result.to_dict() for name, result in report.confusion.items()
        },
        "history": session.history,
        "checkpoint": None,
        "seed": {
            "PL_GLOBAL_SEED": os.environ.get("PL_GLOBAL_SEED"),
            "torch": torch.initial_seed(),
        },
        "hyper_parameters": {},
        "data_hyper_parameters": {},
        "model": session.models.described(),
        "precision": "as the script has it",
        "strategy": "none",
        "device": session.models.device(),
        "devices": 1,
        "nodes": 1,
        "world_size": int(os.environ.get("WORLD_SIZE", "1")),
        "rank": int(os.environ.get("RANK", "0")),
        "git": provenance.git(),
        "versions": provenance.versions(),
    }


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
