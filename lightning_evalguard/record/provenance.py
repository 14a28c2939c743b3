"""Where a number comes from: versions, the revision of the code, the checkpoint."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from lightning_evalguard.record.secrets import without_secrets

_WHOLE = 256 << 20  # bytes of a checkpoint that are hashed from end to end
_PARTS, _PART = 64, 1 << 20
_PACKAGES = (
    "lightning_evalguard",
    "torch",
    "lightning",
    "pytorch_lightning",
    "torchmetrics",
    "numpy",
)


def versions() -> dict[str, str]:
    """Of everything that a number may depend on."""
    packages = {}
    for name in _PACKAGES:
        module = sys.modules.get(name)
        if module is not None and hasattr(module, "__version__"):
            packages[name.replace("_", "-")] = str(module.__version__)
    found = {
        "python": platform.python_version(),
        **packages,
        "platform": platform.platform(),
    }
    if torch.version.cuda and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        found |= {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name()}
    return found


@functools.cache
def git() -> dict[str, Any] | None:
    """Revision of the checkout that the process runs in, and how many files differ from it."""
    command = ("git", "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=2,
            check=True,
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return None
    head, changed = "", 0
    for line in done.stdout.splitlines():
        if line.startswith("# branch.oid "):
            head = line.removeprefix("# branch.oid ")
        changed += not line.startswith("#")
    return {"revision": head, "changed_files": changed}


def checkpoint(trainer: Any, kind: str) -> dict[str, Any] | None:
    """The weights that the numbers belong to: those loaded, or the best or last a fit saved."""
    given = trainer.ckpt_path
    saved = trainer.checkpoint_callback
    tried = [("loaded", given)]
    if kind == "fit":
        names = ("best_model_path", "last_model_path")
        tried = [(n.split("_")[0], getattr(saved, n, None)) for n in names]
    why, path = next(((why, p) for why, p in tried if p), (None, None))
    if path is None:
        return None
    return {"path": without_secrets(str(path)), "is": why, **_hashed(Path(str(path)))}


def _hashed(path: Path) -> dict[str, Any]:
    """SHA-256 of a file, or of parts of a large one, or of the files of a sharded checkpoint."""
    if not path.exists():  # in a bucket
        return {}
    files = (
        sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    )
    size = 0
    digest = hashlib.sha256()
    parts = False
    for one in files:
        length = one.stat().st_size
        size += length
        if path.is_dir():
            digest.update(f"{one.relative_to(path).as_posix()}\0{length}\0".encode())
        with one.open("rb") as file:
            if length <= _WHOLE:
                while piece := file.read(_PART):
                    digest.update(piece)
            else:
                parts = True
                digest.update(str(length).encode())
                for i in range(_PARTS):
                    file.seek((length - _PART) * i // (_PARTS - 1))
                    digest.update(file.read(_PART))
    name = "sha256"
    if parts:
        name = f"sha256_of_{_PARTS}_parts"
    return {"bytes": size, name: digest.hexdigest()}
