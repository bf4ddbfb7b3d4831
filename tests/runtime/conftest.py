"""Lets the tests here import what lies beside their folder: ``tiny``, the maker of small model folders."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent))
