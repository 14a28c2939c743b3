"""A loss that the model computes itself; `estimate_loss` under a decorator; sampling at the end."""

import torch
import torch.nn.functional as F
from torch import nn


class GPT(nn.Module):
    def __init__(self, vocab=16, n=24, block=12):
        super().__init__()
        self.block = block
        self.wte, self.wpe = nn.Embedding(vocab, n), nn.Embedding(block, n)
        self.c_attn, self.c_proj = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.ln, self.drop = nn.LayerNorm(n), nn.Dropout(0.1)
        self.lm_head = nn.Linear(n, vocab)

    def forward(self, idx, targets=None):
        x = self.drop(self.wte(idx) + self.wpe(torch.arange(idx.size(1))))
        q, k, v = self.c_attn(self.ln(x)).chunk(3, 2)
        p = 0.1 if self.training else 0
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=p, is_causal=True)
        logits = self.lm_head(x + self.drop(self.c_proj(y)))
        if targets is None:
            return logits[:, [-1]], None
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))

    @torch.no_grad()
    def generate(self, idx, n):
        for _ in range(n):
            logits, _ = self(idx[:, -self.block :])
            probs = F.softmax(logits[:, -1], dim=-1)
            idx = torch.cat((idx, torch.multinomial(probs, 1)), dim=1)
        return idx


torch.manual_seed(1337)
text = torch.randint(0, 4, (3000,)).cumsum(0) % 16
data = {"train": text[:2500], "val": text[2500:]}


def get_batch(split):
    ix = torch.randint(len(data[split]) - 12, (8,))
    x = torch.stack([data[split][i : i + 12] for i in ix])
    return x, torch.stack([data[split][i + 1 : i + 13] for i in ix])


@torch.no_grad()
def estimate_loss():
    out = {}
    model.eval()
    for split in ("train", "val"):
        losses = torch.zeros(5)
        for k in range(5):
            X, Y = get_batch(split)
            logits, loss = model(X, Y)
            losses[k] = loss.item()
        out[split] = losses.mean()
    model.train()
    return out


model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
X, Y = get_batch("train")
for it in range(31):
    if it % 10 == 0:
        losses = estimate_loss()
        print(f"step {it}: train {losses['train']:.4f}, val {losses['val']:.4f}")
    for micro_step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=False):
            logits, loss = model(X, Y)
            loss = loss / 2
        X, Y = get_batch("train")
        loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
model.eval()
print(model.generate(torch.zeros((1, 1), dtype=torch.long), 20).tolist())
