import math

import cv2
import numpy as np
import pytest
import torch
from mmengine import registry as root

from attlas.backbones.classification import transforms as T
from attlas.data import seeded
from attlas.registry import TRANSFORMS

RNG = np.random.default_rng(0)


def picture(height=12, width=15) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


def smooth(height=48, width=60) -> np.ndarray:
    return cv2.resize(picture(4, 5), (width, height), interpolation=cv2.INTER_CUBIC)


def of(*levels) -> np.ndarray:
    """One row of grey pixels, as an image (1, N, 3)."""
    return np.repeat(np.array(levels, np.uint8)[None, :, None], 3, 2)


def row(image: np.ndarray) -> list[int]:
    """The red levels of the first row."""
    return image[0, :, 0].tolist()


def apply(transform: dict, image):
    return TRANSFORMS.build(transform)(dict(image=image, label=3))["image"]


# --- every transform

EACH = [
    dict(type="Resize", size=9),
    dict(type="RandomResizedCrop", size=(8, 9), interpolation="random"),
    dict(type="CenterCrop", size=8),
    dict(type="Pad", padding=(1, 2)),
    dict(type="RandomCrop", size=10, padding=2),
    dict(type="RandomFlip"),
    dict(type="ColorJitter", brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
    dict(type="RandAugment"),
    dict(type="RandomRotate", degrees=90),
    dict(type="GaussianBlur"),
]


@pytest.mark.parametrize("config", EACH, ids=lambda config: config["type"])
def test_a_draw_follows_the_seed_and_leaves_the_source_alone(config):
    transform, image = TRANSFORMS.build(config), picture()
    before, draws = image.copy(), []
    data = dict(image=image, label=3)
    for seed in [*range(12), *range(12)]:
        with seeded(seed):
            out = transform(data)
        assert out["label"] == 3
        assert out["image"].dtype == np.uint8
        assert out["image"].shape[2] == 3
        draws.append(out["image"].tobytes())
    assert np.array_equal(image, before)
    assert data["image"] is image
    assert draws[:12] == draws[12:]
    assert (len(set(draws)) > 1) == (config["type"] not in ("Resize", "CenterCrop", "Pad"))


def test_what_is_no_image_is_refused():
    for image in (picture().astype(np.float32), picture()[..., 0], picture()[..., :2], torch.zeros(3, 4, 4)):
        with pytest.raises(ValueError, match=r"RandomFlip takes uint8 arrays .* and got a (ndarray|Tensor) of "):
            apply(dict(type="RandomFlip"), image)
    with pytest.raises(ValueError, match=r"RandomErasing takes tensors; put it after PackImage"):
        apply(dict(type="RandomErasing"), picture())


def test_names_of_mmcv_stay_free():
    """mmcv registers these in MMEngine's root registry, and raises if they are there already."""
    for name in ("Resize", "RandomFlip", "Pad", "CenterCrop", "RandomCrop"):
        ours = getattr(T, name)
        assert TRANSFORMS.get(name) is ours
        assert root.TRANSFORMS.get(f"attlas.{name}") is ours
        assert root.TRANSFORMS.module_dict.get(name) is not ours


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dict(type="Resize", size=0), r"Resize\.size is 0; it must be a positive integer"),
        (
            dict(type="Resize", size=(4, 5, 6)),
            r"Resize\.size is \(4, 5, 6\); it must be an integer of at least 1, or a",
        ),
        (dict(type="Resize", size=4, interpolation="cubic"), r"interpolation is 'cubic'.* Did you mean 'bicubic'"),
        (dict(type="RandomResizedCrop", size=-4), r"RandomResizedCrop\.size is -4"),
        (
            dict(type="RandomResizedCrop", size=4, scale=(1, 0.5)),
            r"scale is \(1, 0\.5\); it must be \(a, b\) with 0 <=",
        ),
        (dict(type="RandomResizedCrop", size=4, scale=0.5), r"scale is 0\.5"),
        (dict(type="RandomResizedCrop", size=4, ratio=(0, 1)), r"ratio is \(0, 1\)"),
        (dict(type="RandomResizedCrop", size=4, interpolation="area"), r"RandomResizedCrop\.interpolation is 'area'"),
        (dict(type="CenterCrop", size="4"), r"CenterCrop\.size is '4'"),
        (dict(type="RandomCrop", size=4.0), r"RandomCrop\.size is 4\.0"),
        (
            dict(type="RandomCrop", size=4, mode="mirror"),
            r"mode is 'mirror'; it may be 'constant', 'reflect', 'symmetric'",
        ),
        (dict(type="Pad", padding=-1), r"Pad\.padding is -1; it must be an integer of at least 0"),
        (dict(type="RandomFlip", probability=50), r"RandomFlip\.probability is 50; it must lie in \[0, 1\]"),
        (dict(type="RandomFlip", direction="left"), r"RandomFlip\.direction is 'left'"),
        (dict(type="ColorJitter", contrast=-0.1), r"ColorJitter\.contrast is -0\.1; it must lie in \[0, inf\]"),
        (dict(type="ColorJitter", hue=0.6), r"ColorJitter\.hue is 0\.6; it must lie in \[0, 0\.5\]"),
        (dict(type="RandomRotate", degrees=270), r"RandomRotate\.degrees is 270; it must lie in \[0, 180\]"),
        (dict(type="GaussianBlur", kernel_size=4), r"GaussianBlur\.kernel_size is 4; it must be odd"),
        (dict(type="GaussianBlur", sigma=2), r"GaussianBlur\.sigma is 2"),
        (dict(type="RandAugment", magnitude=11), r"RandAugment\.magnitude is 11; it must lie in \[0, 10\]"),
        (dict(type="RandAugment", num=0), r"RandAugment\.num is 0; it must be a positive integer"),
        (dict(type="RandAugment", magnitude_std=-1), r"RandAugment\.magnitude_std is -1"),
        (dict(type="RandomErasing", probability=2), r"RandomErasing\.probability is 2"),
        (dict(type="RandomErasing", mode="rand"), r"RandomErasing\.mode is 'rand'; it may be 'pixel', 'const'"),
        (
            dict(type="PackImage", mean=(0.485, 0.456, 0.406)),
            r"meant in levels of 0 to 255: multiply mean and std by 255",
        ),
        (dict(type="PackImage", std=(1, 0, 1)), r"PackImage\.std is \(1, 0, 1\); its numbers must be positive"),
        (dict(type="PackImage", mean=(1, 2)), r"PackImage\.mean is \(1, 2\); it must be three numbers"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_bad_arguments(config, message):
    with pytest.raises(ValueError, match=message):
        TRANSFORMS.build(config)


# --- geometry


def test_resize():
    assert apply(dict(type="Resize", size=6), picture(12, 30)).shape == (6, 15, 3)
    assert apply(dict(type="Resize", size=6), picture(30, 12)).shape == (15, 6, 3)
    assert apply(dict(type="Resize", size=(6, 7)), picture()).shape == (6, 7, 3)
    image = picture()
    assert np.array_equal(apply(dict(type="Resize", size=12), image), image)
    # by a half, a triangle of half-width 2 pixels: weights 1/8, 3/8, 3/8, 1/8, cut and rescaled at the borders
    lines = apply(dict(type="Resize", size=(1, 4), interpolation="bilinear"), of(0, 80, 160, 240, 0, 80, 160, 240))
    assert row(lines) == [round((3 * 80 + 160) / 7), 160, 80, round((80 + 3 * 160 + 3 * 240) / 7)]
    stripes = np.tile(np.uint8([0, 255])[:, None], (24, 3)).reshape(1, 48, 3).repeat(8, 0)
    for interpolation in ("bilinear", "bicubic"):  # finer than the result can show: it becomes grey, not stripes
        out = apply(dict(type="Resize", size=(8, 7), interpolation=interpolation), stripes)[:, 1:-1]
        assert np.abs(out.astype(int) - 128).max() < 12
    flat = np.full((5, 5, 3), 77, np.uint8)
    assert (apply(dict(type="Resize", size=13), flat) == 77).all()


def test_random_resized_crop_draws_parts_of_the_given_area_and_ratio():
    transform = T.RandomResizedCrop(8, scale=(0.1, 0.6), ratio=(0.5, 2))
    parts = np.array([transform.part(200, 300) for _ in range(3000)])
    top, left, height, width = parts.T
    assert min(top.min(), left.min()) >= 0
    assert (top + height).max() <= 200
    assert (left + width).max() <= 300
    area, ratio = height * width / 60000, width / height
    assert 0.095 < area.min() < 0.12
    assert 0.55 < area.max() < 0.605
    assert 0.48 < ratio.min() < 0.55
    assert 1.85 < ratio.max() < 2.05
    assert abs(area[ratio > 0.9].mean() - 0.35) < 0.02  # uniform, where every height fits
    assert abs(np.log(ratio[area < 0.3]).mean()) < 0.04
    assert top.std() > 20
    assert left.std() > 30


def test_random_resized_crop_identity_and_fallback():
    image = picture(16, 16)
    assert np.array_equal(apply(dict(type="RandomResizedCrop", size=16, scale=(1, 1), ratio=(1, 1)), image), image)
    assert T.RandomResizedCrop(8, scale=(1, 1)).part(10, 100) == (0, 43, 10, 13)  # the middle, 4 : 3
    assert T.RandomResizedCrop(8, scale=(1, 1)).part(100, 10) == (43, 0, 13, 10)
    assert apply(dict(type="RandomResizedCrop", size=(3, 5)), picture(1, 1)).shape == (3, 5, 3)


def test_center_crop():
    image = picture(9, 12)
    assert np.array_equal(apply(dict(type="CenterCrop", size=(4, 6)), image), image[2:6, 3:9])
    assert np.array_equal(apply(dict(type="CenterCrop", size=(9, 12)), image), image)
    with pytest.raises(ValueError, match=r"CenterCrop of \(10, 10\) got an image of \(9, 12\); put a Resize or a Pad"):
        apply(dict(type="CenterCrop", size=10), image)


def test_pad():
    assert row(apply(dict(type="Pad", padding=(0, 2)), of(1, 2, 3))) == [0, 0, 1, 2, 3, 0, 0]
    assert row(apply(dict(type="Pad", padding=(0, 2), mode="reflect"), of(1, 2, 3))) == [3, 2, 1, 2, 3, 2, 1]
    assert row(apply(dict(type="Pad", padding=(0, 2), mode="edge"), of(1, 2, 3))) == [1, 1, 1, 2, 3, 3, 3]
    assert row(apply(dict(type="Pad", padding=(0, 2), mode="symmetric"), of(1, 2, 3))) == [2, 1, 1, 2, 3, 3, 2]
    filled = apply(dict(type="Pad", padding=1, fill=(7, 8, 9)), of(1))
    assert filled.shape == (3, 3, 3)
    assert filled[0, 0].tolist() == [7, 8, 9]
    assert filled[1, 1].tolist() == [1, 1, 1]
    with pytest.raises(ValueError, match=r"Pad by \(0, 3\) cannot reflect an image of \(1, 3\)"):
        apply(dict(type="Pad", padding=(0, 3), mode="reflect"), of(1, 2, 3))


def test_random_crop_takes_every_place_alike():
    image = of(10, 20, 30, 40)
    places = [tuple(row(apply(dict(type="RandomCrop", size=(1, 2), padding=(0, 1)), image))) for _ in range(600)]
    assert set(places) == {(0, 10), (10, 20), (20, 30), (30, 40), (40, 0)}
    assert min(places.count(place) for place in set(places)) > 80  # of 120 expected, standard deviation 10
    with pytest.raises(ValueError, match=r"RandomCrop of \(3, 3\) got an image of \(1, 4\)"):
        apply(dict(type="RandomCrop", size=3), image)


def test_random_flip():
    image = picture()
    assert np.array_equal(apply(dict(type="RandomFlip", probability=1), image), image[:, ::-1])
    assert np.array_equal(apply(dict(type="RandomFlip", probability=1, direction="vertical"), image), image[::-1])
    assert np.array_equal(apply(dict(type="RandomFlip", probability=0), image), image)
    flips = [not np.array_equal(apply(dict(type="RandomFlip", probability=0.3), image), image) for _ in range(500)]
    assert 0.22 < np.mean(flips) < 0.38


def test_random_rotate(monkeypatch):
    image = picture(21, 21)
    assert np.array_equal(apply(dict(type="RandomRotate", degrees=0), image), image)
    drawn = []
    monkeypatch.setattr(np.random, "uniform", lambda low, high: drawn.append((low, high)) or high)
    turned = apply(dict(type="RandomRotate", degrees=90), image)
    assert drawn == [(-90, 90)]
    others = [np.rot90(image, k) for k in (1, 3)]
    assert min(np.abs(turned[2:-2, 2:-2].astype(int) - other[2:-2, 2:-2]).max() for other in others) <= 1


def test_gaussian_blur(monkeypatch):
    """A white pixel spreads by the Gaussian, and no further than the kernel."""
    image = np.zeros((9, 9, 3), np.uint8)
    image[4, 4] = 255
    monkeypatch.setattr(np.random, "uniform", lambda low, high: (low + high) / 2)
    blurred = apply(dict(type="GaussianBlur", kernel_size=3, sigma=(0.5, 1.5)), image)[..., 0].astype(int)
    weights = np.exp(-(np.arange(-1, 2) ** 2) / 2)
    weights /= weights.sum()
    assert np.abs(blurred[3:6, 3:6] - 255 * np.outer(weights, weights)).max() <= 1.5
    blurred[3:6, 3:6] = 0
    assert not blurred.any()


# --- colours


def test_blends_go_from_nothing_through_the_image_beyond_it():
    image = picture()
    weighted = image.astype(float) @ [0.299, 0.587, 0.114]
    for change, start in [
        (T.brightness, np.zeros_like(image)),
        (T.contrast, np.full_like(image, round(weighted.mean()))),
        (T.color, weighted[..., None].repeat(3, 2)),
    ]:
        assert np.array_equal(change(image, 1.0), image)
        for factor in (0, 0.3, 1.7):
            expected = np.clip(start + factor * (image.astype(float) - start), 0, 255)
            assert np.abs(change(image, factor) - expected).max() <= 1.5
    spot = np.zeros((5, 5, 3), np.uint8)
    spot[2, 2], spot[0, 0] = 130, 200
    smoothed = T.sharpness(spot, 0)
    assert smoothed[2, 2, 0] == 50  # 5/13
    assert smoothed[3, 2, 0] == 10
    assert smoothed[1, 1, 0] == round(330 / 13)
    assert smoothed[0, 0, 0] == 200  # the border stays
    assert smoothed[0, 1, 0] == 0
    assert np.array_equal(T.sharpness(spot, 1), spot)
    assert T.sharpness(spot, 1.5)[2, 2, 0] == 170


def test_hue_turns():
    red = np.full((1, 1, 3), [200, 20, 20], np.uint8)
    assert np.abs(T.hue(red, 1 / 3).astype(int) - [20, 200, 20]).max() <= 5
    assert np.abs(T.hue(red, -1 / 3).astype(int) - [20, 20, 200]).max() <= 5
    image = smooth()
    assert np.abs(T.hue(image, 0).astype(int) - image).mean() < 2
    assert np.array_equal(T.hue(of(0, 90, 255), 0.4), of(0, 90, 255))  # grey has none


def test_color_jitter():
    image = smooth()
    assert np.array_equal(apply(dict(type="ColorJitter"), image), image)
    white = np.full((2, 2, 3), 100, np.uint8)
    levels = [apply(dict(type="ColorJitter", brightness=0.4), white)[0, 0, 0] for _ in range(400)]
    assert 60 <= min(levels) < 66
    assert 134 < max(levels) <= 140
    levels = [apply(dict(type="ColorJitter", brightness=3), white)[0, 0, 0] for _ in range(50)]
    assert min(levels) < max(levels) == 255  # factors do not go below 0
    assert np.array_equal(apply(dict(type="ColorJitter", saturation=0.9, hue=0.5), white), white)
    tinted = apply(dict(type="ColorJitter", hue=0.5), image)
    assert np.abs(tinted.max(2).astype(int) - image.max(2)).max() <= 2  # the value of HSV stays
    assert np.abs(tinted.astype(int) - image).max() > 20


# --- RandAugment


def test_auto_contrast_and_equalize():
    assert row(T.auto_contrast(of(50, 100, 150))) == [0, 127, 255]
    assert row(T.auto_contrast(of(0, 3, 255))) == [0, 3, 255]
    assert row(T.auto_contrast(of(9, 9))) == [9, 9]  # a flat channel stays
    mixed = np.stack([of(50, 150)[..., 0], of(9, 9)[..., 0], of(0, 255)[..., 0]], axis=2)
    assert T.auto_contrast(mixed).reshape(-1, 3).tolist() == [[0, 9, 0], [255, 9, 255]]
    # 510 pixels of each of three levels: a step is (1530 - 510) // 255 = 4, and 0, 510 and 1020 pixels are darker
    assert row(T.equalize(of(*[50, 60, 61] * 510)))[:3] == [2 // 4, 512 // 4, 1022 // 4] == [0, 128, 255]
    assert np.array_equal(T.equalize(of(9, 9, 9)), of(9, 9, 9))
    # 300 pixels, 100 of each level: a step is (300 - 100) // 255 = 0, nothing to spread
    assert np.array_equal(T.equalize(of(*[5, 6, 7] * 100)), of(*[5, 6, 7] * 100))


def test_operations_on_levels():
    levels = of(0, 1, 100, 127, 128, 200, 255)
    assert row(T.invert(levels)) == [255, 254, 155, 128, 127, 55, 0]
    assert row(T.posterize(levels, 8)) == row(levels)
    assert row(T.posterize(levels, 1)) == [0, 0, 0, 0, 128, 128, 128]
    assert row(T.posterize(levels, 3)) == [0, 0, 96, 96, 128, 192, 224]
    assert row(T.posterize(levels, 0)) == [0] * 7
    assert row(T.solarize(levels, 256)) == row(levels)
    assert row(T.solarize(levels, 128)) == [0, 1, 100, 127, 127, 55, 0]
    assert row(T.solarize(levels, 0)) == row(T.invert(levels))
    assert row(T.solarize_add(levels, 0)) == row(levels)
    assert row(T.solarize_add(levels, 99)) == [99, 100, 199, 226, 128, 200, 255]
    assert row(T.solarize_add(levels, 128)) == [128, 129, 228, 255, 128, 200, 255]
    for operation in (T.solarize, T.solarize_add, T.posterize):
        assert operation(levels, 4).dtype == np.uint8


def test_operations_on_places():
    image = smooth()
    H, W = image.shape[:2]
    for move in (T.rotate, T.shear_x, T.shear_y, T.translate_x, T.translate_y):
        assert np.array_equal(move(image, 0), image)
    left = T.translate_x(image, 0.25)
    assert np.array_equal(left[:, : W - 15], image[:, 15:])
    assert (left[:, W - 15 :] == T.FILL).all()
    down = T.translate_y(image, -0.25)
    assert np.array_equal(down[12:], image[: H - 12])
    assert (down[:12] == T.FILL).all()
    sheared = T.shear_x(image, 0.5)
    for y in (0, 10, 20):
        assert np.array_equal(sheared[y, : W - y // 2], image[y, y // 2 :])
    sheared = T.shear_y(image, -0.5)
    for x in (0, 10, 20):
        assert np.array_equal(sheared[x // 2 :, x], image[: H - x // 2, x])
    square = smooth(33, 33)
    assert np.abs(T.rotate(square, 90).astype(int) - np.rot90(square)).max() <= 1  # counter-clockwise
    assert np.abs(T.rotate(square, 180)[1:-1, 1:-1].astype(int) - square[::-1, ::-1][1:-1, 1:-1]).max() <= 1
    assert T.rotate(square, 30)[0, 0].tolist() == list(T.FILL)


def test_strengths():
    """At a given magnitude, the arguments that each operation can get."""

    def arguments(operation, magnitude, increasing=True):
        table = dict(T.RandAugment(increasing=increasing).operations)
        return sorted({round(value, 6) for _ in range(40) for value in table[operation](magnitude / 10)})

    names = [operation.__name__ for operation, _ in T.RandAugment().operations]
    levels = {"auto_contrast", "equalize", "invert", "posterize", "solarize", "solarize_add"}
    places = {"rotate", "shear_x", "shear_y", "translate_x", "translate_y"}
    assert len(names) == 15
    assert set(names) == levels | places | {"color", "contrast", "brightness", "sharpness"}
    assert arguments(T.rotate, 9) == [-27, 27]
    assert arguments(T.shear_x, 5) == arguments(T.shear_y, 5) == [-0.15, 0.15]
    assert arguments(T.translate_x, 10) == arguments(T.translate_y, 10) == [-0.45, 0.45]
    assert arguments(T.solarize_add, 9) == [99]
    assert arguments(T.invert, 9) == arguments(T.equalize, 9) == arguments(T.auto_contrast, 9) == []
    assert [arguments(T.posterize, m)[0] for m in (0, 5, 9, 10)] == [4, 2, 1, 0]
    assert [arguments(T.solarize, m)[0] for m in (0, 9, 10)] == [256, 26, 0]
    assert [arguments(T.posterize, m, False)[0] for m in (0, 9, 10)] == [0, 3, 4]
    assert [arguments(T.solarize, m, False)[0] for m in (0, 9, 10)] == [0, 230, 256]
    for operation in (T.color, T.contrast, T.brightness, T.sharpness):
        assert arguments(operation, 9) == [0.19, 1.81]
        assert arguments(operation, 0) == [1]
        assert arguments(operation, 10, False) == [1.9]


def test_rand_augment(monkeypatch):
    image = smooth()
    assert np.array_equal(apply(dict(type="RandAugment", probability=0), image), image)
    done = []
    monkeypatch.setattr(T, "FIXED", {T.invert: lambda t: done.append(t) or ()})
    monkeypatch.setattr(T, "INCREASING", {})
    transform = T.RandAugment(magnitude=9, num=3, magnitude_std=0.5, probability=1)
    for _ in range(200):
        assert np.array_equal(transform.apply(image), 255 - image)  # thrice
    assert len(done) == 600
    assert abs(np.mean(done) - 0.9) < 0.01
    assert max(done) == 1  # clipped
    assert abs(np.std(done) - 0.05) < 0.005
    done.clear()
    half = T.RandAugment(num=1, magnitude_std=0, probability=0.5)
    for _ in range(400):
        half.apply(image)
    assert 160 < len(done) < 240
    assert set(done) == {0.9}


# --- tensors


def test_pack_image():
    image = picture()
    packed = apply(dict(type="PackImage"), image)
    assert (packed.shape, packed.dtype, packed.is_contiguous()) == ((3, 12, 15), torch.float32, True)
    mean, std = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
    np.testing.assert_allclose(packed.numpy(), ((image - mean) / std).transpose(2, 0, 1), atol=1e-5)
    plain = apply(dict(type="PackImage", mean=[0, 0, 0], std=[1, 1, 1]), image)
    assert np.array_equal(plain.numpy(), image.transpose(2, 0, 1))
    assert np.array_equal(apply(dict(type="PackImage"), image[:, ::-1]).numpy(), packed.numpy()[..., ::-1])


@pytest.mark.parametrize("mode", ["pixel", "const"])
def test_random_erasing(mode):
    image = torch.full((3, 40, 50), 7.0)
    assert torch.equal(apply(dict(type="RandomErasing", probability=0, mode=mode), image), image)
    shares, ratios, noise, transform = [], [], [], T.RandomErasing(probability=1, mode=mode)
    for _ in range(400):
        out = transform(dict(image=image))["image"]
        rows, columns = torch.nonzero((out != 7).all(0), as_tuple=True)
        patch = out[:, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert (patch != 7).all()  # one rectangle
        assert (out != 7).sum() == patch.numel()
        shares.append(len(rows) / 2000)
        ratios.append(math.log(patch.size(1) / patch.size(2)))
        noise.append(patch.flatten())
    assert (image == 7).all()
    assert 0.015 < min(shares) < 0.04
    assert 0.28 < max(shares) < 0.36
    assert 0.8 < max(ratios) < 1.4  # log(1 / 0.3) = 1.2
    assert abs(np.mean(ratios)) < 0.15
    noise = torch.cat(noise)
    assert (noise.mean().abs() < 0.02) if mode == "pixel" else (noise == 0).all()
    assert abs(noise.std() - (1 if mode == "pixel" else 0)) < 0.02
    erased = [not torch.equal(apply(dict(type="RandomErasing"), image), image) for _ in range(400)]
    assert 0.17 < np.mean(erased) < 0.33
    tiny = torch.ones(3, 1, 1)  # nothing fits
    assert torch.equal(transform(dict(image=tiny))["image"], tiny)


@pytest.mark.parametrize("shape", [(2, 200), (2, 201), (201, 2), (3, 50)])
def test_a_long_image_is_cut_before_it_is_enlarged(shape):
    """The middle is the same, where the factor is a whole number."""
    image = np.random.default_rng(0).integers(0, 255, (*shape, 3), dtype=np.uint8)
    short = min(shape)
    for size in (2 * short, 6 * short):
        cut, whole = T.Resize(size).apply(image), T.Resize(size, max_ratio=1000).apply(image)
        assert 15 * size < max(cut.shape) <= 16 * size
        assert min(cut.shape[:2]) == size
        ends = [T.CenterCrop(size).apply(found) for found in (cut, whole)]
        assert np.array_equal(*ends)


def test_an_image_of_ordinary_proportions_is_not_cut():
    image = np.random.default_rng(0).integers(0, 255, (10, 160, 3), dtype=np.uint8)
    assert T.Resize(20).apply(image).shape == (20, 320, 3)
