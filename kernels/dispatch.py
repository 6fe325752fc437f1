"""The choice among an operator's implementations, and what they need of Triton, Numba and threads.

Every operator is one `torch.library` operator, so that `torch.compile` and `torch.export` see one node. Inside it,
`pick` chooses by the device of a tensor: Triton on a CUDA device, loops compiled by Numba (or a library) on a CPU, the
PyTorch reference elsewhere. The environment variable ATTLAS_KERNELS overrides this choice: "reference" runs the
reference everywhere, "triton" the Triton kernels everywhere (on a CPU they need Triton's interpreter: set
TRITON_INTERPRET=1 before the import); "auto" is the default.
"""

import functools
import logging
import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext

import numba
import torch
from numba.core import event
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # Triton does not exist for every platform

    class tl:  # type: ignore[no-redef]
        """Stands in for the names in the signatures of kernels."""

        @staticmethod
        def constexpr(value):
            return value

    class triton:  # type: ignore[no-redef]
        """Leaves kernels as plain functions, which `pick` never launches then."""

        @staticmethod
        def jit(function=None, **options):
            return function if function is not None else lambda kernel: kernel

    HAS_TRITON = False
else:
    HAS_TRITON = True

log = logging.getLogger(__name__)

MODES = ("auto", "reference", "triton")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pick(tensor: Tensor, *, reference: Callable, triton: Callable, cpu: Callable | None = None) -> Callable:
    """The implementation for the device of `tensor`; without a `cpu` one, the reference runs on CPUs, too.

    It runs without autocast: the dtypes are chosen before the operator, not inside it.
    """
    chosen = _choose(tensor, reference, triton, cpu)
    device = tensor.device.type
    return torch.autocast(device, enabled=False)(chosen) if torch.is_autocast_enabled(device) else chosen


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context without autocast on the device of `tensor`."""
    device = tensor.device.type  # torch.amp.is_autocast_available breaks the graph before torch 2.13
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _choose(tensor: Tensor, reference: Callable, triton: Callable, cpu: Callable | None) -> Callable:
    mode = os.environ.get("ATTLAS_KERNELS", "auto")
    if mode not in MODES:
        raise ValueError(f"ATTLAS_KERNELS must be one of {MODES}, got {mode!r}")
    on_gpu, on_cpu = tensor.device.type == "cuda", tensor.device.type == "cpu"
    if mode == "triton":
        if not HAS_TRITON:
            raise RuntimeError("ATTLAS_KERNELS=triton, but triton is not installed: pip install triton")
        if not (on_gpu or (on_cpu and INTERPRETED)):
            raise RuntimeError(
                f"ATTLAS_KERNELS=triton, but tensors on {tensor.device} need Triton's interpreter: "
                "set TRITON_INTERPRET=1 before the first import, or move the tensors to a CUDA device"
            )
        return triton
    if mode == "auto" and on_gpu and HAS_TRITON:
        return triton
    if mode == "auto" and on_cpu and cpu is not None:
        return cpu
    return reference


def autotune(configs: list[dict], key: list[str]):
    """`triton.autotune` over configs like {"BLOCK_S": 64, "num_warps": 4}; the choice for a `key` is kept on disk.

    The interpreter does not time anything and takes the first config: put the safest there.
    """

    def decorate(kernel):
        if not HAS_TRITON:
            return kernel
        options = ("num_warps", "num_stages")
        built = [
            triton.Config(
                {name: value for name, value in config.items() if name not in options},
                **{name: config[name] for name in options if name in config},
            )
            for config in (configs[:1] if INTERPRETED else configs)
        ]
        return triton.autotune(built, key=key, cache_results=not INTERPRETED)(kernel)

    return decorate


_decompositions: dict[torch._ops.OpOverload, Callable] = {}
_translations: dict[Callable, Callable] = {}


def decompose(operator, reference: Callable) -> None:
    """Register the PyTorch function that replaces an operator in exports to formats that lack it: one of ours, or an
    overload of PyTorch's (where `reference` returns NotImplemented, that stays)."""
    _decompositions[getattr(operator, "_opoverload", operator)] = reference


