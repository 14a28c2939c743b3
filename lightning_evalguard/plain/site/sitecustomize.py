"""Starts the guard in a script that `run` runs, as soon as the script has loaded torch.

Python imports a module of this name when it starts. The script itself runs as it always does, as
``python train.py``; so do the processes that it starts. A ``sitecustomize`` of the user's own is
run as well.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import sys
from types import ModuleType
from typing import Any

_HERE = os.path.dirname(os.path.abspath(__file__))
_ROOT = os.path.dirname(os.path.dirname(os.path.dirname(_HERE)))


class _AfterTorch:
    """Finds torch once, and starts the guard when its import is over."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        loader = getattr(spec, "loader", None)
        if loader is None or not hasattr(loader, "exec_module"):
            return spec
        original = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            del loader.exec_module
            original(module)
            _start()

        loader.exec_module = exec_module
        return spec


def _start() -> None:
    policy = os.environ.get("EVALGUARD")
    if policy not in ("warn", "error"):
        return
    found = importlib.util.find_spec("lightning_evalguard") is None
    if found:
        sys.path.append(_ROOT)
    try:
        from lightning_evalguard.plain.entry import watch

        watch(policy)
    except Exception as error:  # noqa: BLE001 - the script must run in any case
        said = f"EVALGUARD={policy}: the script is not guarded: {type(error).__name__}: {error}"
        print(said, file=sys.stderr)  # noqa: T201
    finally:
        if found:
            sys.path.remove(_ROOT)


def _run_own() -> None:
    """Run the one that this module stands before."""
    sys.path[:] = [p for p in sys.path if os.path.abspath(p or os.curdir) != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", sys.path)
    if spec is not None and spec.loader is not None:
        module = importlib.util.module_from_spec(spec)
        sys.modules["sitecustomize"] = module
        spec.loader.exec_module(module)


sys.meta_path.insert(0, _AfterTorch())
_run_own()
