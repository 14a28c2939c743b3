"""The four bugs of the literature, each by its name; ``--fixed`` runs the same without it.

A line that is to be found ends with ``# NAME: check``.
"""

import sys

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

BUG = sys.argv[1] if "--fixed" not in sys.argv else ""
torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels))
train_set, val_set = random_split(data, [1437, 360])
train_loader = DataLoader(train_set, batch_size=64, shuffle=True)
val_loader = DataLoader(val_set, batch_size=64)
model = nn.Sequential(
    nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10)
)
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)


def train_epoch():
    if BUG != "no_train":
        model.train()
    for x, y in train_loader:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()


def evaluate_without_eval():
    correct = 0
    with torch.no_grad():
        for x, y in val_loader:
            correct += (model(x).argmax(1) == y).sum()  # no_eval: modes
    return int(correct) / len(val_set)


def evaluate_without_no_grad():
    model.eval()
    total, correct = 0.0, 0
    for x, y in val_loader:
        logits = model(x)  # no_no_grad: grad
        total += F.cross_entropy(logits, y, reduction="sum").detach()
        correct += (logits.argmax(1) == y).sum()
    return int(correct) / len(val_set)


def evaluate_with_item():
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in val_loader:
            correct += (model(x).argmax(1) == y).sum().item()  # item: sync
    return correct / len(val_set)


def evaluate():
    model.eval()  # no_train: modes
    correct = 0
    with torch.no_grad():
        for x, y in val_loader:
            correct += (model(x).argmax(1) == y).sum()
    return int(correct) / len(val_set)


chosen = {
    "no_eval": evaluate_without_eval,
    "no_no_grad": evaluate_without_no_grad,
    "item": evaluate_with_item,
}.get(BUG, evaluate)
for epoch in range(3):
    train_epoch()
    print(f"epoch {epoch}: accuracy {chosen():.4f}")
