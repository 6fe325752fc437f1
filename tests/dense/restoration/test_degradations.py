"""imresize against numbers worked out by hand, and degradations as values."""

import json

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from attlas.data import seeded
from attlas.dense.restoration import degradations as module
from attlas.dense.restoration.degradations import (
    JPEG,
    Bicubic,
    Chain,
    GaussianNoise,
    RealESRGAN,
    as_bytes,
    build_degradation,
    imresize,
)
from attlas.dense.restoration.metrics import psnr


def impulse(length, place, value):
    line = np.zeros(length)
    line[place] = value
    return line


def along(line, scale, **options):
    """A line of numbers, resized along its axis alone."""
    image = np.tile(np.asarray(line)[None], (2, 1))
    size = (2, int(np.ceil(scale * image.shape[1])))
    return imresize(image, size=size, **options)[0]


def test_kernel_of_one_half():
    # The kernel at 1/4, 3/4, 5/4 and 7/4 is 111, 29, -9 and -3 of 128; halving reads 8 pixels, with half of each.
    got = along(impulse(16, 8, 256), 1 / 2)
    assert got.tolist() == [0, 0, -3, 29, 111, -9, 0, 0]  # pixels 2 to 5 lie at 4.5, 6.5, 8.5 and 10.5


def test_kernel_of_two():
    got = along(impulse(5, 2, 128), 2)
    assert got.tolist() == [0, -3, -9, 29, 111, 111, 29, -9, -3, 0]


def test_border_is_mirrored():
    # Doubled, output 0 lies at -1/4: it reads pixel 0 (distance 1/4) and its mirror image -1 (3/4): 111 + 29; output 1
    # at 1/4: 111 of pixel 0 and -9 of its image; output 2 at 3/4: 29 - 3; output 3 at 5/4: -9; output 4 at 7/4: -3.
    assert along(impulse(5, 0, 128), 2).tolist()[:5] == [140, 102, 26, -9, -3]
    # Halved, output 0 lies at 1/2: pixel 0 at distance 1/2 (111) and its image -1 at 3/2 (29).
    assert along(impulse(8, 0, 256), 1 / 2).tolist() == [140, -12, 0, 0]


def test_kernel_of_one_third():
    # k(1/3) = 7/9, k(2/3) = 1/3, k(1) = 0, k(4/3) = -2/27 and k(5/3) = -1/27, each a third; outputs lie at 1, 4, 7, ...
    np.testing.assert_allclose(along(impulse(15, 7, 81), 1 / 3), [0, 0, 27, 0, 0], atol=1e-12)
    np.testing.assert_allclose(along(impulse(15, 8, 81), 1 / 3), [0, -2, 21, 9, -1], atol=1e-12)


def test_without_antialias():
    # Output 2 of a half lies at 4.5 whatever the kernel; of its own width it reads 4 pixels: k(1/2) = 9/16, k(3/2) =
    # -1/16.
    assert along(impulse(12, 5, 16), 1 / 2, antialias=False).tolist() == [0, 0, 9, -1, 0, 0]


def test_integers_are_rounded_behind_each_axis_and_clipped():
    edge = np.zeros((8, 8), np.uint8)
    edge[:, 4:] = 255
    got = imresize(edge, 2)
    assert got.dtype == np.uint8
    assert got.min() == 0  # the overshoot would be below
    assert got.max() == 255
    assert got[0, 7] == round(255 * (29 - 3) / 128)  # it lies at 3.25: pixels 4 and 5 are 3/4 and 7/4 away
    one = np.full((1, 1), 7, np.uint8)
    assert (imresize(one, size=(5, 3)) == 7).all()
    wide = (np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000)[..., None].repeat(3, 2)
    assert imresize(wide, 1 / 2).dtype == np.uint16
    assert abs(imresize(wide, 1 / 2).mean() - wide.mean()) < 1


