"""The skeleton of plain vision transformers: patches, one resolution, class and register tokens beside the map."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...registry import MIXERS, MODELS
from ..layers import (
    Block,
    Blocks,
    ClassPositionTable,
    Head,
    LayerNorm2d,
    Mlp,
    Patches,
    PositionTable,
    QuickGelu,
    SwiGlu,
    Tokens,
)
from . import vit_names
from .backbone import Backbone, Notes
from .options import check_whole, drop_path_rates, image_sides, mixers_per_stage, per_stage, plugins_per_stage

REGISTERS = re.compile(r"(^|\.)(register_tokens|registers|reg_token)(\.weight)?$")  # names in files
MLPS: dict[str, Callable[..., nn.Module]] = {
    "gelu": Mlp,
    "quick_gelu": partial(Mlp, activation=QuickGelu),
    "swiglu": SwiGlu,
}


class Projection(nn.Module):
    """A map (B, C, H, W), or rows (B, N, C), times a matrix (C, D), which is the `weight`, as CLIP's files have it."""

    def __init__(self, dim: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, width))
        self.reset_weights()

    def reset_weights(self) -> None:
        nn.init.normal_(self.weight, std=self.weight.shape[0] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) @ self.weight).permute(0, 3, 1, 2) if x.ndim == 4 else x @ self.weight


