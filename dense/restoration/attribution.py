"""Which pixels of a picture a restored patch is made of: local attribution maps.

"Interpreting Super-Resolution Networks with Local Attribution Maps", Gu and Dong, CVPR 2021, arXiv 2011.11036. Let D be
the sum of the edges in a patch of what a network F makes of a picture, and γ(α) the picture I under a Gaussian blur,
from `sigma` (α = 0) to nothing (α = 1). The attribution of a number of the picture is the integrated gradient

    A_i = ∫ (∂D(F(γ))/∂γ_i) (∂γ_i/∂α) dα;    Σ_i A_i = D(F(I)) - D(F(γ(0)))

so that details count, and flat colors do not. The map shows |Σ of A over the channels| of each pixel. The diffusion
index is 100 (1 - G), where G is the Gini coefficient of the map: the more pixels take part, the larger. It depends on
the size of the picture, and compares networks on one picture alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...backbones.inspection.targets import Score
from ...data import one_of, positive
from .restorer import padded


@dataclass
class Attribution:
    """What a restored patch is made of."""

    signed: Tensor  # (C, H, W), A
    restored: Tensor  # (C, scale H, scale W), the network's output for the picture, not clamped
    detected: tuple[float, float]  # D of the blurred picture, and of the picture

    @property
    def map(self) -> Tensor:
        """(H, W), at least 0."""
        return self.signed.sum(0).abs()

    @property
    def diffusion_index(self) -> float:
        """From 0, nearly, for one pixel to 100 for all alike; NaN where nothing takes part."""
        return 100 * (1 - gini(self.map))

    def area(self, share: float = 0.95) -> Tensor:
        """The fewest pixels that have this share of the map, bool (H, W)."""
        values, order = self.map.double().flatten().sort(descending=True, stable=True)
        count = int((values.cumsum(0) < share * values.sum()).sum()) + 1
        chosen = torch.zeros(len(order), dtype=torch.bool)
        chosen[order[: count if values[0] > 0 else 0].cpu()] = True
        return chosen.view(self.map.shape)


def gini(values: Tensor) -> float:
    """The Gini coefficient of numbers of at least 0, the mean difference of two over twice their mean; 0 where all are
    alike, 1 - 1/n where one of n has all; NaN where all are 0."""
    values = values.double().flatten().sort().values
    weights = 2 * torch.arange(1, len(values) + 1, device=values.device) - len(values) - 1
    return float((weights * values).sum() / (len(values) * values.sum()))


# --- edges and blurs -------------------------------------------------------------------------------------------------

SOBEL = ((-1, 0, 1), (-2, 0, 2), (-1, 0, 1))  # along columns


def differences(image: Tensor) -> Tensor:
    """Length of the gradient (B, C, H, W) by differences to the next row and column; to the last none."""
    down = F.pad(image, (0, 0, 0, 1), mode="replicate").diff(dim=2)
    right = F.pad(image, (0, 1, 0, 0), mode="replicate").diff(dim=3)
    return _length(down, right)


def sobel(image: Tensor) -> Tensor:
    """Length of the gradient (B, C, H, W) by Sobel's filters; beyond the borders the last row and column go on."""
    kernel = image.new_tensor(SOBEL)
    planes = F.pad(image, (1, 1, 1, 1), mode="replicate").flatten(0, 1).unsqueeze(1)
    both = F.conv2d(planes, torch.stack([kernel, kernel.mT]).unsqueeze(1))
    return _length(*both.unflatten(0, image.shape[:2]).unbind(2))


def _length(x: Tensor, y: Tensor) -> Tensor:
    return (x.square() + y.square() + 1e-12).sqrt()  # whose slope is finite where both are 0


EDGES: dict[str, Callable[[Tensor], Tensor]] = dict(differences=differences, sobel=sobel)


def blurred(image: Tensor, sigma: float, radius: int) -> Tensor:
    """A picture (B, C, H, W) under a Gaussian of 2 radius + 1 taps along an axis, reflected at borders. Sigma is in
    pixels; 0 leaves the picture as it is."""
    if sigma == 0:
        return image
    place = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float64)
    taps = torch.exp(-place.square() / (2 * sigma**2))
    taps = (taps / taps.sum()).to(image.dtype)
    planes = F.pad(image, (radius,) * 4, mode="reflect").flatten(0, 1).unsqueeze(1)
    return F.conv2d(F.conv2d(planes, taps.view(1, 1, -1, 1)), taps.view(1, 1, 1, -1)).view(image.shape)


# --- what is asked of a patch ----------------------------------------------------------------------------------------


def edges_of_patch(place: Sequence[int], side: int, edges: str = "differences") -> Score:
    """The sum D of the edges in a patch of restored pictures (B, C, H, W): a score for any method of explanation.

    Args:
        place: first row and first column of the patch, in pixels of the restored picture.
        side: its height and width.
        edges: 'differences' (to the next row and column) or 'sobel'.
    """
    edge = EDGES[one_of("edges", edges, tuple(EDGES))]
    return Score(lambda output: _patch(edge(output), place, side).sum((1, 2, 3)))


