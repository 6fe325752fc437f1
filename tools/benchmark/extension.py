"""mmcv's operators on a CPU: our stand-in for mmcv's compiled extension (`attlas.kernels.mmcv_ext`) beside that
extension, where one is compiled, and beside Python forms where mmcv has no compiled one for CPUs: mmcv's own of
deformable attention, and the usual one of the focal loss.

Both extensions are called in the same way, by the names, arguments and outputs of `mmcv._ext`. What a call needs for
its outputs, zeros where gradients are added up, counts.
"""

import importlib.machinery
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from attlas.kernels import mmcv_ext

from . import naive
from .cases import OURS, Case, Run, entries_differ
from .images import boxes as whole_boxes

COMPILED, PYTHON = "compiled", "Python form"
EMPTY = torch.empty(0)


def find_extension(paths: Sequence[Path]) -> Any:
    """mmcv's compiled functions: of the libraries that are named (files, or folders with `_ext*.so`), of which each may
    have some; else of the installed mmcv. None where it was not compiled.

    Raises:
        FileNotFoundError, ImportError: a path that is named holds no such library.
    """
    if not paths:
        spec = importlib.util.find_spec("mmcv")
        folders = list(spec.submodule_search_locations or ()) if spec else []
        paths = [file for folder in folders for file in Path(folder).glob("_ext*.so")]
    functions: dict[str, Callable] = {}
    for path in paths:
        files = sorted(path.glob("_ext*.so")) if path.is_dir() else [path]
        if not files or not files[0].is_file():
            raise FileNotFoundError(f"{path} is no compiled extension of mmcv, and holds no _ext*.so")
        functions |= vars(load(files[0]))
    return SimpleNamespace(**functions) if functions else None


def load(path: Path) -> ModuleType:
    name = path.name.split(".")[0]
    loader = importlib.machinery.ExtensionFileLoader(name, str(path))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def implementations(run: Run, call: Callable[[Any], Tensor], *functions: str) -> dict[str, Callable]:
    """`call` of our module, and of the compiled one where it has these functions."""
    calls: dict[str, Callable] = {OURS: partial(call, mmcv_ext)}
    compiled = run.peers.get(COMPILED)
    if compiled is not None and all(hasattr(compiled, name) for name in functions):
        calls[COMPILED] = partial(call, compiled)
    return calls


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


# --- boxes -----------------------------------------------------------------------------------------------------------


def some_boxes(count: int, seed: int = 0) -> Tensor:
    """(N, 4): corners of boxes of 10 to 110 pixels, as many of them at a place as of detections before an nms."""
    side = 40 * count**0.5
    start = side * draw(count, 2, seed=seed)
    return torch.cat([start, start + 10 + 100 * draw(count, 2, seed=seed + 1)], 1)


def rotated_boxes(count: int, seed: int = 0) -> Tensor:
    """(N, 5): centers, sizes and angles."""
    corners = some_boxes(count, seed)
    angle = 3 * draw(count, 1, seed=seed + 2)
    return torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2], angle], 1)


def make_nms(run: Run, B: int, N: int) -> dict[str, Callable]:
    boxes, scores = some_boxes(N), draw(N, seed=9)
    return implementations(run, lambda m: m.nms(boxes, scores, iou_threshold=0.5, offset=0), "nms")


def make_softnms(run: Run, B: int, N: int) -> dict[str, Callable]:
    boxes, scores = some_boxes(N), draw(N, seed=9)

    def call(m):
        found = torch.zeros(N, 5)
        m.softnms(boxes, scores, found, iou_threshold=0.5, sigma=0.5, min_score=1e-3, method=1, offset=0)
        return found[:, 4]

    return implementations(run, call, "softnms")


def make_nms_rotated(run: Run, B: int, N: int) -> dict[str, Callable]:
    boxes, scores, labels = rotated_boxes(N), draw(N, seed=9), torch.zeros(N)
    order = scores.argsort(descending=True)
    arguments = boxes, scores, order, boxes[order], labels
    return implementations(run, lambda m: m.nms_rotated(*arguments, iou_threshold=0.3, multi_label=0), "nms_rotated")


