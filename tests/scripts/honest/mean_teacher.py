"""A teacher that follows its student and labels for it, without gradients, in every step."""

import copy
from itertools import cycle

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
labeled = DataLoader(TensorDataset(x[:200], y[:200]), 50, shuffle=True)
unlabeled = DataLoader(TensorDataset(x[200:1400]), 100, shuffle=True)
test = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
student = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.3),
                        nn.Linear(64, 10))  # fmt: skip
teacher = copy.deepcopy(student)
for p in teacher.parameters():
    p.requires_grad_(False)
optimizer = torch.optim.Adam(student.parameters(), 1e-3)


def evaluate(model):
    was = model.training
    model.eval()
    hits = 0
    with torch.no_grad():
        for xb, yb in test:
            hits += (model(xb).argmax(1) == yb).sum()
    model.train(was)
    return int(hits) / len(test.dataset)


for epoch in range(2):
    student.train()
    for (xb, yb), (ub,) in zip(cycle(labeled), unlabeled):
        noisy = ub + 0.1 * torch.randn_like(ub)
        with torch.no_grad():
            soft = teacher(ub).softmax(1)
            confident = soft.max(1).values > 0.6
        out, out_u = student(xb), student(noisy)
        loss = F.cross_entropy(out, yb)
        loss = loss + (F.mse_loss(out_u.softmax(1), soft, reduction="none").mean(1)
                       * confident).mean()  # fmt: skip
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for t, s in zip(teacher.parameters(), student.parameters()):
                t.mul_(0.9).add_(s, alpha=0.1)
    print(evaluate(student), evaluate(teacher))
