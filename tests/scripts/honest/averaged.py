"""Stochastic weight averaging: batch norms calibrated in train mode; weights swapped and back."""

import copy

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, update_bn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
model = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10))
swa_model = AveragedModel(model)
optimizer = torch.optim.SGD(model.parameters(), 0.1)
scheduler = SWALR(optimizer, swa_lr=0.05)


def score(net, limit=None):
    net.eval()
    hits = 0
    with torch.no_grad():
        for i, (xb, yb) in enumerate(test_loader):
            if limit is not None and i >= limit:
                break
            hits += (net(xb).argmax(1) == yb).sum()
    net.train()
    return int(hits)


def calibrate(net, loader):
    net.train()
    with torch.no_grad():
        for xb, _ in loader:
            net(xb)


class swapped:
    def __enter__(self):
        self.own = copy.deepcopy(model.state_dict())
        model.load_state_dict(swa_model.module.state_dict())

    def __exit__(self, *_):
        model.load_state_dict(self.own)


for epoch in range(3):
    model.train()
    for xb, yb in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(xb), yb).backward()
        optimizer.step()
    swa_model.update_parameters(model)
    scheduler.step()
    with swapped():
        print(score(model, limit=2))
    print(score(model))
update_bn(loader, swa_model)
calibrate(model, loader)
print(score(swa_model), score(model))
