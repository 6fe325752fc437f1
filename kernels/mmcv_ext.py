"""What mmcv.ops asks of mmcv's compiled extension, `mmcv._ext`, computed by the operators of this package.

`import attlas` offers this module under that name where no compiled one exists, so that mmdet and mmseg work with
nothing compiled. Functions have the names, the arguments and the order of arguments of the extension; an argument for
output is written in place. Any other name can be imported, as `mmcv.ops` imports all; it raises when called.

Source of the conventions: `mmcv/ops/*.py` of onedl-mmcv 2.3.6, which calls them.
"""

from collections.abc import Callable

__all__ = ["get_compiler_version", "get_compiling_cuda_version"]


def missing(name: str) -> Callable:
    """A function in place of an operator that is not here; a module's `__getattr__`."""
    if name.startswith("_"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def operator(*args, **kwargs):
        raise RuntimeError(
            f"mmcv's operator {name} needs mmcv's compiled extension: attlas.kernels.mmcv_ext, which stands in for it, "
            "does not have it. Compile mmcv where torch is installed: "
            "pip install --force-reinstall --no-deps --no-binary onedl-mmcv --no-build-isolation onedl-mmcv"
        )

    operator.__name__ = name
    return operator


# --- what was compiled -----------------------------------------------------------------------------------------------


def get_compiler_version() -> str:
    return "none: attlas.kernels.mmcv_ext"


def get_compiling_cuda_version() -> str:
    return "none: attlas.kernels.mmcv_ext"