def decompositions() -> dict[torch._ops.OpOverload, Callable]:
    """A table for `torch.export.ExportedProgram.run_decompositions` that replaces operators by their references.

    An export to ONNX needs it. Operators that were not registered with `decompose` are not in it.
    """
    return dict(_decompositions)


def translate(operator, write: Callable) -> None:
    """Register the function that writes an operator by those of ONNX, where its reference has loops over values.

    Args:
        operator: operator of ours.
        write: function from the operator's arguments, values of ONNX, to a value of ONNX (of `onnxscript`).
    """
    _translations[operator._opoverload] = write


def translations() -> dict[Callable, Callable]:
    """A table for `torch.onnx.export(..., custom_translation_table=...)`, of what was registered with `translate`."""
    return dict(_translations)


def compiled(function: Callable | None = None, **options):
    """Compile a function of NumPy arrays to machine code on its first call (Numba); it runs without the GIL.

    The code is kept on disk, beside the module or in the user's cache folder. The first compilation in a process is
    logged, since compiling all loops takes a minute. `options` are those of `numba.njit`.
    """
    if function is None:
        return functools.partial(compiled, **options)
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder is writable: compile in every process
        return numba.njit(**options)(function)


class _Compilation(event.Listener):
    """Says once that a loop of ours is compiled, in place of a long silence; code from the disk is not compiled."""

    said = False

    def on_start(self, event):
        name = event.data["dispatcher"].py_func.__module__
        if not self.said and name.startswith("attlas."):
            _Compilation.said = True
            log.warning(
                "Numba compiles the CPU's loops, first those of %s: up to a minute in all. The code is kept on disk if "
                "a folder is writable.",
                name,
            )

    def on_end(self, event):
        pass


event.register("numba:compile", _Compilation())


# Seconds that one thread works alone. For about so long PyTorch's own threads spin, waiting for its next operator, and
# further threads would get no core.
ALONE = 3e-3
_pool: tuple[int, ThreadPoolExecutor] | None = None


def each(function: Callable, items: Iterable) -> list:
    """[function(item) for item in items], after `ALONE` seconds on as many threads as PyTorch uses.

    `function` may run compiled loops and PyTorch's operators. Meanwhile each of the latter uses one thread: with a
    cloud per core, the data stay in that core's cache, and threads do not wait for each other after every operator.
    No gradient is recorded, so this is for the bodies of operators only.
    """
    global _pool
    items = list(items)
    threads = torch.get_num_threads()
    if threads == 1 or len(items) < 2:
        return [function(item) for item in items]
    if _pool is None or _pool[0] != threads:
        one_thread = functools.partial(torch.set_num_threads, 1)
        _pool = threads, ThreadPoolExecutor(threads - 1, thread_name_prefix="attlas", initializer=one_thread)
    results = [None] * len(items)
    numbers = iter(range(len(items)))  # shared: every thread takes the next item, and is started once
    # threads do not inherit inference mode, and its tensors can be written to in that mode only
    mode = torch.inference_mode if torch.is_inference_mode_enabled() else torch.no_grad

    def work() -> None:
        with mode():
            for i in numbers:
                results[i] = function(items[i])

    others: list[Future] = []
    try:
        torch.set_num_threads(1)  # of this thread, and of the BLAS library, which has one number for all threads
        began = time.perf_counter()
        for i in numbers:
            results[i] = function(items[i])
            if not others and time.perf_counter() - began > ALONE:
                others += [_pool[1].submit(work) for _ in range(min(threads, len(items)) - 1)]
    finally:
        try:
            wait(others)
        finally:
            torch.set_num_threads(threads)
    for other in others:
        other.result()  # raises the exception of that thread, if any
    return results


def slices(start: int, stop: int, step: int) -> list[slice]:
    """The range start..stop in slices of `step`, as items for `each`; the last one may be shorter."""
    return [slice(i, min(i + step, stop)) for i in range(start, stop, step)]


def _forget_pool() -> None:
    global _pool
    _pool = None


# a forked process (a worker of a data loader) inherits the pool, but not its threads
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)
