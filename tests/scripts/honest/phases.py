"""One loop for both phases: `set_grad_enabled(phase == "train")`, the best weights kept."""

import copy

import torch
from sklearn.datasets import load_wine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
x, y = load_wine(return_X_y=True)
x = torch.tensor((x - x.mean(0)) / x.std(0), dtype=torch.float32)
train_set, val_set = torch.utils.data.random_split(TensorDataset(x, torch.tensor(y)), [130, 48])
loaders = {"train": DataLoader(train_set, 26, shuffle=True), "val": DataLoader(val_set, 16)}
sizes = {"train": 130, "val": 48}
model = nn.Sequential(nn.Linear(13, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.5),
                      nn.Linear(32, 3))  # fmt: skip
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)


def train_model(num_epochs):
    best, best_acc = copy.deepcopy(model.state_dict()), 0.0
    for _ in range(num_epochs):
        for phase in ["train", "val"]:
            if phase == "train":
                model.train()
            else:
                model.eval()
            running_loss, running_corrects = 0.0, 0
            for inputs, labels in loaders[phase]:
                optimizer.zero_grad()
                with torch.set_grad_enabled(phase == "train"):
                    outputs = model(inputs)
                    _, preds = torch.max(outputs, 1)
                    loss = criterion(outputs, labels)
                    if phase == "train":
                        loss.backward()
                        optimizer.step()
                running_loss += loss.detach() * inputs.size(0)
                running_corrects += torch.sum(preds == labels.data)
            epoch_acc = running_corrects.double() / sizes[phase]
            print(phase, float(running_loss) / sizes[phase], float(epoch_acc))
            if phase == "val" and epoch_acc > best_acc:
                best, best_acc = copy.deepcopy(model.state_dict()), epoch_acc
    model.load_state_dict(best)


train_model(4)
