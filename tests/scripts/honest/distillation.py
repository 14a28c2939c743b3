"""A trained teacher in eval mode; its accuracy first, then a student that learns from it."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images).float() / 16, torch.tensor(labels)
train_loader = DataLoader(TensorDataset(x[:1400], y[:1400]), 100, shuffle=True)
test_loader = DataLoader(TensorDataset(x[1400:], y[1400:]), 100)


def train(model, epochs):
    ce = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    model.train()
    for _ in range(epochs):
        for inputs, target in train_loader:
            optimizer.zero_grad()
            loss = ce(model(inputs), target)
            loss.backward()
            optimizer.step()


def test(model):
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for inputs, target in test_loader:
            _, predicted = torch.max(model(inputs).data, 1)
            total += target.size(0)
            correct += (predicted == target).sum()
    return 100 * float(correct) / total


def distill(teacher, student, epochs, T=2):
    optimizer = torch.optim.Adam(student.parameters(), 1e-2)
    teacher.eval()
    student.train()
    for _ in range(epochs):
        for inputs, target in train_loader:
            optimizer.zero_grad()
            with torch.no_grad():
                teacher_logits = teacher(inputs)
            student_logits = student(inputs)
            soft = F.softmax(teacher_logits / T, dim=-1)
            log_soft = F.log_softmax(student_logits / T, dim=-1)
            loss = F.kl_div(log_soft, soft, reduction="batchmean") * T**2
            loss = 0.25 * loss + 0.75 * F.cross_entropy(student_logits, target)
            loss.backward()
            optimizer.step()


teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 10))
student = nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Dropout(0.1), nn.Linear(16, 10))
train(teacher, 2)
print("teacher", test(teacher))
distill(teacher, student, 2)
print("student", test(student), "teacher", test(teacher))
