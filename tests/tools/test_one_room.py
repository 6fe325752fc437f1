"""tools/one_room.py as a user calls it, with tiny networks and with none."""

import sys

import pytest
import torch
from networks import fill

from attlas.registry import MODELS

CONFIG = """
default_scope = "attlas"
model = dict(
    type="ImageClassifier",
    backbone=dict(
        type="BiFormer", dims=(8, 8, 8, 8), depths=(1, 1, 1, 1), topks=(1, 1, 1, -2), regions=2, head_dim=8,
        num_classes=3,
    ),
)
test_dataloader = dict(
    dataset=dict(type="ImageFolder", transforms=[dict(type="Resize", size=32), dict(type="PackImage")])
)
"""


@pytest.fixture
def checkpoint(tmp_path):
    """A file as a training leaves it, of a tiny classifier of images."""
    scope = {}
    exec(CONFIG, scope)
    model = fill(MODELS.build(scope["model"]))
    path = tmp_path / "tiny.pth"
    meta = dict(cfg=CONFIG, dataset_meta=dict(classes=("bed", "sofa", "lamp")))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), path)
    return path


@pytest.fixture
def write(load, monkeypatch, capsys, tmp_path):
    """write(*arguments) -> the page, and what is printed, of small pictures."""

    def call(*arguments):
        tool = load("one_room")
        tool.SIZE = (64, 48)
        out = tmp_path / "room.md"
        shown = ["one_room.py", "--out", out, "--overwrite", "--work-dirs", tmp_path / "trained", *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, shown)))
        tool.main()
        return out.read_text(), capsys.readouterr().out

    return call


def test_a_page_of_a_tiny_network_and_of_what_was_not_trained(write, checkpoint, tmp_path):
    asked = ["--only", "views", "attention", "detection", "--models", f"views={checkpoint}"]
    text, printed = write(*asked)
    assert "Room 8 of the built-in test rooms" in text
    for name in ("views", "attention"):
        assert f"(room_{name}.jpg)" in text
        assert (tmp_path / f"room_{name}.jpg").stat().st_size > 1000
        assert f"{name}: " in printed
    assert " right" in text
    assert "detection: not trained here" in printed
    assert not (tmp_path / "room_detection.jpg").exists()
    assert "## Detection" not in text
    assert "## Matching" not in text
    line = next(line for line in text.splitlines() if line.startswith("| Detection"))
    assert "not trained here" in line
    assert "--items 8" in line
    assert "`python tools/train.py configs/bvr/bvr_retinanet_biformer_rooms.py`" in line
    assert "tiny.pth" in text
    assert str(tmp_path) not in text
    files = {path.name: path.read_bytes() for path in tmp_path.glob("room*")}
    write(*asked)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("room*")} == files


def test_training_calls_the_tools(load, tmp_path, monkeypatch):
    tool, called = load("one_room"), []
    monkeypatch.setattr(tool, "ROOT", tmp_path)
    monkeypatch.setattr(tool.subprocess, "run", lambda command, cwd: called.append(command[1:]) or Done(0))
    tool.train(tool.OWN["points"], tmp_path / "w")
    work = str(tmp_path / "w/risurconv_room_clouds")
    trains = ["tools/train.py", "configs/risurconv/risurconv_room_clouds.py", "--work-dir", work, "--resume"]
    assert called == [["tools/make_room_clouds.py", "data/room_clouds"], trains]
    monkeypatch.setattr(tool.subprocess, "run", lambda command, cwd: Done(3))
    with pytest.raises(ValueError, match=r"tools/train.py .* ended with 3; the same --train goes on"):
        tool.train(tool.OWN["matches"], tmp_path / "w")
    assert tool.checkpoint_of(tool.OWN["matches"], tmp_path / "w") is None
    place = tmp_path / "w/ufc_room_pairs"
    place.mkdir(parents=True)
    (place / "last_checkpoint").write_text(str(place / "iter_5.pth"))
    assert tool.checkpoint_of(tool.OWN["matches"], tmp_path / "w") == place / "iter_5.pth"


class Done:
    def __init__(self, code):
        self.returncode = code


def test_the_configs_and_the_shipped_weights_are_there(load):
    tool = load("one_room")
    for panel in tool.PANELS:
        assert (tool.ROOT / panel.config).is_file()
        assert panel.shipped is None or (tool.ROOT / panel.shipped).is_file()
        assert (tool.ROOT / panel.shown.split()[0]).is_file()
        assert panel.model is None or panel.model in tool.OWN


def test_what_it_refuses(refusal, checkpoint, tmp_path):
    page = tmp_path / "room.md"
    out = ["one_room", "--out", page]
    assert "must end in .md" in refusal("one_room", "--out", tmp_path / "room.txt")
    assert "NAME=CHECKPOINT was expected" in refusal(*out, "--models", checkpoint)
    assert "the names are clouds, views, restored" in refusal(*out, "--models", f"maps={checkpoint}")
    assert "names views twice" in refusal(*out, "--models", *2 * [f"views={checkpoint}"])
    assert "there is no such file" in refusal(*out, "--models", f"views={tmp_path / 'tini.pth'}")
    assert "--walk is -1" in refusal(*out, "--walk", "-1")
    assert "invalid choice" in refusal(*out, "--only", "cloud")
    wrong = refusal(*out, "--only", "matches", "--models", f"matches={checkpoint}")
    assert "the task of the model is ImageClassification, and must be Matching" in wrong
    (tmp_path / "room_clouds.jpg").write_bytes(b"mine")
    assert "room_clouds.jpg exists" in refusal(*out)
    assert not page.exists()
    assert (tmp_path / "room_clouds.jpg").read_bytes() == b"mine"
