import types

import numpy as np
import pytest
import torch
import vlms
from PIL import Image

from attlas.dense.vlm.views import Axis, View, grid_of, views

# --- a grid over an image --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grid", [(6, 8), (1, 1), (3, 5), (24, 24)])
@pytest.mark.parametrize("size", [(36, 48), (37, 51), (4, 100), (10, 13), (2, 3)])
def test_the_whole_image_is_pillows_bilinear_resize(grid, size):
    values = np.random.rand(*grid).astype(np.float32)
    expected = np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))
    found = View.whole(grid, size).spread(values.ravel(), size)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected, rtol=2e-7)


def test_what_no_cell_covers_is_0_and_padding_is_cut_off():
    inside = View(np.arange(4).reshape(2, 2), np.array([[2.0, 4], [4, 6]]), np.array([[-3.0, 1], [1, 5]]))
    found = inside.spread(np.ones(4), (9, 7))
    assert (found[2:6, :5] == 1).all()
    assert found.sum() == 4 * 5
    column = inside.spread(np.array([0.0, 4, 0, 4]), (9, 7))[3, :5]  # centers of the cells at -1 and 3
    np.testing.assert_allclose(column, [1.5, 2.5, 3.5, 4, 4])


def test_a_grid_needs_no_guess():
    assert grid_of(256, (8, 32)) == (8, 32)  # oblong, as Qwen's
    assert grid_of(256, (8, 32), legacy_grid=True) == (16, 16)  # the released code's mistake
    assert grid_of(49) == (7, 7) == grid_of(49, legacy_grid=True)
    assert grid_of(53, (6, 8), legacy_grid=True) == (6, 8)  # drops five
    assert grid_of(9, (6, 8), legacy_grid=True) == (3, 3)
    assert grid_of(10, (6, 8), legacy_grid=True) is None
    with pytest.raises(ValueError, match="6 rows x 8 columns are not the 53"):
        grid_of(53, (6, 8))
    with pytest.raises(ValueError, match="48 tokens are no square"):
        grid_of(48)


def test_an_axis_comes_back():
    axis = Axis(100).resized(50).cropped(-7, 64).resized(32).cropped(3, 20)
    for place in (0.0, 13.5, 100.0):
        there = (place / 2 + 7) / 2 - 3
        assert (there + axis.shift) * axis.scale == pytest.approx(place)
    assert axis.length == 20


# --- processors ------------------------------------------------------------------------------------------------------


def bright(view, row, column, size):
    """A black image of `size` in which the pixels of one cell are white; None where no whole pixel is inside."""
    x0, y0, x1, y1 = view.box(row, column)
    x0, y0, x1, y1 = max(0, round(x0)), max(0, round(y0)), min(size[1], round(x1)), min(size[0], round(y1))
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    image = np.zeros((*size, 3), np.uint8)
    image[y0:y1, x0:x1] = 255
    return Image.fromarray(image)


def patches(pixels, patch=14):
    """Mean brightness of patches: (..., 3, H, W) -> (..., h · w)."""
    means = pixels.double().mean(-3).unfold(-2, patch, patch).unfold(-2, patch, patch).mean((-1, -2))
    return means.flatten(-2)


