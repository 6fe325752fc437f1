"""The weights that are shipped: a small HAT that doubles photographs, trained by configs/hat/hat_small_x2_photos.py."""

from pathlib import Path

import numpy as np
import pytest
import torch

from attlas import checkpoint
from attlas.dense.restoration import Photographs
from attlas.dense.restoration.degradations import as_bytes, imresize
from attlas.dense.restoration.metrics import psnr
from attlas.inference import dataset_meta, load

FILE = Path(__file__).parents[3] / "configs/hat/hat_small_x2_photos.safetensors"


@pytest.fixture(scope="module")
def photographs():
    """Truth, half of it, and what the weights make of that: a part of two test photographs, to save time."""
    restorer = load(FILE)
    data = Photographs(dict(type="Bicubic", scale=2), "test")
    return restorer, [(data[item]["truth"][:300, :400], data[item]["image"][:150, :200]) for item in (0, 2)]


def restored(restorer, small, **options):
    for name, value in options.items():
        setattr(restorer, name, value)
    image = torch.from_numpy(small / np.float32(255)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        return as_bytes(restorer.restore(image)[0].permute(1, 2, 0).numpy().clip(0, 1))


def test_it_beats_bicubic_interpolation_and_its_tiles_have_no_seams(photographs):
    restorer, pairs = photographs
    gains = []
    for truth, small in pairs:
        whole = psnr(restored(restorer, small, tile=None, overlap=None), truth, crop=8)
        tiled = psnr(restored(restorer, small, tile=64, overlap=None), truth, crop=8)
        gains.append(whole - psnr(imresize(small, 2), truth, crop=8))
        assert abs(whole - tiled) < 0.02
    assert np.mean(gains) > 0.6


def test_the_file_tells_what_it_undoes():
    assert dataset_meta(checkpoint.read(FILE)["meta"]) == dict(scale=2, degradation=dict(type="Bicubic", scale=2))