def make_overlaps(run: Run, B: int, N: int, M: int, rotated: bool) -> dict[str, Callable]:
    some, name = (rotated_boxes, "box_iou_rotated") if rotated else (some_boxes, "bbox_overlaps")
    boxes, others = some(N), some(M, seed=5)

    def call(m):
        ious = torch.zeros(N * M if rotated else (N, M))
        if rotated:
            m.box_iou_rotated(boxes, others, ious, mode_flag=0, aligned=False)
        else:
            m.bbox_overlaps(boxes, others, ious, mode=0, aligned=False, offset=0)
        return ious

    return implementations(run, call, name)


# --- maps ------------------------------------------------------------------------------------------------------------


def make_roi_align(run: Run, B: int, C: int, side: int, R: int, backward: bool) -> dict[str, Callable]:
    maps, rois = draw(B, C, side, side), whole_boxes(B, side, R, torch.device("cpu"))
    grad = draw(R, C, 7, 7)
    settings = dict(aligned_height=7, aligned_width=7, spatial_scale=1.0, sampling_ratio=0, pool_mode=1, aligned=True)

    def call(m):
        if backward:
            out = torch.zeros_like(maps)
            m.roi_align_backward(grad, rois, EMPTY, EMPTY, out, **settings)
        else:
            out = torch.zeros_like(grad)
            m.roi_align_forward(maps, rois, out, EMPTY, EMPTY, **settings)
        return out

    return implementations(run, call, "roi_align_backward" if backward else "roi_align_forward")


def make_deformable(run: Run, B: int, C: int, side: int, backward: bool) -> dict[str, Callable]:
    """Of version 2, with masks and a bias; 3 x 3, C to C channels."""
    x, weight, bias = draw(B, C, side, side), draw(C, C, 3, 3, seed=1) / 50, draw(C, seed=2)
    offset, mask = 4 * draw(B, 18, side, side, seed=3) - 2, draw(B, 9, side, side, seed=4)
    settings = 3, 3, 1, 1, 1, 1, 1, 1, 1, 1, True

    def call(m):
        if not backward:
            out = torch.empty_like(x)
            m.modulated_deform_conv_forward(x, weight, bias, EMPTY, offset, mask, out, EMPTY, *settings)
            return out
        grads = [torch.zeros_like(tensor) for tensor in (x, weight, bias, offset, mask)]
        m.modulated_deform_conv_backward(x, weight, bias, EMPTY, offset, mask, EMPTY, *grads, x, *settings)
        return tuple(grads)

    return implementations(run, call, f"modulated_deform_conv_{'backward' if backward else 'forward'}")


def make_psamask(run: Run, B: int, side: int) -> dict[str, Callable]:
    most = 2 * side - 1
    x = draw(B, most**2, side, side)

    def call(m):
        out = torch.zeros(B, side**2, side, side)
        m.psamask_forward(x, out, 0, B, side, side, most, most, side - 1, side - 1)
        return out

    return implementations(run, call, "psamask_forward")


def make_ms_deform_attn(run: Run, B: int, side: int, Q: int, backward: bool) -> dict[str, Callable]:
    """Four levels, each half as high and wide as the one before, 8 heads of 32 channels, four places a level."""
    sides = torch.tensor([(side >> level,) * 2 for level in range(4)])
    pixels = sides.prod(1)
    start = torch.cat([pixels.new_zeros(1), pixels.cumsum(0)[:-1]])
    inputs = draw(B, int(pixels.sum()), 8, 32), draw(B, Q, 8, 4, 4, 2, seed=1), draw(B, Q, 8, 4, 4, seed=2)
    grad = draw(B, Q, 256, seed=3)
    python = mmcv_python()

    def call(m):
        if not backward:
            return m.ms_deform_attn_forward(inputs[0], sides, start, *inputs[1:], im2col_step=64)
        grads = [torch.zeros_like(tensor) for tensor in inputs]
        m.ms_deform_attn_backward(inputs[0], sides, start, *inputs[1:], grad, *grads, im2col_step=64)
        return tuple(grads)

    def form(function):
        if not backward:
            return function(inputs[0], sides, *inputs[1:])
        leaves = [tensor.detach().requires_grad_() for tensor in inputs]
        return torch.autograd.grad(function(leaves[0], sides, *leaves[1:]), leaves, grad)

    calls = implementations(run, call)
    calls.pop(COMPILED, None)  # it has the name, and no code for CPUs
    return calls | ({PYTHON: partial(form, python)} if python else {})


