"""Restoration as an MMEngine model: a network, its losses, tiles for pictures of any size, the mean over symmetries.

A network maps pictures (B, C, H, W) in [0, 1] to (B, C, scale H, scale W), for sides that are multiples of `multiple`;
`scale` and `multiple` are its attributes. All padding is done here.
"""

import logging
import operator
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.model import BaseDataPreprocessor, BaseModel
from torch import Tensor

from ... import checkpoint
from ...data import one_of, positive
from ...registry import MODELS
from ..batches import stacked
from .inference import Restoration
from .network import RestorationNetwork, pad_to

# --- from a batch to the network's arguments -------------------------------------------------------------------------


PICTURES = "B, C, H, W", "take patches", "PackPair"  # what `stacked` says of a batch


@MODELS.register_module()
class RestorationPreprocessor(BaseDataPreprocessor):
    """A collated batch -> the arguments of `Restorer.forward`, on the model's device. Pictures without true ones stay
    where they are: `Restorer.restore` takes them to the model tile by tile.

    The batch is dict(image, truth, name), each stacked (`default_collate`) or a list (`pseudo_collate`): pictures
    float (C, H, W) of one size, perhaps the true ones, and the names of their files. Numbers are looked at before they
    leave the CPU, where that costs nothing.

    Raises:
        ValueError: the batch is empty, its pictures are of several sizes or no floats, or hold NaN (names the file).
    """

    def forward(self, data: dict, training: bool = False) -> dict:
        names = data.get("name")
        images = stacked("image", data["image"], names, *PICTURES)
        if data.get("truth") is None:
            return dict(images=images, truths=None, names=names)
        truths = stacked("truth", data["truth"], names, *PICTURES)
        return dict(images=self._moved(images), truths=self._moved(truths), names=names)

    def _moved(self, images: Tensor) -> Tensor:
        return images.to(self.device, non_blocking=self._non_blocking)


# --- losses ----------------------------------------------------------------------------------------------------------


