from __future__ import annotations
from method_tests import TrainedTests


class TestTreeRNN(TrainedTests):
    name = "tree_rnn"
    settings = {"hidden": 32, "word": 8}


class TestLSTMParts(TrainedTests):
    name = "lstm_parts"
    settings = {"parts": 3, "width": 32, "hidden": 32, "look": 16}


class TestRAM(TrainedTests):
    name = "ram"
    descends = False
    steps = 150
    settings = {"glimpses": 3, "windows": 2, "side": 32, "hidden": 64}
