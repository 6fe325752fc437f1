"""Where the vision tokens of a model lie in the image that it was given.

A processor resizes, pads, crops and cuts an image into tiles before a network sees it, and what a model looks at is
known by token. `views` undoes all of it: every token gets the rectangle of the original image that it was made of.
Pixels have their centers at + 0.5; the first axis of a grid is rows, the second columns.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

SQUARES = (576, 1024, 1600, 1681, 256)  # numbers of tokens that CARVE's code takes for squares before all else


@dataclass(frozen=True)
class View:
    """A grid of tokens, h rows of w, laid over an image. Cells may lie partly or wholly outside the image (padding)."""

    tokens: np.ndarray  # (h, w), int64: numbers of the vision tokens, in the order of the sequence
    rows: np.ndarray  # (h, 2), float64: where each row begins and ends, in pixels of the original image
    columns: np.ndarray  # (w, 2), float64

    @classmethod
    def whole(cls, grid: tuple[int, int], size: tuple[int, int]) -> "View":
        """The view of a grid (h, w) of even cells that covers an image of `size` (H, W)."""
        height, width = (Axis(length).resized(count).cells(count, 1) for length, count in zip(size, grid))
        return cls(np.arange(grid[0] * grid[1]).reshape(grid), height, width)

    def spread(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Numbers of tokens as a map of pixels: linear between the centers of cells, averaged where cells are smaller
        than pixels; 0 at pixels that the view does not show.

        Args:
            values: (N,), a number for each vision token.
            size: height and width of the image.

        Returns:
            (H, W), float64, rounded to float32 after each axis. For an image that is covered by even cells it is
            Pillow's bilinear resize in its float mode.
        """
        index, weight = _taps(self.columns, size[1])
        grid = np.asarray(values, np.float32)[self.tokens]
        wide = sum(grid[:, index[:, k]] * weight[:, k] for k in range(index.shape[1])).astype(np.float32)
        index, weight = _taps(self.rows, size[0])
        return (
            sum(wide[index[:, k]] * weight[:, k, None] for k in range(index.shape[1]))
            .astype(np.float32)
            .astype(np.float64)
        )

    def shown(self, size: tuple[int, int]) -> np.ndarray:
        """The pixels whose centers lie in cells, bool (H, W)."""
        return self.spread(np.ones(self.tokens.max() + 1), size) > 0

    def box(self, row: int, column: int) -> tuple[float, float, float, float]:
        """x0, y0, x1, y1 of a token, in pixels."""
        (y0, y1), (x0, x1) = self.rows[row].tolist(), self.columns[column].tolist()
        return x0, y0, x1, y1


