"""PH-Reg: registers that are added to a trained vision transformer, and learned from its own denoised maps.

"Vision Transformers with Self-Distilled Registers", NeurIPS 2025, arXiv 2505.21501; https://github.com/0raiser0/PH-Reg
(Apache-2.0), whose weights load.

The maps of plain transformers (DINOv2, CLIP) hold artefacts: pixels of large norm that say nothing about their place.
Two independent parts:

1. `denoise`, for any network that gives maps. It looks at shifted and mirrored views of the image, brings the pixels of
   their maps home, and averages. What belongs to the image stays, what belongs to a place of the map averages out. It
   costs as many passes as there are views. `Denoised` is a backbone that does it.
2. A student, `PHReg`: the same transformer with learned registers beside the class token, which have no position. It
   learns to give the denoised maps in one pass (`RegisterDistiller`), while four groups of its weights change alone:
   registers, positions, the layer of the patches, and the last block.

The paper's figures were not at hand. Logs of the repository have linear probes of the distilled DINOv2-B: 48.66 mIoU on
ADE20K, 84.85 on VOC-21.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel, BaseModule
from torch import Tensor, nn

from ..registry import METRICS, MODELS
from .layers import linear
from .skeletons import vit_names
from .skeletons.backbone import Backbone
from .skeletons.isotropic import Isotropic
from .skeletons.options import check_whole
from .zoo import Rules, Variant, load, register

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)  # of ImageNet
Maps = Tensor | tuple[Tensor, ...]

# --- views of an image, and their way home ---------------------------------------------------------------------------


def check_views(count: int, shift: float) -> None:
    """Raises ValueError for what `draw_views` cannot take."""
    check_whole("count", [count])
    if not 0 <= shift <= 1:
        raise ValueError(f"shift={shift} must be a share of the sides, from 0 to 1")


def draw_views(
    count: int,
    size: tuple[int, int],
    shift: float = 0.15,
    batch: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Shifts and mirrorings of each image of a batch. The first view of each is the image as it is.

    The shifts are far from each other: of ten times as many uniform pairs, those that farthest point sampling takes.

    Args:
        count: number of views V of each image.
        size: height and width of the map, in pixels.
        shift: largest shift, as a share of the sides.
        batch: number of images B.
        generator: source of the random numbers, on the CPU; PyTorch's global one by default.

    Returns:
        offsets (B, V, 2), rows and columns in pixels of the map, int64; flips (B, V), bool.
    """
    check_views(count, shift)
    check_whole("size", size)
    most = [round(shift * side) for side in size]
    drawn = [
        torch.stack([torch.randint(-m, m + 1, (10 * count,), generator=generator) for m in most], -1)
        for _ in range(batch)
    ]
    offsets = torch.stack([_far_apart(candidates, count, generator) for candidates in drawn])
    flips = torch.randint(2, (batch, count), generator=generator).bool()
    offsets[:, 0], flips[:, 0] = 0, False
    return offsets, flips


