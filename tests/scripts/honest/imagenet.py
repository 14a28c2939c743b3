"""Meters, the accuracy of the k best, a validation that returns its score, the best checkpoint."""

import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset


class AverageMeter:
    def __init__(self):
        self.sum = self.count = 0

    def update(self, val, n=1):
        self.sum += val * n
        self.count += n

    @property
    def avg(self):
        return self.sum / self.count


def accuracy(output, target, topk=(1,)):
    with torch.no_grad():
        maxk = max(topk)
        _, pred = output.topk(maxk, 1, True, True)
        pred = pred.t()
        correct = pred.eq(target.view(1, -1).expand_as(pred))
        return [correct[:k].reshape(-1).float().sum(0) * 100 / len(target) for k in topk]


def train(loader, model, criterion, optimizer):
    losses, top1 = AverageMeter(), AverageMeter()
    model.train()
    for images, target in loader:
        output = model(images)
        loss = criterion(output, target)
        acc1, _ = accuracy(output, target, topk=(1, 5))
        losses.update(loss.item(), images.size(0))
        top1.update(acc1[()], images.size(0))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def validate(loader, model, criterion):
    losses, top1 = AverageMeter(), AverageMeter()
    model.eval()
    with torch.no_grad():
        for images, target in loader:
            output = model(images)
            loss = criterion(output, target)
            acc1, _ = accuracy(output, target, topk=(1, 5))
            losses.update(loss.item(), images.size(0))
            top1.update(acc1[()], images.size(0))
    print(f" * Acc@1 {top1.avg:.3f}")
    return top1.avg


torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
data = TensorDataset(torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16,
                     torch.tensor(labels))  # fmt: skip
model = nn.Sequential(
    nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2),
    nn.Linear(288, 10),
)  # fmt: skip
model = nn.DataParallel(model)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
train_loader = DataLoader(Subset(data, range(1000)), 128, shuffle=True)
val_loader = DataLoader(Subset(data, range(1000, 1797)), 256)
best = 0
for epoch in range(2):
    train(train_loader, model, criterion, optimizer)
    acc = validate(val_loader, model, criterion)
    if acc > best:
        best = acc
        with tempfile.TemporaryDirectory() as folder:
            torch.save({"epoch": epoch, "state_dict": model.state_dict()}, Path(folder) / "b.pt")
            model.load_state_dict(torch.load(Path(folder) / "b.pt")["state_dict"])
validate(val_loader, model, criterion)
