"""A polynomial, by hand: no optimizer, batches without end."""

from itertools import count

import torch
import torch.nn.functional as F

torch.manual_seed(0)
W_target, b_target = torch.randn(4, 1) * 5, torch.randn(1) * 5


def get_batch(batch_size=32):
    x = torch.randn(batch_size)
    x = torch.cat([x.unsqueeze(1) ** i for i in range(1, 5)], 1)
    return x, x.mm(W_target) + b_target[0]


fc = torch.nn.Linear(4, 1)
for batch_idx in count(1):
    batch_x, batch_y = get_batch()
    fc.zero_grad()
    output = F.smooth_l1_loss(fc(batch_x), batch_y)
    loss = output.detach()
    output.backward()
    for param in fc.parameters():
        param.data.add_(-0.1 * param.grad)
    if batch_idx == 100:
        break
print(float(loss))
