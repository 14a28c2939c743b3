"""Pairs through one network, a binary loss, a threshold and a count."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pairs(Dataset):
    def __init__(self, first, last):
        x, y = load_digits(return_X_y=True)
        self.x, self.y = torch.tensor(x, dtype=torch.float32)[first:last] / 16, y[first:last]

    def __len__(self):
        return len(self.x) - 1

    def __getitem__(self, i):
        other = i + 1 if i % 2 else next(j for j in range(len(self.x)) if self.y[j] == self.y[i])
        return self.x[i], self.x[other], torch.tensor(float(self.y[i] == self.y[other]))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.head = nn.Sequential(nn.Linear(64, 1), nn.Sigmoid())

    def forward(self, a, b):
        return self.head(torch.cat((self.body(a), self.body(b)), 1))


def test(model, loader, criterion):
    model.eval()
    test_loss, correct = 0, 0
    with torch.no_grad():
        for images_1, images_2, targets in loader:
            outputs = model(images_1, images_2).squeeze()
            test_loss += criterion(outputs, targets).sum().item()
            pred = torch.where(outputs > 0.5, 1, 0)
            correct += pred.eq(targets.view_as(pred)).sum().item()
    print(test_loss, correct / len(loader.dataset))


torch.manual_seed(0)
model, criterion = Siamese(), nn.BCELoss()
optimizer = torch.optim.Adadelta(model.parameters())
for _ in range(2):
    model.train()
    for images_1, images_2, targets in DataLoader(Pairs(0, 400), 50, shuffle=True):
        optimizer.zero_grad()
        loss = criterion(model(images_1, images_2).squeeze(), targets)
        loss.backward()
        optimizer.step()
    test(model, DataLoader(Pairs(400, 600), 50), criterion)
