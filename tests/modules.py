"""The paper's networks as ordinary modules, written independently of kbe_lib."""

import torch
from torch import nn


class Network(nn.Module):
    """Logits (N, H) of a network with zero-padded convolutions of kernel size 3."""

    def __init__(self, heads=("mu", "sigma"), n_bits=8, n_layers=3, n_channels=3):
        super().__init__()
        self.heads = heads
        self.n_layers = n_layers
        for layer in range(1, n_layers + 1):
            setattr(self, f"conv{layer}", nn.Conv1d(1 if layer == 1 else n_channels, n_channels, 3, padding=1))
        for head in heads:
            setattr(self, head, nn.Linear(n_channels * n_bits, 1))

    def forward(self, x):
        h = x[:, None, :]
        for layer in range(1, self.n_layers + 1):
            h = nn.functional.elu(getattr(self, f"conv{layer}")(h))
        return torch.cat([getattr(self, head)(h.flatten(1)) for head in self.heads], dim=1)


def stacked(modules):
    return {k: v.detach() for k, v in torch.func.stack_module_state(modules)[0].items()}
