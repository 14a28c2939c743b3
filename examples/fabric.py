"""Digits with Fabric: the loop is your own, and `evaluating` stands around its evaluation."""

from __future__ import annotations

import torch
from lightning.fabric import Fabric
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_evalguard import EvalGuardError, evaluating


def main() -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    fabric.seed_everything(0, verbose=False)
    x, y = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    train, val = random_split(data, [1437, 360])

    net = nn.Sequential(
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Dropout(),
        nn.Linear(64, 10),
    )
    model, optimizer = fabric.setup(net, torch.optim.Adam(net.parameters(), 1e-2))
    batches, evaluated = fabric.setup_dataloaders(
        DataLoader(train, 64, True), DataLoader(val, 64)
    )

    for _ in range(3):
        for inputs, target in batches:
            optimizer.zero_grad()
            fabric.backward(nn.functional.cross_entropy(model(inputs), target))
            optimizer.step()
        # eval mode, no grad
        with evaluating(model, optimizers=[optimizer.optimizer]) as report:
            right = sum(
                (model(inputs).argmax(1) == target).sum()
                for inputs, target in evaluated
            )
        print(
            f"accuracy {right / len(val):.3f}; dropout trains again: {net[3].training}"
        )
    print(report)

    try:  # what it finds: somebody wakes dropout within the evaluation
        with evaluating(model):
            for inputs, _ in evaluated:
                net[3].train()
                model(inputs)
    except EvalGuardError as error:
        print(error)


if __name__ == "__main__":
    main()
