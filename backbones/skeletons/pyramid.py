"""The skeleton of hierarchical networks: a stem, stages of blocks, a transition between stages, outputs at each."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...registry import MIXERS, MODELS
from ..layers import Block, Blocks, ConvNorm, Head, LayerNorm2d, Mlp
from .backbone import Backbone, Notes
from .options import check_whole, drop_path_rates, mixers_per_stage, per_stage, plugins_per_stage


class Stage(nn.Module):
    """One level: a transition from the level before (none in the first), blocks, and a norm where the system has one on
    its path. `forward(x, notes)`; a system's own stages may read and write the notes (see `Backbone.levels`)."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module], norm: nn.Module | None = None):
        super().__init__()
        self.downsample, self.blocks, self.norm = downsample, Blocks(blocks), norm or nn.Identity()

    def forward(self, x: Tensor, notes: Notes) -> Tensor:
        return self.norm(self.blocks(self.downsample(x)))


@MODELS.register_module()
class Pyramid(Backbone):
    """A hierarchical network of any mixers, and the base of the published ones.

        Pyramid(dims=(64, 128, 256, 512), depths=(2, 2, 6, 2), mixers=["BiLevelRouting", "BiLevelRouting", "Attention",
                "Attention"])

    A system overrides the pieces that its paper invented: `make_stem`, `make_downsample`, `make_block`,
    `make_stage_norm`, `make_output_norm`, `make_head`, or a whole stage with `make_stage`; and `embed`, where the stem
    is not all. The first ones are called while the network is built, so what they need must be set before
    `super().__init__`.

    Args:
        dims: channels of each stage.
        depths: number of blocks of each stage (in units of `blocks_per_depth` of the system).
        mixers: name of MIXERS, or dict(type=name, **options); one, or one for each stage.
        strides: pixels of the image along a side of a pixel of each stage; `stem_stride` of the system in the first
            one, and twice that of the stage before in the others, by default. A stage with the stride and the channels
            of the one before has no transition.
        mlp_ratio: hidden width of the channel mixer over that of the stage; one number, or one for each stage.
        drop_path_rate: rate of stochastic depth of the last block; it grows linearly up to there, over all stages.
        layer_scale: initial value of the learned factors on the branches, None for none; one, or one for each stage.
        plugins: gates on the blocks, such as "ELA": name of MIXERS, or dict(type=name, **options); one, or one for each
            stage, None for none. A block with a plug-in gives x + plugin(block(x) - x): the gate weighs what the block
            adds. Systems may have it at another place.
        **common: of `Backbone`.

    Attributes:
        ratios: stride of each stage over that of the stage before (of the first one: of the stem).
    """

    level_modules = "stages"
    stem_stride = 4
    norms_on_path: Sequence[int] = ()  # levels that the next stage reads behind the norm of their output (dense form)
    blocks_per_depth = 1

    def __init__(
        self,
        dims: Sequence[int] = (64, 128, 256, 512),
        depths: Sequence[int] = (2, 2, 6, 2),
        mixers: str | Mapping | Sequence[str | Mapping] = "Attention",
        strides: Sequence[int] | None = None,
        *,
        mlp_ratio: float | Sequence[float] = 4.0,
        drop_path_rate: float = 0.0,
        layer_scale: float | Sequence[float | None] | None = None,
        plugins: str | Mapping | Sequence[str | Mapping | None] | None = None,
        **common,
    ):
        if len(dims) != len(depths) or not dims:
            raise ValueError(f"dims and depths must have one entry for each stage, got {dims}, {depths}")
        stages = len(dims)
        strides = [self.stem_stride * 2**i for i in range(stages)] if strides is None else list(strides)
        before = [1, *strides[:-1]]
        if len(strides) != stages or any(after < 1 or after % first for first, after in zip(before, strides)):
            raise ValueError(f"strides={tuple(strides)} must be {stages}, each a multiple of the one before")
        super().__init__(dims, strides, **common)
        self.dims, self.depths = tuple(dims), tuple(depths)
        self.ratios = [after // first for first, after in zip(before, strides)]
        self.mixers = mixers_per_stage(mixers, stages)
        self.mlp_ratio = per_stage("mlp_ratio", mlp_ratio, stages)
        self.layer_scale = per_stage("layer_scale", layer_scale, stages)
        self.plugins = plugins_per_stage(plugins, stages)
        counts = [depth * self.blocks_per_depth for depth in depths]
        rates = iter(drop_path_rates(drop_path_rate, sum(counts)))

        self.stem = self.make_stem(self.in_channels, dims[0])
        self.stages = nn.ModuleList(
            self.make_stage(i, [next(rates) for _ in range(count)]) for i, count in enumerate(counts)
        )
        for stage, plugin, dim in zip(self.stages, self.plugins, dims):
            if plugin is not None:
                blocks: Any = stage.blocks
                for block in blocks:
                    self.plug(block, plugin, dim)
        if self.num_classes is not None:
            self.head = self.make_head(dims[-1], self.num_classes)
        else:
            last = self.out_indices[-1]
            del self.stages[last + 1 :]  # no output needs them
            for i in sorted({*self.out_indices, *(i for i in self.norms_on_path if i < last)}):
                self.norms[str(i)] = self.make_output_norm(i, dims[i])
        self.finish()

    @classmethod
    def check_values(cls, given: Mapping[str, Any]) -> None:
        super().check_values(given)
        for name, least in (("dims", 1), ("depths", 0)):
            values = given.get(name, ())
            if isinstance(values, str) or not isinstance(values, Sequence):
                raise ValueError(f"{name} must have one entry for each stage, got {values!r:.60}")
            check_whole(name, values, least)

    # --- the pieces --------------------------------------------------------------------------------------------------

    def make_stem(self, in_channels: int, dim: int) -> nn.Module:
        """Image -> map of the first stage, at its stride."""
        first = 1 + (self.strides[0] + 1) % 2
        return nn.Sequential(
            ConvNorm(in_channels, dim // 2, 3, stride=first),
            nn.GELU(),
            ConvNorm(dim // 2, dim, 3, stride=self.strides[0] // first),
        )

    def make_stage(self, stage: int, rates: Sequence[float]) -> Stage:
        """A stage with a block for each of the rates of stochastic depth."""
        dim, before = self.dims[stage], self.dims[max(0, stage - 1)]
        changes = stage > 0 and (self.ratios[stage] > 1 or dim != before)
        downsample = self.make_downsample(stage, before, dim) if changes else nn.Identity()
        blocks = [self.make_block(stage, i, dim, rate) for i, rate in enumerate(rates)]
        return Stage(downsample, blocks, self.make_stage_norm(stage, dim))

    def make_downsample(self, stage: int, in_dim: int, dim: int) -> nn.Module:
        """The transition to a stage >= 1: height and width over `ratios[stage]`, rounded up."""
        return ConvNorm(in_dim, dim, 3, stride=self.ratios[stage])

    def make_block(self, stage: int, index: int, dim: int, drop_path: float) -> nn.Module:
        """Block number `index` of a stage."""
        mixer = MIXERS.build({**self.mixers[stage], "dim": dim})
        return Block(dim, mixer, Mlp(dim, self.mlp_ratio[stage]), drop_path, self.layer_scale[stage])

    def make_stage_norm(self, stage: int, dim: int) -> nn.Module:
        """A norm after the blocks, whose output is both the level's map and what the next stage reads."""
        return nn.Identity()

    def make_output_norm(self, stage: int, dim: int) -> nn.Module:
        """The norm of a map that is given out in the dense form; the next stage reads the map without it."""
        return LayerNorm2d(dim)

    def make_head(self, dim: int, num_classes: int) -> nn.Module:
        return Head(dim, num_classes, after=nn.LayerNorm(dim, eps=1e-6))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def embed(self, image: Tensor, notes: Notes) -> Tensor:
        """What the first stage reads."""
        return self.stem(image)

    def levels(self, image: Tensor, notes: Notes) -> Iterator[Tensor]:
        x = self.embed(image, notes)
        del image  # `check` may have copied it
        for i, stage in enumerate(self.stages):
            x = stage(x, notes)
            if i in self.norms_on_path:
                x = super().normed(i, x, notes)
            yield x

    def normed(self, level: int, x: Tensor, notes: Notes) -> Tensor:
        return x if level in self.norms_on_path else super().normed(level, x, notes)

    def frozen_parts(self) -> list[nn.Module]:
        return [self.stem, *self.stages[: self.frozen_stages]]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks: list[tuple] = [
            (r"^stages\.(\d+)\.downsample", (0,)),
            (r"^stages\.(\d+)\.blocks\.(\d+)", None),
            (r"^stages\.(\d+)\.", (99999,)),  # what follows the blocks
        ]
        if coarse:
            blocks = [(r"^stages\.(\d+)", None)]
        return dict(stem=r"^stem", blocks=[*blocks, (r"^norms", (99999,))], head=self.head_groups())
