"""What restoration networks share: a file's shapes say which network it is of, norms merge before an export, and images
are filled up to the sides that a network takes."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from mmcv.cnn import build_conv_layer
from torch import Tensor, nn

from ... import checkpoint
from ...backbones.layers import any_free, fuse
from ...checkpoint import Rules

Network = TypeVar("Network", bound="RestorationNetwork")


class RestorationNetwork(nn.Module):
    """`forward(x (B, C, H, W) in [0, 1]) -> (B, C, scale H, scale W)`, any H, W >= 1. A subclass has `options_of` and
    `checkpoint_rules`."""

    scale = 1
    multiple = 1  # what sides are padded to a multiple of inside
    in_channels = 3  # of images, and of what becomes of them
    fixed_sizes: Mapping[str, Mapping[str, str]] = {}  # suffix of an export -> size that it fixes -> why
    checkpoint_rules: Rules = []

    @staticmethod
    def options_of(state: Mapping[str, Tensor]) -> dict[str, Any]:
        """The options of the network that a state dict belongs to, the authors' or ours: all that shapes can tell.

        Raises:
            ValueError: the state dict is of another network; says what it lacks.
        """
        raise ValueError("Nothing is known of this network's files.")

    @classmethod
    def from_file(
        cls: type[Network], path: str | Path | Mapping, container: str | None = None, **options: Any
    ) -> Network:
        """The network of a file of the authors or of ours, with its weights, in inference mode.

        Args:
            path: a file, or what `attlas.checkpoint.read` returned.
            container: name under which the file has the weights, as of `attlas.checkpoint.load`.
            **options: keyword arguments of the class, over those that the file's shapes tell.

        Raises:
            ValueError: the file is of another network, or does not fit; says why.
        """
        found = path if isinstance(path, Mapping) else checkpoint.read(path)
        network = cls(**{**cls.options_of(checkpoint.weights(found, container)), **options})
        account = checkpoint.load(network, found, container=container, name=None if found is path else str(path))
        if not account.complete:
            raise ValueError(str(account))
        return network.eval()

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        """What a state dict is of, if it is of this class with other options; for `attlas.checkpoint.load`."""
        try:
            found, own = self.options_of(state), self.options_of(self.state_dict())
        except ValueError:
            return ""
        if "conv_cfg" not in found:
            own.pop("conv_cfg", None)  # weighted convolutions may begin with the weights of plain ones
        shown = ", ".join(f"{name}={value!r}" for name, value in found.items())
        return "" if found == own else f"The file looks like {type(self).__name__}({shown})."

    def fuse(self: Network) -> Network:
        """Merge norms, parallel branches and densities into convolutions: the same output, fewer operations. For
        inference and exports only, and for good; changes the network and returns it."""
        if self.training:
            raise RuntimeError(f"{type(self).__name__} is in training mode; fusing is for inference: call eval() first")
        for name, child in self.named_children():
            setattr(self, name, fuse(child))
        return self


def build_conv(cfg: Mapping[str, Any] | None, *arguments: Any, **options: Any) -> nn.Module:
    """A convolution as mmcv builds it of a config. For none mmcv would look "Conv2d" up in every library, and so import
    detectors and segmentors."""
    return build_conv_layer(dict(cfg), *arguments, **options) if cfg else nn.Conv2d(*arguments, **options)


def weighted_conv(state: Mapping[str, Tensor], conv: str) -> dict[str, Any]:
    """dict(conv_cfg=...) where a convolution of 3 x 3 taps in a state dict is a weighted one, else nothing. Densities
    are 1 until those of the file are loaded, and fixed: no file tells whether they were learned.

    Args:
        state: a state dict.
        conv: name of the convolution.
    """
    if f"{conv}.den" not in state:
        return {}
    own = dict(den=[[1.0], [1.0]]) if len(state[f"{conv}.den"]) == 2 else {}  # a density for each axis
    return dict(conv_cfg=dict(type="attlas.WeightedConv2d", **own))


def pad_to(x: Tensor, multiple: int) -> Tensor:
    """A map (B, C, H, W) filled up below and on the right to multiples: by reflection, or by its last row or column
    where it has too few to reflect."""
    free = any_free(x.shape[2:])
    for axis in (2, 3):
        size = x.shape[axis]
        whole = (size + multiple - 1) // multiple * multiple
        if free or whole > size:
            x = x.index_select(axis, _reflected(size, whole, x.device))
    return x


def _reflected(size: int, whole: int, device: torch.device) -> Tensor:
    """Which of `size` places each of `whole` places shows. An export leaves both free: no branch may ask for them."""
    place, last = torch.arange(whole, device=device), size - 1
    folded = last - (place - last).abs()
    return torch.where((folded >= 0).all(), folded, place.clamp(max=last))


def shape_of(state: Mapping[str, Tensor], name: str, network: str) -> tuple[int, ...]:
    """The shape of a tensor that a network's state dict must have.

    Raises:
        ValueError: there is none.
    """
    if name not in state:
        raise ValueError(f"This is no state dict of {network}: it lacks {name}.")
    return tuple(state[name].shape)


def ratio_of(hidden: int, dim: int) -> float:
    """`hidden` over `dim`, or the float above it where int(dim * ratio) would fall below `hidden` by rounding."""
    ratio = hidden / dim
    return ratio if int(dim * ratio) == hidden else math.nextafter(ratio, math.inf)


def check_whole(network: str, least: int = 1, **values: Any) -> None:
    """Refuse options that are no whole numbers from `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{network}: {name}={value!r} must be a whole number from {least}")
