"""The published layouts, on a few files in each; clips, splits, and truths that do not fit."""

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat
from small_videos import frames_of, write_file, write_frames

from attlas.dense.video.datasets import (
    Avenue,
    PackClip,
    RoomWalks,
    ShanghaiTech,
    UCSDPed,
    truth_of_array,
    truth_of_mat,
    videos_below,
)

FRAMES = frames_of(14)
CLIP = dict(length=5, step=2)  # of 9 frames
TRUTH = np.array([0, 0, 0, 0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 0], bool)


def masks(truth):
    found = np.zeros((len(truth), 36, 48), np.uint8)
    found[truth, 3, 5] = 255
    return found


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All three layouts."""
    root = tmp_path_factory.mktemp("data")
    for name in ("001", "002"):
        write_frames(root / f"ped/Train/Train{name}", FRAMES, ".tif", 1)
        write_frames(root / f"ped/Test/Test{name}", FRAMES, ".tif", 1)
    folder = root / "ped/Test/Test001_gt"
    folder.mkdir()
    for number, mask in enumerate(masks(TRUTH), 1):
        cv2.imwrite(str(folder / f"{number:03d}.bmp"), mask)
    (root / "ped/Test/UCSDped2.m").write_text(
        "% a list\nTestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [1:4];\n"
        "TestVideoFile{end+1}.gt_frame = [6:8, 13:13]; % gt_frame = [1:9]\n"
    )
    write_file(root / "avenue/training_videos/01.avi", FRAMES)
    write_file(root / "avenue/testing_videos/01.avi", FRAMES)
    labels = root / "avenue/ground_truth_demo/testing_label_mask"
    labels.mkdir(parents=True)
    volume = np.empty((1, 14), object)
    volume[0] = [*masks(TRUTH)]
    savemat(labels / "1_label.mat", dict(volLabel=volume))
    write_file(root / "shanghai/training/videos/01_001.avi", FRAMES)
    write_frames(root / "shanghai/testing/frames/01_0014", FRAMES, ".jpg")
    write_frames(root / "shanghai/testing/frames/01_0015", FRAMES, ".jpg")
    for folder in ("test_frame_mask", "test_pixel_mask"):
        (root / "shanghai/testing" / folder).mkdir()
    np.save(root / "shanghai/testing/test_frame_mask/01_0014.npy", TRUTH.astype(np.int8))
    np.save(root / "shanghai/testing/test_pixel_mask/01_0015.npy", masks(TRUTH))
    return root


LAYOUTS = dict(ped=UCSDPed, avenue=Avenue, shanghai=ShanghaiTech)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts(root, name):
    kind = LAYOUTS[name]
    test = kind(root / name, "test", **CLIP)
    assert len(test) == (1 if name == "avenue" else 2)
    for item in test:
        np.testing.assert_array_equal(item["truth"], TRUTH)
        assert len(list(item["video"])) == 14
    train = kind(root / name, val_share=0.0, **CLIP, transforms=[dict(type="PackClip", size=(12, 20))])
    videos = 2 if name == "ped" else 1
    assert len(train) == 6 * videos
    clip = train[2]["clip"]
    assert clip.shape == (5, 3, 12, 20)
    assert clip.dtype == torch.float32
    steps = clip.mean((1, 2, 3)).diff() * 127.5
    assert abs(steps - 6).max() < 1.5  # frames 2, 4, 6, ...: each 3 brighter than the one before
    first = FRAMES[2].mean() / 127.5 - 1
    assert float(clip[0].mean()) == pytest.approx(first, abs=0.04)


def test_splits_share_nothing(root):
    train, val = (UCSDPed(root / "ped", split, val_share=0.25, **CLIP) for split in ("train", "val"))
    names = [{item["name"] for item in part} for part in (train, val)]
    assert (len(train), len(val)) == (9, 3)
    assert len(names[0] | names[1]) == 12
    assert len(UCSDPed(root / "ped", stride=3, val_share=0.0, **CLIP)) == 4


def test_a_clip_that_is_drawn_says_where_it_is_from(root):
    broken = UCSDPed(root / "ped", **CLIP, transforms=[lambda data: 1 / 0 if data["index"] else data])
    assert broken.name(0).endswith("Train001")
    wrong = UCSDPed(root / "ped", **CLIP, transforms=[dict(type="PackClip", size=(8, 8)), _refuse])
    with pytest.raises(ValueError, match=r"Train001.*no"):
        wrong[0]


def _refuse(data):
    raise ValueError("no")


def test_packing():
    packed = PackClip()(dict(frames=[FRAMES[3], FRAMES[4]], name="x"))
    assert packed["name"] == "x"
    torch.testing.assert_close(
        packed["clip"], torch.from_numpy(FRAMES[3:5]).permute(0, 3, 1, 2).float() / 127.5 - 1, rtol=0, atol=0
    )
    grey = PackClip(size=(18, 24), grey=True)(dict(frames=list(FRAMES[:2])))["clip"]
    assert grey.shape == (2, 1, 18, 24)
    assert -1 <= grey.min() <= grey.max() <= 1
    with pytest.raises(ValueError, match=r"PackClip\.size is 256"):
        PackClip(size=256)


# --- what does not fit -----------------------------------------------------------------------------------------------


def test_truth_of_another_length(root, tmp_path):
    write_frames(tmp_path / "testing/frames/a", FRAMES[:13])
    (tmp_path / "testing/test_frame_mask").mkdir()
    np.save(tmp_path / "testing/test_frame_mask/a.npy", TRUTH)
    with pytest.raises(ValueError, match=r"frames/a has 13 frames, and its truth 14"):
        ShanghaiTech(tmp_path, "test")
    (tmp_path / "testing/test_frame_mask/a.npy").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no truth of .*a: .*a\.npy"):
        ShanghaiTech(tmp_path, "test")


def test_a_video_shorter_than_a_clip(root):
    with pytest.raises(ValueError, match=r"Train001 has 14 frames, and a clip of 9 frames in steps of 3 takes 25"):
        UCSDPed(root / "ped")


def test_folders_that_are_not_there(root, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"root .* is not a folder"):
        UCSDPed(root / "pde")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*training_videos"):
        Avenue(root / "ped")
    (tmp_path / "Train").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no videos"):
        videos_below("UCSDPed", tmp_path / "Train")
    with pytest.raises(ValueError, match=r"ShanghaiTech\.split is 'tset'.*Did you mean 'test'"):
        ShanghaiTech(root / "shanghai", "tset")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("gt_frame = [1:4]", "neither masks, Test002_gt/.*, nor an entry 2"),
        ("gt_frame = [1:4]\ngt_frame = [6:15]", "6:15 is no range of the 14 frames of Test002"),
        ("gt_frame = [1:4]\ngt_frame = [a:15]", "'a:15' is no range"),
        ("gt_frame = [1:4]\ngt_frame = [0:3]", "'0:3' is no range"),
    ],
)
def test_lists_that_do_not_fit(root, tmp_path, text, words):
    (tmp_path / "Test").mkdir()
    for name in ("Test001", "Test002", "Test001_gt"):
        (tmp_path / "Test" / name).symlink_to(root / "ped/Test" / name)
    (tmp_path / "Test/list.m").write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        UCSDPed(tmp_path, "test", **CLIP)


def test_files_of_truth_that_are_none(tmp_path):
    for content, words in (
        (np.array([1, None]), "is no NumPy array"),
        (np.zeros((2, 2)), "must hold numbers"),
        (np.array(["a"]), "must hold numbers"),
        (np.array([np.nan]), "NaN"),
    ):
        np.save(tmp_path / "x.npy", content)
        with pytest.raises(ValueError, match=words):
            truth_of_array(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is no NumPy array"):
        truth_of_array(tmp_path / "x.npy")
    (tmp_path / "x.mat").write_bytes(b"nothing" * 40)
    with pytest.raises(ValueError, match=r"x\.mat is no MATLAB file"):
        truth_of_mat(tmp_path / "x.mat")
    (tmp_path / "x.mat").write_bytes(
        b"MATLAB 7.3 MAT-file".ljust(124) + b"\x00\x02IM" + b"\x89HDF\r\n\x1a\n" + bytes(600)
    )
    with pytest.raises(ValueError, match=r"save\('-v7', \.\.\.\)"):
        truth_of_mat(tmp_path / "x.mat")
    savemat(tmp_path / "x.mat", dict(other=np.zeros(3)))
    with pytest.raises(ValueError, match="has no volLabel"):
        truth_of_mat(tmp_path / "x.mat")
    savemat(tmp_path / "x.mat", dict(volLabel=np.moveaxis(masks(TRUTH), 0, 2)))
    np.testing.assert_array_equal(truth_of_mat(tmp_path / "x.mat"), TRUTH)


def test_walks(walks):
    test = RoomWalks("test", length=5, step=2, **walks)
    (item,) = test
    assert item["truth"].sum() >= 6
    assert item["name"].endswith("00_jump")
    train = RoomWalks("train", length=5, step=2, val_share=0.25, **walks, transforms=[dict(type="PackClip")])
    assert len(train) == 12
    assert train[0]["clip"].shape == (5, 3, 24, 32)
