"""A frozen backbone kept in eval mode, features of it without gradients, batch norms frozen."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
train_loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
backbone = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Dropout(0.1))
for parameter in backbone.parameters():
    parameter.requires_grad = False
backbone.eval()
head = nn.Sequential(nn.Dropout(0.2), nn.Linear(48, 10))
optimizer = torch.optim.Adam(head.parameters(), 1e-2)


def freeze_bn(module):
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        module.eval()


def test(forward, parts):
    for part in parts:
        part.eval()
    with torch.no_grad():
        hits = sum((forward(xb).argmax(1) == yb).sum() for xb, yb in test_loader)
    return int(hits) / len(test_loader.dataset)


for _ in range(2):
    head.train()
    for xb, yb in train_loader:
        with torch.no_grad():
            features = backbone(xb)
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(features), yb).backward()
        optimizer.step()
    print(test(lambda xb: head(backbone(xb)), [head]))

# all of it, with the statistics of its batch norms as they are
model = nn.Sequential(backbone, head)
for parameter in model.parameters():
    parameter.requires_grad = True
optimizer = torch.optim.SGD(model.parameters(), 1e-2)
for _ in range(2):
    model.train()
    model.apply(freeze_bn)
    for xb, yb in train_loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(xb), yb).backward()
        optimizer.step()
    print(test(model, [model]))