class Rescale(nn.Module):
    """A map at 4, 2, 1 or 1/2 of its size, by transposed convolutions or a maximum: levels for dense prediction out of
    one resolution. Source: the simple feature pyramid of ViTDet, arXiv 2203.16527.

    Args:
        dim: channels C.
        factor: 4, 2, 1 or 0.5.

    Attributes:
        width: channels of what it gives: each doubling of the size halves them.
    """

    def __init__(self, dim: int, factor: float):
        super().__init__()
        half, quarter = dim // 2, dim // 4
        steps: dict[float, list[nn.Module]] = {
            4: [
                nn.ConvTranspose2d(dim, half, 2, 2),
                LayerNorm2d(half),
                nn.GELU(),
                nn.ConvTranspose2d(half, quarter, 2, 2),
            ],
            2: [nn.ConvTranspose2d(dim, half, 2, 2)],
            1: [],
            0.5: [nn.MaxPool2d(2, 2, ceil_mode=True)],
        }
        if factor not in steps:
            raise ValueError(f"scales may hold 4, 2, 1 and 0.5, got {factor}")
        self.steps = nn.Sequential(*steps[factor])
        self.width = int(dim / max(1, factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)


class RowsHead(Head):
    """A head of rows (B, T + N, C): fc of the first row, or of the mean of the rows behind T tokens.

    Args:
        dim, num_classes: as of `Head`.
        tokens: number of tokens T to leave out; None to read the first row.
    """

    def __init__(self, dim: int, num_classes: int, tokens: int | None):
        super().__init__(dim, num_classes)
        self.tokens = tokens
        self.pooling = "token" if tokens is None else "avg"

    def vector(self, x: Tensor) -> Tensor:
        return x[:, 0] if self.tokens is None else x[:, self.tokens :].mean(1)


@MODELS.register_module()
class Isotropic(Backbone):
    """A network of one resolution and width. Its levels are its blocks: `out_indices` counts them.

    Args:
        dim: channels C.
        depth: number of blocks.
        mixers: name of MIXERS, or dict(type=name, **options); one, or one for each block.
        class_token: block before which the class token joins; None for none, and the head reads the mean of all pixels.
        class_position: whether the class token has a row of its own in the table of positions, where there is one.
        patch_size: side of the square patches.
        img_size: side of the image for which `position` is built, or its height and width; other images get it
            resized.
        position: whether the patches get a learned absolute position; or a dict of options of `PositionTable`, or
            with `class_position` of `ClassPositionTable`.
        registers: number of further learned tokens, which join with the class token or at the first block.
        mlp_ratio, drop_path_rate, layer_scale, plugins: as of `Pyramid`; a block stands for a stage. Plug-ins
            see the map alone.
        mlp: kind of the MLPs: "gelu"; "quick_gelu", x σ(1.702 x), of CLIP; or "swiglu", gated, of DINOv2's largest.
        pre_norm: whether a norm stands before the first block, on patches and tokens, as in CLIP. The patches have no
            bias then.
        eps: what the norms add to the variance; the class's by default, 1e-6 for most.
        projection: width of a linear layer without bias behind the last norm, on tokens and pixels, as CLIP's into the
            space that images share with texts; None for none.
        scales: sizes of the maps that the dense form gives, one for each of `out_indices`, in units of the map of
            patches: 4, 2, 1 or 0.5; all 1 by default. Enlarged maps have fewer channels (see `Rescale`).
        **common: of `Backbone`. In the dense form `out_indices` defaults to four blocks, evenly spaced, up to the last.
    """

    checkpoint_parts: Sequence[str] = ("visual.",)  # of a CLIP's file, whose other tower reads text
    level_modules = "blocks"
    dense_names: Sequence[str] = (r"^rescale\.",)
    eps = 1e-6  # of the norms
    block_type: type[Block] = Block

    def __init__(
        self,
        dim: int = 192,
        depth: int = 12,
        mixers: str | Mapping | Sequence[str | Mapping] = "Attention",
        class_token: int | None = 0,
        class_position: bool = False,
        *,
        patch_size: int = 16,
        img_size: int | Sequence[int] = 224,
        position: bool | Mapping[str, Any] = True,
        registers: int = 0,
        mlp_ratio: float | Sequence[float] = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | Sequence[float | None] | None = None,
        plugins: str | Mapping | Sequence[str | Mapping | None] | None = None,
        mlp: str = "gelu",
        pre_norm: bool = False,
        eps: float | None = None,
        projection: int | None = None,
        scales: Sequence[float] | None = None,
        out_indices: Sequence[int] | None = None,
        **common,
    ):
        if out_indices is None and common.get("num_classes") is None:
            out_indices = sorted({max(0, depth * k // 4 - 1) for k in (1, 2, 3, 4)})
        super().__init__([projection or dim] * depth, [patch_size] * depth, out_indices=out_indices, **common)
        if mlp not in MLPS:
            raise ValueError(f"mlp={mlp!r} must be one of {', '.join(MLPS)}")
        if eps is not None:
            self.eps = eps
        self.mlp, self.registers = mlp, registers
        self.dim, self.depth, self.patch_size = dim, depth, patch_size
        self.mixers = mixers_per_stage(mixers, depth)
        self.mlp_ratio = per_stage("mlp_ratio", mlp_ratio, depth)
        self.layer_scale = per_stage("layer_scale", layer_scale, depth)
        self.plugins = plugins_per_stage(plugins, depth)
        self.joins = class_token if class_token is not None else 0
        if not 0 <= self.joins < depth:
            raise ValueError(f"class_token={class_token} must be a block of 0 to {depth - 1}, or None")
        self.pre_norm = LayerNorm2d(dim, eps=self.eps) if pre_norm else None
        self.stem = self.make_stem(self.in_channels, dim)
        if class_position and class_token is None:
            raise ValueError("class_position=True takes a class token, got class_token=None")
        table = ClassPositionTable if class_position else PositionTable
        sides = image_sides(img_size)
        more: dict[str, Any] = {**position} if isinstance(position, Mapping) else {}
        learned = position is not False
        self.position = table(dim, [-(-side // patch_size) for side in sides], **more) if learned else None
        blocks = depth if self.num_classes is not None else self.out_indices[-1] + 1
        reached = self.joins < blocks  # in the dense form, the tokens may join behind the last output
        self.cls_token = Tokens(1, dim) if class_token is not None and reached else None
        self.register_tokens = Tokens(registers, dim) if registers and reached else None
        rates = drop_path_rates(drop_path_rate, depth)
        self.blocks = Blocks(self.make_block(i, dim, rate) for i, rate in enumerate(rates))
        for block, plugin in zip(self.blocks, self.plugins):
            if plugin is not None:
                self.plug(block, plugin, dim)
        mixing = [getattr(block.mixer, "takes_tokens", False) for block in self.blocks[self.joins :]]
        if self.num_classes is not None and self.cls_token is not None and not any(mixing):
            raise ValueError(
                f"class_token={class_token}: no mixer from that block on takes tokens, so the head would never see the "
                "image; with class_token=None it reads the mean of the pixels"
            )
        self.norm = LayerNorm2d(dim, eps=self.eps)  # of the last map and of the tokens
        self.projection = Projection(dim, projection) if projection is not None else None
        if self.num_classes is not None:
            self.head = RowsHead(self.channels[-1], self.num_classes, None if self.cls_token is not None else registers)
        else:
            del self.blocks[blocks:]  # that nobody would read
            self._make_outputs(scales)
        self.finish()

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        for name in ("dim", "depth", "patch_size"):
            check_whole(name, [given.get(name, 1)])
        check_whole("registers", [given.get("registers", 0)], 0)
        if given.get("projection") is not None:
            check_whole("projection", [given["projection"]])
        if given.get("scales") is not None and given.get("num_classes") is not None:
            raise ValueError(f"scales={given['scales']} are of the maps, and num_classes makes a classifier: give one")

    def _make_outputs(self, scales: Sequence[float] | None) -> None:
        scales = [1] * len(self.out_indices) if scales is None else list(scales)
        if len(scales) != len(self.out_indices):
            raise ValueError(f"scales={scales} must have one entry for each of out_indices={self.out_indices}")
        if uneven := [factor for factor in scales if self.patch_size % max(1, factor)]:
            raise ValueError(f"scales={scales}: {uneven[0]} does not divide patch_size={self.patch_size}")
        rescale = [Rescale(self.channels[-1], factor) for factor in scales]
        self.rescale = nn.ModuleList(rescale)
        self.out_strides = tuple(int(self.patch_size / factor) for factor in scales)
        self.out_channels = tuple(part.width for part in rescale)

    # --- the pieces --------------------------------------------------------------------------------------------------

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        """Image -> map of patches; the image is filled up to whole patches."""
        return Patches(in_channels, dim, self.patch_size, bias=self.pre_norm is None)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        mixer = MIXERS.build({**self.mixers[index], "dim": dim})
        mlp, norm = MLPS[self.mlp](dim, self.mlp_ratio[index]), partial(LayerNorm2d, eps=self.eps)
        return self.block_type(dim, mixer, mlp, drop_path, self.layer_scale[index], norm=norm)

    # --- the loop ----------------------------------------------------------------------------------------------------

    def embed(self, image: Tensor) -> Tensor:
        """The map of patches that the first block reads."""
        x = self.stem(image)
        if self.position is not None:
            x = self.position(x)
        return x if self.pre_norm is None else self.pre_norm(x)

    def joining(self, batch: int) -> Tensor | None:
        """The learned tokens (B, T, C) that join the map, the class token first; None where there are none."""
        learned = [part(batch) for part in (self.cls_token, self.register_tokens) if part is not None]
        if not learned:
            return None
        if isinstance(self.position, ClassPositionTable) and self.cls_token is not None:
            learned[0] = learned[0] + self.position.row
        tokens = torch.cat(learned, dim=1)
        return tokens if self.pre_norm is None else self.pre_norm(tokens)

    def run(self, block: nn.Module, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        """The map and the tokens behind a block. A network whose blocks take or give more does that here."""
        return (self.blocks.run(block, x), None) if tokens is None else self.blocks.run(block, x, tokens)

    def prune(self, index: int, x: Tensor, tokens: Tensor | None, notes: Notes) -> tuple[Tensor, Tensor | None]:
        """What a network that drops pixels does behind block `index`: it notes "pruned", a `Pruned`, and returns the
        pixels that are left, (B, C, 1, K). The maps of its levels are on the grid all the same."""
        return x, tokens

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        """As of `Backbone`; notes "tokens", (B, T, C) or None, and "rest", the map that the head reads."""
        x, tokens = self.embed(image), None
        del image  # `check` may have copied it
        for i, block in enumerate(self.blocks):
            if i == self.joins:
                tokens = self.joining(x.shape[0])
            x, tokens = self.run(block, x, tokens, notes)
            x, tokens = self.prune(i, x, tokens, notes)
            notes["tokens"], notes["rest"] = tokens, x
            yield notes["pruned"].grid(x) if "pruned" in notes else x

    @property
    def leaves_out(self) -> str:
        """What the network leaves out to save work: "tokens", "pixels", "keys", or "" for nothing."""
        return ""

    def head_input(self, x: Tensor, notes: Notes) -> Tensor:
        """Tokens and pixels after the last norm and the projection, (B, T + N, C), the class token first."""
        rows, tokens = notes["rest"].flatten(2).transpose(1, 2), notes["tokens"]
        return self.normed(self.depth - 1, rows if tokens is None else torch.cat([tokens, rows], dim=1), notes)

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        x = self.norm(x)
        return x if self.projection is None else self.projection(x)

    @property
    def answer_layers(self) -> list[str]:
        """As of `Backbone`; where the head reads the class token, nobody reads the pixels behind the last block."""
        layers = super().answer_layers
        return layers[:-1] if self.head is not None and self.head.pooling == "token" and len(layers) > 1 else layers

    def forward(self, image: Tensor) -> Tensor | tuple[Tensor, ...]:
        found = super().forward(image)
        if self.num_classes is not None:
            return found
        sizes = self.map_sizes(*image.shape[-2:])  # without what filling up to whole patches adds to enlarged maps
        return tuple(rescale(x)[..., :h, :w] for rescale, x, (h, w) in zip(self.rescale, found, sizes))

    @property
    def checkpoint_optional(self) -> Sequence[str]:
        tokens = [r"^cls_token\."] if self.cls_token is None else []
        tokens += [r"^register_tokens\."] if self.registers and self.register_tokens is None else []
        projection = [r"^projection\."] if self.projection is None else []
        return [*super().checkpoint_optional, *tokens, *projection]

    def checkpoint_whole(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        return vit_names.whole(state) if isinstance(self.position, ClassPositionTable) else state

    def looks_like(self, state: Mapping[str, Tensor]) -> str:
        found = [tensor.shape[-2] for name, tensor in state.items() if REGISTERS.search(name) and tensor.ndim > 1]
        count, said = sum(found), super().looks_like(state)
        if count == self.registers or not state:
            return said
        of_file = f"{count} register tokens" if count else "no register tokens"
        return f"The file has {of_file}, the network registers={self.registers}. {said}".strip()

    def frozen_parts(self) -> list[nn.Module]:
        joined = self.joins == 0 or self.joins < self.frozen_stages
        learned = (self.position, self.pre_norm, *((self.cls_token, self.register_tokens) if joined else ()))
        if self.num_classes is None and self.frozen_stages >= len(self.blocks):  # nothing that learns is before them
            learned += (self.norm, self.projection)
        return [self.stem, *(part for part in learned if part is not None), *self.blocks[: self.frozen_stages]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        return dict(
            stem=r"^(stem|position|pre_norm|cls_token|register_tokens)",
            blocks=[(r"^blocks\.(\d+)", None), (r"^(norm|projection|rescale)", (99999,))],
            head=self.head_groups(),
        )
