"""The published layouts, a few files of each; views of rooms; exact matches."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.io import savemat

from attlas.dense.matching.datasets import HPatches, PackMatches, PFPascal, RoomPairs, SPair71k, read_key_points


def picture(path: Path, height, width, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    small = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    assert cv2.imwrite(str(path), cv2.resize(small, (width, height)))


# --- SPair-71k -------------------------------------------------------------------------------------------------------


@pytest.fixture
def spair(tmp_path):
    root, name = tmp_path / "SPair-71k", "000001-2007_a-2008_b:cat"
    picture(root / "JPEGImages/cat/2007_a.jpg", 30, 50)
    picture(root / "JPEGImages/cat/2008_b.jpg", 40, 20)
    (root / "Layout/large").mkdir(parents=True)
    (root / "Layout/large/test.txt").write_text(f"{name}\n000002-2007_a-2008_b:dog\n")
    pair = dict(
        src_imname="2007_a.jpg", trg_imname="2008_b.jpg", category="cat", src_kps=[[1, 2], [40, 20]],
        trg_kps=[[3, 4], [10, 30]], src_bndbox=[0, 1, 45, 29], trg_bndbox=[2, 3, 18, 39],
    )  # fmt: skip
    file = root / f"PairAnnotation/test/{name}.json"
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(pair))
    return root, file, pair


def test_spair(spair):
    root, file, _ = spair
    data = SPair71k(root, "test", transforms=[PackMatches()])
    assert len(data) == 2
    assert len(SPair71k(root, "test", category="cat")) == 1
    sample = data[0]
    assert sample["source"].shape == (3, 30, 50)
    assert sample["target"].shape == (3, 40, 20)
    assert sample["source_points"].tolist() == [[1.5, 2.5], [40.5, 20.5]]
    assert sample["target_box"] == (2, 3, 18, 39)
    assert sample["category"] == "cat"
    file.rename(file.with_name(file.name.replace(":", "_")))
    assert SPair71k(root, "test")[0]["target_points"].tolist() == [[3.5, 4.5], [10.5, 30.5]]


def test_spair_errors(spair):
    root, file, pair = spair
    with pytest.raises(FileNotFoundError, match=r"val\.txt"):
        SPair71k(root, "val")
    with pytest.raises(FileNotFoundError, match="PairAnnotation"):
        SPair71k(root.with_name("SPair"), "test")
    with pytest.raises(ValueError, match="split is 'train'"):
        SPair71k(root, "train")
    file.write_text(json.dumps(pair | dict(src_kps=[[1, 2]])))
    with pytest.raises(ValueError, match=f"{file.name}.*1 key points of the source, and 2"):
        SPair71k(root, "test").get(0)
    file.write_text("{}")
    with pytest.raises(ValueError, match="no annotation of a pair"):
        SPair71k(root, "test").get(0)
    with pytest.raises(FileNotFoundError):
        SPair71k(root, "test").get(1)


# --- PF-PASCAL -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pascal(tmp_path):
    root = tmp_path / "PF-PASCAL"
    data = root / "PF-dataset-PASCAL"
    (data / "Annotations/bicycle").mkdir(parents=True)
    for name, height, width, points in (
        ("2008_a", 30, 50, [[1, 2], [np.nan, np.nan], [40, 20]]),
        ("2008_b", 40, 20, [[3, 4], [5, 6], [10, 30]]),
    ):
        picture(data / f"JPEGImages/{name}.jpg", height, width)
        savemat(data / f"Annotations/bicycle/{name}.mat", dict(kps=np.array(points), bbox=np.array([[2, 3, 18, 29.0]])))
    row = "PF-dataset-PASCAL/JPEGImages/2008_a.jpg,PF-dataset-PASCAL/JPEGImages/2008_b.jpg,2"
    (root / "test_pairs.csv").write_text(f"source_image,target_image,class\n{row}\n")
    (root / "trn_pairs.csv").write_text(f"source_image,target_image,class,flip\n{row},0\n{row},1\n")
    return root


def test_pf_pascal(pascal):
    sample = PFPascal(pascal, "test", transforms=[PackMatches()])[0]
    assert sample["category"] == "bicycle"
    assert sample["source_points"].tolist() == [[1.5, 2.5], [40.5, 20.5]]  # what both show
    assert sample["target_points"].tolist() == [[3.5, 4.5], [10.5, 30.5]]
    plain, mirrored = PFPascal(pascal, "trn")
    assert mirrored["source_points"].tolist() == [[48.5, 2.5], [9.5, 20.5]]
    assert np.array_equal(mirrored["source"][:, ::-1], plain["source"])
    assert mirrored["target_box"] == (2, 3, 18, 29)
    assert mirrored["source_box"] == (32, 3, 48, 29)


def test_pf_pascal_errors(pascal, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"val_pairs\.csv"):
        PFPascal(pascal, "val")
    (pascal / "val_pairs.csv").write_text("source_image,target_image,class\na.jpg,b.jpg,21\n")
    with pytest.raises(ValueError, match=r"line 2: class is 21; it may be 1 to 20"):
        PFPascal(pascal, "val")
    (tmp_path / "x.mat").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"x\.mat is no file of key points"):
        read_key_points(tmp_path / "x.mat")


# --- HPatches --------------------------------------------------------------------------------------------------------


@pytest.fixture
def hpatches(tmp_path):
    for kind, homography in (("i_one", np.eye(3)), ("v_two", np.array([[2.0, 0, 1], [0, 1, -3], [0, 0, 1]]))):
        for number in range(1, 7):
            picture(tmp_path / kind / f"{number}.ppm", 20, 30, number)
            if number > 1:
                np.savetxt(tmp_path / kind / f"H_1_{number}", homography)
    return tmp_path


def test_hpatches(hpatches):
    data = HPatches(hpatches, "all")
    assert len(data) == 10
    same = data[0]
    assert np.array_equal(same["source_points"], same["target_points"])
    assert len(same["source_points"]) == 600
    moved = HPatches(hpatches, "v", step=2)[3]
    assert moved["category"] == "1-5"
    x, y = moved["source_points"].T
    np.testing.assert_allclose(moved["target_points"], np.stack([2 * (x - 0.5) + 1.5, y - 3], axis=1))
    assert (moved["target_points"] <= (30, 20)).all()
    assert (moved["target_points"] >= 0).all()


def test_hpatches_errors(hpatches):
    (hpatches / "v_two/H_1_3").write_text("1 2 3")
    with pytest.raises(ValueError, match="H_1_3 is no homography"):
        HPatches(hpatches).get(1)
    (hpatches / "v_two/4.ppm").unlink()
    with pytest.raises(FileNotFoundError, match=r"4\.ppm"):
        HPatches(hpatches)
    with pytest.raises(FileNotFoundError, match="no folder i_"):
        HPatches(hpatches / "v_two", "i")


# --- rooms, and packing ----------------------------------------------------------------------------------------------


def test_rooms(tmp_path):
    options = dict(split="test", count=1, size=(32, 24), views=2, cache=tmp_path)
    data = RoomPairs(**options)
    assert len(data) == 2
    there, back = data
    assert there["source"].shape == (24, 32, 3)
    assert np.array_equal(there["target"], back["source"])
    assert len(there["source_points"]) > 30
    assert ((there["target_points"] >= 0) & (there["target_points"] <= (32, 24))).all()
    # the way back of the nearest pixel ends near by
    known = {tuple(p): q for p, q in zip(np.floor(back["source_points"]).astype(int).tolist(), back["target_points"])}
    ends = [
        (p, known[tuple(np.floor(q).astype(int).tolist())])
        for p, q in zip(there["source_points"], there["target_points"])
        if tuple(np.floor(q).astype(int).tolist()) in known
    ]
    errors = [np.linalg.norm(p - q) for p, q in ends]
    assert len(ends) > 20
    assert np.median(errors) < 1
    (file,) = (tmp_path / "room_pairs").rglob("*.npz")
    before = file.stat().st_mtime_ns
    assert np.array_equal(RoomPairs(**options)[0]["target_points"], there["target_points"])
    assert file.stat().st_mtime_ns == before  # made once
    with pytest.raises(ValueError, match="views"):
        RoomPairs(views=1)


def test_packing():
    image = np.arange(2 * 5 * 3, dtype=np.uint8).reshape(2, 5, 3)
    points = np.array([[0.5, 0.5], [4.5, 1.5], [2.0, 1.0]], np.float32)
    data = dict(
        source=image, target=image[:, :3], source_points=points, target_points=points - 1, source_box=(0, 0, 4, 2)
    )
    np.random.seed(0)
    seen = set()
    for _ in range(40):
        found = PackMatches(most=2, swap=True, flip=True)(data)
        assert len(found["source_points"]) == 2
        width = found["source"].shape[2]
        mirrored = not torch.equal(found["source"], torch.from_numpy(image[:, :width].copy()).permute(2, 0, 1))
        plain = found["source_points"].clone()
        if mirrored:
            plain[:, 0] = width - plain[:, 0]
        base = points if width == 5 else points - 1
        assert ("source_box" in found) == (width == 5)
        assert all((np.abs(base - p.numpy()).sum(1) < 1e-6).any() for p in plain)
        seen.add((mirrored, width))
    assert len(seen) == 4
    assert PackMatches()(data)["source"].dtype == torch.uint8
