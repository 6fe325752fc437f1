"""What artefacts a network's last map holds, and what is left of them when it is denoised (see `ph_reg`)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from ..ph_reg import artefacts, denoise, draw_views, white
from ..skeletons.backbone import Backbone


@dataclass
class Seen:
    """The last map of a network, as it is or denoised."""

    name: str
    map: Tensor  # (C, h, w), float32
    basis: Tensor  # (C, 3), of the colors


def look(
    network: Backbone, image: Tensor, name: str, views: int = 10, shift: float = 0.15, seed: int = 0
) -> list[Seen]:
    """A network's last map of an image behind its norm, and the same denoised.

    Args:
        network: in inference mode, with or without a head.
        image: (1, 3, H, W), normalized as ImageNet's are; what is left over beside whole pixels of the map is cut off.
        name: name of the network for the titles.
        views, shift: number of views and largest shift, as of `draw_views`.
        seed: seed of the views.

    Raises:
        ValueError: the image is smaller than a pixel of the map.
    """
    step = network.strides[-1]
    size = image.shape[-2] // step, image.shape[-1] // step
    if 0 in size:
        raise ValueError(f"image of {image.shape[-2]} x {image.shape[-1]} is smaller than a pixel of the map, {step}")
    image = image[..., : size[0] * step, : size[1] * step]
    offsets, flips = draw_views(views, size, shift, 1, torch.Generator().manual_seed(seed))

    def extract(x: Tensor) -> Tensor:
        return network.forward_intermediates(x, 1, norm=True, intermediates_only=True)[0]

    with torch.no_grad():
        plain, clean = extract(image)[0].float(), denoise(extract, image, offsets, flips, step, white())
    assert isinstance(clean, Tensor)
    rows = clean[0].float().flatten(1).T
    basis = torch.linalg.svd(rows - rows.mean(0), full_matrices=False).Vh[:3].T
    basis = basis * torch.sign(basis.gather(0, basis.abs().argmax(0, keepdim=True)))  # else of any sign
    return [Seen(found, x, basis) for found, x in ((name, plain), (f"{name}, mean of {views} views", clean[0].float()))]


def draw(pixels: np.ndarray, looks: Sequence[Seen], title: str = "") -> Figure:
    """A row for each map: the image, the three main components of the pixels as colors, and their norms.

    The components are those of the denoised map of the same network. Norms are in multiples of the median of their
    map; above twice that a pixel counts as an outlier.

    Args:
        pixels: image (H, W, 3), uint8.
        title: text above all rows.
    """
    tile, ratio = 2.6, pixels.shape[1] / pixels.shape[0]
    size = 3 * tile * ratio + 1.0, (tile + 0.5) * len(looks) + 0.3 * bool(title)
    canvas = Figure(size, layout="constrained", dpi=110)
    if title:
        canvas.suptitle(title, fontsize=10)
    for row, seen in zip(canvas.subplots(len(looks), 3, squeeze=False), looks):
        numbers = artefacts(seen.map[None])
        colors = (seen.map - seen.map.mean((1, 2), keepdim=True)).permute(1, 2, 0) @ seen.basis
        spread = colors.flatten(0, 1).std(0, correction=0).clamp(min=1e-12)
        norms = seen.map.norm(dim=0)
        norms = norms / norms.median().clamp(min=1e-12)
        texts = (
            f"{seen.name}\n{seen.map.shape[1]} x {seen.map.shape[2]} pixels",
            f"main components\nroughness {numbers['roughness'].item():.3f}",
            f"norms over their median\noutliers {100 * numbers['outliers'].item():.1f} %",
        )
        row[0].imshow(pixels)
        row[1].imshow((0.5 + colors / (4 * spread)).clamp(0, 1).numpy())
        heat = row[2].imshow(norms.numpy(), cmap="inferno", vmin=0, vmax=max(2.0, norms.max().item()))
        canvas.colorbar(heat, ax=row[2], pad=0.01, aspect=25).ax.tick_params(labelsize=7)
        for axes, text in zip(row, texts):
            axes.set_axis_off()
            axes.set_title(text, fontsize=8)
    return canvas
