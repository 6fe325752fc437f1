"""`python tools/benchmark` runs command.py as a module of the package `benchmark`, which its processes import, too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmark.command import main

main()