def mmcv_python() -> Callable | None:
    """mmcv's Python form of deformable attention, where mmcv is installed."""
    try:
        return importlib.import_module("mmcv.ops.multi_scale_deform_attn").multi_scale_deformable_attn_pytorch
    except ImportError:
        return None


def make_focal_loss(run: Run, B: int, N: int, classes: int, backward: bool) -> dict[str, Callable]:
    """A hundredth of the rows is of objects, the others are of the background."""
    logits, target = 4 * draw(N, classes) - 4, torch.full((N,), classes)
    target[::100] = torch.arange(len(target[::100])) % classes

    def call(m):
        out = torch.empty_like(logits)
        function = m.sigmoid_focal_loss_backward if backward else m.sigmoid_focal_loss_forward
        function(logits, target, EMPTY, out, gamma=2.0, alpha=0.25)
        return out

    def form():
        if not backward:
            return naive.sigmoid_focal_loss(logits, target)
        leaf = logits.detach().requires_grad_()
        return torch.autograd.grad(naive.sigmoid_focal_loss(leaf, target).sum(), leaf)[0]

    calls = implementations(run, call)
    calls.pop(COMPILED, None)
    return calls | {PYTHON: form}


# --- the list --------------------------------------------------------------------------------------------------------


def mmcv_cases() -> Iterator[Case]:
    """The lower bound is that of reading the inputs and writing the outputs once; products count for convolutions."""

    def case(name: str, make: Callable[..., dict], numbers: float, operations: float = 0, **sizes: int) -> Case:
        return Case(f"mmcv {name}", dict(B=1, **sizes), make, 4 * numbers, operations, differ=entries_differ)

    for n in (1000, 10_000, 100_000):
        yield case("nms", make_nms, 6 * n, N=n)
    n = 10_000
    yield case("softnms", make_softnms, 10 * n, N=n)
    for n in (1000, 2000):
        yield case("nms_rotated", make_nms_rotated, 13 * n, N=n)
    for name, rotated, n, m in (("bbox_overlaps", False, 2000, 1000), ("box_iou_rotated", True, 500, 500)):
        yield case(name, partial(make_overlaps, rotated=rotated), n * m, N=n, M=m)
    for backward in (False, True):
        mode, passes = ("backward", 2) if backward else ("forward", 1)
        c, side, r = 256, 100, 512
        size = dict(C=c, side=side, R=r)
        yield case(f"roi_align, {mode}", partial(make_roi_align, backward=backward), c * (side**2 + 49 * r), **size)
        c, side = 128, 56
        products = passes * 2 * 9 * c**2 * side**2
        read = passes * (2 * c + 27) * side**2 + 9 * c**2
        name = f"modulated_deform_conv, {mode}"
        yield case(name, partial(make_deformable, backward=backward), read, products, C=c, side=side)
        queries, values = (5440, 256 * 5440)
        read = passes * (values + 8 * 16 * 3 * queries) + 256 * queries
        partly = partial(make_ms_deform_attn, backward=backward)
        yield case(f"ms_deform_attn, {mode}", partly, read, side=64, Q=queries)
        n, classes = 20_000, 80
        partly = partial(make_focal_loss, backward=backward)
        yield case(f"sigmoid_focal_loss, {mode}", partly, 2 * n * classes, N=n, classes=classes)
    side = 10
    yield case("psamask, forward", make_psamask, 2 * side**4, side=side)
