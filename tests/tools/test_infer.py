"""tools/infer.py as a user runs it."""

import json
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from part_files import SEGMENTER, solid, write_segmenter

from attlas.dense.restoration import FFNetSR
from attlas.dense.restoration import inference as restoration
from attlas.images import read_pixels, write_png
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
    assert [": no answer: " in line for line in lines[:4]] == [False, True, False, True]
    assert lines[1].startswith(f"{place}/pictures/broken.jpg: no answer: not a readable image: ")
    assert "class " in lines[0]
    assert lines[4:] == ["No answer to:", f"  {place}/pictures/broken.jpg", "  none.png", "2 of 4 inputs answered."]


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


# --- restored pictures -----------------------------------------------------------------------------------------------


@pytest.fixture
def restorer(tmp_path):
    """A file of a network's weights alone."""
    network = FFNetSR(scale=2, dim=8, depth=1)
    torch.save(dict(params_ema=network.state_dict()), tmp_path / "ffnet.pth")
    return tmp_path / "ffnet.pth"


@pytest.fixture
def photos(tmp_path):
    """A folder: pictures below folders, two whose endings alone differ, a broken one and what is none."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    shapes = {
        "a.jpg": (9, 12, 3),
        "b.png": (5, 7),
        "below/a.png": (6, 6, 4),
        "below/c.png": (1, 1, 3),
        "below/c.bmp": (70, 90, 3),
    }
    (folder / "below").mkdir(parents=True)
    for name, shape in shapes.items():
        depth = np.uint16 if name == "b.png" else np.uint8
        cv2.imwrite(str(folder / name), random.integers(0, 256, shape).astype(depth))
    (folder / "broken.png").write_bytes((folder / "b.png").read_bytes()[:-9])
    (folder / "notes.txt").touch()
    return folder


def test_a_folder_of_pictures_is_restored(infer, restorer, photos, tmp_path):
    """Under their names, in their folders, of their form; past a broken one, which is listed at the end."""
    out = tmp_path / "out"
    code, printed, _ = infer(restorer, photos, "--out", out, "--tile", 64)
    assert code == 1
    lines = printed.splitlines()
    assert lines[-3:] == [
        "No answer to:",
        f"  {photos}/broken.png",
        f"5 of 6 inputs answered. Results: {out / 'results.json'}",
    ]
    assert f"{photos}/a.jpg: FFNetSR x2, 24 x 18 pixels" in printed
    written = {"a.png": (18, 24, 3), "b.png": (10, 14), "below/a.png": (12, 12, 4)}
    written |= {"below/c.png.png": (2, 2, 3), "below/c.bmp.png": (140, 180, 3)}
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.*")} == {*written, "results.json"}
    assert {name: read_pixels(out / name).shape for name in written} == written
    assert read_pixels(out / "b.png").dtype == np.uint16
    found = {result["input"]: result for result in json.loads((out / "results.json").read_text())["results"]}
    assert "error" in found.pop(f"{photos}/broken.png")
    assert {result["picture"] for result in found.values()} == {*written}
    for result in found.values():
        assert set(result) == {"input", "picture", "height", "width", "network", "scale", "drift"}


def test_no_two_pictures_get_one_name(infer, restorer, tmp_path):
    """x.jpg beside x.png stays whole, and is then what x.jpg.png would be called. A file may be named twice."""
    folder, out = tmp_path / "photos", tmp_path / "out"
    folder.mkdir()
    names = {"x.png": (3, 4), "x.jpg": (4, 5), "x.jpg.png": (5, 6), "x.jpg.png.bmp": (6, 7), "y.png": (7, 8)}
    for name, shape in names.items():
        cv2.imwrite(str(folder / name), np.full((*shape, 3), 99, np.uint8))
    twice = f"{folder}/../photos/y.png"
    assert infer(restorer, folder, twice, "--out", out)[0] == 0
    results = json.loads((out / "results.json").read_text())["results"]
    pictures = {result["input"]: result["picture"] for result in results}
    assert pictures.pop(twice) == pictures[f"{folder}/y.png"] == "y.png"
    assert len(set(pictures.values())) == len(names)
    for name, (height, width) in names.items():
        assert read_pixels(out / pictures[f"{folder}/{name}"]).shape == (2 * height, 2 * width, 3)


@pytest.mark.parametrize("broken", ["print", "picture"])
def test_what_ends_a_run_leaves_the_answers_before(infer, restorer, photos, tmp_path, monkeypatch, broken):
    """A pipe that is closed at a print, a write that fails: results.json is whole and names the pictures that are."""

    out = tmp_path / "out"

    def failing(*arguments, **options):
        if broken == "print" or (out / "b.png").exists():
            raise BrokenPipeError("Broken pipe")
        write_png(*arguments)

    if broken == "print":
        monkeypatch.setattr("builtins.print", failing)
    else:
        monkeypatch.setattr(restoration, "write_png", failing)
    code, _, refusal = infer(restorer, photos / "b.png", photos / "a.jpg", "--out", out)
    assert code == 2
    assert "Broken pipe" in refusal
    (result,) = json.loads((out / "results.json").read_text())["results"]
    assert result["picture"] == "b.png"
    assert "restored" not in result


def test_a_run_that_is_stopped_says_so(infer, restorer, photos, tmp_path, monkeypatch):
    def stopped(picture):
        if picture.name == "a.jpg":
            raise KeyboardInterrupt
        return read_pixels(picture)

    monkeypatch.setattr(restoration, "read_pixels", stopped)
    out, asked = tmp_path / "out", (photos / "b.png", photos / "below" / "a.png", photos / "a.jpg")
    code, _, said = infer(restorer, *asked, "--out", out, "--batch-size", 1)
    assert (code, said.strip().splitlines()[-1]) == (130, "stopped; 1 answered")  # a batch is full when the next comes
    assert "Traceback" not in said
    assert len(json.loads((out / "results.json").read_text())["results"]) == 1


def test_options_of_restorers(infer, restorer, photos, tmp_path):
    picture, out = photos / "below/c.bmp", tmp_path / "out"
    assert infer(restorer, picture, "--out", out)[0] == 0
    plain = read_pixels(out / "c.png")
    for options in (["--half", "bfloat16"], ["--ensemble"], ["--keep-tint"]):
        tiles = ["--tile", 32, "--overlap", 16]
        assert infer(restorer, picture, "--out", out, "--overwrite", *tiles, *options)[0] == 0
        found = read_pixels(out / "c.png")
        assert found.shape == plain.shape
        assert not np.array_equal(found, plain)


def test_no_picture_is_replaced_unasked(infer, restorer, photos, tmp_path):
    out = tmp_path / "out"
    assert infer(restorer, photos / "b.png", "--out", out)[0] == 0
    (out / "results.json").unlink()
    content = (out / "b.png").read_bytes()
    for arguments, said in (
        ([photos, "--out", out], "b.png exists. To replace it: --overwrite"),
        ([photos / "b.png"], "name a folder for them, --out DIR"),
        ([photos, "--out", photos, "--overwrite"], "b.png is an input, which no answer may replace"),
        ([photos, "--out", out / "new", "--tile", 0], "tile is 0"),
        ([photos, "--out", out / "new", "--overlap", 300], "overlap is 300"),
    ):
        code, _, refusal = infer(restorer, *arguments)
        assert code == 2
        assert said in refusal
    assert (out / "b.png").read_bytes() == content
    assert not (out / "new").exists()
    assert infer(restorer, photos / "b.png", "--out", out, "--overwrite")[0] == 0


def test_options_of_restorers_are_theirs_alone(infer, place):
    code, _, refusal = infer(place / "last.pth", place / "pictures", "--tile", 64, "--ensemble")
    assert code == 2
    assert "tile and ensemble: models of the class ImageClassifier have no such options" in refusal
