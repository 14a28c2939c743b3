"""Attacks with gradients of the input in eval mode; training on what they find."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)
model = nn.Sequential(nn.Linear(64, 64), nn.BatchNorm1d(64), nn.ReLU(), nn.Dropout(0.2),
                      nn.Linear(64, 10))  # fmt: skip
optimizer = torch.optim.Adam(model.parameters(), 1e-2)


def attack(data, target, epsilon=0.05):
    data = data.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(F.cross_entropy(model(data), target), data)
    return (data + epsilon * grad.sign()).detach()


def test():
    model.eval()
    correct = 0
    for data, target in test_loader:
        data.requires_grad = True
        output = model(data)
        loss = F.cross_entropy(output, target)
        model.zero_grad()
        loss.backward()
        perturbed = data + 0.05 * data.grad.sign()
        with torch.no_grad():
            correct += (model(perturbed).argmax(1) == target).sum()
    return int(correct)


for _ in range(2):
    for data, target in loader:
        model.eval()
        found = attack(data, target)
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(model(found), target).backward()
        optimizer.step()
    print(test())