def _far_apart(candidates: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    """Farthest point sampling of pairs (N, 2) from a random start: (count, 2)."""
    chosen = [int(torch.randint(len(candidates), (), generator=generator))]
    distance = torch.full((len(candidates),), math.inf)
    while len(chosen) < count:
        to_last = (candidates - candidates[chosen[-1]]).square().sum(-1)
        distance = torch.minimum(distance, to_last.to(distance))
        chosen.append(int(distance.argmax()))
    return candidates[chosen]


def shifted(x: Tensor, rows: int, columns: int, fill: Tensor | float = 0.0) -> Tensor:
    """out[..., i, j] = x[..., i + rows, j + columns] where that is, `fill` elsewhere.

    Args:
        x: (..., H, W).
        rows, columns: the shift in pixels.
        fill: number, or tensor that broadcasts to x.
    """
    height, width = x.shape[-2:]
    out = torch.empty_like(x)
    out[...] = fill
    top, bottom = max(0, -rows), min(height, height - rows)
    left, right = max(0, -columns), min(width, width - columns)
    if top < bottom and left < right:
        out[..., top:bottom, left:right] = x[..., top + rows : bottom + rows, left + columns : right + columns]
    return out


def brought_home(x: Tensor, rows: int, columns: int, flip: bool) -> Tensor:
    """The map (..., H, W) of a view on the places where its pixels come from, zeros at the others."""
    return shifted(x.flip(-1) if flip else x, -rows, -columns)


def coverage(offsets: Tensor, height: int, width: int) -> Tensor:
    """How many views see each pixel of the map: offsets (B, V, 2) -> (B, height, width), in float32."""
    ones = torch.ones(height, width)
    views = [[shifted(ones, -rows, -columns) for rows, columns in of_image] for of_image in offsets.tolist()]
    return torch.stack([torch.stack(of_image).sum(0) for of_image in views])


@torch.no_grad()
def denoise(
    extract: Callable[[Tensor], Maps],
    image: Tensor,
    offsets: Tensor,
    flips: Tensor,
    step: int,
    fill: Sequence[float] | float = 0.0,
    chunk: int = 8,
) -> Maps:
    """The mean of the maps of several views of an image, brought home, over the views that see each pixel.

    Args:
        extract: function (N, C, H, W) -> map (N, D, h, w), or a tuple of such, in inference mode.
        image: (B, C, H, W), normalized; H and W are multiples of `step`.
        offsets, flips: as of `draw_views`, in units of `step` pixels of the image.
        step: a multiple of the strides of all maps, in pixels; the side of a patch.
        fill: normalized color of what a view sees beside the image; one number, or one for each channel.
        chunk: number of views that are computed at a time, which bounds the memory. It does not change the result.

    Returns:
        What `extract` gives, of the images as they are; without gradients. The means are in float32 at least, the maps
        in their own dtype.

    Raises:
        ValueError: the image is no multiple of `step`, or the strides of a map do not divide it.
    """
    check_whole("chunk", [chunk])
    check_whole("step", [step])
    batch, _, height, width = image.shape
    if height % step or width % step:
        raise ValueError(f"image of {height} x {width} pixels: its sides must be multiples of step={step}")
    if offsets.shape[:1] + offsets.shape[2:] != (batch, 2) or flips.shape != offsets.shape[:2]:
        raise ValueError(
            f"offsets must be ({batch}, V, 2) and flips ({batch}, V), got {tuple(offsets.shape)}, {tuple(flips.shape)}"
        )
    colors = torch.as_tensor(fill, dtype=image.dtype, device=image.device).reshape(-1, 1, 1)
    views = [
        (number, *pair, flip)
        for number, (of_image, flipped) in enumerate(zip(offsets.tolist(), flips.tolist()))
        for pair, flip in zip(of_image, flipped)
    ]
    sums: list[Tensor] = []
    alone, dtypes = False, []
    for start in range(0, len(views), chunk):
        part = views[start : start + chunk]
        seen = [shifted(image[number], step * rows, step * columns, colors) for number, rows, columns, _ in part]
        maps = extract(torch.stack([x.flip(-1) if flip else x for x, (*_, flip) in zip(seen, part)]))
        alone = isinstance(maps, Tensor)
        maps = (maps,) if isinstance(maps, Tensor) else maps
        if not sums:
            dtypes = [x.dtype for x in maps]
            sums = [x.new_zeros(batch, *x.shape[1:], dtype=torch.promote_types(x.dtype, torch.float32)) for x in maps]
        for total, x in zip(sums, maps):
            pace = _pace(x, image, step)
            for y, (number, rows, columns, flip) in zip(x, part):
                total[number] += brought_home(y, pace * rows, pace * columns, flip)
    means = []
    for total, dtype in zip(sums, dtypes):
        seen_by = coverage(offsets * _pace(total, image, step), *total.shape[-2:])
        means.append((total / seen_by[:, None].to(total)).to(dtype))
    return means[0] if alone else tuple(means)


def _pace(x: Tensor, image: Tensor, step: int) -> int:
    """How many pixels of a map a step of the image is."""
    paces = {step * side / whole for side, whole in zip(x.shape[-2:], image.shape[-2:])}
    (pace, *others) = paces
    if others or pace < 1 or pace != int(pace):
        raise ValueError(
            f"a map of {tuple(x.shape[-2:])} of an image of {tuple(image.shape[-2:])}: step={step} is no multiple of "
            "its stride"
        )
    return int(pace)


def white(mean: Sequence[float] = MEAN, std: Sequence[float] = STD) -> tuple[float, ...]:
    """White as normalized images have it: what the authors let a view see beside the image."""
    return tuple((255 - m) / s for m, s in zip(mean, std))


@MODELS.register_module()
class Denoised(BaseModule):
    """A backbone whose maps are denoised; it does not learn. It stands wherever a backbone gives maps.

    Args:
        backbone: a backbone, or its config, that gives maps.
        count, shift: as of `draw_views`.
        chunk: as of `denoise`.
        mean, std: what images are normalized with, in levels of 0 to 255.
        seed: of the views, the same in every pass and for every image of a batch.

    `forward(image (B, 3, H, W), generator=None) -> tuple of maps`; a generator draws other views, of each image its
    own. H and W must be multiples of the largest stride.
    """

    def __init__(
        self,
        backbone: Backbone | Mapping,
        count: int = 10,
        shift: float = 0.15,
        chunk: int = 8,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        seed: int = 0,
    ):
        super().__init__()
        check_views(count, shift)
        check_whole("chunk", [chunk])
        self.backbone = (MODELS.build(backbone) if isinstance(backbone, Mapping) else backbone).requires_grad_(False)
        self.count, self.shift, self.chunk, self.seed = count, shift, chunk, seed
        self.fill = white(mean, std)
        self.out_channels, self.out_strides = self.backbone.out_channels, self.backbone.out_strides
        self.map_sizes = self.backbone.map_sizes
        self.step = math.lcm(*self.out_strides)
        self.train(False)

    def train(self, mode: bool = True) -> "Denoised":
        """The mode of the backbone stays that of inference."""
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, image: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, ...]:
        size = max(1, image.shape[-2] // self.step), max(1, image.shape[-1] // self.step)
        if generator is None:  # one draw for all: what is made of an image does not depend on its place in the batch
            generator = torch.Generator().manual_seed(self.seed)
            offsets, flips = draw_views(self.count, size, self.shift, 1, generator)
            offsets, flips = offsets.expand(len(image), -1, -1), flips.expand(len(image), -1)
        else:
            offsets, flips = draw_views(self.count, size, self.shift, len(image), generator)
        return denoise(self.backbone, image, offsets, flips, self.step, self.fill, self.chunk)  # type: ignore[return-value]


def artefacts(x: Tensor, factor: float = 2.0) -> dict[str, Tensor]:
    """How much a map (B, C, H, W) suffers from artefacts, for each image (B,), in float32.

    Returns:
        "outliers": the share of pixels whose norm is above `factor` times the median of the image; "roughness": the
        mean of 1 - cosine of pixels beside and below each other (0 for maps of one pixel).
    """
    x = x.float()
    norms = x.norm(dim=1).flatten(1)
    outliers = (norms > factor * norms.median(1, keepdim=True).values).float().mean(1)
    unit = F.normalize(x, dim=1)
    across = (unit[..., 1:] * unit[..., :-1]).sum(1).flatten(1)
    down = (unit[..., 1:, :] * unit[..., :-1, :]).sum(1).flatten(1)
    pairs = torch.cat([across, down], 1)
    roughness = 1 - pairs.mean(1) if pairs.shape[1] else torch.zeros_like(outliers)
    return dict(outliers=outliers, roughness=roughness)


# --- the student -----------------------------------------------------------------------------------------------------


class ValueBlock(nn.Module):
    """What takes the place of a pre-norm block with attention: proj(values(norm1(x))) alone, without attention,
    residual sum and MLP. It has all weights of the block, so that files load; what it does not use does not learn."""

    norm1: nn.Module
    mixer: nn.Module

    def __init__(self, block: nn.Module):
        super().__init__()
        for name, part in block.named_children():
            self.add_module(name, part)
        self.requires_grad_(True)

    def requires_grad_(self, requires_grad: bool = True) -> "ValueBlock":
        super().requires_grad_(requires_grad)
        for name, part in self.named_children():
            if name not in ("norm1", "mixer"):
                part.requires_grad_(False)
        return self

    def _values(self, rows: Tensor) -> Tensor:
        qkv: Any = self.mixer.qkv
        dim = rows.shape[-1]
        return self.mixer.proj(linear(rows, qkv.weight[2 * dim :], qkv.bias[2 * dim :]))  # type: ignore[operator]

    def forward(self, x: Tensor, tokens: Tensor | None = None):
        rows = self._values(self.norm1(x).flatten(2).mT)
        x = rows.mT.unflatten(2, x.shape[-2:])
        return x if tokens is None else (x, self._values(self.norm1(tokens)))


class PHReg(Isotropic):
    """A plain vision transformer with registers, which begin as normal numbers of deviation 1 / √C, without positions.

    A file of the plain transformer loads (timm's, DINOv2's and CLIP's names): the registers stay as they are, and the
    account says that they are missing. With registers=0 and value_only=False it is that transformer.

    Args:
        dim, depth, registers, **common: as of `Isotropic`.
        heads: number of attention heads.
        value_only: whether the last block gives the values of its attention alone (`ValueBlock`), as the authors have
            it for CLIP, whose maps are then nearer to texts.
    """

    dense_names = (*Isotropic.dense_names, r"^register_tokens\.")

    def __init__(
        self,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        value_only: bool = False,
        *,
        registers: int = 16,
        **common,
    ):
        self.value_only = value_only
        mixer = dict(type="Attention", heads=heads)
        super().__init__(dim, depth, mixer, class_token=0, class_position=True, registers=registers, **common)
        if self.register_tokens is not None:
            nn.init.normal_(self.register_tokens.weight, std=dim**-0.5)

    def make_block(self, index: int, dim: int, drop_path: float) -> nn.Module:
        block = super().make_block(index, dim, drop_path)
        return ValueBlock(block) if self.value_only and index == self.depth - 1 else block

    def unlock(self) -> None:
        """Freeze everything but what distillation changes: registers, positions, the patches' layer, the last block."""
        self.requires_grad_(False)
        for part in (self.register_tokens, self.position, self.stem, self.blocks[-1]):
            if part is not None:
                part.requires_grad_(True)


_dinov2 = dict(dim=768, heads=12, depth=12, patch_size=14, img_size=518, position=dict(offset=0.1), layer_scale=1e-5)
_clip = dict(
    dim=768,
    heads=12,
    depth=12,
    value_only=True,
    img_size=448,
    position=dict(offset=0.1),
    mlp="quick_gelu",
    pre_norm=True,
    eps=1e-5,
    projection=512,
)

# Without DINOv2's mask token, one more of C. Trainable in distillation: 8,606,208 of DINOv2's.
VARIANTS = {
    "ph_reg_dinov2_base": Variant(_dinov2, 86_592_000, size=518, classes=0, crop=1.0),
    "ph_reg_clip_base_patch16": Variant(
        _clip,
        86_656_512,
        size=448,
        classes=0,
        crop=1.0,
        mean=(122.7709383, 116.7460125, 104.09373615),
        std=(68.5005327, 66.6321579, 70.32316305),
    ),
}

# --- the authors' checkpoints ----------------------------------------------------------------------------------------

# Files of a DINOv2 student hold its tensors a second time, below embed, encoder and layernorm.
RULES: Rules = [
    (r"^registers$", r"register_tokens.weight"),
    (r"^(model|vit)\.", r""),
    (r"^embed\.", r"embeddings."),
    *vit_names.RULES,
]

register(PHReg, VARIANTS, RULES)

# --- distillation ----------------------------------------------------------------------------------------------------


def distillation_losses(student: Tensor, teacher: Tensor, mse_scale: float = 1.0) -> dict[str, Tensor]:
    """Of maps (B, C, H, W): "loss_cosine", 1 - the mean cosine of their pixels, and "loss_mse", the mean squared
    difference times `mse_scale`; in float32."""
    student, teacher = student.float(), teacher.float()
    norms = (student.norm(dim=1) + 1e-8) * (teacher.norm(dim=1) + 1e-8)
    cosine = (student * teacher).sum(1) / norms
    return dict(loss_cosine=1 - cosine.mean(), loss_mse=mse_scale * F.mse_loss(student, teacher))


@MODELS.register_module()
class RegisterDistiller(BaseModel):
    """Trains the registers of a student by the denoised maps of its teacher; images need no labels.

    The student begins with the teacher's weights. Of it, the four groups of `PHReg.unlock` learn.

    Args:
        teacher: config of a backbone with its weights, which gives one map, the last one.
        backbone: config of the student, a `PHReg` of the same sizes, which gives one map, that of the same block.
        count, shift, chunk, mean, std: as of `Denoised`. Views are drawn by PyTorch's global generator.
        mse_scale: weight of the squared difference.
    """

    def __init__(
        self,
        teacher: Mapping,
        backbone: Mapping,
        count: int = 10,
        shift: float = 0.15,
        chunk: int = 8,
        mean: Sequence[float] = MEAN,
        std: Sequence[float] = STD,
        mse_scale: float = 1.0,
        data_preprocessor: Mapping | None = None,
        init_cfg: dict | None = None,
    ):
        super().__init__(MODELS.build(data_preprocessor or dict(type="ImagePreprocessor")), init_cfg)
        self.backbone = MODELS.build(backbone)
        if not isinstance(self.backbone, PHReg):
            raise ValueError(f"RegisterDistiller: backbone must be a PHReg, got {type(self.backbone).__name__}")
        self.teacher = Denoised(teacher, count, shift, chunk, mean, std)
        for name, network in (("teacher", self.teacher), ("backbone", self.backbone)):
            if len(network.out_channels) != 1:
                raise ValueError(f"RegisterDistiller: {name} must give one map, got {len(network.out_channels)}")
        for name in ("out_channels", "out_strides", "out_indices"):
            of_teacher, of_student = (getattr(x, name) for x in (self.teacher.backbone, self.backbone))
            if tuple(of_teacher) != tuple(of_student):
                raise ValueError(
                    f"RegisterDistiller: teacher must have the {name}={tuple(of_student)} of the backbone, got "
                    f"{tuple(of_teacher)}"
                )
        self.mse_scale = mse_scale
        self.backbone.unlock()

    def init_weights(self) -> None:
        super().init_weights()
        load(self.backbone, self.teacher.backbone.state_dict(), name="the teacher")

    def forward(self, images: Tensor, labels=None, indices=None, mode: str = "tensor"):
        """Mode "tensor": the student's map; "loss": the losses, and the artefacts of the map; "predict": for each image
        a dict of numbers, which `Means` averages: the artefacts of the teacher's map as it is ("plain") and denoised,
        and of the student's, and 1 - the mean cosine between the last two ("distance")."""
        (found,) = self.backbone(images)
        if mode == "tensor":
            return found
        if mode == "loss":
            (expected,) = self.teacher(images, torch.default_generator)
            with torch.no_grad():
                said = {f"student_{name}": value.mean() for name, value in artefacts(found).items()}
            return distillation_losses(found, expected, self.mse_scale) | said
        (expected,), (plain,) = self.teacher(images), self.teacher.backbone(images)
        numbers = {
            f"{whose}_{name}": value.tolist()
            for whose, maps in (("plain", plain), ("denoised", expected), ("student", found))
            for name, value in artefacts(maps).items()
        }
        numbers["distance"] = (1 - F.cosine_similarity(found.float(), expected.float()).mean((1, 2))).tolist()
        return [dict(zip(numbers, values)) for values in zip(*numbers.values())]


@METRICS.register_module()
class Means(BaseMetric):
    """The mean over all images of each number that a model predicts for an image, by name."""

    def process(self, data_batch, data_samples: Sequence[Mapping[str, float]]) -> None:
        self.results.extend(dict(sample) for sample in data_samples)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {name: sum(sample[name] for sample in results) / len(results) for name in results[0]}