def l1(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error."""
    return F.l1_loss(restored, truth)


def mse(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(restored, truth)


def charbonnier(restored: Tensor, truth: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Mean of sqrt(difference^2 + epsilon^2): L1 with a rounded tip (Lai et al., LapSRN, CVPR 2017)."""
    return ((restored - truth).square() + epsilon**2).sqrt().mean()


def frequency(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of real and imaginary parts of the 2-D Fourier transforms, which are not normalized (Cho et
    al., MIMO-UNet, ICCV 2021)."""
    return torch.view_as_real(torch.fft.rfft2(restored) - torch.fft.rfft2(truth)).abs().mean()


def negative_psnr(restored: Tensor, truth: Tensor) -> Tensor:
    """Minus the PSNR of each image of the batch, in dB, the mean over them; at least -80 (Chen et al., NAFNet, ECCV
    2022)."""
    return 10 * (F.mse_loss(restored, truth, reduction="none").flatten(1).mean(1) + 1e-8).log10().mean()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = dict(
    l1=l1, mse=mse, charbonnier=charbonnier, frequency=frequency, psnr=negative_psnr
)

# --- tiles -----------------------------------------------------------------------------------------------------------


def padded(network: Any, image: Tensor) -> Tensor:
    """The network's output for a picture of any size: filled up to multiples (see `pad_to`), and the output cut.

    Args:
        image: (B, C, H, W).

    Raises:
        ValueError: the output is not `network.scale` times as large.
    """
    height, width = (network.scale * side for side in image.shape[2:])
    return _checked(network, pad_to(image, network.multiple))[..., :height, :width]


def _checked(network: Any, image: Tensor) -> Tensor:
    output, scale = network(image), network.scale
    if output.shape[2:] != tuple(scale * side for side in image.shape[2:]):
        raise ValueError(
            f"{type(network).__name__} has scale={scale}, and made {tuple(output.shape)} of {tuple(image.shape)}."
        )
    return output


def _asked(network: Any, image: Tensor) -> Tensor:
    """As `_checked`, of a picture whose channels need not be the network's."""
    channels, wanted = image.shape[1], getattr(network, "in_channels", image.shape[1])
    if channels == wanted:
        return _checked(network, image)
    if (channels, wanted) == (1, 3):
        return _checked(network, image.expand(-1, 3, -1, -1)).mean(1, keepdim=True)
    if wanted == 1:
        return _checked(network, image.flatten(0, 1)[:, None])[:, 0].unflatten(0, image.shape[:2])
    raise ValueError(f"{type(network).__name__} takes pictures of {wanted} channels, and these have {channels}.")


def tiles(
    network: Any,
    image: Tensor,
    tile: int | None = None,
    overlap: int = 0,
    half: torch.dtype | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Tensor:
    """The network's output for a picture in tiles, which overlap and are blended.

    Of the overlap the quarter at the border of a tile has no weight, and the half behind it a rising one. So the output
    is that of the whole picture if the network reads no farther than overlap / 4 (see `reach`). Tiles lie on the grid
    of multiples, on which a network may have windows. Beside the picture and the output, memory is that of one tile, on
    the device of the network: a picture on the CPU goes there tile by tile, and the output comes back.

    A grey picture goes through a network of three channels as three equal ones, of whose output the mean comes back.
    Through a network of one channel (`network.in_channels`) the channels of a picture go one by one.

    Args:
        network: see above; in inference mode.
        image: (B, C, H, W), on any device.
        tile: side of a tile in pixels of `image`, a multiple of `network.multiple`; None for the whole picture at once.
        overlap: least overlap of two tiles, at most half a tile.
        half: float16 or bfloat16, in which the network runs under autocast. A tile that is not finite then is done
            again in float32, with a word in the log.
        progress: called with the tiles that are done and their number.

    Returns:
        float32 (B, C, scale H, scale W), on the device of `image`; not clamped.

    Raises:
        ValueError: a bad tile or overlap, or output that is not finite in float32 either.
    """
    scale: int = network.scale
    multiple: int = network.multiple
    height, width = (side + -side % multiple for side in image.shape[2:])
    if tile is None:
        tile, overlap = max(height, width), 0
    tile, overlap = check_tiles(tile, overlap, multiple)
    device = next((parameter.device for parameter in network.parameters()), image.device)
    step = (tile - overlap) // multiple * multiple
    rows, columns = (_shares(side, tile, step, overlap, scale) for side in (height, width))
    output, redone = None, 0
    for done, ((top, row), (left, column)) in enumerate(product(rows, columns), 1):
        part = image[..., top : top + tile, left : left + tile].to(device)
        restored, again = _finite(network, pad_to(part, multiple), half, f"rows from {top}, columns from {left}")
        redone += again
        if output is None:
            sides = (scale * side for side in image.shape[2:])
            output = image.new_zeros((*restored.shape[:2], *sides), dtype=torch.float32)
        place = output[..., scale * top : scale * (top + tile), scale * left : scale * (left + tile)]
        weighted = restored * (row[:, None] * column).to(device)
        place += weighted[..., : place.shape[2], : place.shape[3]].to(output.device)
        if progress:
            progress(done, len(rows) * len(columns))
    if redone:
        print_log(
            f"{redone} of {len(rows) * len(columns)} tiles were not finite in {str(half).removeprefix('torch.')}, and "
            "were done again in float32.",
            logger="current",
            level=logging.WARNING,
        )
    assert output is not None
    return output


def check_tiles(tile: int, overlap: int, multiple: int) -> tuple[int, int]:
    """Tile and overlap, integers of any type, as int; a ValueError where they do not fit a network; see `tiles`."""
    tile, overlap = positive("tile", _whole("tile", tile)), _whole("overlap", overlap)
    if tile % multiple:
        raise ValueError(f"tile is {tile}; it must be a multiple of {multiple}, as the network is built.")
    if not 0 <= overlap <= tile // 2 or tile - overlap < multiple:
        raise ValueError(
            f"overlap is {overlap!r}; it must be from 0 to {min(tile // 2, tile - multiple)}: half of tile={tile}, and "
            f"a multiple of {multiple} must be left."
        )
    return tile, overlap


def _whole(argument: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{argument} is {value!r}; it must be an integer.") from None


def _shares(length: int, tile: int, step: int, overlap: int, scale: int) -> list[tuple[int, Tensor]]:
    """Where tiles begin along a side, and the weights of their output pixels, whose sum over the tiles is 1."""
    starts = [*range(0, max(length - tile, 0), step), max(length - tile, 0)]
    side = min(tile, length)
    place = (torch.arange(scale * side, dtype=torch.float64) + 0.5) / scale
    total, weights = torch.zeros(scale * length, dtype=torch.float64), []
    for start in starts:
        weight = torch.ones_like(place)
        for inside, distance in ((start > 0, place), (start + side < length, side - place)):
            if inside and overlap:
                weight = weight * ((distance - overlap / 4) / (overlap / 2)).clamp(0, 1)
        weights.append(weight)
        total[scale * start : scale * (start + side)] += weight
    return [(s, (w / total[scale * s : scale * (s + side)]).float()) for s, w in zip(starts, weights)]


def _finite(network: Any, image: Tensor, half: torch.dtype | None, where: str) -> tuple[Tensor, bool]:
    """The output in float32, and whether it had to be computed in it."""
    if half is not None:
        with torch.autocast(image.device.type, dtype=half):
            output = _asked(network, image).float()
        if torch.isfinite(output).all():
            return output, False
    with torch.autocast(image.device.type, enabled=False):
        output = _asked(network, image.float()).float()
    if not torch.isfinite(output).all():
        raise ValueError(f"the network gives NaN or infinite numbers ({where}), in float32.")
    return output, half is not None


def reach(network: Any, size: int = 64, channels: int = 3, share: float = 0.99) -> int:
    """How far a network looks, measured: the least distance r, in pixels of its input, so that within r rows and r
    columns of a pixel that is changed lies a `share` of what changes in the output.

    Two pictures are compared, without a gradient: of a large network that would take gigabytes.

    Args:
        network: see above; in inference mode.
        size: side of the picture of noise that is looked at, at least; r is at most half of it.
        channels: channels of the picture.
        share: 1 for all pixels that have any influence, above rounding.

    Raises:
        ValueError: the network's output is not finite.
    """
    size += -size % network.multiple
    parameter = next(network.parameters(), torch.zeros(1))
    noise = torch.rand(1, channels, size, size, generator=torch.Generator().manual_seed(0))
    changed = noise.clone()
    changed[..., size // 2, size // 2] = (noise[..., size // 2, size // 2] + 0.5) % 1
    with torch.no_grad():
        before, after = network(torch.cat([noise, changed]).to(parameter)).double().cpu()
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        raise ValueError(f"the network gives NaN or infinite numbers (for noise of {size} x {size} pixels).")
    change = (after - before).abs().sum(0)
    change[change < 16 * channels * torch.finfo(parameter.dtype).eps * before.abs().max()] = 0
    place = torch.arange(network.scale * size) // network.scale - size // 2
    distance = torch.maximum(place.abs()[:, None], place.abs())
    within = torch.zeros(size // 2 + 1).double().index_add_(0, distance.flatten(), change.flatten()).cumsum(0)
    return int((within >= share * within[-1] * (1 - 1e-12)).nonzero()[0])


# --- symmetries ------------------------------------------------------------------------------------------------------


def symmetry(image: Tensor, number: int) -> Tensor:
    """One of the eight symmetries of a square, of the last two axes: bit 0 flips columns, bit 1 rows, bit 2 then
    transposes."""
    axes = [axis for axis, bit in ((-1, 1), (-2, 2)) if number & bit]
    image = image.flip(axes) if axes else image
    return image.transpose(-1, -2) if number & 4 else image


def unsymmetry(image: Tensor, number: int) -> Tensor:
    """What `symmetry` made, as it was."""
    return symmetry(image.transpose(-1, -2) if number & 4 else image, number & 3)


def ensemble(restore: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Mean of what `restore` makes of the eight symmetric forms of a picture, turned back (geometric self-ensemble,
    Lim et al., EDSR, CVPR Workshops 2017). Eight times the time, and the memory of one output more."""
    total = restore(image)
    for number in range(1, 8):
        total += unsymmetry(restore(symmetry(image, number).contiguous()), number)
    return total.div_(8)


AUTO = "auto"
LARGE = 384  # side of the tiles that are taken then, or the next multiple

# --- the model -------------------------------------------------------------------------------------------------------


@MODELS.register_module()
class Restorer(BaseModel):
    """Training and prediction of a network that restores pictures.

    Args:
        network: config of a module with `scale` and `multiple` (see above), such as dict(type='HAT', ...).
        losses: weights of losses by name, of 'l1', 'mse', 'charbonnier', 'frequency', 'psnr'.
        tile, overlap, half, ensemble: as of `configure`.

    `mode="loss"` gives {"loss_<name>"}, weighted, and {"psnr"}, in dB, of all channels; `mode="tensor"` the network's
    output (B, C, scale H, scale W); `mode="predict"` for each picture {"restored" (C, scale H, scale W), float32 in
    [0, 1], "truth", "scale", "network" (its class), "name"}.
    """

    task = Restoration

    def __init__(
        self,
        network: dict,
        losses: Mapping[str, float] = {"l1": 1.0},
        tile: int | str | None = None,
        overlap: int | None = None,
        half: str | None = None,
        ensemble: bool = False,
        data_preprocessor=None,
        init_cfg=None,
    ):
        super().__init__(data_preprocessor or dict(type="RestorationPreprocessor"), init_cfg)
        if not losses:
            raise ValueError("Restorer.losses is empty; name at least one, such as losses=dict(l1=1.0).")
        for name, weight in losses.items():
            one_of("Restorer.losses", name, tuple(LOSSES))
            if not weight > 0:
                raise ValueError(f"Restorer.losses: the weight of {name!r} is {weight!r}; it must be positive.")
        self.network = MODELS.build(network)
        lacking = [name for name in ("scale", "multiple") if not isinstance(getattr(self.network, name, None), int)]
        if lacking:
            raise ValueError(f"Restorer.network: {type(self.network).__name__} has no integer {' and '.join(lacking)}.")
        self.losses = dict(losses)
        self.configure(tile, overlap, half, ensemble)
        self.progress: Callable[[int, int], None] | None = None

    def configure(
        self,
        tile: int | str | None = None,
        overlap: int | None = None,
        half: str | None = None,
        ensemble: bool = False,
    ) -> None:
        """Set how pictures are restored at test.

        Args:
            tile: side of the tiles in pixels of the input; None for whole pictures, "auto" for tiles of LARGE where a
                picture has more pixels than one, so that memory is bounded.
            overlap: overlap of tiles; None for four times the measured `reach` of the network, at most half a tile. The
                log tells it, and warns where that is less than the network wants.
            half: 'float16' or 'bfloat16' for autocast in it; see `tiles`.
            ensemble: whether the mean over the eight symmetries is taken.

        Raises:
            ValueError: one that is none of these.
        """
        if half is not None:
            one_of("Restorer.half", half, ("float16", "bfloat16"))
        if overlap is not None and tile is None:
            raise ValueError(f"Restorer.overlap is {overlap!r}, and there are no tiles (tile=None).")
        if isinstance(tile, str):
            one_of("Restorer.tile", tile, (AUTO,))
        if tile is not None:
            side, checked = check_tiles(self._side(tile), 0 if overlap is None else overlap, self.network.multiple)
            tile, overlap = tile if isinstance(tile, str) else side, None if overlap is None else checked
        self.tile, self.overlap, self.half, self.ensemble = tile, overlap, half, ensemble
        self._reach: int | None = None  # as measured, over no more than a tile

    def _side(self, tile: int | str) -> int:
        return LARGE + -LARGE % self.network.multiple if isinstance(tile, str) else tile

    @property
    def scale(self) -> int:
        """Factor of both sides."""
        return self.network.scale

    @property
    def checkpoint_rules(self) -> list:
        """The rules for the authors' files, which hold a network and no more."""
        return [*getattr(self.network, "checkpoint_rules", ()), (r"^(?!network\.)", "network.")]

    @property
    def checkpoint_optional(self) -> list[str]:
        patterns = getattr(self.network, "checkpoint_optional", ())
        return [rf"^network\.{p[1:]}" if p.startswith("^") else p for p in patterns]

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """Which variant a state dict is of, if it is of another one than the network (see `attlas.checkpoint`)."""
        looks_like = getattr(self.network, "looks_like", lambda state: "")
        return looks_like({name.removeprefix("network."): value for name, value in state.items()})

    @classmethod
    def recognize(
        cls, state: Mapping[str, Tensor]
    ) -> tuple[dict[str, tuple[dict[str, Any], list[dict[str, Any]]]], dict[str, str]]:
        """The networks whose names and shapes a state dict has, the authors' or ours.

        Returns:
            Configs of a restorer and of the transforms that it is asked through, by name of the network; and of the
            other networks the reasons.
        """
        prefix = "network." if all(name.startswith("network.") for name in state) else ""
        state = {name.removeprefix(prefix): value for name, value in state.items()}
        accepted, refused = {}, {}
        kinds = {kind: None for kind in MODELS.module_dict.values() if isinstance(kind, type)}
        for kind in (kind for kind in kinds if issubclass(kind, RestorationNetwork)):
            try:
                options = kind.options_of(state)
                with torch.device("meta"):
                    left_over = checkpoint.left_over(kind(**options), state)
                if left_over is None:
                    raise ValueError("it lacks tensors, or has them in other shapes.")
                if left_over:
                    raise ValueError(f"it has {left_over} tensors more.")
            except Exception as error:  # of shapes that make no sense, options may fail in any way
                refused[kind.__name__] = str(error)
            else:
                model = dict(type=cls.__name__, network=dict(type=kind.__name__, **options))
                accepted[kind.__name__] = model, [dict(type="PackPair")]
        return accepted, refused

    def forward(self, images: Tensor, truths: Tensor | None = None, names=None, mode: str = "tensor"):
        one_of("mode", mode, ("loss", "predict", "tensor"))
        if truths is not None:
            self._check_scale(images, truths)
        if mode == "tensor":
            return padded(self.network, images)
        if mode == "loss":
            if truths is None:
                raise ValueError("mode='loss' needs the true pictures (truth), got None")
            return self._losses(padded(self.network, images).float(), truths.float())
        restored = self.restore(images).clamp_(0, 1)
        return [
            dict(restored=picture, truth=truth, scale=self.scale, network=type(self.network).__name__, name=name)
            for picture, truth, name in zip(
                restored,
                [None] * len(images) if truths is None else truths,
                [None] * len(images) if names is None else names,
            )
        ]

    def restore(self, images: Tensor) -> Tensor:
        """Pictures (B, C, H, W), on any device -> float32 (B, C, scale H, scale W) on that device, in tiles and with
        the symmetries that the options ask for; not clamped."""
        height, width = (side + -side % self.network.multiple for side in images.shape[2:])
        tile = None if self.tile is None else self._side(self.tile)
        if tile is not None and (height * width <= tile**2 if self.tile == AUTO else max(height, width) <= tile):
            tile = None  # one does for it
        overlap = self._overlap(tile, images.shape[1]) if tile else 0
        half = None if self.half is None else getattr(torch, self.half)

        def one(image: Tensor) -> Tensor:
            return tiles(self.network, image, tile, overlap, half, self.progress)

        return ensemble(one, images) if self.ensemble else one(images)

    def _overlap(self, tile: int, channels: int) -> int:
        if self.overlap is not None:
            return self.overlap
        multiple = self.network.multiple
        most = min(tile // 2, tile - multiple)
        if self._reach is None:
            channels, size = getattr(self.network, "in_channels", channels), 64
            self._reach = reach(self.network, size, channels)
            # what is near half of the size may be cut by it; two pictures are to need no more memory than a tile
            while 8 * self._reach > 3 * size and 8 * size**2 <= tile**2:
                size *= 2
                self._reach = reach(self.network, size, channels)
            wanted = 4 * self._reach
            if wanted <= most:
                print_log(f"tiles of {tile} overlap by {wanted} pixels, as measured.", logger="current")
            else:
                least = max(2 * wanted, wanted + multiple)
                print_log(
                    f"the network reads {'at least ' * (8 * self._reach > 3 * size)}{self._reach} pixels far, which "
                    f"wants an overlap of {wanted}; tiles of {tile} overlap by {most}, the most they can, so seams may "
                    f"show. Tiles from {least + -least % multiple} on have that overlap.",
                    logger="current",
                    level=logging.WARNING,
                )
        return min(most, 4 * self._reach)

    def _check_scale(self, images: Tensor, truths: Tensor) -> None:
        small, large = images.shape[2:], truths.shape[2:]
        if large == tuple(self.scale * side for side in small) and images.shape[0] == truths.shape[0]:
            return
        factors = {new / old for new, old in zip(large, small)}
        found = f"scale {factors.pop():g}" if len(factors) == 1 else "no one scale"
        raise ValueError(
            f"the network has scale={self.scale}, and the data have {found}: pictures {tuple(images.shape)}, truth "
            f"{tuple(truths.shape)}."
        )

    def _losses(self, restored: Tensor, truths: Tensor) -> dict[str, Tensor]:
        found = {f"loss_{name}": weight * LOSSES[name](restored, truths) for name, weight in self.losses.items()}
        total = torch.stack(list(found.values())).sum()
        if not torch.compiler.is_compiling() and total.device.type == "cpu" and not torch.isfinite(total):
            raise FloatingPointError(
                "the loss is NaN or infinite: the training has diverged (a lower learning rate, a warm-up or gradient "
                "clipping may help)."
            )
        with torch.no_grad():
            error = F.mse_loss(restored.clamp(0, 1), truths).clamp(min=1e-10)
        return found | dict(psnr=-10 * error.log10())
