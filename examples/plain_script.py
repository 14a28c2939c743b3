"""No guard in sight: four bugs of plain training loops, by name, to be found from outside.

python -m lightning_evalguard run examples/plain_script.py                     # all four
python -m lightning_evalguard run examples/plain_script.py no_eval no_no_grad  # two of them
python -m lightning_evalguard run examples/plain_script.py none                # the fixed twin
"""

import sys
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

BUGS = set(sys.argv[1:]) or {"no_eval", "no_train", "no_no_grad", "item"}
torch.manual_seed(0)
features, labels = load_breast_cancer(return_X_y=True)
features = (features - features.mean(0)) / features.std(0)
data = TensorDataset(torch.tensor(features, dtype=torch.float32), torch.tensor(labels))
train, val, test = (
    DataLoader(d, 32, shuffle=True) for d in random_split(data, [369, 100, 100])
)
model = nn.Sequential(nn.Linear(30, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 2))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)


def validate():
    if "no_eval" not in BUGS:
        model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in val:
            right = (model(x).argmax(1) == y).sum()
            correct += right.item() if "item" in BUGS else right
    return int(correct) / 100


def score():
    model.eval()
    total = 0.0
    with nullcontext() if "no_no_grad" in BUGS else torch.no_grad():
        for x, y in test:
            total += F.cross_entropy(model(x), y).detach()
    if "no_train" not in BUGS:
        model.train()
    return float(total) / len(test)


for epoch in range(4):
    for x, y in train:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    print(
        f"epoch {epoch}: validation accuracy {validate():.3f}, test loss {score():.3f}"
    )
