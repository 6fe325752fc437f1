"""Matching as an MMEngine model: a backbone, a network on the maps of both images, losses at known matches.

Images of any sizes are resized to the working size of the network, each axis by its own factor; results are in pixels
of the images as they were given (see `warps`).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor

from ...data import one_of, positive
from ...registry import MODELS
from .inference import Matching
from .ufc import FUSIONS, Found, soft_argmax, stacked
from .warps import Frame, Warp, follow, middles

SIDES = ("source", "target")


class Images(NamedTuple):
    """One side of a batch: `pixels` (B, 3, H, W), normalized, at the working size; `frames`, what they are of; `seen`
    bool (B, H, W), which pixels are no mask's, None where nothing is masked; `points` (B, K, 2), known matches as
    shares of the part's sides, or None."""

    pixels: Tensor
    frames: list[Frame]
    seen: Tensor | None
    points: Tensor | None


@MODELS.register_module()
class MatchingPreprocessor(BaseDataPreprocessor):
    """A collated batch of pairs -> the arguments of `Matcher.forward`.

    A batch is a dict of lists, or of stacked tensors: `source` and `target`, uint8 or float images (3, H, W) from 0 to
    255, red, green, blue, of any sizes; and perhaps `source_mask` and `target_mask`, bool (H, W), false where there is
    no image (padding) or nothing shall be matched; `source_points` and `target_points`, float (K, 2), places of known
    matches in pixels, NaN where an entry only fills up. What else is in it goes on to the predictions.

    A mask leaves the smallest box with all that it shows: that is resized, as if the image had been cropped. Pixels in
    the box that it hides are set to the mean color.

    Args:
        size: working size, height and width.
        mean, std: of red, green and blue from 0 to 255.
    """

    def __init__(
        self,
        size: Sequence[int],
        mean: Sequence[float] = (123.675, 116.28, 103.53),
        std: Sequence[float] = (58.395, 57.12, 57.375),
    ):
        super().__init__()
        self.size = tuple(size)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), False)

    def forward(self, data: Mapping, training: bool = False) -> dict:
        used = [f"{side}{end}" for side in SIDES for end in ("", "_mask", "_points")]
        if not len(data["source"]):
            raise ValueError("the batch is empty: it must hold at least one pair.")
        rest = {key: value for key, value in data.items() if key not in used}
        source, target = (self._side(side, data) for side in SIDES)
        return dict(source=source, target=target, rest=rest, data=data)

    def _side(self, side: str, data: Mapping) -> Images:
        count = len(data[side])
        masks: Any = data.get(f"{side}_mask")
        masks = [None] * count if masks is None else masks
        pixels, frames, seen = [], [], []
        for number, (image, mask) in enumerate(zip(data[side], masks)):
            if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(f"{side} {number} must be (3, H, W), red, green, blue, got {tuple(image.shape)}.")
            if mask is not None and (mask.dtype != torch.bool or mask.shape != image.shape[1:]):
                raise ValueError(
                    f"{side}_mask {number} must be bool {tuple(image.shape[1:])} as its image, got {mask.dtype} "
                    f"{tuple(mask.shape)}."
                )
            frame = Frame.whole(image.shape[1:]) if mask is None else Frame.of_mask(mask)
            left, top, right, bottom = frame.box
            image = (image[:, top:bottom, left:right].to(self.mean) - self.mean) / self.std
            if not torch.isfinite(image).all():
                raise ValueError(f"{side} {number} of the batch holds NaN or infinite numbers.")
            shown = torch.ones(1, *self.size, dtype=torch.bool, device=image.device)
            if mask is not None and not (inside := mask[top:bottom, left:right].to(image.device)).all():
                image = image * inside
                shown = self._sized(inside[None].float())[0] > 0
            pixels.append(self._sized(image))
            frames.append(frame)
            seen.append(shown[0] if shown.ndim == 3 else shown)
        given, points = data.get(f"{side}_points"), None
        if given is not None:
            longest = max(map(len, given))
            filled = [F.pad(p.to(self.mean), (0, 0, 0, longest - len(p)), value=torch.nan) for p in given]
            points = torch.stack([frame.shares(places) for frame, places in zip(frames, filled)])
        whole = all(bool(shown.all()) for shown in seen)
        return Images(torch.cat(pixels), frames, None if whole else torch.stack(seen), points)

    def _sized(self, image: Tensor) -> Tensor:
        return F.interpolate(image[None], self.size, mode="bilinear", antialias=True)


