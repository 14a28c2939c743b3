"""The record of a run, ``evalguard.json``: what was evaluated, on what, how, and what was found."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch

from lightning_evalguard.data.fingerprint import Content, whole
from lightning_evalguard.data.loaders import listed, owned
from lightning_evalguard.data.portraits import Portrait
from lightning_evalguard.instruments.replay import uncollected
from lightning_evalguard.record import files as _files
from lightning_evalguard.record import ledger
from lightning_evalguard.record.agreement import (
    Disagreement,
    disagreements,
    records_beside,
    weights_hash,
)
from lightning_evalguard.record.outcomes import Hits, Outcomes
from lightning_evalguard.record.plain import plain
from lightning_evalguard.record.provenance import checkpoint, git, versions
from lightning_evalguard.record.trained import Trained, trained_before
from lightning_evalguard.report import FORMAT, Report, warn_text
from lightning_evalguard.stages import is_sanity_check

REPORTS = "EVALGUARD_REPORTS"
"""Environment variable: a folder in which every guard of every process leaves its record."""

NAME = "evalguard"
_WRITTEN = ("fit", "validate", "test")
_KEYS = {"validate": "val", "fit": "val"}


class Records:
    """The records of one guard: one file for each folder that its runs log to.

    ``evalguard.json`` holds the guard's report and a list of its runs; each run that ends there
    adds itself, so that a fit and the test after it stand in one file. A file belongs to the guard
    and process that began it: another one in the same folder writes ``evalguard-2.json``.

    Args:
        where: ``"auto"``: the folder of the run's first logger, and nothing without a logger; a
            folder; None to write nothing.
        report: The guard's report.
        outcomes: Whether one bit a sample is kept.
        trained_on: Gives what the last fit trained with.
    """

    def __init__(
        self,
        where: str | os.PathLike[str] | None,
        report: Report,
        outcomes: bool = False,
        trained_on: Callable[[], list[Portrait]] = list,
    ) -> None:
        self._where, self._report = where, report
        self.trained_on = trained_on
        self.outcomes = outcomes
        self._files: dict[tuple[int, Path], Path] = {}
        self._runs: dict[Path, list[dict[str, Any]]] = {}
        self._failed = False

    def open(self, trainer: Any) -> RecordedRun:
        """A fit, validate, test or predict of `trainer` begins."""
        return RecordedRun(self, trainer, self._wanted(trainer))

    def _wanted(self, trainer: Any) -> bool:
        """Whether there is a record at all; the same on every rank."""
        return bool(os.environ.get(REPORTS)) or self._records(trainer)

    def _records(self, trainer: Any) -> bool:
        if (
            trainer.fast_dev_run
            or trainer.barebones
            or trainer.state.fn not in _WRITTEN
        ):
            return False
        if self._where == "auto":
            return bool(trainer.loggers)
        return self._where is not None

    def write(self, run: RecordedRun) -> None:
        """The run is over: put it on record. Whatever fails costs one warning, never the run."""
        try:
            with torch.inference_mode(False):
                self._write(run)
        except Exception as error:  # noqa: BLE001 - a full disk must not stop a training run
            self.failed(error)

    def note(self, sentence: str) -> None:
        """Put a sentence into the report."""
        self._report.note(sentence)

    def failed(self, error: Exception) -> None:
        """Say once that there is no record."""
        if not self._failed:
            self._failed = True
            warn_text(f"{NAME}.json was not written: {type(error).__name__}: {error}")

    def _write(self, run: RecordedRun) -> None:
        said = run.said()
        trainer = run.trainer
        folders = [Path(os.environ[REPORTS])] if os.environ.get(REPORTS) else []
        told: list[str] = []
        if (
            trainer.is_global_zero
            and self._records(trainer)
            and (own := self.folder(trainer)) is not None
        ):
            folders.append(own)
            if said["run"] == "test" and said["error"] is None:
                above = own
                if self._where == "auto":
                    above = own.parent
                told += ledger.count(
                    above / ledger.LEDGER_NAME, os.path.relpath(own, above), said
                )
        for sentence in told:
            self._report.note(sentence)
        for folder in folders:
            self._put(folder, said)
        for sentence in told:
            warn_text(f"{sentence} [data]")

    def _put(self, folder: Path, said: dict[str, Any]) -> None:
        runs = self._runs.setdefault(folder, [])
        runs.append(said)
        text = _files.json_text(content(self._report, runs)) + "\n"
        owner = os.getpid(), folder  # a forked guard has a file of its own
        if owner in self._files:
            _files.write_over(self._files[owner], text)
        else:
            self._files[owner] = _files.write_new(folder, NAME, text)

    def own_files(self) -> set[Path]:
        """The records that this guard writes."""
        return set(self._files.values())

    def folder(self, trainer: Any) -> Path | None:
        """Where the record of `trainer` goes."""
        if self._where not in ("auto", None):
            return Path(str(self._where))
        return next(
            (f for f in map(_folder_of, trainer.loggers) if f is not None), None
        )


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _at_no_cost(
    method: Callable[Concatenate[RecordedRun, _P], _T],
) -> Callable[Concatenate[RecordedRun, _P], _T | None]:
    """Whatever goes wrong in `method` costs the record, never the run."""

    @functools.wraps(method)
    def tried(run: RecordedRun, /, *args: _P.args, **kwargs: _P.kwargs) -> _T | None:
        if not run.wanted:
            return None
        try:
            with uncollected():
                return method(run, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - our own bug must not stop a training run
            run.wanted = False
            run.records.failed(error)
            return None

    return tried


class RecordedRun:
    """One fit, validate, test or predict, on record from its beginning to its end.

    Args:
        records: Where it is written.
        trainer: The trainer.
        wanted: Whether there is anything to record; else every method does nothing.
    """

    def __init__(self, records: Records, trainer: Any, wanted: bool) -> None:
        self.trainer = trainer
        self.records, self.wanted = records, wanted
        if not wanted:
            return
        self._kind = str(getattr(trainer.state.fn, "value", trainer.state.fn))
        self._started = _now()
        self._ended = ""
        self._error: str | None = None
        self._git = git()
        self._hashing = False
        self._hashed: set[str] = set()
        self._contents: dict[str, Content] = {}
        self._sets: dict[str, dict[str, Any]] = {}
        self._results: dict[str, Any] = {}
        self._outcomes: Outcomes | None = None
        self._kept: dict[str, dict[str, Any]] = {}
        self._history: list[dict[str, Any]] = []
        self._batch_size: int | None = None
        self._weights: str | None = None
        self._weighed = True

    @_at_no_cost
    def begin(self, stage: str) -> None:
        """An evaluation begins: what it sees is hashed where it is the first of its stage."""
        fresh = self.trainer.reload_dataloaders_every_n_epochs > 0
        self._hashing = not is_sanity_check(stage) and (
            fresh or stage not in self._hashed
        )
        self._contents = {}
        one_by_one = self.records.outcomes and stage in ("validate", "test")
        self._outcomes = Outcomes() if one_by_one else None
        self._weights = None
        self._weighed = stage not in ("validate", "test")

    @property
    def sees(self) -> bool:
        """Whether the batches of the running evaluation are looked at."""
        if not self.wanted:
            return False
        return self._hashing or not self._weighed or self._outcomes is not None

    @_at_no_cost
    def see(self, stage: str, i: int, batch: Any, loaders: Callable[[], Any]) -> None:
        """A step is about to run on `batch`, of the `i`-th of the evaluation's `loaders`."""
        key = _key(stage, i)
        if self._outcomes is not None:
            self._outcomes.see(key, batch, lambda: _owned(loaders(), i))
        # now, for what averages weights puts others in their place
        if not self._weighed:
            self._weighed = True
            self._weights = weights_hash(self.trainer.lightning_module)
        if not self._hashing:
            return
        content = self._contents.get(key)
        if content is None:
            loader = listed(loaders())[i : i + 1]
            content = self._contents[key] = Content(_owned(loaders(), i))
            self._batch_size = (
                getattr(loader[0], "batch_size", None) if loader else None
            )
        content.add(batch)

    @_at_no_cost
    def seen(self, results: Mapping[str, Any]) -> dict[str, Any] | None:
        """What this rank has to say to the others of the samples it saw.

        Args:
            results: The confusion matrices of the evaluation, with this rank's own outcomes.
        """
        said: dict[str, Any] = {}
        if self._hashing:
            said["contents"] = {
                key: content.part() for key, content in self._contents.items()
            }
        if self._outcomes is not None:
            outcomes = self._outcomes
            said["outcomes"] = {
                key: outcomes.part(key, r.right) for key, r in results.items()
            }
        return said or None

    @_at_no_cost
    def end(
        self,
        stage: str,
        logged: Any,
        results: Mapping[str, Any],
        seen: Mapping[int, Any] | None,
    ) -> None:
        """The evaluation is over.

        Args:
            stage: Which.
            logged: What its loop returned: what the module logged in it, a mapping a loader.
            results: Its confusion matrices.
            seen: What each rank said in `seen`.
        """
        if stage not in ("validate", "test"):
            return
        trainer = self.trainer
        moment = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        told = [theirs for _, theirs in sorted((seen or {}).items()) if theirs]
        if self._hashing and seen is not None:
            self._hashed.add(stage)
            said = [theirs["contents"] for theirs in told if "contents" in theirs]
            for key in sorted({key for theirs in said for key in theirs}):
                parts = [theirs[key] for theirs in said if key in theirs]
                self._sets[key] = whole(parts) | moment
        self._contents = {}
        self._results |= results
        self._keep_outcomes(results, [t["outcomes"] for t in told if "outcomes" in t])
        # What the module logged stays as it is until the run ends, so that nothing waits for it.
        scores = {k: v for each in logged for k, v in each.items()}
        for key, result in results.items():
            name, slash, loader = key.partition("/")
            scores |= {
                f"{name}/{k}{slash}{loader}": v for k, v in result.scores.items()
            }
        evaluated = {"stage": stage, "scores": scores, "weights": self._weights}
        self._history.append(moment | evaluated)

    @_at_no_cost
    def disagreements(self) -> list[Disagreement]:
        """The scores of this run that an earlier one of the project has otherwise."""
        weights = {h["weights"] for h in self._history if h["weights"] is not None}
        if not weights or not self.trainer.is_global_zero:
            return []
        folder = self.records.folder(self.trainer)
        if folder is None:
            return []
        ended, self._ended = self._ended, _now()
        run = {**self.said(), "checkpoint": None}
        self._ended = ended
        return disagreements(run, records_beside(folder, weights))

    @_at_no_cost
    def trained_before(self) -> list[Trained]:
        """What earlier runs of the project, of other guards, trained with."""
        folder = None
        if self.trainer.is_global_zero:
            folder = self.records.folder(self.trainer)
        if folder is None:
            return []
        kind = _kind_of(self.trainer.lightning_module)
        earlier = records_beside(folder, {'"trained_on"'}, self.records.own_files())
        path = self.trainer.ckpt_path
        return list(
            trained_before(
                earlier, kind, self._weights, None if path is None else str(path)
            )
        )

    def _keep_outcomes(
        self, results: Mapping[str, Any], everyone: list[dict[str, Hits]]
    ) -> None:
        outcomes = self._outcomes
        self._outcomes = None
        if outcomes is None:
            return
        for key in results:
            parts = [theirs[key] for theirs in everyone if key in theirs]
            if len(parts) < self.trainer.world_size:
                outcomes.unknown[key] = "not all processes said theirs"
            kept = None
            if key not in outcomes.unknown:
                kept = outcomes.together(key, parts)
            if kept is not None:
                self._kept[key] = kept
            else:
                self._kept.pop(key, None)  # an earlier evaluation's are not this one's
                self.records.note(
                    f"{key}: no outcomes were kept: {outcomes.unknown[key]}"
                )

    @_at_no_cost
    def close(self, error: BaseException | None) -> None:
        """The run is over, by `error` where there is one: write the record."""
        self.wanted = False
        self._ended = _now()
        self._error = None if error is None else f"{type(error).__name__}: {error}"
        self.records.write(self)

    def _trained_on(self) -> list[dict[str, Any]]:
        trained = self.records.trained_on() if self._kind == "fit" else []
        return [portrait.to_dict() for portrait in trained]

    def said(self) -> dict[str, Any]:
        """The run as plain data."""
        trainer = self.trainer
        module = trainer.lightning_module
        data = getattr(trainer, "datamodule", None)
        return {
            "run": self._kind,
            "started": self._started,
            "ended": self._ended,
            "error": self._error,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "trained_on": self._trained_on(),
            "evaluated_on": self._sets,
            "confusion": {
                key: result.to_dict() for key, result in self._results.items()
            },
            "outcomes": self._kept,
            "history": [h | {"scores": _numbers(h["scores"])} for h in self._history],
            "checkpoint": checkpoint(trainer, self._kind),
            "seed": {
                "PL_GLOBAL_SEED": os.environ.get("PL_GLOBAL_SEED"),
                "torch": torch.initial_seed(),
            },
            "hyper_parameters": plain(getattr(module, "hparams", {})),
            "data_hyper_parameters": plain(getattr(data, "hparams", {})),
            "model": _kind_of(module),
            "precision": str(trainer.precision),
            "batch_size": self._batch_size,
            "strategy": type(trainer.strategy).__name__,
            "device": str(trainer.strategy.root_device),
            "devices": trainer.num_devices,
            "nodes": trainer.num_nodes,
            "world_size": trainer.world_size,
            "rank": trainer.global_rank,
            "git": self._git,
            "versions": versions(),
        }