def _taps(cells: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Which cells a pixel of an axis is made of, (length, K), and their shares, float64, which sum to 1 or to 0."""
    count, place = len(cells), np.arange(length) + 0.5
    middle, wide = cells.mean(1), cells[:, 1] - cells[:, 0]
    at = np.interp(place, middle, np.arange(count) + 0.5)  # in units of cells
    at = np.where(place < middle[0], 0.5 + (place - middle[0]) / wide[0], at)
    at = np.where(place > middle[-1], count - 0.5 + (place - middle[-1]) / wide[-1], at)
    support = max(1.0, count / (cells[-1, 1] - cells[0, 0]))
    first = np.maximum(0, np.floor(at - support + 0.5)).astype(np.int64)
    index = first[:, None] + np.arange(2 * math.ceil(support) + 1)
    weight = np.maximum(0, 1 - np.abs(index + 0.5 - at[:, None]) / support) * (index < count)
    seen = (place >= cells[0, 0]) & (place <= cells[-1, 1])
    total = weight.sum(1, keepdims=True)
    weight = np.divide(weight, total, out=np.zeros_like(weight), where=(total > 0) & seen[:, None])
    return index.clip(0, count - 1), weight


def grid_of(count: int, shape: tuple[int, int] | None = None, legacy_grid: bool = False) -> tuple[int, int] | None:
    """The grid (rows, columns) of N tokens.

    Args:
        count: number of tokens N.
        shape: the grid that the processor says, or None. It must have N cells.
        legacy_grid: whether to guess as CARVE's released code: certain numbers are squares whatever the shape says (8 x
            32 tokens become 16 x 16), then the shape counts, of which further tokens are dropped, then any square.

    Returns:
        Without a shape the square of N cells. None where the released code would leave a layer out.

    Raises:
        ValueError: the shape has another number of cells; without one, N is no square.
    """
    side = math.isqrt(count)
    square = (side, side) if side * side == count and count else None
    if legacy_grid:
        if count in SQUARES:
            return square
        return shape if shape is not None and 0 < shape[0] * shape[1] <= count else square
    if shape is not None and shape[0] * shape[1] != count:
        raise ValueError(f"shape={shape[0]} rows x {shape[1]} columns are not the {count} tokens that there are")
    if shape is None and square is None:
        raise ValueError(f"{count} tokens are no square: give shape=(rows, columns)")
    return shape or square


# --- undoing a processor ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """An axis of an image on its way through a processor: x of now is (x + shift) * scale of the original."""

    length: int
    scale: float = 1.0
    shift: float = 0.0

    def resized(self, length: int) -> "Axis":
        return Axis(length, self.scale * self.length / length, self.shift * length / self.length)

    def cropped(self, start: int, length: int) -> "Axis":
        """Cut out from `start` on; a negative start pads."""
        return Axis(length, self.scale, self.shift + start)

    def centered(self, length: int) -> "Axis":
        """Cut out of the middle, or padded around it, as transformers' `center_crop`."""
        return self.cropped((self.length - length) // 2, length)

    def cells(self, count: int, width: float) -> np.ndarray:
        """(count, 2): where cells of that width begin and end in the original, from the first pixel on."""
        edges = (np.arange(count + 1) * width + self.shift) * self.scale
        return np.stack([edges[:-1], edges[1:]], axis=1)


def views(
    image_processor: Any, config: Any, size: tuple[int, int], inputs: Mapping[str, Any], count: int
) -> list[View]:
    """The views of one image by the vision tokens of a model of transformers.

    Args:
        image_processor: that of the model's processor. Read are: those that give `image_grid_thw` (Qwen2-VL and after);
            LLaVA-NeXT's, of tiles; LLaVA's, CLIP's, SigLIP's, ViT's and Gemma 3's, which resize, pad and crop.
        config: of the model.
        size: height and width of the image before the processor.
        inputs: what the processor gave.
        count: number of vision tokens N of the image.

    Returns:
        One view, of LLaVA-NeXT two: the whole image small, and the tiles. Tokens that end a row, or that are no place
        (a class token), are in none.

    Raises:
        ValueError: the processor is another, or its grid has not N tokens: nothing is guessed.
    """
    name = type(image_processor).__name__.removesuffix("Pil").removesuffix("Fast")
    axes = [Axis(length) for length in size]
    if "image_grid_thw" in inputs:
        return [_merged(image_processor, axes, np.asarray(inputs["image_grid_thw"]), count)]
    if name == "LlavaNextImageProcessor":
        return _tiled(image_processor, config, axes, count)
    if name not in PLAIN or getattr(image_processor, "do_pan_and_scan", None):
        known = ", ".join(("LlavaNextImageProcessor", *PLAIN))
        raise ValueError(
            f"{type(image_processor).__name__}: how it lays tokens over an image is not known here; known are {known}, "
            "and those that give image_grid_thw. legacy_grid=True lays a grid over the whole, as the released code does"
        )
    if name == "LlavaImageProcessor" and image_processor.do_pad:  # to a square
        side = max(size)
        axes = [axis.cropped(-((side - axis.length) // 2), side) for axis in axes]
    axes = _prepared(image_processor, axes)
    return [_plain(config, axes, count)]


PLAIN = (
    "LlavaImageProcessor",
    "CLIPImageProcessor",
    "SiglipImageProcessor",
    "ViTImageProcessor",
    "Gemma3ImageProcessor",
)


def _prepared(processor: Any, axes: list[Axis]) -> list[Axis]:
    """Resized and cropped as the processor's options say."""
    if processor.do_resize:
        size = processor.size
        if size.get("height") and size.get("width"):
            lengths = [size["height"], size["width"]]
        elif size.get("shortest_edge") and not size.get("longest_edge"):
            edge, short = size["shortest_edge"], min(axis.length for axis in axes)
            long = int(edge * max(axis.length for axis in axes) / short)
            lengths = [edge if axis.length == short else long for axis in axes]
        else:
            raise ValueError(f"size={dict(size)} of {type(processor).__name__}: height and width, or shortest_edge")
        axes = [axis.resized(length) for axis, length in zip(axes, lengths)]
    if getattr(processor, "do_center_crop", None):
        axes = [axis.centered(processor.crop_size[side]) for axis, side in zip(axes, ("height", "width"))]
    return axes


def _plain(config: Any, axes: list[Axis], count: int) -> View:
    """Patches of one image, or means over squares of k x k of them, behind a class token where it is kept."""
    patch = config.vision_config.patch_size
    rows, columns = (axis.length // patch for axis in axes)
    first = count - rows * columns if getattr(config, "vision_feature_select_strategy", None) == "full" else 0
    pool = math.isqrt(rows * columns // max(1, count - first))
    if not pool or first < 0 or rows % pool or columns % pool or rows * columns != pool**2 * (count - first):
        raise ValueError(
            f"{count} vision tokens are no grid of {rows} rows x {columns} columns of patches of {patch} pixels: the "
            "processor and the model do not fit, or there are several images"
        )
    grid = rows // pool, columns // pool
    tokens = first + np.arange(count - first).reshape(grid)
    return View(tokens, *(axis.cells(number, patch * pool) for axis, number in zip(axes, grid)))


def _merged(processor: Any, axes: list[Axis], frames: np.ndarray, count: int) -> View:
    """Qwen2-VL and after: t, h, w patches, of which squares of `merge_size` become a token."""
    if frames.shape != (1, 3) or frames[0, 0] != 1:
        raise ValueError(f"image_grid_thw={frames.tolist()} must be of one image: t = 1 frame, h rows, w columns")
    merge, patch = processor.merge_size, processor.patch_size
    patches = frames[0, 1:].tolist()
    grid = grid_of(count, (patches[0] // merge, patches[1] // merge))
    assert grid is not None
    cells = (axis.resized(n * patch).cells(n // merge, patch * merge) for axis, n in zip(axes, patches))
    return View(np.arange(count).reshape(grid), *cells)


def _tiled(processor: Any, config: Any, axes: list[Axis], count: int) -> list[View]:
    """LLaVA-NeXT: the whole image, stretched to a tile; then the rows of all tiles together, without the padding around
    them, each with a token at its end."""
    from transformers.image_processing_utils import select_best_resolution

    if sorted(map(list, config.image_grid_pinpoints)) != sorted(map(list, processor.image_grid_pinpoints)):
        raise ValueError("image_grid_pinpoints of the processor and of the model's config are not the same")
    size, tile, patch = processor.size, processor.crop_size["height"], config.vision_config.patch_size
    lengths = [size.get(side) or size.get("shortest_edge") for side in ("height", "width")]
    base = _prepared(processor, [axis.resized(length) for axis, length in zip(axes, lengths)])
    side = tile // patch
    small = View(np.arange(side * side).reshape(side, side), *(axis.cells(side, patch) for axis in base))

    height, width = (axis.length for axis in axes)
    target = select_best_resolution((height, width), [tuple(pair) for pair in processor.image_grid_pinpoints])
    down, across = target[0] / height, target[1] / width
    if across < down:
        fitted = min(math.ceil(height * across), target[0]), target[1]
    else:
        fitted = target[0], min(math.ceil(width * down), target[1])
    cells, kept = [], _unpadded((height, width), (target[0] // tile * side, target[1] // tile * side))
    for number, (axis, length, full) in enumerate(zip(axes, fitted, target)):
        axis = axis.resized(length).cropped(-((full - length) // 2), full)
        parts = [axis.cropped(start, tile) for start in range(0, full, tile)]
        parts = [_prepared(processor, [part, part])[number] for part in parts]  # tiles are square
        cells.append(np.concatenate([part.cells(side, patch) for part in parts])[kept[number]])
    rows, columns = (len(part) for part in cells)
    if count != side * side + rows * (columns + 1):
        raise ValueError(
            f"{count} vision tokens are not {side} x {side} of the image and {rows} rows x ({columns} columns + 1) of "
            "its tiles: the processor and the model do not fit, or there are several images"
        )
    tokens = side * side + np.arange(rows * (columns + 1)).reshape(rows, -1)[:, :-1]
    return [small, View(tokens, *cells)]


def _unpadded(size: tuple[int, int], grid: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a grid of padded tiles that LLaVA-NeXT keeps, for an image of `size`."""
    (height, width), (rows, columns) = size, grid
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        return slice(cut, rows - cut), slice(None)
    cut = (columns - int(round(width * (rows / height), 7))) // 2
    return slice(None), slice(cut, columns - cut)