def test_number_of_pixels():
    assert imresize(np.zeros((5, 7)), 1 / 2).shape == (3, 4)  # MATLAB's ceil
    assert imresize(np.zeros((9, 300, 3)), 1 / 3).shape == (3, 100, 3)  # whatever 1 / 3 is in floats
    assert imresize(np.zeros((4, 4)), 1.5).shape == (6, 6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_another_resize_makes_another_picture(scale):
    """PyTorch's bicubic resize (a = -0.75, no antialias) and OpenCV's make pictures with aliases of a fine pattern. A
    network for one is measured wrongly on the other (SRCNN-keras#8, pytorch/examples#326)."""
    random = np.random.default_rng(0)
    rough = imresize(random.random((6, 6)), 4 * scale)
    truth = np.clip(rough + 0.2 * np.cos(0.9 * np.pi * np.arange(24 * scale)), 0, 1)
    ours = imresize(truth, 1 / scale)
    tensor = torch.from_numpy(truth)[None, None]
    theirs = F.interpolate(tensor, scale_factor=1 / scale, mode="bicubic", align_corners=False)[0, 0].numpy()
    cv = cv2.resize(truth, ours.shape[::-1], interpolation=cv2.INTER_CUBIC)

    def score(small):
        return psnr(as_bytes(imresize(small, scale)), as_bytes(truth), crop=scale)

    assert np.abs(ours - theirs).max() > 0.02
    assert score(ours) > score(theirs) + 0.25  # dB
    assert score(ours) > score(cv) + 0.25
    with_antialias = F.interpolate(tensor, scale_factor=1 / scale, mode="bicubic", antialias=True)[0, 0].numpy()
    inside = (slice(3, -3),) * 2  # borders are not mirrored there
    np.testing.assert_allclose(ours[inside], with_antialias[inside], atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_truth_moved_by_a_pixel_is_noticed(scale):
    """(SPMC_VideoSR#22) The mean of a block of a ramp is its small pixel; of a ramp that is moved it is not."""
    ramp = np.tile(np.arange(20.0 * scale), (8 * scale, 1)) / (20 * scale)
    small = imresize(ramp, 1 / scale)

    def shift(truth):
        """In pixels of the truth."""
        blocks = truth.reshape(8, scale, 20, scale).mean((1, 3))
        return 20 * scale * (blocks - small)[2:-2, 4:-4]

    assert np.abs(shift(ramp)).max() < 1e-6
    np.testing.assert_allclose(shift(np.roll(ramp, 1, 1)), -1, atol=1e-6)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_phase_of_both_pictures(scale):
    """A ramp keeps its places: pixel i of the small picture lies in the middle of `scale` pixels of the large one."""
    ramp = np.tile(np.arange(24.0 * scale), (4 * scale, 1))
    small = imresize(ramp, 1 / scale)
    expected = (np.arange(24) + 0.5) * scale - 0.5
    np.testing.assert_allclose(small[1, 3:-3], expected[3:-3], atol=1e-9)
    large = imresize(np.tile(np.arange(24.0), (8, 1)), scale)
    np.testing.assert_allclose(large[8, 8:-8], ((np.arange(24 * scale) + 0.5) / scale - 0.5)[8:-8], atol=1e-9)
    # a spot has its center where it was
    spot = np.zeros((20 * scale, 20 * scale))
    spot[8 * scale : 11 * scale, 9 * scale : 11 * scale] = 1
    small = imresize(spot, 1 / scale)
    rows, columns = np.mgrid[:20, :20]
    assert abs((small * rows).sum() / small.sum() - 9) < 1e-9
    assert abs((small * columns).sum() / small.sum() - 9.5) < 1e-9


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(), "give one of the two"),
        (dict(scale=2, size=(4, 4)), "give one of the two"),
        (dict(scale=0), "scale is 0"),
        (dict(size=(4, 0)), "size is 0"),
        (dict(size=(4, 4, 3)), "height and width"),
    ],
)
def test_bad_sizes(options, words):
    with pytest.raises(ValueError, match=words):
        imresize(np.zeros((4, 4)), **options)


def test_bad_pictures():
    with pytest.raises(ValueError, match="not empty"):
        imresize(np.zeros((0, 4)), 2)
    with pytest.raises(ValueError, match="int64"):
        imresize(np.zeros((4, 4), np.int64), 2)
    with pytest.raises(ValueError, match="multiples of scale=4"):
        Bicubic(4)(np.zeros((8, 9)))


# --- noise, JPEG, chains ---------------------------------------------------------------------------------------------


def test_noise_has_its_deviation_and_its_seed():
    image = np.full((128, 128, 3), 100, np.uint8)
    with seeded(3):
        noisy = GaussianNoise(25)(image)
    with seeded(3):
        again = GaussianNoise(25)(image)
    assert noisy.dtype == np.float32
    assert (noisy == again).all()
    assert abs(255 * noisy.std() - 25) < 0.3
    assert abs(255 * noisy.mean() - 100) < 0.5
    assert GaussianNoise(50)(image).min() < 0  # not clipped
    spread = [255 * GaussianNoise((10, 40))(image).std() for _ in range(20)]
    assert 9 < min(spread) < 18
    assert 32 < max(spread) < 41