def _owned(loaders: Any, i: int) -> int | None:
    """How many samples of a loader are this rank's own; None where none is repeated."""
    loader = listed(loaders)[i : i + 1]
    if not loader:
        return None
    return owned(*loader)


def _kind_of(module: Any) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def content(report: Report, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """What an ``evalguard.json`` holds."""
    return {
        "format": FORMAT,
        "written": _now(),
        "report": report.to_dict(),
        "runs": runs,
    }


def read(path: Path) -> dict[str, Any]:
    """What stands in an ``evalguard.json``.

    Raises:
        ValueError: If it is none.
    """
    Report.load(path)  # refuses what is none
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def found_at(path: Path) -> list[Path]:
    """The records that a path names: itself, or those below a folder."""
    if path.is_dir():
        return sorted(path.rglob(f"{NAME}*.json"))
    return [path]


def _folder_of(logger: Any) -> Path | None:
    """The run's own folder of a logger: its `log_dir`, else where Lightning puts checkpoints."""
    if (own := getattr(logger, "log_dir", None)) is not None:
        return Path(own)
    if (above := getattr(logger, "save_dir", None)) is None:
        return None
    version = logger.version
    version = version if isinstance(version, str) else f"version_{version}"
    return Path(above) / str(logger.name) / version


def _numbers(logged: Mapping[str, Any]) -> dict[str, float]:
    numbers = {
        k: float(v) for k, v in logged.items() if getattr(v, "numel", lambda: 1)() == 1
    }
    return {k: v for k, v in numbers.items() if math.isfinite(v)}


def _key(stage: str, loader: int) -> str:
    key = _KEYS.get(stage, stage)
    if loader:
        return f"{key}/dataloader_idx_{loader}"
    return key


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
