"""No Lightning: `evaluating(model)` around the evaluation of a plain PyTorch loop."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_evalguard import evaluating
from lightning_evalguard.confusion.matrix import ConfusionMatrix

torch.manual_seed(0)
images, labels = (torch.tensor(column) for column in load_digits(return_X_y=True))
train, val = random_split(TensorDataset(images.float() / 16, labels), [0.8, 0.2])
model = nn.Sequential(
    nn.Linear(64, 128),
    nn.BatchNorm1d(128),
    nn.ReLU(),
    nn.Dropout(0.3),
    nn.Linear(128, 10),
)
optimizer = torch.optim.Adam(model.parameters(), 1e-3)

for epoch in range(10):
    for x, y in DataLoader(train, 64, shuffle=True):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    confmat = ConfusionMatrix(10)
    with evaluating(model) as report:
        for x, y in DataLoader(val, 64):
            confmat.update(model(x), y)
    print(f"epoch {epoch}: accuracy {confmat.result().scores['accuracy']:.3f}")
print(confmat.result())
print(report)
