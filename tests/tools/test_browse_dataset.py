"""The tool as a user calls it."""

import cv2
import matplotlib.image
import numpy as np
import pytest


@pytest.fixture
def folder(tmp_path):
    """A config of pictures in folders."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for number in range(4):
            image = np.full((20, 30, 3), 60 * number, np.uint8)
            cv2.imwrite(str(tmp_path / "images" / name / f"{number}.png"), image)
    path = tmp_path / "pictures.py"
    dataset = dict(
        type="ImageFolder", root=str(tmp_path / "images"), split="train", transforms=[dict(type="PackImage")]
    )
    path.write_text(f"train_dataloader = dict(dataset={dataset!r})\n")
    return path


def test_a_sheet_of_a_folder_of_images(run, refusal, folder, tmp_path):
    out = tmp_path / "sheet.png"
    assert f"ImageFolder, train: 4 of 6 items in {out}" in run("browse_dataset", folder, "--count", 4, "--out", out)
    assert matplotlib.image.imread(out)[..., :3].std() > 0.01
    assert "To replace it: --overwrite" in refusal("browse_dataset", folder, "--out", out)
    run("browse_dataset", folder, "--items", 1, "--out", out, "--overwrite")


def test_what_it_refuses(run, refusal, folder, tmp_path, monkeypatch):
    out = tmp_path / "sheet.png"
    assert "item 6: the data set has items 0 to 5" in refusal("browse_dataset", folder, "--items", 6, "--out", out)
    assert "no val_dataloader; it has those of train" in refusal(
        "browse_dataset", folder, "--split", "val", "--out", out
    )
    assert "must end in .png" in refusal("browse_dataset", folder, "--out", tmp_path / "sheet.txt")
    assert "none.py does not exist" in refusal("browse_dataset", tmp_path / "none.py", "--out", out)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert "cannot open a window" in refusal("browse_dataset", folder, "--show")
    assert not out.exists()
