"""Where the places of one image are in another: a type that knows both images, and what follows from it.

One convention everywhere: places are x and y in pixels of the image as it was given, the middle of the first pixel is
at (0.5, 0.5), and an image of W x H pixels reaches from (0, 0) to (W, H). Sizes are (height, width). Resizing by any
factors, one for each axis, keeps shares of the sides, so that no half pixel is lost.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


class Frame(NamedTuple):
    """An image, and the part of it that a network saw.

    size: height and width in pixels.
    box: left, top, right and bottom of the part, right and bottom past the end.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]

    @classmethod
    def whole(cls, size: Sequence[int]) -> "Frame":
        """All of an image of height and width."""
        return cls((int(size[0]), int(size[1])), (0, 0, int(size[1]), int(size[0])))

    @classmethod
    def of_mask(cls, mask: Tensor) -> "Frame":
        """The part of an image to which a mask, bool (H, W), leaves any pixel.

        Raises:
            ValueError: it leaves none.
        """
        rows, columns = (mask.any(axis).nonzero().flatten().tolist() for axis in (1, 0))
        if not rows:
            raise ValueError("the mask of an image leaves no pixel.")
        return cls((mask.shape[0], mask.shape[1]), (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))

    def shares(self, places: Tensor) -> Tensor:
        """Places (..., 2) as shares of the part's sides, from 0 to 1 inside."""
        left, top, right, bottom = self.box
        return (places - places.new_tensor([left, top])) / places.new_tensor([right - left, bottom - top])

    def places(self, shares: Tensor) -> Tensor:
        """Shares of the part's sides (..., 2) as places."""
        left, top, right, bottom = self.box
        return shares * shares.new_tensor([right - left, bottom - top]) + shares.new_tensor([left, top])

    def inside(self, places: Tensor) -> Tensor:
        """Which places (..., 2) lie in the part."""
        shares = self.shares(places)
        return ((shares >= 0) & (shares <= 1)).all(-1)


def middles(size: Sequence[int], like: Tensor) -> Tensor:
    """The middles (2, height, width) of the cells of a grid of `size` over an image, x and y as shares of its sides."""
    height, width = size
    y, x = ((torch.arange(side, dtype=like.dtype, device=like.device) + 0.5) / side for side in (height, width))
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)])


def sample_cells(cells: Tensor, shares: Tensor) -> Tensor:
    """Values (B, K, C) of grids over images (B, C, h, w) at shares of the sides (B, K, 2), bilinearly between the
    middles of cells; beyond them as at the border."""
    found = F.grid_sample(cells, 2 * shares[:, :, None] - 1, align_corners=False, padding_mode="border")
    return found[..., 0].transpose(1, 2)


def follow(places: Tensor, shares: Tensor) -> Tensor:
    """Where shares (B, K, 2) of the sides of images are in the others, by grids (B, 2, h, w) that say it of the middles
    of cells, as shares too. The displacement is interpolated, so that nothing bends at the border."""
    return shares + sample_cells(places - middles(places.shape[2:], places), shares)


@dataclass(frozen=True)
class Warp:
    """Where the places of an image are in another one, on a grid of cells over the part of it that a network saw.

    Attributes:
        shares: (2, h, w), for the middle of each cell x and y in the other image, as shares of its part's sides.
        confidence: (h, w), from 0 to 1.
        frame, other: the image whose places these are, and the other.
    """

    shares: Tensor
    confidence: Tensor
    frame: Frame
    other: Frame

    def at(self, places: Tensor) -> Tensor:
        """Where places (K, 2) of the image are in the other, both in pixels of the images as they were given."""
        found = follow(self.shares[None], self.frame.shares(places.to(self.shares))[None])
        return self.other.places(found[0])

    def confidence_at(self, places: Tensor) -> Tensor:
        """The confidence (K,) at places (K, 2)."""
        return sample_cells(self.confidence[None, None], self.frame.shares(places.to(self.shares))[None])[0, :, 0]

    def cells(self) -> Tensor:
        """The places (h w, 2) of the middles of the cells."""
        return self.frame.places(middles(self.shares.shape[1:], self.shares).flatten(1).T)

    def dense(self) -> tuple[Tensor, Tensor]:
        """For every pixel of the whole image its place (H, W, 2) in the other, NaN outside of the part; and the
        confidence (H, W), 0 there."""
        height, width = self.frame.size
        pixels = (
            Frame.whole(self.frame.size).places(middles(self.frame.size, self.shares).permute(1, 2, 0)).flatten(0, 1)
        )
        inside = self.frame.inside(pixels)
        places = torch.where(inside[:, None], self.at(pixels), torch.nan)
        confidence = torch.where(inside, self.confidence_at(pixels), 0)
        return places.view(height, width, 2), confidence.view(height, width)

    def cycle_error(self, back: "Warp", places: Tensor) -> Tensor:
        """How far (K,), in pixels of the image, places (K, 2) are from where the way to the other and back ends.

        Raises:
            ValueError: `back` is not of the other image to this one.
        """
        if (back.frame, back.other) != (self.other, self.frame):
            raise ValueError(
                f"a way back must lead from {self.other} to {self.frame}, and leads from {back.frame} to {back.other}."
            )
        return (back.at(self.at(places)) - places).norm(dim=-1)

    def warped(self, image: Tensor) -> Tensor:
        """The other image (C, H', W') as this one would be seen: (C, H, W), NaN outside of the part.

        Raises:
            ValueError: the image has another size than the other one.
        """
        if tuple(image.shape[1:]) != self.other.size:
            raise ValueError(f"the image has {tuple(image.shape[1:])} pixels, and the other one {self.other.size}.")
        places, _ = self.dense()
        shares = Frame.whole(self.other.size).shares(places)
        found = sample_cells(image[None].to(shares), shares.nan_to_num().flatten(0, 1)[None])[0].T
        return found.view(-1, *self.frame.size).where(~shares.isnan().any(-1), torch.nan)


def matches(
    there: Warp, back: Warp, mutual: float | None = None, apart: float = 0.0, top: int | None = None
) -> dict[str, Any]:
    """A list of matches, one for each cell of the first image, the surest first: `source` (K, 2) and `target` (K, 2) in
    pixels of the images as they were given, `confidence` (K,), and `cycle_error` (K,) in pixels of the first.

    Args:
        there, back: the ways from the first image to the second, and back.
        mutual: largest error of the way there and back, in pixels of the first image; None for any.
        apart: least distance in pixels, in either image, of two matches: of two that are nearer the surer one stays.
            0 keeps all.
        top: most matches; None for all.
    """
    source = there.cells()
    target, confidence = there.at(source), there.confidence.flatten()
    error = there.cycle_error(back, source)
    stays = there.other.inside(target)
    if mutual is not None:
        stays &= error <= mutual
    order = confidence.argsort(descending=True, stable=True)
    order = order[stays[order]]
    if apart > 0:
        order = order[_apart(source[order], target[order], apart)]
    order = order[:top]
    return dict(source=source[order], target=target[order], confidence=confidence[order], cycle_error=error[order])


def _apart(source: Tensor, target: Tensor, distance: float) -> Tensor:
    """Numbers of the matches, given the surest first, that are no nearer than `distance` to one before that stays."""
    sides = [places.double().cpu().numpy() for places in (source, target)]
    waiting, kept = np.ones(len(source), bool), []
    for number in range(len(source)):
        if waiting[number]:
            kept.append(number)
            for places in sides:
                waiting &= np.square(places - places[number]).sum(-1) >= distance**2
    return torch.tensor(kept, dtype=torch.long, device=source.device)