@MODELS.register_module()
class Matcher(BaseModel):
    """Training and prediction of a network that matches pairs of images.

    Args:
        backbone: config of a backbone of Attlas in its dense form; its maps are the levels, of any number.
        network: config of the network on the maps, such as dict(type='UFC', dim=256). `in_channels`, `cost_size` and
            `strides` are those of the backbone's maps.
        size: working size, height and width, to which all images are resized.
        level_weight: weight of the losses of the levels' own results beside that of the joint result.
        data_preprocessor: config; `MatchingPreprocessor` of the working size by default.

    `mode="loss"` gives {"loss_flow", "loss_level<n>"}: the mean distance, in pixels of the working size, of known
    matches from where the network puts them, both ways. To train by it at every level is our choice: the authors'
    recipe is not published. `mode="tensor"` gives what the network makes of the maps; `mode="predict"` for each pair
    {"there": Warp from source to target, "back": Warp, "working_size", ...}, with what else the batch has of it.
    """

    task = Matching

    def __init__(
        self,
        backbone: dict,
        network: dict,
        size: Sequence[int],
        level_weight: float = 0.5,
        data_preprocessor=None,
        init_cfg=None,
    ):
        if len(size) != 2:
            raise ValueError(f"Matcher.size is {size!r}; it must be (height, width).")
        self_size = (positive("size[0]", size[0]), positive("size[1]", size[1]))
        super().__init__(data_preprocessor or dict(type="MatchingPreprocessor", size=self_size), init_cfg)
        self.size, self.level_weight = self_size, level_weight
        self.backbone = MODELS.build(backbone)
        if getattr(self.backbone, "num_classes", 0) is not None:
            raise ValueError("Matcher.backbone must give maps: give it out_indices, and no num_classes.")
        sizes = self.backbone.map_sizes(*self.size)[::-1]
        strides = [rows // sizes[0][0] for rows, _ in sizes]
        if any((s * sizes[0][0], s * sizes[0][1]) != tuple(own) for s, own in zip(strides, sizes)):
            stride = self.backbone.out_strides[-1]
            raise ValueError(
                f"Matcher.size is {self.size}, of which the maps have {[tuple(s) for s in sizes]} positions: each must "
                f"be a multiple of the first. Multiples of {stride} are, the largest stride."
            )
        channels = list(self.backbone.out_channels)[::-1]
        derived = dict(in_channels=channels, cost_size=tuple(sizes[0]), strides=strides)
        if given := [name for name in derived if name in network]:
            raise ValueError(f"Matcher.network gives {' and '.join(given)}, which the backbone and the size decide.")
        self.network = MODELS.build(dict(network) | derived)

    def configure(self, fusion: str | None = None) -> None:
        """Another `fusion` of the network; None leaves it."""
        if fusion is not None:
            self.network.fusion = one_of("fusion", fusion, FUSIONS)

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """The maps of images, the coarsest first."""
        return list(self.backbone(pixels))[::-1]

    def forward(self, source: Images, target: Images, rest=None, data=None, mode: str = "tensor"):
        one_of("mode", mode, ("loss", "predict", "tensor"))
        both = self.maps(torch.cat([source.pixels, target.pixels]))
        count = len(source.pixels)
        found = self.network([m[:count] for m in both], [m[count:] for m in both])
        if mode == "tensor":
            return found
        seen = [self._cells(side.seen, found.source[-1].shape[2:]) for side in (source, target)]
        there, back = self.network.match(found, *seen)
        if mode == "predict":
            return self._predictions(source, target, there, back, rest or {}, data or {})
        if source.points is None or target.points is None:
            raise ValueError("mode='loss' needs known matches: source_points and target_points.")
        losses = dict(loss_flow=self._distance(there, back, source, target))
        for level, maps in enumerate(zip(found.source, found.target)):
            a, b = (stacked([m]) for m in maps)
            small = [self._cells(side.seen, a.shape[2:]) for side in (source, target)]
            ways = (
                soft_argmax(a, b, self.network.temperature, small[1]),
                soft_argmax(b, a, self.network.temperature, small[0]),
            )
            losses[f"loss_level{level}"] = self.level_weight * self._distance(*ways, source, target)
        return losses

    @staticmethod
    def _cells(seen: Tensor | None, size: Sequence[int]) -> Tensor | None:
        """Which positions of a map (B, *size) have any pixel that is seen."""
        return None if seen is None else F.adaptive_max_pool2d(seen[:, None].float(), tuple(size))[:, 0] > 0

    def _distance(self, there: Found, back: Found, source: Images, target: Images) -> Tensor:
        sides = torch.tensor(self.size[::-1], device=there.places.device)
        total: Any = 0
        count: Any = 0
        for found, one, other in ((there, source.points, target.points), (back, target.points, source.points)):
            assert one is not None  # a batch that is learned from
            assert other is not None
            known = ~(one.isnan().any(-1) | other.isnan().any(-1))
            ends = follow(as_shares(found.places), one.nan_to_num())
            distance = ((ends - other.nan_to_num()) * sides).square().sum(-1).add(1e-6).sqrt()
            total, count = total + distance[known].sum(), count + known.sum()
        return total / count.clamp(min=1)

    def _predictions(self, source, target, there: Found, back: Found, rest: Mapping, data: Mapping) -> list[dict]:
        places = [as_shares(found.places) for found in (there, back)]
        results = []
        for number, (one, other) in enumerate(zip(source.frames, target.frames)):
            result: dict[str, Any] = {key: value[number] for key, value in rest.items() if value is not None}
            result |= {f"{side}_points": data[f"{side}_points"][number] for side in SIDES if f"{side}_points" in data}
            result["there"] = Warp(places[0][number], there.peak[number], one, other)
            result["back"] = Warp(places[1][number], back.peak[number], other, one)
            result["working_size"] = self.size
            results.append(result)
        return results


def as_shares(places: Tensor) -> Tensor:
    """Normalized places (B, 2, h, w), from -1 to 1 between the middles of the first and last of as many positions, as
    shares of an image's sides, whose cells the positions are the middles of."""
    height, width = places.shape[2:]
    sides = places.new_tensor([width, height]).view(1, 2, 1, 1)
    return ((places + 1) / 2 * (sides - 1) + 0.5) / sides


def nearest(maps: Sequence[Tensor], others: Sequence[Tensor]) -> Tensor:
    """Where each position of the finest map has its nearest neighbor by the mean cosine of the levels: the shares
    (B, 2, h, w) of the middle of a cell. The baseline of a network: the same features without it."""
    a, b = stacked(maps), stacked(others)
    best = (a.flatten(2).transpose(1, 2) @ b.flatten(2)).argmax(-1)
    cells = middles(b.shape[2:], b).flatten(1)
    return cells[:, best].transpose(0, 1).unflatten(2, a.shape[2:])
