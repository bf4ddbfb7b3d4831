"""Lets the tests here import what lies beside their folder (``tiny``, ``hub``, ``method_tests``)."""

import sys
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent.parent))
torch.set_num_threads(1)  # tiny networks: threads only wait for each other
