"""Where a network looks: the attention or gates of its mixers, laid over the image."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor, nn

from ... import images
from ...registry import MIXERS
from ..layers import Pruned, put_back
from ..skeletons.backbone import Backbone, Notes

# of ImageNet, in which networks of images are trained unless a config says otherwise
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Look:
    """What one mixer looks at from one place."""

    name: str  # of the module in the network
    mixer: str  # its class
    maps: np.ndarray  # (M, H, W), float32: a map for each head, gate or kernel; NaN at pixels that were dropped before
    place: tuple[float, float]  # row and column, as fractions of the image
    kind: str  # of the maps: "head", "gate" or "kernel", or "influence" (size of the output's gradient at the place)


def mixers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The mixers of a network by module name, in the order of the modules, without those inside others: all of MIXERS,
    and what else has `attention_maps` (class attention)."""
    classes = tuple(MIXERS.module_dict.values())
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        mixes = isinstance(module, classes) or hasattr(module, "attention_maps")
        if mixes and not any(name.startswith(f"{outer}.".lstrip(".")) for outer in found):  # "" is the network
            found[name] = module
    return found


def look(
    network: Backbone, image: Tensor, place: tuple[float, float], names: Sequence[str] | None = None
) -> list[Look]:
    """What mixers look at from a place of the image.

    Args:
        network: in inference mode.
        image: (1, 3, H, W), normalized.
        place: row and column as fractions of height and width, in [0, 1).
        names: names of modules (`mixers_of`); by default the last of each class of mixers at each resolution.

    Returns:
        For each, the mixer's own `attention_maps` where it has them; else the influence of every pixel of its input on
        its output at the place: the norm of the gradient, over channels. Where the network has dropped pixels, those
        that are left stand on the grid; if the place itself was dropped, it is that of the nearest one that is left.
    """
    if not all(0 <= fraction < 1 for fraction in place):
        raise ValueError(f"place={place}: row and column are fractions of the image, at least 0 and below 1")
    mixers = mixers_of(network)
    if names is not None and (unknown := [name for name in names if name not in mixers]):
        raise ValueError(f"{', '.join(unknown)}: no mixer of this network; it has {', '.join(mixers)}")
    inputs: dict[str, tuple[Tensor, ...]] = {}
    pruned: dict[str, Pruned | None] = {}
    noted: Notes = {}

    def remember(name: str, args: tuple[Tensor, ...]) -> None:
        inputs[name], pruned[name] = args, noted.get("pruned")

    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: remember(name, args))
        for name, module in mixers.items()
    ]
    try:
        with torch.no_grad(), _noting(network, noted):
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    if names is None:
        last: dict[tuple, str] = {}
        for name, (x, *_) in inputs.items():
            last[(type(mixers[name]), *x.shape[-2:])] = name
        names = list(last.values())
    return [_look(name, mixers[name], *inputs[name], place=place, pruned=pruned[name]) for name in names]


@contextmanager
def _noting(network: nn.Module, notes: Notes) -> Iterator[None]:
    """Inside, the levels of the network write their notes into `notes`."""
    if not isinstance(network, Backbone):
        yield
        return
    levels = network.levels

    def noting(image: Tensor, own: Notes) -> Iterator[Tensor]:
        for x in levels(image, own):
            notes.update(own)
            yield x

    network.levels = noting  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del network.levels


def _look(
    name: str,
    mixer: nn.Module,
    x: Tensor,
    *others: Tensor,
    place: tuple[float, float],
    pruned: Pruned | None = None,
) -> Look:
    if pruned is not None:
        at, place = _nearest(pruned, place)
        seen = _look(name, mixer, x, *others, place=(0.0, (at + 0.5) / x.shape[-1]))
        blank = torch.full((1, len(seen.maps), *pruned.others.shape[-2:]), torch.nan)
        maps = put_back(torch.from_numpy(seen.maps)[None], pruned.places[:1], blank)[0]
        return replace(seen, maps=maps.numpy(), place=place)
    row, column = (int(fraction * size) for fraction, size in zip(place, x.shape[-2:]))
    if hasattr(mixer, "attention_maps"):
        with torch.no_grad():
            takes = any(getattr(mixer, f"takes_{what}", False) for what in ("tokens", "messages"))
            maps = mixer.attention_maps(x, (row, column), *(others if takes else ()))[0]  # type: ignore[operator]
        return Look(name, type(mixer).__name__, maps.float().numpy(), place, getattr(mixer, "map_kind", "head"))
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(mixer(x)[0, :, row, column].square().sum(), x)
    maps = grad[0].norm(dim=0, keepdim=True)
    return Look(name, type(mixer).__name__, maps.float().numpy(), place, "influence")


