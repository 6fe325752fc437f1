"""Attlas: an atlas of attention for 3-D point clouds and dense prediction.

The floors are `attlas.kernels`, `attlas.backbones`, `attlas.pointnets` and `attlas.dense`; each imports only the
floors below it, and nothing here imports any of them.

`attlas.load` makes a ready model of a checkpoint (see `attlas.inference`).

After `import attlas`, `mmcv.ops` and what needs it (mmdet) work without mmcv's compiled extension, as
`attlas.kernels.mmcv_ext` stands in for it. Import attlas before mmcv, which looks for its extension once.
"""

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0.1.0"


class _StandIn(MetaPathFinder, Loader):
    """Finds `mmcv._ext` where no other finder does, so that a compiled one is preferred."""

    def find_spec(self, fullname, path=None, target=None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if fullname == "mmcv._ext" else None

    def exec_module(self, module: ModuleType) -> None:
        operators = importlib.import_module("attlas.kernels.mmcv_ext")  # by name: PyTorch is imported no sooner
        vars(module).update({name: getattr(operators, name) for name in operators.__all__})
        vars(module)["__getattr__"] = operators.missing


sys.meta_path.append(_StandIn())


def __getattr__(name: str) -> Any:
    if name == "load":
        from .inference import load  # here, because importing attlas imports nothing else

        return load
    raise AttributeError(f"module 'attlas' has no attribute {name!r}")
