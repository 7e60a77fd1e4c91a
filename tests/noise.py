"""Noise for tests."""

import torch


def source(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
