"""Tiny networks are quickest on one thread each."""

import torch

torch.set_num_threads(1)
