"""tools/infer.py as a user runs it."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from part_files import SEGMENTER, solid, write_segmenter

from attlas.pointnets.datasets import ShapeNetPart
from attlas.pointnets.inference import class_colors
from attlas.pointnets.shapes import read_shape
from attlas.registry import MODELS

CONFIG = """
model = dict(type="ImageClassifier", backbone=dict(
    type="SHViT", dims=(8, 16, 24), depths=(1, 1, 1), partial_dims=(None, 8, 8), num_classes=3))
test_dataloader = dict(dataset=dict(type="ImageFolder", transforms=[
    dict(type="Resize", size=(32, 32)), dict(type="PackImage")]))
"""


@pytest.fixture
def infer(load, monkeypatch, capsys):
    """infer(*arguments) -> exit status, what it printed, what it complained of."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["infer.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            load("infer").main()
        return end.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def place(tmp_path):
    """A folder with a config, a checkpoint that holds it, one that does not, and pictures."""
    (tmp_path / "config.py").write_text(CONFIG)
    config = Config.fromfile(tmp_path / "config.py")
    state = MODELS.build(config.model).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    meta = dict(cfg=config.pretty_text, dataset_meta=dict(classes=("bed", "$c^{", "\x1b[31mred")))
    torch.save(dict(meta=meta, state_dict=state), tmp_path / "last.pth")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "moving.GIF").touch()
    for name, shape in (("cat.png", (1200, 30, 3)), ("a dog.png", (30, 40, 3))):
        cv2.imwrite(str(tmp_path / "pictures" / name), np.random.default_rng(0).integers(0, 256, shape, np.uint8))
    return tmp_path


def test_a_checkpoint_alone(infer, place):
    out = place / "answers"
    code, printed, _ = infer(place / "last.pth", place / "pictures", "--out", out, "--top", 9, "--batch-size", 1)
    assert code == 0
    assert "Left out of folders for their endings: 1 (.gif)." in printed
    assert f"2 of 2 inputs answered. Results: {out / 'results.json'}" in printed
    assert "\x1b" not in printed
    found = json.loads((out / "results.json").read_text())
    assert found["checkpoint"] == str(place / "last.pth")
    assert found["classes"] == ["bed", "$c^{", "\x1b[31mred"]
    assert [r["input"] for r in found["results"]] == [str(place / "pictures" / n) for n in ("a dog.png", "cat.png")]
    assert [r["picture"] for r in found["results"]] == ["0001_a_dog.png", "0002_cat.png"]
    for result in found["results"]:
        assert sum(entry["probability"] for entry in result["classes"]) == pytest.approx(1)
        assert f"{result['input']}: " in printed
        assert cv2.imread(str(out / result["picture"])).std() > 3  # not blank
    code, _, refusal = infer(place / "last.pth", place / "pictures", "--out", out)
    assert code == 2
    assert "exists. To replace it: --overwrite" in refusal


def test_a_bad_file_does_not_end_the_run(infer, place):
    (place / "pictures" / "broken.jpg").write_bytes(b"\xff\xd8")
    code, printed, _ = infer(place / "config.py", place / "weights.pth", f"{place}/pictures/*g", "none.png", "--top", 1)
    assert code == 1
    lines = [line for line in printed.splitlines() if "INFO" not in line]
    assert [": no answer: " in line for line in lines] == [False, True, False, True, False]
    assert lines[1].startswith(f"{place}/pictures/broken.jpg: no answer: not a readable image: ")
    assert "class " in lines[0]
    assert lines[-1] == "2 of 4 inputs answered."


def test_what_it_refuses(infer, place):
    for arguments, said in (
        ([place / "weights.pth", "x.png"], "holds no config. Give the config before the checkpoint"),
        ([place / "config.py", place / "last.pth"], "a checkpoint and at least one input were expected, and got "),
        ([place / "last.pth", "x.png", "--cfg-options", "model.type=X"], "--cfg-options override a config"),
        ([place / "last.pth", "x.png", "--device", "nowhere"], "nowhere"),
        ([place / "last.pth", "x.png", "--top", 0], "top is 0"),
        ([place / "last.pth", "x.png", "--container", "ema"], "container='ema' is not in the checkpoint"),
        ([place / "lsat.pth", "x.png"], "lsat.pth does not exist. Near it: "),
        ([place / "confg.py", place / "last.pth", "x.png"], "confg.py does not exist. Near it: "),
    ):
        code, _, refusal = infer(*arguments)
        assert code == 2
        assert said in refusal


def test_a_published_file_keeps_the_names_of_the_classes(infer, run, place):
    out = place / "small.safetensors"
    run("publish", place / "last.pth", out)
    code, printed, _ = infer(place / "config.py", out, place / "pictures" / "cat.png")
    assert code == 0
    assert all(name in printed for name in ("bed", "$c^{", r"\x1b[31mred"))


def test_clouds_whose_points_get_labels(infer, tmp_path):
    rows = solid("Mug", np.random.default_rng(0), 300)
    cloud, out, config = tmp_path / "mug.txt", tmp_path / "out", tmp_path / "config.py"
    np.savetxt(cloud, rows[:, :6], fmt="%.6f")
    config.write_text(Config(SEGMENTER).pretty_text)
    checkpoint = write_segmenter(tmp_path / "parts.pth")
    category = ShapeNetPart.CATEGORIES.index("Mug")
    asked = config, checkpoint, cloud, "--out", out, "--cfg-options", f"model.category={category}"
    code, printed, _ = infer(*asked)
    assert code == 0
    assert f"{cloud}: 300 points: Mug/" in printed
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert "labels" not in result
    assert (result["cloud"], result["picture"]) == ("0001_mug.ply", "0001_mug.png")
    assert cv2.imread(str(out / result["picture"])).std() > 3  # not blank
    np.testing.assert_allclose(read_shape(out / result["cloud"])["pos"], rows[:, :3], atol=1e-5)
    content = (out / result["cloud"]).read_bytes()
    for entry in result["classes"]:
        assert f"\ncomment label {entry['label']} {entry['name']}\n".encode() in content
    columns = [("place", "<f4", 6), ("color", "u1", 3), ("label", "<i4")]
    written = np.frombuffer(content[content.index(b"end_header\n") + 11 :], dtype=columns)
    counts = np.bincount(written["label"], minlength=50)
    assert {entry["label"]: entry["points"] for entry in result["classes"]} == {
        i: counts[i] for i in counts.nonzero()[0]
    }
    assert np.array_equal(written["color"], class_colors(written["label"]))
