from __future__ import annotations
from method_tests import TrainedTests


class TestFGN(TrainedTests):
    name = "fgn"
    settings = {"width": 64}


class TestHRN(TrainedTests):
    name = "hrn"
    settings = {"width": 64}
