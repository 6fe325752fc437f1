"""Pictures of detectors, as a user makes them."""

import re
import shutil

import cv2
import detectors
import numpy as np
import pytest
import small_matchers
import torch
import vlms
from coco_files import write_coco
from mmengine.config import Config
from part_files import SEGMENTER, solid, write_parts, write_segmenter

from attlas.registry import MODELS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Data, and a checkpoint of each small detector."""
    folder = tmp_path_factory.mktemp("detectors")
    write_coco(folder / "data", images=3)
    for name in ("tiny_bvr", "tiny_relation"):
        detectors.write(folder / f"{name}.pth", detectors.read(name, folder / "data"), epoch=3)
    return folder


@pytest.fixture
def draw(run, folder, tmp_path, monkeypatch):
    """draw(command, name, *arguments) -> the picture."""
    monkeypatch.setenv("DATA", str(folder / "data"))
    monkeypatch.setenv("PRETRAINED", "None")

    def call(command, name, *arguments):
        out = tmp_path / "picture.png"
        config, checkpoint = detectors.CONFIGS / f"{name}.py", folder / f"{name}.pth"
        assert str(out) in run("visualize", command, config, checkpoint, *arguments, "--out", out, "--overwrite")
        return cv2.imread(str(out))

    return call


def differ(one, other):
    return one.shape != other.shape or abs(one.astype(int) - other).max() > 50


def test_relation(draw, folder):
    first = draw("relation", "tiny_relation", "--item", 1, "--query", 2)
    assert first.shape[1] == pytest.approx(3 * 510, abs=25)  # the query, the mean and four heads in two rows
    assert first.std() > 20
    for other in (("--query", 3), ("--query", 2, "--layer", 2), ("--query", 2, "--others", 3)):
        assert differ(first, draw("relation", "tiny_relation", "--item", 1, *other))
    file = folder / "data" / "images" / "1.png"
    assert not differ(first[60:], draw("relation", "tiny_relation", "--file", file, "--query", 2)[60:])  # but the title


def test_key_points(draw):
    first = draw("keypoints", "tiny_bvr", "--detection", 0)
    assert first.std() > 20
    assert differ(first, draw("keypoints", "tiny_bvr", "--detection", 1))


def test_a_strip(draw, folder):
    again = shutil.copy(folder / "tiny_bvr.pth", folder / "again.pth")
    two = draw("strip", "tiny_bvr", again, "--score", 0.5)
    one = draw("strip", "tiny_bvr", "--score", 0.5)
    assert two.shape[1] / one.shape[1] == pytest.approx(3 / 2, abs=0.05)  # and the annotations
    alone = draw("strip", "tiny_bvr", "--file", folder / "data" / "images" / "0.png", "--score", 0.5)
    assert alone.shape[1] / one.shape[1] == pytest.approx(1 / 2, abs=0.05)


def test_detections(draw):
    picture = draw("detections", "tiny_bvr", "--items", 0, 2, "--score", 0.5)
    assert picture.shape[1] == pytest.approx(2 * 510, abs=25)
    assert np.any(abs(picture.astype(int) - draw("detections", "tiny_bvr", "--items", 0, 2, "--score", 1)) > 50)


def test_what_is_refused(refusal, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("DATA", str(folder / "data"))
    monkeypatch.setenv("PRETRAINED", "None")
    out = tmp_path / "picture.png"

    def told(command, name, *arguments):
        config, checkpoint = detectors.CONFIGS / f"{name}.py", folder / f"{name}.pth"
        message = refusal("visualize", command, config, checkpoint, *arguments, "--out", out)
        assert not out.exists()
        return message

    assert "item 3: the data set has items 0 to 2" in told("relation", "tiny_relation", "--item", 3)
    assert "item -1: the data set has items 0 to 2" in told("detections", "tiny_bvr", "--items", 0, -1)
    assert "query is 20; the detector has queries 0 to 19" in told("relation", "tiny_relation", "--query", 20)
    assert "has no key points" in told("keypoints", "tiny_relation")
    assert "score is 1.5; it must be in [0, 1]" in told("strip", "tiny_bvr", "--score", 1.5)
    assert "not allowed with argument" in told("strip", "tiny_bvr", "--item", 1, "--file", out)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    assert "text.png is not a readable image" in told("keypoints", "tiny_bvr", "--file", text)
    other = refusal("visualize", "strip", detectors.CONFIGS / "tiny_bvr.py", folder / "none.pth", "--out", out)
    assert "none.pth does not exist" in other


def test_segments_of_clouds(run, refusal, tmp_path):
    config, checkpoint, out = tmp_path / "config.py", tmp_path / "parts.pth", tmp_path / "picture.png"
    write_segmenter(checkpoint)
    options = Config(SEGMENTER)
    options.test_dataloader.dataset.dataset.update(root=str(write_parts(tmp_path / "parts")), split="test")
    config.write_text(options.pretty_text)

    def draw(*arguments):
        assert str(out) in run(
            "visualize", "segments", config, checkpoint, *arguments, "--size", 60, "--out", out, "--overwrite"
        )
        return cv2.imread(str(out))

    one, more = draw("--items", 1), draw("--items", 1, "--turned", "SO3", "--against", f"other={config}:{checkpoint}")
    assert one.std() > 20
    assert more.shape[1] / one.shape[1] == pytest.approx(5 / 3, abs=0.1)  # two panels of the other network
    assert more.shape[0] > 1.4 * one.shape[0]  # and the turned cloud

    def told(*arguments):
        return refusal("visualize", "segments", config, checkpoint, *arguments, "--out", tmp_path / "new.png")

    assert "item 3: the data set has items 0 to 2" in told("--items", 0, 3)
    assert "open is 'ceiling'; it may be 'Airplane/0'" in told("--open", "ceiling")
    assert "around is 3; it must be at least 1, and 1 for 2 clouds or poses" in told("--around", 3, "--turned", "z")
    assert "NAME=CONFIG:CHECKPOINT was expected" in told("--against", "other")
    twice = "--against", f"x={config}:{checkpoint}", f"x={config}:{checkpoint}"
    assert "--name and --against name 2 networks 'x'" in told(*twice)
    assert "--name and --against name 2 networks 'x'" in told(*twice[:2], "--name", "x")
    assert "--size is 0" in told("--size", 0)
    assert "--azimuth is nan" in told("--azimuth", "nan")
    assert not (tmp_path / "new.png").exists()


CLASSIFIER = """
default_scope = "attlas"
model = dict(
    type="PointClassifier",
    network=dict(type="DGCNNClassifier", num_classes=2, k=6, channels=(6, 8), embedding=16),
)
test_dataloader = dict(
    dataset=dict(type="ShapeFolder", root="none", transforms=[dict(type="FarthestPoints", num=60)])
)
"""


def test_saliency_of_a_cloud(run, refusal, tmp_path):
    config, checkpoint, cloud, out = (tmp_path / name for name in ("c.py", "mugs.pth", "mug.xyz", "why.png"))
    config.write_text(CLASSIFIER)
    model = MODELS.build(Config.fromfile(config).model)
    meta = dict(cfg=config.read_text(), dataset_meta=dict(classes=("mug", "table")))
    torch.save(dict(meta=meta, state_dict=model.state_dict()), checkpoint)
    np.savetxt(cloud, solid("Mug", np.random.default_rng(0), 200)[:, :3])
    ask = "visualize", "saliency", checkpoint, cloud
    said = run(*ask, "--method", "normgrad", "lrp", "--target", "table", "--out", out)
    assert re.search(r"table \(\d+ %\): relevance sums to \S+, the score is -", said)
    first = cv2.imread(str(out))
    assert first.std() > 20
    run(*ask, "--method", "gradient", "--azimuth", 120, "--out", out, "--overwrite")
    assert cv2.imread(str(out)).shape[1] < first.shape[1]  # a method less
    wrong = "--out", tmp_path / "wrong.png"
    assert "'lamp' is no class: there are 0 to 1, such as mug, table" in refusal(*ask, "--target", "lamp", *wrong)
    assert "one is shown at a time" in refusal(*ask, "--layers", "network.layers.1", "input", *wrong)
    (tmp_path / "empty.xyz").write_text("")
    assert "empty.xyz is not a readable shape" in refusal(*ask[:3], tmp_path / "empty.xyz", *wrong)
    assert "none.xyz" in refusal(*ask[:3], tmp_path / "none.xyz", *wrong)
    assert not wrong[1].exists()


def test_contrast(run, refusal, tmp_path):
    image, out = tmp_path / "street.png", tmp_path / "look.png"
    cv2.imwrite(str(image), np.random.randint(0, 255, (45, 70, 3), np.uint8))
    folder = vlms.write(tmp_path / "llava")
    common = ("--image", image, "--out", out, "--overwrite")
    asked = ("--question", "what is the color of the chair ?", "--layers", 1, 2, "--max-new-tokens", 2)
    said = run("visualize", "contrast", folder, *asked, *common)
    for part in ("the last token of each step, 2 steps, layers 1, 2;", "4 rows x 4 columns", "logits changed by 0"):
        assert part in said
    assert cv2.imread(str(out)).std() > 20
    said = run("visualize", "contrast", folder, *asked, "--queries", "text", *common)
    assert "the mean of all tokens behind the image" in said
    said = run("visualize", "contrast", "deit_tiny", "--size", 64, "--layers", 3, 11, *common)
    assert "attention of the class token, mean over heads, blocks 3, 11" in said
    for wrong, reason in (
        ((folder, *common), "give --question"),
        ((folder, *asked, "--general", image, *common), "is taken for a vision-language model"),
        (("deit_tiny", *asked, *common), "--question: deit_tiny is taken for a ViT"),
        ((folder, "--question", "what ?", *common), "the decoder has attention at"),
    ):
        assert reason in refusal("visualize", "contrast", *wrong)


def untrained(config, folder):
    """(config, checkpoint) in files: of a network as it begins."""
    config = Config(config)
    model, path = MODELS.build(config.model), folder / "config.py"
    config.dump(path)
    torch.save(dict(meta=dict(cfg=config.pretty_text), state_dict=model.state_dict()), folder / "iter_0.pth")
    return path, folder / "iter_0.pth"


def test_matches(run, refusal, tmp_path):
    pairs = dict(type="RoomPairs", split="test", count=1, size=(48, 36), transforms=[dict(type="PackMatches")])
    model = dict(type="Matcher", size=(16, 24), backbone=small_matchers.BACKBONE, network=small_matchers.NETWORK)
    config = dict(default_scope="attlas", model=model, test_dataloader=dict(dataset=pairs))
    ask, out = ("visualize", "matches", *untrained(config, tmp_path)), tmp_path / "matches.png"
    run(*ask, "--items", 0, 1, "--out", out)
    assert cv2.imread(str(out)).std() > 20
    message = "item 6: the data set has items 0 to 5"
    assert message in refusal(*ask, "--items", 6, "--out", tmp_path / "wrong.png")


def test_scanpaths(run, refusal, tmp_path):
    grid = dict(rows=2, columns=3)
    cut = [dict(type="CutObjects", size=(24, 24))]
    shelves = dict(type="FurnitureShelves", **grid, split="test", size=2, transforms=cut)
    model = dict(type="OAT", **grid, dim=48, heads=4, mlp_dim=48, depth=(1, 1), pointer_dim=16, spp=2, max_length=5)
    config = dict(default_scope="attlas", model=model, test_dataloader=dict(dataset=shelves))
    ask, out = ("visualize", "scanpaths", *untrained(config, tmp_path)), tmp_path / "paths.png"
    run(*ask, "--items", 0, 1, "--out", out)
    assert cv2.imread(str(out)).std() > 20
    assert "there is no item 2 in the test data" in refusal(*ask, "--items", 2, "--out", tmp_path / "wrong.png")
