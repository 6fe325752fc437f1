"""Data sets of restoration: aligned patches, repeatable noise, published layouts, bad files."""

import cv2
import numpy as np
import pytest
import torch

from attlas.data import EpochSampler
from attlas.dense.restoration import datasets as module
from attlas.dense.restoration.datasets import LAYOUTS, DegradedImages, PackPair, PairedImages, read_picture
from attlas.dense.restoration.degradations import build_degradation, imresize
from attlas.registry import DATASETS

PACK = [dict(type="PackPair")]


def picture(seed, height, width, channels=3, dtype=np.uint8):
    shape = (height, width, channels) if channels else (height, width)
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype)


def write(path, image):
    """`image` is red, green, blue, as all pictures here."""
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image if image.ndim == 2 else image[..., [2, 1, 0, *range(3, image.shape[2])]])


@pytest.fixture
def pairs(tmp_path):
    """Three pairs of scale 2, in which an LR pixel is the mean of its 2 x 2 block: any misalignment shows."""
    for number in range(3):
        small = picture(number, 20, 30)
        write(tmp_path / "LR" / f"{number}.png", small)
        write(tmp_path / "HR" / f"{number}.png", small.repeat(2, 0).repeat(2, 1))
    return tmp_path


def aligned(item, scale=2):
    large = item["image"].repeat_interleave(scale, 1).repeat_interleave(scale, 2)
    return torch.equal(large, item["truth"])


def test_pairs_stay_aligned_in_patches_and_symmetries(pairs):
    data = PairedImages(pairs, 2, patch=7, symmetries=True, transforms=PACK)
    assert len(data) == 3
    draws = [data[index] for index in range(60)]
    assert all(item["image"].shape == (3, 7, 7) and item["truth"].shape == (3, 14, 14) for item in draws)
    assert all(aligned(item) for item in draws)
    assert len({item["image"].numpy().tobytes() for item in draws}) > 50
    assert torch.equal(data[31]["image"], data[31]["image"])
    assert draws[1]["name"].endswith("1.png")
    assert draws[0]["image"].dtype == torch.float32


def test_all_eight_symmetries_are_drawn(pairs):
    data = PairedImages(pairs, 2, patch=20, symmetries=True)
    plain = cv2.imread(str(pairs / "LR" / "0.png"))[..., ::-1]
    seen = set()
    for epoch in range(200):
        image = data[3 * epoch]["image"]
        places = [
            (left, number)
            for left in range(11)
            for number in range(8)
            if np.array_equal(module._symmetry(plain[:, left : left + 20], number), image)
        ]
        assert len(places) == 1
        seen |= set(places)
    assert {number for _, number in seen} == set(range(8))
    assert {left for left, _ in seen} == set(range(11))  # the last place is drawn, too


def test_whole_pictures(pairs):
    item = PairedImages(pairs, 2, transforms=PACK)[2]
    assert item["image"].shape == (3, 20, 30)
    assert aligned(item)
    grey = PackPair()(dict(image=np.zeros((4, 5), np.uint16), index=3))
    assert grey["image"].shape == (1, 4, 5)
    assert grey["index"] == 3


def test_a_cache_changes_nothing_and_decodes_once(pairs, monkeypatch):
    options = dict(scale=2, patch=7, symmetries=True, transforms=PACK)
    plain = PairedImages(pairs, **options)
    cached = PairedImages(pairs, cache=pairs / "cache", **options)
    calls = []
    monkeypatch.setattr(module, "read_picture", lambda path, most: calls.append(path) or read_picture(path, most))
    for index in range(12):
        one, other = plain[index], cached[index]
        assert torch.equal(one["image"], other["image"])
        assert torch.equal(one["truth"], other["truth"])
    assert len(calls) == 12 * 2 + 3 * 2
    assert isinstance(cached.get(0)["truth"], np.memmap)
    # a file that changed is read again
    write(pairs / "LR" / "0.png", np.zeros((20, 30, 3), np.uint8))
    assert cached[0]["image"].max() == 0


