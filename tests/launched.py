"""What several processes need of a test: a port, and a script of this folder with a bound."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def script(
    name: str, *args: object, seconds: int = 300
) -> subprocess.CompletedProcess[str]:
    """Run a script of this folder, with a bound: what hangs fails."""
    path = Path(__file__).with_name(name)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path), *map(str, args)],
        capture_output=True, text=True, check=False, timeout=seconds, env=env, cwd=path.parent,
    )  # fmt: skip


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])
