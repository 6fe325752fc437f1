"""Restorers in files and in pictures, as a user makes them."""

import json
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import torch
from visualizing.common import named

from attlas.config import load_config
from attlas.inference import Inferencer
from attlas.registry import MODELS

CONFIG = """
default_scope = "attlas"
model = dict(type="Restorer", network=dict(type="FFNetSR", scale=2, dim=8, depth=1))
test_dataloader = dict(
    batch_size=1,
    dataset=dict(
        type="DegradedImages",
        root="{root}",
        degradation=dict(type="Bicubic", scale=2),
        transforms=[dict(type="PackPair")],
    ),
)
"""


@pytest.fixture
def trained(tmp_path):
    """Pictures, a config, a checkpoint as a training leaves it, and a file of the network's weights alone."""
    random = np.random.default_rng(0)
    for number in range(2):
        rough = random.integers(0, 256, (9, 12, 3), dtype=np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        cv2.imwrite(str(tmp_path / "photos" / f"{number}.png"), cv2.resize(rough, (60, 44)))
    (tmp_path / "config.py").write_text(CONFIG.format(root=tmp_path / "photos"))
    config = load_config(tmp_path / "config.py")
    torch.manual_seed(0)
    model = MODELS.build(config.model)
    torch.nn.init.normal_(model.network.conv_bef_up.weight, std=0.01)
    told = dict(classes=(), scale=2, degradation=dict(type="Bicubic", scale=2))
    meta = dict(cfg=config.pretty_text, dataset_meta=told)
    torch.save(dict(meta=meta, state_dict=model.state_dict()), tmp_path / "iter_1.pth")
    torch.save(dict(params_ema=model.network.state_dict()), tmp_path / "authors.pth")
    return tmp_path


def test_export(run, refusal, trained):
    """From the checkpoint alone to a file that gives, at another size, the picture that `Inferencer` gives."""
    out = trained / "x.onnx"
    printed = run("export", trained / "iter_1.pth", out)
    assert "for (batch, 3, height, width), gives restored; differs from the network by" in printed
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["degradation"]) == dict(type="Bicubic", scale=2)
    assert (about["scale"], about["channels"], about["size"]) == ("2", "3", "64,96")
    picture = cv2.imread(str(trained / "photos" / "0.png"))[..., ::-1]
    mean, std = (np.array(about[name].split(","), np.float32) for name in ("mean", "std"))
    image = ((picture - mean) / std).transpose(2, 0, 1)[None].astype(np.float32)
    (restored,) = session.run(None, {"image": image})
    (result,) = Inferencer(trained / "iter_1.pth", device="cpu")(picture)
    found = np.floor(255 * restored[0].transpose(1, 2, 0) + 0.5)
    assert found.shape == (88, 120, 3)
    assert abs(found - result["restored"]).max() <= 1
    assert "--dense, --fuse" in refusal("export", trained / "iter_1.pth", trained / "y.onnx", "--fuse")
    printed = run("export", trained / "iter_1.pth", trained / "x.pt2", "--dynamic", "none", "--size", 24, 40)
    assert "for (1, 3, 24, 40)" in printed


def test_restored(run, refusal, trained):
    config, checkpoint, out = trained / "config.py", trained / "iter_1.pth", trained / "restored.png"
    run("visualize", "restored", config, checkpoint, "--item", 1, "--crop", 4, 6, 24, "--out", out)
    first = cv2.imread(str(out))
    assert first.std() > 20
    against = f"again={config}:{checkpoint}"
    ask = "visualize", "restored", config, checkpoint, "--crop", 4, 6, 24, "--overwrite", "--out", out
    run(*ask, "--against", against, f"third={config}:{checkpoint}")
    assert cv2.imread(str(out)).shape[1] > first.shape[1]  # a column more
    assert "--name and --against name 2 networks 'again'" in refusal(*ask, "--name", "again", "--against", against)
    assert "the data set has items 0 to 1" in refusal(*ask, "--item", 2)
    outside = *ask[:4], "--crop", 30, 0, 24, *ask[8:]
    assert "crop=(30, 0, 24) (row, column, side) is not inside a picture of 60 x 44" in refusal(*outside)


def test_attribution(run, refusal, trained):
    """Of a checkpoint with its config, and of a file of weights alone."""
    out, file = trained / "lam.png", trained / "photos" / "0.png"
    common = "--file", file, "--steps", 2, "--around", 32, "--out", out, "--overwrite"
    ask = "visualize", "attribution", trained / "iter_1.pth", *common
    run(*ask, "--place", 30, 40)
    first = cv2.imread(str(out))
    assert first.std() > 20
    run(*ask, "--place", 30, 40, "--against", f"same={trained / 'authors.pth'}")
    both = cv2.imread(str(out))
    assert both.shape[1] > 1.4 * first.shape[1]
    run(*ask, "--place", 30, 60)
    assert abs(cv2.imread(str(out)).astype(int) - first).max() > 50
    assert "its first row may be 0 to 72" in refusal(*ask, "--place", 73, 0)
    assert "two networks would be named 'FFNetSR'" in refusal(
        *ask, "--place", 0, 0, "--against", trained / "authors.pth"
    )
    for wrong in ("=x.pth", "A="):
        assert "[NAME=]CHECKPOINT was expected" in refusal(*ask, "--place", 0, 0, "--against", wrong)


def test_saliency(run, refusal, trained):
    """Of the mean and of the PSNR of a patch; what does not fit is refused before a picture is written."""
    out, file, clean = trained / "why.png", trained / "photos" / "0.png", trained / "clean.png"
    cv2.imwrite(str(clean), cv2.resize(cv2.imread(str(file)), (120, 88)))
    ask = "visualize", "saliency", trained / "iter_1.pth", file
    run(*ask, "--target", "20,30,16", f"20,30,16:{clean}", "--method", "linear", "gradient", "--out", out)
    assert cv2.imread(str(out)).std() > 20
    wrong = "--out", trained / "wrong.png"
    assert "a restorer is asked about ROW,COLUMN,SIDE" in refusal(*ask, *wrong)
    assert "80,0,16: the patch" in refusal(*ask, "--target", "80,0,16", *wrong)
    assert "(3, 44, 60)" in refusal(*ask, "--target", f"0,0,16:{file}", *wrong)
    assert not wrong[1].exists()


def test_names_before_paths():
    """An equals sign may be part of a path."""
    for path in ("iter_1.pth", "work_dirs/lr=1e-4/iter_1.pth", "./a=b.pth"):
        assert named(path) == ("", Path(path))
        assert named(f"A={path}") == ("A", Path(path))