def test_degraded_on_the_fly(tmp_path):
    image = picture(0, 33, 45)
    write(tmp_path / "below" / "a.png", image)
    data = DegradedImages(tmp_path, dict(type="Bicubic", scale=4), transforms=PACK)
    item = data[0]
    assert item["truth"].shape == (3, 32, 44)  # cut to multiples
    expected = imresize(image[:32, :44], 1 / 4)
    assert torch.equal((255 * item["image"]).round().byte(), torch.from_numpy(expected).permute(2, 0, 1))
    patch = DegradedImages(tmp_path, dict(type="Bicubic", scale=4), patch=5, symmetries=True)[7]
    assert patch["image"].shape == (5, 5, 3)
    assert np.array_equal(patch["image"], imresize(patch["truth"], 1 / 4))


def test_grey_comes_before_the_noise(tmp_path):
    """The mean of three channels of noise would have a smaller deviation."""
    colors = np.zeros((64, 64, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    write(tmp_path / "a.png", colors)
    options = dict(root=tmp_path, degradation=dict(type="GaussianNoise", sigma=25), transforms=PACK)
    item = DegradedImages(**options, grey=True)[0]
    assert item["image"].shape == item["truth"].shape == (1, 64, 64)
    assert (255 * item["truth"] == round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)).all()
    assert abs(255 * (item["image"] - item["truth"]).std() - 25) < 1
    write(tmp_path / "a.png", colors.astype(np.uint16) * 257)
    deep = DegradedImages(tmp_path, dict(type="JPEG", quality=90), grey=True, patch=8, symmetries=True)[0]
    assert deep["truth"].dtype == np.uint16
    assert deep["image"].shape == (8, 8)


def test_small_pictures_of_large_data_sets(tmp_path):
    write(tmp_path / "a.png", picture(0, 21, 70))
    options = dict(root=tmp_path, degradation=dict(type="Bicubic", scale=2), patch=32, transforms=PACK)
    with pytest.raises(ValueError, match=r"a\.png: 35 x 10 pixels are no patch of 32 x 32"):
        DegradedImages(**options)[0]
    for cache in (None, tmp_path / "cache"):
        item = DegradedImages(**options, enlarge=True, symmetries=True, cache=cache)[0]
        assert item["image"].shape == (3, 32, 32)
        assert item["truth"].shape == (3, 64, 64)
    with pytest.raises(ValueError, match="there is no patch"):
        DegradedImages(tmp_path, dict(type="Bicubic", scale=2), enlarge=True)


def test_noise_of_tests_is_fixed(tmp_path):
    for number in range(2):
        write(tmp_path / f"{number}.png", np.full((16, 16, 3), 128, np.uint8))
    data = DegradedImages(tmp_path, dict(type="GaussianNoise", sigma=25), transforms=PACK)
    first, second = data[0], data[1]
    assert torch.equal(data[0]["image"], first["image"])  # again, whatever was drawn in between
    assert not torch.equal(first["image"], second["image"])
    assert not torch.equal(first["image"], data[2]["image"])  # the next epoch
    other = DegradedImages(tmp_path, dict(type="GaussianNoise", sigma=25), transforms=PACK, seed=1)
    assert not torch.equal(other[0]["image"], first["image"])
    assert torch.equal(first["truth"], torch.full((3, 16, 16), 128 / 255))


def test_the_degradation_goes_into_the_metainfo(tmp_path, pairs):
    data = DATASETS.build(
        dict(
            type="DegradedImages",
            root=[str(pairs / "HR"), str(pairs / "LR")],
            degradation=dict(type="Chain", steps=[dict(type="Bicubic", scale=2), dict(type="JPEG", quality=40)]),
        )
    )
    assert len(data) == 6
    assert data.metainfo["scale"] == 2
    assert build_degradation(data.metainfo["degradation"]) == data.degradation
    assert PairedImages(pairs, 2).metainfo["degradation"]["layout"] == "two folders"


def test_workers_draw_the_same(pairs):
    data = PairedImages(pairs, 2, patch=7, symmetries=True, transforms=PACK, cache=pairs / "cache")
    sampler = EpochSampler(data, shuffle=False)
    loaded = torch.utils.data.DataLoader(data, batch_size=3, sampler=sampler, num_workers=1)
    (batch,) = list(loaded)
    assert torch.equal(batch["image"], torch.stack([data[i]["image"] for i in range(3)]))


# --- layouts ---------------------------------------------------------------------------------------------------------

FILES = {
    "DIV2K": ["DIV2K_train_HR/0001.png", "DIV2K_train_LR_bicubic/X2/0001x2.png"],
    "DIV2K_valid": ["DIV2K_valid_HR/0801.png", "DIV2K_valid_LR_bicubic/X2/0801x2.png"],
    "Flickr2K": ["Flickr2K_HR/000001.png", "Flickr2K_LR_bicubic/X2/000001x2.png"],
    "DIV2K_sub": ["DIV2K_train_HR_sub/0001_s001.png", "DIV2K_train_LR_bicubic/X2_sub/0001_s001.png"],
    "GTmod": ["GTmod12/baby.png", "LRbicx2/baby.png"],
    "benchmark": ["HR/img_001.png", "LR_bicubic/X2/img_001x2.png"],
    "SRF": ["image_SRF_2/img_001_SRF_2_HR.png", "image_SRF_2/img_001_SRF_2_LR.png"],
    "SIDD": ["Data/0001_001_S6/0001_GT_SRGB_010.PNG", "Data/0001_001_S6/0001_NOISY_SRGB_010.PNG"],
    "SIDD_crops": ["gt_crops/0001_s001.png", "input_crops/0001_s001.png"],
}
FILES["DF2K"] = FILES["DIV2K"] + FILES["Flickr2K"]
FILES["DF2K_sub"] = [
    *FILES["DIV2K_sub"],
    "Flickr2K_HR_sub/000001_s001.png",
    "Flickr2K_LR_bicubic/X2_sub/000001_s001.png",
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_published_layouts(tmp_path, layout):
    scale = 1 if layout.startswith("SIDD") else 2
    for number, name in enumerate(FILES[layout]):
        side = 8 if number % 2 else 8 * scale
        write(tmp_path / name, picture(number, side, side))
    data = PairedImages(tmp_path, scale, layout)
    assert len(data) == len(FILES[layout]) // 2
    for number in range(len(data)):
        truth, image = (tmp_path / name for name in FILES[layout][2 * number : 2 * number + 2])
        item = data[number]
        assert item["name"] == str(image)
        assert np.array_equal(item["image"], read_picture(image))
        assert np.array_equal(item["truth"], read_picture(truth))


def test_half_of_a_layout(tmp_path):
    for number, name in enumerate(FILES["DIV2K"]):
        write(tmp_path / name, picture(number, 8, 8))
    with pytest.raises(FileNotFoundError, match=r"no picture Flickr2K_HR/\* or Flickr2K/"):
        PairedImages(tmp_path, 2, "DF2K")
    with pytest.raises(ValueError, match="Did you mean 'DF2K'"):
        PairedImages(tmp_path, 2, "df2k")


@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_truths_are_cut_and_small_pictures_are_left_alone(tmp_path, scale):
    """(Real-ESRGAN#409, ESRGAN#101, RealSR#23, KAIR#147) Odd sizes, and equal ones of scale 1."""
    small = picture(0, 13, 9)
    rest = scale - 1
    write(tmp_path / "LR" / "a.png", small)
    write(tmp_path / "HR" / "a.png", picture(1, 13 * scale + rest, 9 * scale + rest))
    item = PairedImages(tmp_path, scale)[0]
    assert np.array_equal(item["image"], small)
    assert np.array_equal(item["truth"], read_picture(tmp_path / "HR" / "a.png")[: 13 * scale, : 9 * scale])
    made = DegradedImages(tmp_path / "HR", dict(type="Bicubic", scale=scale))[0]
    assert np.array_equal(made["truth"], item["truth"])
    assert np.array_equal(made["image"], imresize(item["truth"], 1 / scale) if scale > 1 else item["truth"])


def test_names_of_two_folders(tmp_path):
    write(tmp_path / "gt" / "a.b.png", picture(0, 9, 9))
    write(tmp_path / "lq" / "a.b3.bmp", picture(0, 3, 3))
    data = PairedImages(tmp_path, 3, truth="gt", image="lq", image_name="{name}{scale}")
    assert data[0]["image"].shape == (3, 3, 3)


# --- bad files -------------------------------------------------------------------------------------------------------


def test_missing_partners(pairs):
    (pairs / "LR" / "1.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 3 pictures have no partner. First: of .*HR/1\.png .*LR/1\.\*"):
        PairedImages(pairs, 2)
    (pairs / "HR" / "1.png").unlink()
    (pairs / "HR" / "2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 pictures to restore have no true picture. First: .*LR/2\.png"):
        PairedImages(pairs, 2)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        PairedImages(pairs / "nowhere", 2)
    with pytest.raises(FileNotFoundError, match="there is no folder"):
        PairedImages(pairs, 2, image="LQ")


def test_two_files_of_one_name(pairs):
    write(pairs / "LR" / "1.bmp", picture(0, 20, 30))
    with pytest.raises(ValueError, match=r"two pictures of the name .*LR/1"):
        PairedImages(pairs, 2)


def test_sizes_that_do_not_fit(pairs):
    with pytest.raises(
        ValueError, match=r"0\.png has 30 x 20 .* 60 x 40, which is not scale=3\. They look like scale=2"
    ):
        PairedImages(pairs, 3)[0]
    write(pairs / "LR" / "1.png", picture(0, 20, 29))
    with pytest.raises(ValueError, match=r"LR/1\.png has 29 x 20 pixels, and its true picture .*HR/1\.png 60 x 40"):
        PairedImages(pairs, 2)[1]
    write(pairs / "HR" / "2.png", picture(0, 41, 61))  # the rest is cut, and nothing resized
    assert PairedImages(pairs, 2)[2]["truth"].shape == (40, 60, 3)
    with pytest.raises(ValueError, match=r"LR/0\.png: 30 x 20 pixels are no patch of 21 x 21"):
        PairedImages(pairs, 2, patch=21)[0]


def test_kinds_of_pictures(tmp_path):
    colors = picture(0, 6, 7)
    write(tmp_path / "a.png", colors)
    assert np.array_equal(read_picture(tmp_path / "a.png"), colors)
    grey = colors[..., 0]
    write(tmp_path / "grey.png", grey)
    assert np.array_equal(read_picture(tmp_path / "grey.png"), np.stack([grey] * 3, 2))
    for ending in ("png", "tif"):
        deep = picture(1, 6, 7, dtype=np.uint16)
        write(tmp_path / f"deep.{ending}", deep)
        got = read_picture(tmp_path / f"deep.{ending}")
        assert got.dtype == np.uint16
        assert np.array_equal(got, deep)
    opaque = np.dstack([colors, np.full((6, 7), 255, np.uint8)])
    write(tmp_path / "opaque.png", opaque)
    assert np.array_equal(read_picture(tmp_path / "opaque.png"), colors)


def test_transparent_pictures_are_refused(tmp_path):
    pixels = picture(2, 6, 7, channels=4)
    for ending in ("png", "tif", "webp"):
        write(tmp_path / f"a.{ending}", pixels)
        with pytest.raises(ValueError, match=rf"a\.{ending} .*has pixels that are not opaque"):
            read_picture(tmp_path / f"a.{ending}")


def test_a_palette_gives_its_colors(tmp_path):
    from attlas.images import encode_map

    labels = np.array([[0, 1], [2, 1]], np.uint8)
    colors = np.array([[9, 8, 7], [200, 100, 50], [0, 255, 0]], np.uint8)
    (tmp_path / "a.png").write_bytes(encode_map(labels, colors))
    assert np.array_equal(read_picture(tmp_path / "a.png"), colors[labels])


def test_bad_pictures(tmp_path):
    write(tmp_path / "a.png", picture(0, 40, 40))
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"a\.png is not a readable image"):
        DegradedImages(tmp_path, dict(type="Bicubic", scale=2))[0]
    cv2.imwrite(str(tmp_path / "float.tif"), np.zeros((4, 4, 3), np.float32))
    with pytest.raises(ValueError, match=r"float32|bytes a pixel"):
        read_picture(tmp_path / "float.tif")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no picture"):
        DegradedImages(tmp_path / "empty", dict(type="Bicubic", scale=2))
    write(tmp_path / "one" / "a.png", picture(0, 1, 1))
    item = DegradedImages(tmp_path / "one", dict(type="GaussianNoise", sigma=5), transforms=PACK)[0]
    assert item["image"].shape == (3, 1, 1)
    with pytest.raises(ValueError, match="max_pixels"):
        read_picture(tmp_path / "one" / "a.png", 0)
