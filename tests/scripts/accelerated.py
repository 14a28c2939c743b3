"""An evaluation with accelerate on each of its processes; writes what was counted and raised.

Run as ``python accelerated.py FOLDER``, with RANK and WORLD_SIZE in the environment.
"""

import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from accelerate import Accelerator, DataLoaderConfiguration
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_evalguard import EvalGuardError, evaluating

torch.set_num_threads(1)
torch.manual_seed(0)
x, y = torch.randn(37, 8), torch.randint(0, 3, (37,))
net = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 3))


def loss_of_each_rank(accelerator, out, yb):
    F.cross_entropy(out, yb)


def compared_on_each_rank(accelerator, out, yb):
    (out.argmax(1) == yb).sum()


def labels_gathered(accelerator, out, yb):
    preds, target = accelerator.gather_for_metrics((out.argmax(dim=-1), yb))
    (preds == target).sum()


def logits_gathered(accelerator, out, yb):
    preds, target = accelerator.gather_for_metrics((out, yb))
    (preds.argmax(1) == target).sum()


def gathered_one_by_one(accelerator, out, yb):
    target = accelerator.gather_for_metrics(yb)
    (accelerator.gather_for_metrics(out.argmax(1)) == target).sum()


def gathered_by_name(accelerator, out, yb):
    accelerator.gather_for_metrics({"labels": yb, "logits": out})


def gathered_with_the_padding(accelerator, out, yb):
    (accelerator.gather(out.argmax(-1)) == accelerator.gather(yb)).sum()


FORMS = (
    loss_of_each_rank, compared_on_each_rank, labels_gathered, logits_gathered,
    gathered_one_by_one, gathered_by_name, gathered_with_the_padding,
)  # fmt: skip


def counted(accelerator, model, loader, score):
    before = [module.training for module in model.modules()]
    with evaluating(model, accelerator=accelerator) as report:
        for xb, yb in loader:
            score(accelerator, model(xb), yb)
    assert [module.training for module in model.modules()] == before
    assert "gather" not in vars(accelerator)
    result = report.confusion["evaluate"]
    return {
        "matrix": result.matrix.tolist(),
        "findings": [str(f) for f in report.findings],
    }


def raised(accelerator, model, loader):
    """What is wrong on one rank alone."""
    try:
        with evaluating(model, accelerator=accelerator) as report:
            if accelerator.process_index == accelerator.num_processes - 1:
                net[1].train()
            for xb, _ in loader:
                model(xb)
    except EvalGuardError as error:
        return str(error)
    return f"nothing: {report}"


def main():
    said = {}
    for dispatched in (False, True):
        options = DataLoaderConfiguration(dispatch_batches=dispatched)
        accelerator = Accelerator(cpu=True, dataloader_config=options)
        model, loader = accelerator.prepare(net, DataLoader(TensorDataset(x, y), 5))
        forms = FORMS[2:4] if dispatched else FORMS
        for score in forms:
            name = f"{score.__name__}, dispatched" if dispatched else score.__name__
            said[name] = counted(accelerator, model, loader, score)
    compiled = torch.compile(model, backend="eager")
    said["compiled"] = counted(accelerator, compiled, loader, labels_gathered)
    said["error"] = raised(accelerator, model, loader)
    Path(sys.argv[1], f"{accelerator.process_index}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    main()
