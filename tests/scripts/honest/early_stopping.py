"""A class that stops, a validation that returns early and one that breaks off."""

import torch
from sklearn.datasets import load_diabetes
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split


class EarlyStopping:
    def __init__(self, patience):
        self.patience, self.best, self.bad = patience, float("inf"), 0

    def __call__(self, loss):
        self.bad = 0 if loss < self.best else self.bad + 1
        self.best = min(self.best, loss)
        return self.bad >= self.patience


def validate(model, loader, limit):
    model.eval()
    losses = []
    with torch.no_grad():
        for i, (x, y) in enumerate(loader):
            if i == limit:
                break
            losses.append(nn.functional.mse_loss(model(x), y))
    model.train()
    return float(torch.stack(losses).mean())


def is_sane(model, loader):
    with torch.no_grad():
        model.eval()
        for x, _ in loader:
            if not model(x).isfinite().all():
                model.train()
                return False
        model.train()
    return True


torch.manual_seed(0)
x, y = load_diabetes(return_X_y=True)
data = TensorDataset(torch.tensor(x, dtype=torch.float32), torch.tensor(y / 100).float()[:, None])
train, val = random_split(data, [350, 92])
model = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 1))
optimizer = torch.optim.Adam(model.parameters(), 1e-2)
stop = EarlyStopping(2)
train_loader, val_loader = DataLoader(train, 50, shuffle=True), DataLoader(val, 23)
for epoch in range(10):
    for xb, yb in train_loader:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(xb), yb).backward()
        optimizer.step()
    assert is_sane(model, val_loader)
    if stop(validate(model, val_loader, 3)):
        break
