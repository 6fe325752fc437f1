"""A segmentor trained, tested and asked by the tools, from a config of the rooms."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from attlas import confusion
from attlas.dense.room_files import LABELS
from attlas.inference import load

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "configs/semantic_fpn/semantic_fpn_lsnet_rooms.py"


def tool(name, *arguments):
    command = [sys.executable, "-W", "ignore", str(ROOT / f"tools/{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | dict(CUDA_VISIBLE_DEVICES=""))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.slow
def test_train_resume_test(rooms, tmp_path):
    """The table of labels comes first, the loss falls, and a training that is resumed gives the same losses."""
    given = {key: "96,72" if key == "size" else value for key, value in rooms.items()}
    parts = ("train", "val", "test")
    small = [f"{part}_dataloader.dataset.{key}={value}" for part in parts for key, value in given.items()]
    options = [
        *small,
        "train_dataloader.batch_size=2",
        "default_hooks.logger.interval=1",
        "log_processor.window_size=1",
    ]
    options += ["default_hooks.checkpoint.interval=6", "train_cfg.val_interval=12", "param_scheduler.0.end=3"]
    options += ["train_cfg.max_iters=12", "default_hooks.checkpoint.max_keep_ckpts=9", "train_dataloader.num_workers=0"]
    told = tool("train", CONFIG, "--work-dir", tmp_path / "a", "--cfg-options", *options)
    assert told.index("The numbers in 3 of their maps") < told.index("Iter(train)")
    losses = re.findall(r"Iter\(train\) \[ *(\d+)/12\].* loss: ([\d.]+)", told)
    assert [int(number) for number, _ in losses] == [*range(1, 13)]
    assert float(losses[-1][1]) < float(losses[0][1])
    command = ["train", CONFIG, "--work-dir", tmp_path / "b", "--resume", tmp_path / "a/iter_6.pth"]
    again = re.findall(r"Iter\(train\) \[ *(\d+)/12\].* loss: ([\d.]+)", tool(*command, "--cfg-options", *options))
    assert again == losses[6:]
    tested = tool("test", CONFIG, tmp_path / "a/iter_12.pth", "--work-dir", tmp_path / "a", "--cfg-options", *small)
    assert "mIoU is the mean over" in tested
    views = ["--tta", "--out", tmp_path / "maps.npz", "--cfg-options", *small, "tta_views.ratios=0.5,1.0"]
    averaged = tool("test", CONFIG, tmp_path / "a/iter_12.pth", "--work-dir", tmp_path / "a", *views)
    assert "probabilities are averaged: 4" in averaged
    last = [re.search(r"Iter\(test\).* mIoU: ([\d.]+)", text)[1] for text in (tested, averaged)]
    assert last[0] != last[1]
    assert confusion.read_results(tmp_path / "maps.npz")[0] == LABELS
    tool("visualize", "confusion", tmp_path / "maps.npz", "--out", tmp_path / "confusion.png")
    assert (tmp_path / "confusion.png").stat().st_size > 10_000
    assert load(tmp_path / "a/iter_12.pth").classes == LABELS
