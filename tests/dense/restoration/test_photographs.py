"""The built-in photographs: whose they are, what they are, and that a changed one is noticed."""

import importlib.util
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from attlas import checkpoint
from attlas.dense.restoration import photographs as module
from attlas.dense.restoration.degradations import as_bytes, imresize
from attlas.dense.restoration.metrics import psnr
from attlas.dense.restoration.photographs import PHOTOGRAPHS, Photographs, find
from attlas.inference import dataset_meta, load

HALF = dict(type="Bicubic", scale=2)
FILE = Path(__file__).parents[3] / "configs/hat/hat_small_x2_photos.safetensors"


def test_the_card_lists_every_photograph():
    card = Path(module.__file__).with_name("PHOTOGRAPHS.md").read_text()
    parts = dict(zip(("test", "train"), card.split("## Test")[1].split("## Training")))
    for part, photographs in PHOTOGRAPHS.items():
        rows = [row for row in parts[part].splitlines() if row.startswith("| `")]
        names = re.findall(r"`([\w/.]+)`", "\n".join(rows).replace("`, `_right", "`, `skimage/data/motorcycle_right"))
        assert sorted(names) == sorted(f"{p.package}/{p.path}" for p in photographs.values())
        assert all(len(row.split("|")) == 7 and all(cell.strip() for cell in row.split("|")[1:-1]) for row in rows)


def test_the_parts_are_disjoint_and_of_other_scenes():
    scenes = [{re.split(r"[_.]", name)[0] for name in photographs} for photographs in PHOTOGRAPHS.values()]
    assert len(scenes[0]) == 10
    assert len(scenes[1]) == 5
    assert not scenes[0] & scenes[1]


def test_bicubic_interpolation_of_the_test_photographs():
    """The baseline of all figures: 32.79 dB."""
    figures = {}
    for number, truth in enumerate(data := Photographs(HALF, "test")):
        figures[Path(data.name(number)).stem] = psnr(imresize(truth["image"], 2), truth["truth"], crop=2)
    expected = dict(astronaut=31.71, camera=31.21, chelsea=35.25, coffee=30.59, flower=35.18)
    assert {name: round(figure, 2) for name, figure in figures.items()} == expected
    assert round(np.mean(list(figures.values())), 2) == 32.79


def test_patches_are_of_the_photograph_and_leave_it_as_it_was():
    data = Photographs(HALF, patch=20, symmetries=True, transforms=[dict(type="PackPair")])
    whole = data.get(3)["truth"].copy()
    first = data[3]
    assert first["image"].shape == (3, 20, 20)
    assert first["truth"].shape == (3, 40, 40)
    data[3 + len(data)]
    assert np.array_equal(data.get(3)["truth"], whole)
    assert np.array_equal(data[3]["truth"], first["truth"])


def test_a_changed_file_and_a_missing_package_are_named(tmp_path, monkeypatch):
    photograph = PHOTOGRAPHS["test"]["coffee.png"]
    (tmp_path / "data").mkdir()
    cv2.imwrite(str(tmp_path / "data" / "coffee.png"), np.zeros((4, 4, 3), np.uint8))
    installed = importlib.util.spec_from_file_location("skimage", tmp_path / "__init__.py")
    monkeypatch.setattr(module, "find_spec", lambda name: installed)
    with pytest.raises(ValueError, match=r"coffee.png is another picture .* scikit-image has changed it"):
        find(photograph)
    with pytest.raises(FileNotFoundError, match=r"installed scikit-image lacks data/astronaut.png"):
        find(PHOTOGRAPHS["test"]["astronaut.png"])
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match=r"astronaut.png is of scikit-image, which is not installed"):
        Photographs(HALF, "test")
    with pytest.raises(ValueError, match=r"Photographs.split is 'tset'; it may be 'train', 'test'"):
        Photographs(HALF, "tset")


# --- the weights that are shipped: a small HAT, trained by configs/hat/hat_small_x2_photos.py -------------------------


@pytest.fixture(scope="module")
def doubled():
    """Truth, half of it, and what the weights make of that: a part of two test photographs, to save time."""
    restorer = load(FILE)
    data = Photographs(HALF, "test")
    return restorer, [(data[item]["truth"][:300, :400], data[item]["image"][:150, :200]) for item in (0, 2)]


def restored(restorer, small, tile):
    restorer.configure(tile)
    image = torch.from_numpy(small / np.float32(255)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return as_bytes(restorer.restore(image)[0].permute(1, 2, 0).numpy().clip(0, 1))


def test_it_beats_bicubic_interpolation_and_its_tiles_have_no_seams(doubled):
    restorer, pairs = doubled
    gains = []
    for truth, small in pairs:
        whole = psnr(restored(restorer, small, None), truth, crop=8)
        tiled = psnr(restored(restorer, small, 64), truth, crop=8)
        gains.append(whole - psnr(imresize(small, 2), truth, crop=8))
        assert abs(whole - tiled) < 0.02
    assert np.mean(gains) > 0.6


def test_the_file_tells_what_it_undoes():
    assert dataset_meta(checkpoint.read(FILE)["meta"]) == dict(scale=2, degradation=HALF)
