"""Where a network looks: the attention or gates of its mixers, laid over the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor, nn

from ... import images
from ...registry import MIXERS
from ..skeletons.backbone import Backbone

# of ImageNet, in which networks of images are trained unless a config says otherwise
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass
class Look:
    """What one mixer looks at from one place."""

    name: str  # of the module in the network
    mixer: str  # its class
    maps: np.ndarray  # (M, H, W), float32, >= 0: a map for each head or gate
    place: tuple[int, int]  # row and column in its map
    kind: str  # "weights" (of the mixer itself) or "influence" (size of the gradient of the output at the place)


def mixers_of(network: nn.Module) -> dict[str, nn.Module]:
    """The mixers of a network by module name, in the order of the modules, without those inside others: all of MIXERS,
    and what else has `attention_maps` (class attention)."""
    classes = tuple(MIXERS.module_dict.values())
    found: dict[str, nn.Module] = {}
    for name, module in network.named_modules():
        mixes = isinstance(module, classes) or hasattr(module, "attention_maps")
        if mixes and not any(name.startswith(f"{outer}.") for outer in found):
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
        its output at the place: the norm of the gradient, over channels.
    """
    if not all(0 <= fraction < 1 for fraction in place):
        raise ValueError(f"place={place}: row and column are fractions of the image, at least 0 and below 1")
    mixers = mixers_of(network)
    if names is not None and (unknown := [name for name in names if name not in mixers]):
        raise ValueError(f"{', '.join(unknown)}: no mixer of this network; it has {', '.join(mixers)}")
    inputs: dict[str, tuple[Tensor, ...]] = {}
    handles = [
        module.register_forward_pre_hook(lambda _, args, name=name: inputs.__setitem__(name, args))
        for name, module in mixers.items()
    ]
    try:
        with torch.no_grad():
            network(image)
    finally:
        for handle in handles:
            handle.remove()
    if names is None:
        last: dict[tuple, str] = {}
        for name, (x, *_) in inputs.items():
            last[(type(mixers[name]), *x.shape[-2:])] = name
        names = list(last.values())
    return [_look(name, mixers[name], *inputs[name], place=place) for name in names]


def _look(name: str, mixer: nn.Module, x: Tensor, *others: Tensor, place: tuple[float, float]) -> Look:
    row, column = (int(fraction * size) for fraction, size in zip(place, x.shape[-2:]))
    if hasattr(mixer, "attention_maps"):
        with torch.no_grad():
            tokens = others if getattr(mixer, "takes_tokens", False) else ()
            maps = mixer.attention_maps(x, (row, column), *tokens)[0]  # type: ignore[operator]
        return Look(name, type(mixer).__name__, maps.float().numpy(), (row, column), "weights")
    x = x.clone().requires_grad_()
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(mixer(x)[0, :, row, column].square().sum(), x)
    maps = grad[0].norm(dim=0, keepdim=True)
    return Look(name, type(mixer).__name__, maps.float().numpy(), (row, column), "influence")


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


def draw(pixels: np.ndarray, looks: Sequence[Look], columns: int = 5) -> Figure:
    """A row for each look: the image with the place, the mean over all maps, and the first maps themselves.

    Each map has its own scale, from nothing to its largest value; titles say how far that is above the map's mean (a
    map that looks at everything alike has 1.0).

    Args:
        columns: the most maps in a row, the mean among them.
    """
    columns = min(columns, max(len(seen.maps) + (len(seen.maps) > 1) for seen in looks))
    height, width = pixels.shape[:2]
    tile = 2.2
    canvas = Figure((tile * (columns + 1) * width / height, (tile + 0.35) * len(looks)), layout="constrained", dpi=110)
    grid = canvas.subplots(len(looks), columns + 1, squeeze=False)
    for row, seen in zip(grid, looks):
        maps = [seen.maps.mean(0), *(seen.maps if len(seen.maps) > 1 else [])][:columns]
        titles = [f"mean of {len(seen.maps)}" if len(seen.maps) > 1 else seen.kind]
        titles += [f"{seen.kind} {i}" for i in range(len(seen.maps))]
        for axes in row:
            axes.set_axis_off()
        row[0].imshow(pixels)
        row[0].set_title(f"{seen.name}\n{seen.mixer}, {seen.maps.shape[1]} x {seen.maps.shape[2]}", fontsize=8)
        y, x = ((at + 0.5) / n * size for at, n, size in zip(seen.place, seen.maps.shape[1:], (height, width)))
        for axes, values, title in zip(row[1:], maps, titles):
            axes.imshow(_overlay(pixels, values))
            axes.set_title(f"{title}\nto {values.max() / max(values.mean(), 1e-12):.1f} times its mean", fontsize=8)
        for axes in row[: len(maps) + 1]:
            axes.plot(x, y, "+", color="white", markersize=9, markeredgewidth=2.5)
            axes.plot(x, y, "+", color="black", markersize=8, markeredgewidth=1)
    return canvas


def _overlay(pixels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The image in gray, darkened, and the map in color over it."""
    gray = np.repeat(pixels.mean(2, keepdims=True), 3, axis=2)
    large = F.interpolate(
        torch.from_numpy(values)[None, None], pixels.shape[:2], mode="bicubic" if values.size > 4 else "nearest"
    )[0, 0].clamp(min=0)
    strength = (large / large.max().clamp(min=1e-12)).numpy()
    heat = cv2.applyColorMap((255 * strength).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    return (0.45 * gray + 0.55 * heat).astype(np.uint8)
