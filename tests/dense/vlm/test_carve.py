import numpy as np
import pytest
import torch
from golden_records import Record

from attlas.dense.vlm.carve import VARIANTS, bounding_box, carve, contrast, entropy, fuse, is_flat, refine, region
from attlas.dense.vlm.views import View, grid_of

SIZE, GRID = (36, 48), (6, 8)


def attention(*shape):
    return torch.randn(*shape).mul(1.5).softmax(-1).numpy()


def laid():
    return [View.whole(GRID, SIZE)]


def test_record_of_the_map_the_masks_and_the_crop():
    record = Record("carve/contrast_mask_crop")
    said = record.config
    grid, size = tuple(said["grid"]), tuple(said["image_size_wh"][::-1])
    rows = [(1.5 * record.input(key, torch.float32)).softmax(-1).numpy() for key in ("query", "general")]
    query, general = (found[..., : grid[0] * grid[1]] for found in rows)
    whole = [View.whole(grid_of(query.shape[-1], grid), size)]
    for number, steps in enumerate(("first", "all")):
        fused = fuse(query, general, whole, size, said["layers"], steps, said["lam"])
        np.testing.assert_allclose(fused, record.output(number), rtol=1e-4)
    more = [View.whole(grid_of(rows[0].shape[-1], grid, legacy_grid=True), size)]
    np.testing.assert_array_equal(fuse(*rows, more, size, said["layers"], lam=said["lam"]), fused)
    for number, keep in enumerate(("remove_small", "size", "attention_sum")):
        mask = region(fused, said["top_percent"], keep, said["min_keep_regions"], said["outlier_percent"])
        np.testing.assert_array_equal(mask, record.output(2 + number).bool())
        assert bounding_box(mask) == tuple(record.output(5)[number].int().tolist())
    image = (255 * record.input("image", torch.float32)).to(torch.uint8).numpy()
    found, expected = refine(image, mask), record.output(6).numpy()
    assert found.shape == expected.shape
    assert abs(found - expected).max() <= 1
    options = {name: said[name] for name in ("lam", "top_percent", "min_keep_regions", "outlier_percent", "layers")}
    carved = carve(image, query, general, whole, "v4", **options)
    np.testing.assert_array_equal(carved.refined, found)
    assert not carved.flat
    assert carved.box == bounding_box(mask)


def test_a_map_by_its_definition():
    """Each step and layer spread by itself, then added: what the sum over tokens stands for."""
    query, general = attention(3, 2, 48), attention(4, 2, 48)
    expected = sum(
        (t + 1) * laid()[0].spread(query[t, layer] / (general[t, layer] + 1e-8), SIZE)
        for t in range(3)
        for layer in range(2)
    )
    np.testing.assert_allclose(fuse(query, general, laid(), SIZE), expected, rtol=1e-5)
    np.testing.assert_array_equal(fuse(query, general, laid() * 2, SIZE), 2 * fuse(query, general, laid(), SIZE))


def test_a_factor_of_the_question_changes_no_mask():
    query, general = attention(3, 2, 48), attention(3, 2, 48)
    image = np.random.randint(0, 255, (*SIZE, 3), np.uint8)
    for version in VARIANTS:
        one = carve(image, query, general, laid(), version)
        other = carve(image, 8 * query, general, laid(), version)
        np.testing.assert_allclose(other.fused, 8 * one.fused, rtol=1e-6)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.box == other.box


def test_noise_that_multiplies_both_cancels():
    query, general, noise = attention(2, 2, 48), attention(2, 2, 48), np.random.rand(48) + 0.1
    np.testing.assert_allclose(contrast(noise * query, noise * general, 0), contrast(query, general, 0), rtol=1e-12)
    assert not np.allclose(contrast(noise * query, noise * general, 0.1), contrast(query, general, 0.1))


@pytest.mark.parametrize("token", [0, 19, 47])
@pytest.mark.parametrize("size", [SIZE, (37, 53), (90, 61)])
def test_the_box_holds_the_token_that_matters(token, size):
    general = np.full((2, 3, 48), 1 / 48)
    query = general.copy()
    query[..., token] *= 10
    view = View.whole(GRID, size)
    carved = carve(np.zeros((*size, 3), np.uint8), query, general, [view], top_percent=0.1)
    x0, y0, x1, y1 = view.box(*divmod(token, GRID[1]))
    found = carved.box
    assert found[0] <= (x0 + x1) / 2 <= found[2]
    assert found[1] <= (y0 + y1) / 2 <= found[3]
    row, column = np.unravel_index(carved.fused.argmax(), size)
    assert y0 <= row + 0.5 <= y1
    assert x0 <= column + 0.5 <= x1


