"""A language model of two layers, for tests of how people train a part of one."""

import torch
import torch.nn.functional as F
from torch import nn

from maskedlinear_core import rows

TOKENS = torch.tensor([1, 2, 7, 6])
NEW = rows([6, 7])


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Embedding(8, 4), nn.Linear(4, 8, bias=False)

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def train(model, optimizer, steps=3):
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(TOKENS), TOKENS).backward()
        optimizer.step()


def learning(model):
    return [one for one in model.parameters() if one.requires_grad]
