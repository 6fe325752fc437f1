"""Attlas: an atlas of attention for 3-D point clouds and dense prediction.

The floors are `attlas.kernels`, `attlas.backbones`, `attlas.pointnets` and `attlas.dense`; each imports only the
floors below it, and nothing here imports any of them.

`attlas.load` makes a ready model of a checkpoint (see `attlas.inference`).
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":
        from .inference import load  # here, because importing attlas imports nothing else

        return load
    raise AttributeError(f"module 'attlas' has no attribute {name!r}")