def test_jpeg_is_worse_at_low_quality_and_keeps_colors():
    image = np.zeros((32, 32, 3), np.uint8)
    image[..., 0] = np.linspace(100, 255, 32)[None]
    errors = [np.abs(JPEG(q)(image).astype(int) - image).mean() for q in (10, 50, 95)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 3  # red stayed red
    assert JPEG(50)(image[..., 0]).shape == (32, 32)
    assert JPEG(50)(image / np.float32(255)).dtype == np.uint8


def test_bytes_of_floats_and_of_16_bits():
    assert as_bytes(np.array([[-0.1, 0.5, 0.9981, 1.2]], np.float32)).tolist() == [[0, 128, 255, 255]]
    assert as_bytes(np.array([[0, 257, 65535]], np.uint16)).tolist() == [[0, 1, 255]]


def test_a_degradation_is_a_value_that_json_keeps():
    chain = Chain([Bicubic(2), dict(type="GaussianNoise", sigma=(1, 5)), JPEG((30, 95)), Bicubic(2)])
    assert chain.scale == 4
    again = build_degradation(json.loads(json.dumps(chain.config)))
    assert again == chain
    image = np.random.default_rng(0).integers(0, 255, (16, 24, 3), dtype=np.uint8)
    with seeded(1):
        first = chain(image)
    with seeded(1):
        second = again(image)
    assert first.shape == (4, 6, 3)
    assert (first == second).all()


# --- Real-ESRGAN -----------------------------------------------------------------------------------------------------


def test_real_esrgan_is_repeatable_and_worse_than_bicubic():
    random = np.random.default_rng(0)
    image = imresize(random.integers(0, 256, (6, 8, 3)).astype(np.uint8), 16)
    degradation = build_degradation(json.loads(json.dumps(RealESRGAN(scale=4).config)))
    assert degradation == RealESRGAN(scale=4)
    plain = Bicubic(4)(image).astype(float)
    made = []
    for seed in (*range(12), 0):
        with seeded(seed):
            made.append(degradation(image))
    assert all(picture.shape == (24, 32, 3) and picture.dtype == np.uint8 for picture in made)
    assert np.array_equal(made[0], made[-1])
    assert len({picture.tobytes() for picture in made}) == 12
    errors = [np.abs(picture - plain).mean() for picture in made]
    assert min(errors) > 1
    # no tint and no shift: the mean of many is near to the picture, and nearer than a pixel beside it
    mean = np.mean(made, 0)
    assert abs(mean.mean() - plain.mean()) < 3
    inside = (slice(2, -2),) * 2

    def likeness(shift, axis):
        return np.corrcoef(np.roll(mean, shift, axis)[inside].ravel(), plain[inside].ravel())[0, 1]

    assert likeness(0, 0) > 0.95
    assert all(likeness(shift, axis) < likeness(0, 0) - 0.03 for shift in (-1, 1) for axis in (0, 1))
    with seeded(0):
        assert degradation(image[..., 0]).shape == (24, 32)
    with pytest.raises(ValueError, match="multiples of scale=4"):
        degradation(image[:-1])


def test_without_blur_noise_and_resize_little_is_left_to_undo():
    calm = dict(
        blur=0, sinc=0, sigma=(1, 1), resize=(0, 0, 1), factor=(1, 1), gaussian=1, noise=(0, 0), poisson=(0, 0),
        grey=0, quality=(100, 100),
    )  # fmt: skip
    image = np.tile(np.linspace(40, 200, 32).astype(np.uint8)[:, None, None], (1, 24, 3))
    with seeded(0):
        got = RealESRGAN(1, calm, calm, last_sinc=0)(image)
    assert np.abs(got.astype(int) - image).max() <= 3


def test_kernels_of_blur():
    for seed in range(40):
        with seeded(seed):
            kernel = module._kernel(module.FIRST)
        side = len(kernel)
        assert side in range(7, 22, 2)
        assert abs(kernel.sum() - 1) < 1e-5
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)  # no shift
    with seeded(0):
        sinc = module._sinc_kernel(21)
    response = np.abs(np.fft.fft2(sinc, (64, 64)))
    assert abs(response[0, 0] - 1) < 1e-5
    assert response[32, 32] < 0.2  # beyond the cut-off in any case


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (dict(type="bicubic", scale=2), "Did you mean 'Bicubic'"),
        (dict(type="Bicubic", factor=2), "factor"),
        (dict(type="Bicubic", scale=0), "Bicubic.scale is 0"),
        (dict(type="GaussianNoise", sigma=(5, 1)), "GaussianNoise.sigma"),
        (dict(type="JPEG", quality=0), "JPEG.quality is 0"),
        (dict(type="Chain", steps=[]), "empty"),
        (dict(type="RealESRGAN", scale=0), "RealESRGAN.scale is 0"),
        (dict(type="RealESRGAN", first=dict(blur=1)), "missing"),
    ],
)
def test_bad_degradations(config, words):
    with pytest.raises(ValueError, match=words):
        build_degradation(config)
