"""The eighteen correct programs of TrainCheck's evaluation, as they are, watched from outside.

They stay in their own repository (OrderLab/TrainCheck-Evaluation-Workloads, `fp_rate/workloads`).
What they would download is put where they look for it: MNIST's files hold scikit-learn's digits,
enlarged. What needs a GPU, or a download that is not there, has its reason instead of a result.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from lightning_evalguard.trainer.verdict import amount

ROOT = Path(__file__).parent.parent
SECONDS = 60  # then Ctrl-C, and what was found until then counts
# folder: what their run.sh gives, without --cuda
PROGRAMS = {
    "gcn": "main.py --epochs 200 --lr 0.01 --l2 5e-4 --dropout-p 0.5 --hidden-dim 16",
    "mnist": "main.py --epochs 3",
    "ddp-multigpu": "multigpu.py --batch_size 8 1 2",
    "autocast": "main.py",
    "vae": "main.py --epochs 2",
    "gat": "main.py --epochs 300 --lr 0.005 --dropout-p 0.6 --num-heads 8 --hidden-dim 64",
    "dcgan": "main.py --dataset mnist --dataroot ./mnist --workers 0 --niter 1 --dry-run",
    "mnist-forward-forward": "main.py",
    "mnist-hogwild": "main.py --epochs 1 --num-processes 0",
    "mnist-rnn": "main.py --epochs 1",
    "regression": "main.py",
    "reinforce-actor-critic": "actor_critic.py",
    "reinforce-reinforce": "reinforce.py",
    "resnet18": "main.py --dummy --epochs 2 --batch-size 16",
    "siamese-network": "main.py --epochs 2",
    "time-sequence-prediction": "train.py --steps 1",
    "word-language-model-lstm": "main.py --epochs 2 --tied",
    "word-language-model-transformer": "main.py --epochs 2 --model Transformer --lr 5",
}
CUDA = {"autocast", "ddp-multigpu"}
OFFLINE = {"gcn": "downloads its data in any case"}


def write_mnist(folder: Path) -> None:
    """MNIST's four files with enlarged digits of scikit-learn in them."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    large = torch.nn.functional.interpolate(torch.tensor(x).view(-1, 1, 8, 8), size=28)
    pixels = (large.view(-1, 28, 28) * 15.9).byte()
    raw = folder / "MNIST/raw"
    raw.mkdir(parents=True, exist_ok=True)
    # each set of digits of its own, moved a little to be as many as the programs ask for
    apart = {"train": (slice(0, 1_300), 2_000), "t10k": (slice(1_300, None), 10_000)}
    for name, (part, count) in apart.items():
        of_set = torch.arange(len(pixels))[part]
        rows = of_set[torch.arange(count) % len(of_set)]
        moves = torch.arange(count) // len(of_set)
        images = [
            pixels[row].roll((move % 5, move // 5), (0, 1))
            for row, move in zip(rows.tolist(), moves.tolist(), strict=True)
        ]
        head = struct.pack(">iiii", 0x803, count, 28, 28)
        labels = (
            struct.pack(">ii", 0x801, count)
            + torch.tensor(y)[rows].byte().numpy().tobytes()
        )
        (raw / f"{name}-images-idx3-ubyte").write_bytes(
            head + torch.stack(images).numpy().tobytes()
        )
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(labels)


def write_cora(folder: Path) -> None:
    """The papers that `cora.cites` names, with words and topics that are drawn."""
    cites = (folder / "cora.cites").read_text(encoding="utf-8").split()
    draw = torch.Generator().manual_seed(0)
    lines = []
    for paper in sorted(set(cites)):
        words = (torch.rand(60, generator=draw) < 0.2).int().tolist()
        topic = int(torch.randint(7, (), generator=draw))
        lines.append("\t".join(map(str, [paper, 1, *words, f"topic_{topic}"])))
    (folder / "cora.content").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_stand_in(folder: Path) -> None:
    """The names of TrainCheck that the programs import, which do nothing here."""
    (folder / "traincheck/instrumentor").mkdir(parents=True)
    (folder / "traincheck/__init__.py").write_text("def annotate_stage(*_): ...\n")
    (folder / "traincheck/instrumentor/__init__.py").write_text("meta_vars = {}\n")
    (folder / "traincheck/instrumentor/tracer.py").write_text(
        "DISABLE_WRAPPER = True\n"
    )


def write_missing(folder: Path) -> None:
    """What a copy of the repository without its large files lacks."""
    cora, text = folder / "cora", folder / "data/wikitext-2"
    if cora.exists() and not (cora / "cora.content").exists():
        write_cora(cora)
    if text.exists() and not (text / "train.txt").exists():
        shutil.copy(text / "valid.txt", text / "train.txt")


def watched(program: str, folder: Path, python: str) -> dict[str, Any]:
    """Run one program under the guard's command; its findings, or why there are none."""
    arguments = PROGRAMS[program].split()
    report = folder / "findings.json"
    command = [
        python,
        "-m",
        "lightning_evalguard",
        "run",
        "--json",
        str(report),
        *arguments,
    ]
    paths = os.pathsep.join((str(ROOT), str(folder.parent / "stand_in")))
    environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    # they are older than torch.load's weights_only=True
    environment["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    stopped = False
    # a file: who outlives the program may hold a pipe open
    said = folder / "stderr.txt"
    with said.open("w") as errors_to:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stderr=errors_to,
            stdout=subprocess.DEVNULL,
        )
        try:
            process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            stopped = True
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
    errors = said.read_text(encoding="utf-8", errors="replace")
    if not report.exists():
        return {"failed": _reason(errors), "stopped": stopped}
    written = json.loads(report.read_text(encoding="utf-8"))["report"]
    found = [f"{f['fact']} [{f['check']}]" for f in written["findings"]]
    failed = "" if stopped or "Traceback" not in errors else _reason(errors)
    if not any(written["checked"].values()):
        failed = failed or f"came to no step in {SECONDS} s"
    return {
        "found": found,
        "checked": written["checked"],
        "stopped": stopped,
        "failed": failed,
    }


def _reason(errors: str) -> str:
    lines = [
        line
        for line in errors.splitlines()
        if re.match(r"[\w.]+(Error|Exception)\b", line)
    ]
    return (lines or errors.splitlines() or ["no word"])[-1][:120]


def correct_programs(workloads: Path, python: str = sys.executable) -> dict[str, Any]:
    """The result of each program."""
    # a background job ignores it
    signal.signal(signal.SIGINT, signal.default_int_handler)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        write_stand_in(Path(scratch, "stand_in"))
        for place in ("data", "dcgan/mnist", "mnist-forward-forward/data"):
            write_mnist(Path(scratch, place))
        for program in PROGRAMS:
            folder = Path(scratch, program)
            shutil.copytree(
                workloads / "fp_rate/workloads" / program, folder, dirs_exist_ok=True
            )
            write_missing(folder)
            if program in CUDA and not torch.cuda.is_available():
                results[program] = {"failed": "needs a GPU"}
                continue
            if program in OFFLINE:
                results[program] = {"failed": OFFLINE[program]}
                continue
            results[program] = watched(program, folder, python)
            print(f"{program}: {results[program]}"[:300], file=sys.stderr, flush=True)
    return results


def sentence(results: dict[str, Any]) -> str:
    """What the table says of them."""
    ran = [r for r in results.values() if not r["failed"]]
    waits = [f for r in ran for f in r["found"] if f.endswith("[sync]")]
    alarms = [
        f"{p}: {f.rpartition(' [')[0]}"
        for p, r in results.items()
        if not r["failed"]
        for f in r["found"]
        if not f.endswith("[sync]")
    ]
    said = f" ({'; '.join(alarms)})" if alarms else ""
    left = {p: r["failed"] for p, r in results.items() if r["failed"]}
    return (
        f"Correct programs: {len(ran)} of {len(results)} ran "
        f"({sum(r['stopped'] for r in ran)} of them for {SECONDS} s): "
        f"{amount(len(alarms), 'alarm')}{said}, "
        f"{len(waits)} lines that wait for the device. "
        f"Not run: {'; '.join(f'{p} ({why})' for p, why in left.items()) or 'none'}."
    )
