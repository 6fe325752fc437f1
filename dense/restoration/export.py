"""Restorers as networks from pictures to restored ones, which `tools/export.py` writes to a file."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ... import backbones
from ...tasks import Exportable
from .network import pad_to


class ExportedRestorer(Exportable):
    """Pictures (B, C, H, W) in [0, 1] to restored ones (B, C, scale H, scale W), clamped to [0, 1].

    A whole picture at once, whatever the model says of tiles and symmetries. It is filled up inside, as `Restorer`
    fills it up, so that any size of at least one pixel runs. Norms, branches and densities are merged into
    convolutions, in a copy of the network.

    Args:
        model: restorer.
        steps: configs of the transforms of its test data, of which nothing is needed.
    """

    default_free = {".onnx": ("batch", "height", "width"), ".pt2": ("height", "width")}

    def __init__(self, model: Any, steps: Sequence[Mapping[str, Any]] = ()):
        network = copy.deepcopy(model.network).eval()
        if hasattr(network, "fuse"):
            network.fuse()
        channels = getattr(network, "in_channels", 3)
        colors = {1: "gray", 3: "RGB"}.get(channels, f"{channels} channels")
        about = dict(
            layout=f"{colors}, from 0 to 1 (levels / 255), as is the output",
            mean=",".join("0" * channels),
            std=",".join(["255"] * channels),
            channels=str(channels),
            scale=str(network.scale),
            multiple=str(network.multiple),
        )
        super().__init__(type(network).__name__, ["restored"], about, fixed_sizes(network))
        self.network, self.channels = network, channels

    def inputs(self, batch, size):
        """Noise. Sizes that are free may be any, and differ, so that a trace does not take them for one."""
        size = size or (64, 96)
        return (torch.rand(batch, self.channels, size[0], size[-1]),)

    def forward(self, image: Tensor) -> Tensor:
        height, width = (self.network.scale * side for side in image.shape[2:])
        restored = self.network(pad_to(image, self.network.multiple))
        return restored[..., :height, :width].clamp(0, 1)


def fixed_sizes(network: nn.Module) -> dict[str, dict[str, str]]:
    """Reasons why sizes are fixed: of the network, and of the systems whose mixers stand in it."""
    modules = {type(module).__module__ for module in network.modules()}
    systems = [system for system in backbones.systems().values() if system.__module__ in modules]
    found: dict[str, dict[str, str]] = {".onnx": {}, ".pt2": {}}
    for part in (*systems, network):
        for suffix, reasons in getattr(part, "fixed_sizes", {}).items():
            found[suffix].update(reasons)
    return found