def _nearest(pruned: Pruned, place: tuple[float, float]) -> tuple[int, tuple[float, float]]:
    """The number of the pixel that is left at a place, or nearest to it, and its place: as asked, or its middle."""
    size = pruned.others.shape[-2:]
    asked = [int(fraction * side) for fraction, side in zip(place, size)]
    rows, columns = pruned.places[0] // size[1], pruned.places[0] % size[1]
    far = (rows - asked[0]).square() + (columns - asked[1]).square()
    at = int(far.argmin())
    if far[at]:
        place = (int(rows[at]) + 0.5) / size[0], (int(columns[at]) + 0.5) / size[1]
    return at, place


def read_image(path, size: int) -> tuple[np.ndarray, Tensor]:
    """An image file as (H, W, 3) uint8 RGB, its short side `size` pixels, and as a normalized batch (1, 3, H, W)."""
    if size < 1:
        raise ValueError(f"size={size}: the short side of the image has at least one pixel")
    pixels = images.read_image(path)
    scale = size / min(pixels.shape[:2])
    shape = tuple(round(n * scale) for n in pixels.shape[1::-1])
    pixels = cv2.resize(pixels, shape, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    normalized = (pixels / 255 - np.array(MEAN)) / np.array(STD)
    return pixels, torch.from_numpy(normalized.astype(np.float32)).permute(2, 0, 1)[None]


def draw(pixels: np.ndarray, looks: Sequence[Look], title: str = "", columns: int = 5) -> Figure:
    """A row for each look: the image with the place, the mean over all maps, and the first maps themselves.

    The maps of a row have one scale, from nothing to their largest value, in multiples of their mean (maps that look at
    everything alike have 1.0 everywhere). What was dropped before is pale.

    Args:
        pixels: image (H, W, 3), uint8.
        title: text above all rows.
        columns: the most maps in a row, the mean among them.
    """
    columns = min(columns, max(len(seen.maps) + (len(seen.maps) > 1) for seen in looks))
    height, width = pixels.shape[:2]
    tile = 2.2
    size = tile * (columns + 1) * width / height + 0.9, (tile + 0.5) * len(looks) + 0.3 * bool(title)
    canvas = Figure(size, layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10)
    grid = canvas.subplots(len(looks), columns + 1, squeeze=False)
    for row, seen in zip(grid, looks):
        count = len(seen.maps)
        left = np.isfinite(seen.maps[0])
        relative = seen.maps / max(float(np.abs(seen.maps[:, left]).mean()), 1e-12)
        maps = [relative.mean(0), *(relative if count > 1 else [])][:columns]
        name = f"{seen.name}\n{seen.mixer}, {seen.maps.shape[1]} x {seen.maps.shape[2]}"
        if not left.all():
            name += f", {left.sum()} left"
        titles = [name, seen.kind]
        if count > 1:
            left_out = count + 1 - len(maps)
            titles[0] += f"\n{count} {seen.kind}s" + (f", {left_out} left out" if left_out else "")
            titles[1:] = [f"mean of {count}", *(f"{seen.kind} {i}" for i in range(count))]
        for axes in row:
            axes.set_axis_off()
        scale = Normalize(0, max(float(max(values[left].max() for values in maps)), 1e-12))
        for axes, picture, text in zip(row, [pixels, *(_overlay(pixels, scale(values)) for values in maps)], titles):
            axes.imshow(picture)
            axes.set_title(text, fontsize=8)
            y, x = (fraction * side - 0.5 for fraction, side in zip(seen.place, (height, width)))
            axes.plot(x, y, "+", color="white", markersize=9, markeredgewidth=2.5)
            axes.plot(x, y, "+", color="black", markersize=8, markeredgewidth=1)
        bar = canvas.colorbar(ScalarMappable(scale, "inferno"), ax=list(row), pad=0.01, aspect=25)
        bar.set_label("times the mean", fontsize=8)
        bar.ax.tick_params(labelsize=7)
    return canvas


def _overlay(pixels: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """The image in gray, darkened, and a map of strengths up to 1 in color over it; pale where that is NaN."""
    gray = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2)
    strength = np.asarray(strength, np.float32)
    large = F.interpolate(
        torch.from_numpy(strength)[None, None],
        pixels.shape[:2],
        mode="bicubic" if strength.size > 4 and np.isfinite(strength).all() else "nearest",
    )[0, 0].clamp(0, 1)
    heat = cv2.applyColorMap((255 * large.nan_to_num()).byte().numpy(), cv2.COLORMAP_INFERNO)[..., ::-1]
    heat = np.where(large.isnan()[..., None], 255, heat)
    return (0.45 * gray + 0.55 * heat).astype(np.uint8)
