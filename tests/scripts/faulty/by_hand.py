"""Evaluations whose score no function of torch computes; ``--fixed`` runs the same without a fault.

A line that is to be found ends with ``# NAME: check``; one that warns with ``# NAME: check?``.
"""

import sys

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.metrics import accuracy_score, mean_squared_error, r2_score, roc_auc_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

NAME = sys.argv[1]
BUG = NAME if "--fixed" not in sys.argv else ""
torch.manual_seed(0)
a, b = load_diabetes(return_X_y=True)
X = torch.tensor(a * 20, dtype=torch.float32)
Y = torch.tensor((b - b.mean()) / b.std(), dtype=torch.float32).reshape(-1, 1)
X, X_test, Y, Y_test = X[:360], X[360:], Y[:360], Y[360:]
c, d = load_breast_cancer(return_X_y=True)
C = torch.tensor((c - c.mean(0)) / c.std(0), dtype=torch.float32)
D = torch.tensor(d)
C, C_test, D, D_test = C[:440], C[440:], D[:440], D[440:]
loader = DataLoader(TensorDataset(X_test, Y_test), 20)
labelled = DataLoader(TensorDataset(C_test, D_test), 30)


def regressor():
    return nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 1))


def classifier():
    return nn.Sequential(nn.Linear(30, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))


def fit(net, x, y, loss, epochs=6):
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    net.train()
    for _ in range(epochs):
        optimizer.zero_grad()
        loss(net(x), y).backward()
        optimizer.step()
    if not BUG:
        net.eval()
    return net


def regression():
    return fit(regressor(), X, Y, nn.MSELoss())


def classification():
    return fit(classifier(), C, D, nn.CrossEntropyLoss())


def squared_errors():
    net, total, n = regression(), 0.0, 0
    with torch.no_grad():
        for x, y in loader:
            total += ((net(x) - y) ** 2).sum()  # squared_errors: modes
            n += len(y)
    print(total / n)


def squared_error_of_all():
    net = regression()
    with torch.no_grad():
        print(((net(X_test) - Y_test) ** 2).mean())  # squared_error_of_all: modes


def root_in_steps():
    net = regression()
    with torch.inference_mode():
        prediction = net(X_test)  # root_in_steps: modes
    error = prediction - Y_test
    print(error.pow(2).mean().sqrt())


def absolute_error():
    net = regression()
    with torch.no_grad():
        scaled = net(X_test) * 77.0 + 152.1  # absolute_error: modes
        print(torch.abs(scaled - (Y_test * 77.0 + 152.1)).mean())


def in_numpy():
    net = classification()
    with torch.no_grad():
        predicted = net(C_test).argmax(1).numpy()  # in_numpy: modes
    print("accuracy", np.mean(predicted == D_test.numpy()))


def numpy_regression():
    net = regression()
    with torch.no_grad():
        out = net(X_test)  # numpy_regression: modes
    out = out.numpy().ravel()
    truth = Y_test.numpy().ravel()
    print("rmse", np.sqrt(np.mean((out - truth) ** 2)))


def counted_one_by_one():
    net, hits = classification(), 0
    with torch.no_grad():
        answers = net(C_test).argmax(1).tolist()  # counted_one_by_one: modes
    for answer, truth in zip(answers, D_test.tolist()):
        if answer == truth:
            hits += 1
    print(hits / len(D_test))


def sample_by_sample():
    net, close = regression(), 0
    with torch.no_grad():
        for i in range(60):
            guess = net(X_test[i : i + 1])  # sample_by_sample: modes
            close += bool(abs(guess - Y_test[i]).max() < 0.5)
    print(close / 60)


def in_slices():
    net, hits = classification(), 0
    with torch.no_grad():
        for i in range(0, 120, 24):
            out = net(C_test[i : i + 24])  # in_slices: modes
            hits += (out.argmax(1) == D_test[i : i + 24]).sum()
    print(hits)


def sklearn_on_lists():
    net, truth, answers = classification(), [], []
    with torch.no_grad():
        for x, y in labelled:
            answers += net(x).argmax(1).tolist()  # sklearn_on_lists: modes
            truth += y.tolist()
    print(accuracy_score(truth, answers))


def sklearn_regression():
    net = regression()
    with torch.no_grad():
        guess = net(X_test)  # sklearn_regression: modes
    print(mean_squared_error(Y_test, guess), r2_score(Y_test, guess))


def area_under_the_curve():
    net = classification()
    with torch.no_grad():
        scores = net(C_test).softmax(1)[:, 1]  # area_under_the_curve: modes
    print(roc_auc_score(D_test, scores))


def accuracy(out, target):
    _, guess = out.max(1)
    right = 0
    for one, other in zip(guess, target):
        right += int(one) == int(other)
    return right / len(target)


def by_a_function_of_its_own():
    net = classification()
    with torch.no_grad():
        print(accuracy(net(C_test), D_test))  # by_a_function_of_its_own: modes


def predict(net, x):
    with torch.no_grad():
        return net(x).argmax(1)  # predicted_in_a_function: modes


def predicted_in_a_function():
    net = classification()
    guess = predict(net, C_test).numpy()
    confusion = np.zeros((2, 2), int)
    for t, p in zip(D_test.numpy(), guess):
        confusion[t, p] += 1
    print(np.trace(confusion) / confusion.sum(), (guess == D_test.numpy()).mean())


def coefficient_of_determination():
    net = regression()
    with torch.no_grad():
        y_hat = net(X_test)  # coefficient_of_determination: modes
        residual = ((Y_test - y_hat) ** 2).sum()
        total = ((Y_test - Y_test.mean()) ** 2).sum()
    print(1 - residual / total)


def neither_for_all():
    net = classification()
    with torch.set_grad_enabled(bool(BUG)):
        out = net(C_test)  # neither_for_all: modes
    print((out.argmax(1) == D_test).float().mean())


def each_epoch():
    net = classifier()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for epoch in range(8):
        net.train()
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(C), D)
        loss.backward()
        optimizer.step()
        if epoch % 2:
            net.train(bool(BUG))
            with torch.set_grad_enabled(bool(BUG)):
                out = net(C_test)  # each_epoch: modes grad?
            correct = (out.argmax(1) == D_test).sum()
            print(epoch, correct / len(D_test))


def precision_and_recall():
    net, tp, fp, fn = classification(), 0, 0, 0
    with torch.no_grad():
        for x, y in labelled:
            guess = net(x)[:, 1] > net(x)[:, 0]  # precision_and_recall: modes
            tp += (guess & (y == 1)).sum()
            fp += (guess & (y == 0)).sum()
            fn += (~guess & (y == 1)).sum()
    print(tp / (tp + fp), tp / (tp + fn))


def log_likelihood():
    net = classification()
    with torch.no_grad():
        rows = torch.arange(len(D_test))
        print(-net(C_test).log_softmax(1)[rows, D_test].mean())  # log_likelihood: modes


globals()[NAME]()
