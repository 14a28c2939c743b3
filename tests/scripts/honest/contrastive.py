"""A momentum encoder and its queue in the training step; k nearest neighbours as evaluation."""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
train_loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True, drop_last=True)
memory_loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 200)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
query = nn.Sequential(nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 16))
key = copy.deepcopy(query)
key.requires_grad_(False)
queue = F.normalize(torch.randn(16, 400), dim=0)
optimizer = torch.optim.SGD(query.parameters(), 0.05, momentum=0.9)


def augmented(x):
    return x + 0.1 * torch.randn_like(x)


def knn():
    query.eval()
    with torch.no_grad():
        bank = torch.cat([F.normalize(query(xb), dim=1) for xb, _ in memory_loader])
        bank_labels = torch.cat([yb for _, yb in memory_loader])
        hits = 0
        for xb, yb in test_loader:
            nearest = (F.normalize(query(xb), dim=1) @ bank.t()).topk(5).indices
            predicted = bank_labels[nearest].mode(1).values
            hits += (predicted == yb).sum()
    return int(hits)


for epoch in range(2):
    query.train()
    for xb, _ in train_loader:
        q = F.normalize(query(augmented(xb)), dim=1)
        with torch.no_grad():
            for k, p in zip(key.parameters(), query.parameters()):
                k.mul_(0.99).add_(p, alpha=0.01)
            k = F.normalize(key(augmented(xb)), dim=1)
        logits = torch.cat([(q * k).sum(1, keepdim=True), q @ queue], dim=1) / 0.2
        loss = F.cross_entropy(logits, torch.zeros(len(xb), dtype=torch.long))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        queue = torch.cat([queue[:, len(xb) :], k.t()], dim=1)
    print(knn())
