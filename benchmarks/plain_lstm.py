"""A character language model in plain PyTorch, around torch.nn.LSTM: what `rit train lm` is held against.

python plain_lstm.py TEXT WEIGHTS SEED STEPS
WEIGHTS: the initial weights under ritornello's names. Prints JSON: the first 20 losses and the final valid_loss.
"""

import json
import math
import sys

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

BATCH, WINDOW, LR, WARMUP = 64, 32, 0.01, 50


class Model(nn.Module):
    def __init__(self, vocabulary, embedding=64, hidden=256):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, embedding)
        self.lstm = nn.LSTM(embedding, hidden)
        self.output = nn.Linear(hidden, vocabulary)
        self.lstm.bias_hh_l0.requires_grad_(False).zero_()  # torch's second bias adds nothing

    def forward(self, tokens, state=None):
        h, state = self.lstm(self.embed(tokens), state)
        return self.output(h), state


def train(text, model, seed, steps):
    text = torch.from_numpy(text)
    lane = (len(text) - 1) // BATCH - -(-WINDOW // BATCH)
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2 and p.requires_grad]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.99), fused=True)
    losses, epoch = [], 0
    while len(losses) < steps:
        first = int(np.random.default_rng((seed, epoch)).integers(len(text) - 1 - BATCH * lane + 1))
        x, y = (text[first + i : first + i + BATCH * lane].view(BATCH, lane).T for i in (0, 1))
        state = None
        for t in range(0, lane, WINDOW)[: steps - len(losses)]:
            done = len(losses)
            for group in optimiser.param_groups:
                group["lr"] = LR * 0.5 * (1 + math.cos(math.pi * done / steps)) * min((done + 1) / WARMUP, 1)
            optimiser.zero_grad()
            logits, state = model(x[t : t + WINDOW], state)
            loss = F.cross_entropy(logits.flatten(0, 1), y[t : t + WINDOW].flatten())
            loss.backward()
            state = tuple(s.detach() for s in state)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            losses.append(loss.item())
        epoch += 1
    return losses


@torch.no_grad()
def evaluate(text, model):
    text, state, total = torch.from_numpy(text)[:, None], None, 0.0
    for t in range(0, len(text) - 1, 1000):
        y = text[t + 1 : t + 1001]
        logits, state = model(text[t : t + len(y)], state)
        total += F.cross_entropy(logits[:, 0], y[:, 0], reduction="sum").item()
    return total / (len(text) - 1)


if __name__ == "__main__":
    path, weights, seed, steps = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    with open(path, encoding="utf-8", newline="") as file:
        symbols, tokens = np.unique(np.frombuffer(file.read().encode("utf-32-le"), np.uint32), return_inverse=True)
    cut, model = int(0.9 * len(tokens)), Model(len(symbols))
    names = {"W.weight": "lstm.weight_ih_l0", "W.bias": "lstm.bias_ih_l0", "U.weight": "lstm.weight_hh_l0"}
    start = {k.removeprefix("stack.layers.0.cell."): v for k, v in load_file(weights).items()}
    model.load_state_dict({names.get(k, k): v for k, v in start.items()}, strict=False)
    losses = train(tokens[:cut], model, seed, steps)
    print(json.dumps({"losses": losses[:20], "valid_loss": evaluate(tokens[cut:], model)}))