def test_the_same_look_gives_the_whole_image():
    query, image = attention(2, 2, 48), np.random.randint(0, 255, (*SIZE, 3), np.uint8)
    same = carve(image, query, query, laid())
    assert same.flat
    assert same.mask.all()
    assert same.box == (0, 0, 48, 36)
    np.testing.assert_array_equal(same.refined, image)
    as_released = carve(image, query, query, laid(), least_range=0)
    assert not as_released.flat
    assert as_released.mask.mean() < 1
    assert is_flat(np.zeros((2, 2)))
    assert not is_flat(np.array([[1.0, 1.01]]))


def test_parts_of_a_region():
    fused = np.zeros((20, 30))
    fused[1:3, 1:3] = 9  # 4 pixels, the highest
    fused[5:9, 5:10] = 5  # 20 pixels
    fused[9, 10] = 5  # touches the former at a corner: a part of its own
    fused[12:18, 20:29] = 4  # 54 pixels
    fused[19, 0] = 4
    above = 80 / 600
    assert region(fused, above, "size", 1).sum() == 54
    assert region(fused, above, "attention_sum", 1).sum() == 54
    assert region(fused, above, "attention_sum", 2)[5:9, 5:10].all()
    assert region(fused, above, "size", 3).sum() == 54 + 20 + 4
    both = region(fused, above, "size", 4)  # of the two of one pixel the upper one
    assert both[9, 10]
    assert not both[19, 0]
    assert region(fused, above, "remove_small", outlier_percent=10).sum() == 54 + 20
    assert region(fused, above, "remove_small", outlier_percent=0).sum() == 80
    assert bounding_box(np.zeros((5, 7), bool)) == (0, 0, 7, 5)


@pytest.mark.parametrize("channels", [(), (3,), (4,)])
def test_refined_images(channels):
    image, mask = np.random.randint(1, 255, (20, 30, *channels), np.uint8), np.zeros((20, 30), bool)
    mask[4:9, 3:6] = True
    found = refine(image, mask)
    assert found.shape == (50, 30, 3)  # ten times 5 x 3
    assert found.any()
    mask[4:9, 3:6] = [True, False, True]
    assert refine(np.full_like(image, 200), mask)[:, 14:16].max() < 20 < refine(image, mask).max()  # black outside


def test_entropy():
    assert entropy(np.full(48, 0.01)) == pytest.approx(np.log(48))
    assert entropy(np.eye(5)[2]) == 0
    values = np.random.rand(3, 2, 7)
    share = values / values.sum(-1, keepdims=True)
    np.testing.assert_allclose(entropy(values), -(share * np.log(share)).sum(-1))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda q: contrast(q, q[:1]), "must be of one shape"),
        (lambda q: contrast(q, q, -1), "lam=-1"),
        (lambda q: contrast(q, 0 * q, 0), "nowhere 0"),
        (lambda q: contrast(q * np.nan, q), "query: attention must be finite"),
        (lambda q: contrast(q, -q), "general: attention must be finite numbers of at least 0"),
        (lambda q: fuse(q, q[0], laid(), SIZE), "of shape"),
        (lambda q: fuse(q, q, laid(), SIZE, [7, 9]), "leave nothing to add"),
        (lambda q: fuse(q, q[:0], laid(), SIZE), "leave nothing to add"),
        (lambda q: fuse(q, q, [], SIZE), "views must be of the 48"),
        (lambda q: fuse(q, q, [View.whole((7, 7), SIZE)], SIZE), "views must be of the 48"),
        (lambda q: fuse(q, q, laid(), SIZE, steps="last"), "steps"),
        (lambda q: region(q, 0.2), "fused must be finite"),
        (lambda q: region(q[0] * np.nan), "fused must be finite"),
        (lambda q: region(q[0], 0), "top_percent=0"),
        (lambda q: region(q[0], keep="all"), "keep"),
        (lambda q: region(q[0], min_keep_regions=0), "min_keep_regions=0"),
        (lambda q: refine(q[0], q[0] > 0), "must be uint8"),
        (lambda q: entropy(0 * q), "no entropy"),
        (lambda q: carve(np.zeros((*SIZE, 3), np.uint8), q, q, laid(), "v5"), "v4"),
    ],
)
def test_bad_input(call, said):
    with pytest.raises(ValueError, match=said):
        call(attention(2, 2, 48))
