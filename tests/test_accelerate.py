"""`evaluating` with an accelerator: each sample of all ranks is counted once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.metrics import confusion_matrix

from lightning_evalguard import evaluating

pytest.importorskip("accelerate")
SCRIPT = Path(__file__).parent / "scripts" / "accelerated.py"


def said_by(world: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `world` processes wrote."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder)],
            env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank),
                 "WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
                 "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(world)
    ]  # fmt: skip
    assert [process.wait(timeout=120) for process in ranks] == [0] * world
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]


def expected() -> Any:
    """The matrix that scikit-learn makes of the whole set."""
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        import accelerated
    finally:
        sys.path.remove(str(SCRIPT.parent))
    accelerated.net.eval()
    with torch.no_grad():
        return confusion_matrix(
            accelerated.y, accelerated.net(accelerated.x).argmax(1)
        ).tolist()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_the_padding_of_the_last_round_is_counted_by_nobody(
    world: int, tmp_path: Path
) -> None:
    matrix, ranks = expected(), said_by(world, tmp_path)
    errors = {said.pop("error") for said in ranks}
    for said in ranks:
        assert said == {name: {"matrix": matrix, "findings": []} for name in said}
        assert len(said) == 10
    # what one rank finds is raised on all, under the name that the user's own model gives it
    (error,) = errors
    assert "`1` (Dropout): is in train mode" in error


def test_what_is_no_accelerator_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="accelerator=dict"):
        evaluating(torch.nn.Linear(2, 2), accelerator={})