def psnr_of_patch(truth: Tensor, place: Sequence[int], side: int) -> Score:
    """The PSNR in dB of a patch of restored pictures (B, C, H, W) in [0, 1], over all channels.

    Args:
        truth: (B, C, H, W), what they should be.
        place, side: as of `edges_of_patch`.
    """

    def score(output: Tensor, truth: Tensor) -> Tensor:
        error = (_patch(output, place, side) - _patch(truth.to(output), place, side)).square().mean((1, 2, 3))
        return -10 * error.clamp(min=1e-12).log10()

    return Score(score, truth)


def mean_of_patch(place: Sequence[int], side: int) -> Score:
    """The mean of a patch of restored pictures (B, C, H, W), over all channels; `place`, `side` as of
    `edges_of_patch`."""
    return Score(lambda output: _patch(output, place, side).mean((1, 2, 3)))


def _patch(picture: Tensor, place: Sequence[int], side: int) -> Tensor:
    (top, left), (height, width) = place, picture.shape[2:]
    if not (0 <= top <= height - side and 0 <= left <= width - side):
        raise ValueError(
            f"place={tuple(place)}, side={side}: the patch is not inside the picture of {width} x {height} pixels"
        )
    return picture[..., top : top + side, left : left + side]


# --- the map ---------------------------------------------------------------------------------------------------------


def local_attribution(
    network: Any,
    image: Tensor,
    place: Sequence[int],
    side: int = 16,
    steps: int = 50,
    sigma: float = 1.2,
    radius: int = 4,
    edges: str = "differences",
    progress: Callable[[int, int], None] | None = None,
) -> Attribution:
    """What a patch of a restored picture is made of. Time is that of so many passes forward and backward, over the
    whole picture.

    The paper leaves the last five arguments open; the defaults are those of the authors' demonstration. In each step
    the gradient is taken in its middle (the error falls with the square of their number).

    Args:
        network: network with `scale` and `multiple` (see `restorer.py`), in inference mode.
        image: picture (C, H, W), or (1, C, H, W), in [0, 1], on the device of the network.
        place: first row and first column of the patch, in pixels of the restored picture.
        side: its height and width, in the same pixels.
        steps: number of steps of the blur.
        sigma: of the strongest blur, in pixels of `image`.
        radius: reach of the blur in pixels.
        edges: 'differences' (to the next row and column) or 'sobel'.
        progress: called with the steps that are done and their number.

    Raises:
        ValueError: the patch is not inside the restored picture, the picture is too small for the blur, or an argument
            is none of these.
    """
    image = image.unsqueeze(0) if image.ndim == 3 else image
    if image.ndim != 4 or len(image) != 1 or not image.is_floating_point():
        raise ValueError(f"image must be floats (C, H, W) or (1, C, H, W), got {image.dtype} of {tuple(image.shape)}")
    score = edges_of_patch(place, side, edges)
    for name, value in (("side", side), ("steps", steps), ("radius", radius)):
        positive(name, value)
    if not (sigma > 0 and math.isfinite(sigma)):
        raise ValueError(f"sigma is {sigma!r}; it must be positive")
    height, width = image.shape[2:]
    if min(height, width) <= radius:
        raise ValueError(f"the picture has {width} x {height} pixels; a blur of radius={radius} needs more than that")
    top, left = place
    for name, begin, length in (("row", top, network.scale * height), ("column", left, network.scale * width)):
        if not 0 <= begin <= length - side:
            raise ValueError(
                f"place={tuple(place)}, side={side}: the patch is not inside the restored picture of "
                f"{network.scale * width} x {network.scale * height} pixels; its first {name} may be 0 to "
                f"{length - side}"
                if side <= length
                else f"side={side}: the restored picture has {network.scale * width} x {network.scale * height} pixels"
            )

    def detect(picture: Tensor) -> tuple[Tensor, Tensor]:
        output = padded(network, picture)
        return score(output).sum(), output

    image = image.detach().clone()  # one that was made in inference mode has no gradients
    signed, before = torch.zeros_like(image), blurred(image, sigma, radius)
    with torch.no_grad():
        first, (last, restored) = detect(before)[0], detect(image)
    for step in range(steps):
        middle = blurred(image, sigma * (1 - (step + 0.5) / steps), radius).requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(detect(middle)[0], middle)
        after = blurred(image, sigma * (1 - (step + 1) / steps) if step + 1 < steps else 0, radius)
        signed += gradient * (after - before)
        before = after
        if progress:
            progress(step + 1, steps)
    return Attribution(signed[0], restored[0], (float(first), float(last)))
