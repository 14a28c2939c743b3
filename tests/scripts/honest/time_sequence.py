"""A closure that the optimizer calls several times, a prediction of the future each epoch."""

import torch
from torch import nn


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm1 = nn.LSTMCell(1, 12)
        self.linear = nn.Linear(12, 1)

    def forward(self, input, future=0):
        outputs = []
        h = torch.zeros(len(input), 12, dtype=torch.double)
        c = torch.zeros(len(input), 12, dtype=torch.double)
        for x in input.split(1, dim=1):
            h, c = self.lstm1(x, (h, c))
            output = self.linear(h)
            outputs.append(output)
        for _ in range(future):
            h, c = self.lstm1(output, (h, c))
            output = self.linear(h)
            outputs.append(output)
        return torch.cat(outputs, dim=1)


torch.manual_seed(0)
data = torch.sin(torch.arange(40, dtype=torch.double) / 4 + torch.rand(12, 1).double() * 6)
input, target = data[3:, :-1], data[3:, 1:]
test_input, test_target = data[:3, :-1], data[:3, 1:]
seq = Sequence().double()
criterion = nn.MSELoss()
optimizer = torch.optim.LBFGS(seq.parameters(), lr=0.8, max_iter=4)
for _ in range(3):

    def closure():
        optimizer.zero_grad()
        loss = criterion(seq(input), target)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        pred = seq(test_input, future=10)
        loss = criterion(pred[:, :-10], test_target)
        print("test loss:", loss.item())
        y = pred.detach().numpy()
