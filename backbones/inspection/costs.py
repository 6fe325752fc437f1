"""What a network costs: parameters, multiply-adds, activations, memory and time, by part."""

import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, bmm_flop, sdpa_flop_count

from ...kernels.dispatch import decompositions


def _bmm_flop(a: Tensor, b: Tensor, *_, **__) -> int:
    """A product of complex numbers is four of real ones."""
    return bmm_flop(a.shape, b.shape) * (4 if a.is_complex() else 1)


_bmm_flop._get_raw = True  # type: ignore[attr-defined]  # tensors, not shapes

# which PyTorch's counter leaves out, or takes for something else
FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, out_shape=None, **__: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten.bmm: _bmm_flop,
}


@dataclass
class Part:
    """Figures of one part of a network for one batch. A part that runs several times is summed."""

    name: str
    params: int = 0
    macs: float = 0.0  # multiply-adds of matrix products and convolutions, as papers give "FLOPs"
    activations: int = 0  # elements that these give out
    seconds: float = 0.0
    shape: tuple[int, ...] = ()  # of the last output


class _Decomposed(TorchDispatchMode):
    """Our operators run as their references, so that what they compute can be counted."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return decompositions().get(func, func)(*args, **(kwargs or {}))


class _Activations(TorchDispatchMode):
    """Counts the elements that matrix products and convolutions give out."""

    heavy = ("convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product")

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func._schema.name.removeprefix("aten::").startswith(self.heavy):
            self.count += tree_leaves(result)[0].numel()
        return result


class PeakMemory(TorchDispatchMode):
    """The most bytes that tensors made within it held at a time: `peak`. Scratch inside operators is not seen.

    Args:
        ignore: tensors that are not counted, nor what shares their memory (inputs, weights).
    """

    def __init__(self, ignore: Iterable[Tensor] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._known = {tensor.untyped_storage()._cdata for tensor in ignore}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._watch(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        weakref.finalize(storage, self._freed, key, size)

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


def parts_of(network: nn.Module) -> dict[str, nn.Module]:
    """The parts that a reader thinks of: the children of the network, lists of stages or blocks taken apart."""
    parts: dict[str, nn.Module] = {}
    for name, child in network.named_children():
        if isinstance(child, (nn.ModuleList, nn.ModuleDict)):
            parts.update({f"{name}.{inner}": module for inner, module in child.named_children()})
        else:
            parts[name] = child
    return parts


@contextmanager
def _around(module: nn.Module, start: Callable[[], None], stop: Callable[[object], None]) -> Iterator[None]:
    """Call `start` and `stop(output)` around whatever runs inside a part, also if the part itself, a mere list of
    modules, is never called."""
    depth = 0

    def enter(*_):
        nonlocal depth
        depth += 1
        if depth == 1:
            start()

    def leave(_, __, output):
        nonlocal depth
        depth -= 1
        if depth == 0:
            stop(output)

    handles = []
    for inner in module.modules():
        handles += [inner.register_forward_pre_hook(enter), inner.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def analyze(network: nn.Module, image: Tensor, repeats: int = 5) -> list[Part]:
    """The cost of every part of a network, the whole last.

    Args:
        network: in inference mode.
        image: a batch (B, C, H, W) on the network's device.
        repeats: runs that are timed; the fastest counts. 0 to not time.

    Returns:
        Multiply-adds, activations and seconds are of the whole batch.
    """
    modules = {**parts_of(network), "total": network}
    parts = {name: Part(name, params=sum(p.numel() for p in m.parameters())) for name, m in modules.items()}
    with _without_gradients(network):
        _count(network, modules, parts, image)
    best: dict[str, float] = {}
    for _ in range(repeats + 1 if repeats else 0):  # the first one warms up
        seconds = _time(network, modules, image)
        for name, value in seconds.items():
            best[name] = min(value, best.get(name, value))
    for name, value in best.items():
        parts[name].seconds = value
    return [part for part in parts.values() if part.params or part.macs or part.seconds]


@contextmanager
def _without_gradients(network: nn.Module) -> Iterator[None]:
    """No parameter needs a gradient: PyTorch's counter asks views of such a one, made without a graph, for theirs."""
    learned = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learned:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learned:
            parameter.requires_grad_(True)


def _count(network: nn.Module, modules: dict[str, nn.Module], parts: dict[str, Part], image: Tensor) -> None:
    with (
        FlopCounterMode(display=False, custom_mapping=FORMULAS) as flops,
        _Activations() as activations,
        _Decomposed(),
    ):

        def watch(name: str):
            begin = [0.0, 0]

            def start() -> None:
                begin[:] = flops.get_total_flops(), activations.count

            def stop(output: object) -> None:
                parts[name].macs += (flops.get_total_flops() - begin[0]) / 2
                parts[name].activations += activations.count - int(begin[1])
                tensors = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
                if tensors:
                    parts[name].shape = tuple(tensors[-1].shape)

            return start, stop

        _run(network, modules, image, watch)


def _time(network: nn.Module, modules: dict[str, nn.Module], image: Tensor) -> dict[str, float]:
    seconds = dict.fromkeys(modules, 0.0)

    def now() -> float:
        if image.is_cuda:
            torch.cuda.synchronize(image.device)
        return time.perf_counter()

    def watch(name: str):
        begin = [0.0]

        def start() -> None:
            begin[0] = now()

        def stop(_: object) -> None:
            seconds[name] += now() - begin[0]

        return start, stop

    _run(network, modules, image, watch)
    return seconds


def _run(network: nn.Module, modules: dict[str, nn.Module], image: Tensor, watch: Callable) -> None:
    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_around(module, *watch(name)))
        network(image)