def some_of(view):
    cells = [(row, column) for row in range(len(view.rows)) for column in range(len(view.columns))]
    return [cells[i] for i in {0, len(cells) - 1, *range(1, len(cells), max(3, len(cells) // 7))}]


CONFIG = types.SimpleNamespace(
    vision_config=types.SimpleNamespace(patch_size=14, image_size=56),
    vision_feature_select_strategy="default",
    image_grid_pinpoints=vlms.PINPOINTS,
)


@pytest.mark.parametrize("size", [(90, 131), (131, 90), (57, 56), (33, 70)])
@pytest.mark.parametrize(
    "options",
    [
        {},  # LLaVA 1.5 of transformers: the short side to 56, then the middle
        dict(do_pad=True),  # and as it was trained: padded to a square
        dict(size=dict(height=56, width=56), do_center_crop=False),
        dict(size=dict(shortest_edge=48)),  # smaller than the crop, which pads
    ],
)
def test_a_bright_patch_of_llava_lights_its_token(size, options):
    processor = vlms.image_processor("llava", **options)
    (view,) = views(processor, CONFIG, size, {}, 16)
    tried = 0
    for row, column in some_of(view):
        if (image := bright(view, row, column, size)) is not None:
            found = patches(processor(images=image, return_tensors="pt")["pixel_values"])[0]
            background = patches(processor(images=bright_none(size), return_tensors="pt")["pixel_values"])[0]
            assert (found - background).argmax() == view.tokens[row, column]
            tried += 1
    assert tried >= 3


def bright_none(size):
    return Image.fromarray(np.zeros((*size, 3), np.uint8))


@pytest.mark.parametrize("size", [(90, 260), (260, 90), (100, 100), (45, 61)])
def test_a_bright_patch_of_qwen_lights_its_token(size):
    processor = vlms.image_processor("qwen2_5_vl")
    made = processor(images=bright_none(size), return_tensors="pt")
    _frames, height, width = made["image_grid_thw"][0].tolist()
    count = height * width // 4
    (view,) = views(processor, CONFIG, size, made, count)
    assert (len(view.rows), len(view.columns)) == (height // 2, width // 2)
    assert (view.columns[-1, 1], view.rows[-1, 1]) == (pytest.approx(size[1]), pytest.approx(size[0]))
    for row, column in some_of(view):
        found = processor(images=bright(view, row, column, size), return_tensors="pt")["pixel_values"]
        tokens = (found - made["pixel_values"]).mean(1).view(-1, 4).mean(1)  # four patches that lie together
        assert tokens.argmax() == view.tokens[row, column]


@pytest.mark.parametrize("size", [(90, 131), (131, 90), (40, 150)])
def test_a_bright_patch_of_llava_next_lights_its_tokens(size):
    """Through the model's own packing of tiles, with the brightness of a patch in place of its features."""
    processor, model = vlms.image_processor("llava_next"), vlms.model("llava_next").model

    def sequence(image):
        made = processor(images=image, return_tensors="pt")
        features = patches(made["pixel_values"][0])[..., None]
        low = torch.tensor([features.min() - 1])
        (packed,), _ = model.pack_image_features([features], made["image_sizes"], "default", low)
        return packed[:, 0], (packed[:, 0] == low).nonzero().flatten()

    background, ends = sequence(bright_none(size))
    small, large = views(processor, model.config, size, {}, len(background))
    assert not set(ends.tolist()) & set(large.tokens.ravel())
    assert len(ends) == len(large.rows)
    assert small.tokens.size + large.tokens.size + len(ends) == len(background)
    for view in (small, large):
        part = torch.from_numpy(view.tokens.ravel())
        for row, column in some_of(view):
            if (image := bright(view, row, column, size)) is not None:
                change = (sequence(image)[0] - background)[part]
                assert part[change.argmax()] == view.tokens[row, column]


def test_class_tokens_and_pooled_patches():
    processor, size = vlms.image_processor("llava"), (90, 131)
    kept = types.SimpleNamespace(**vars(CONFIG) | dict(vision_feature_select_strategy="full"))
    (full,) = views(processor, kept, size, {}, 17)
    assert full.tokens[0, 0] == 1
    assert full.tokens[-1, -1] == 16
    (plain,) = views(processor, CONFIG, size, {}, 16)
    (pooled,) = views(processor, CONFIG, size, {}, 4)
    np.testing.assert_allclose(
        pooled.rows, [[plain.rows[0, 0], plain.rows[1, 1]], [plain.rows[2, 0], plain.rows[3, 1]]]
    )


def test_processors_that_do_not_fit():
    size, llava = (90, 131), vlms.image_processor("llava")
    with pytest.raises(ValueError, match="17 vision tokens are no grid of 4 rows x 4 columns"):
        views(llava, CONFIG, size, {}, 17)
    with pytest.raises(ValueError, match="SimpleNamespace: how it lays tokens over an image is not known"):
        views(types.SimpleNamespace(), CONFIG, size, {}, 16)
    with pytest.raises(ValueError, match="are not 4 x 4 of the image and"):
        views(vlms.image_processor("llava_next"), CONFIG, size, {}, 20)
    other = vlms.image_processor("llava_next", image_grid_pinpoints=[[56, 112]])
    with pytest.raises(ValueError, match="image_grid_pinpoints of the processor and of the model"):
        views(other, CONFIG, size, {}, 20)
    qwen = vlms.image_processor("qwen2_5_vl")
    with pytest.raises(ValueError, match="2 rows x 3 columns are not the 7 tokens"):
        views(qwen, CONFIG, size, dict(image_grid_thw=torch.tensor([[1, 4, 6]])), 7)
    with pytest.raises(ValueError, match="t = 1 frame"):
        views(qwen, CONFIG, size, dict(image_grid_thw=torch.tensor([[2, 4, 6]])), 12)
    with pytest.raises(ValueError, match="height and width, or shortest_edge"):
        views(vlms.image_processor("llava", size=dict(shortest_edge=5, longest_edge=9)), CONFIG, size, {}, 16)
