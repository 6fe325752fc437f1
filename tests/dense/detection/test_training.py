"""A detector trained by tools/train.py from a config of a few lines: what it learns, and how it is asked."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
from coco_files import NAMES, write_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attlas.inference import Inferencer, load

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "tests/configs/tiny_detector.py"


def tool(name, *arguments, **variables):
    command = [sys.executable, "-W", "ignore", str(ROOT / f"tools/{name}.py"), *map(str, arguments)]
    environment = os.environ | dict(PRETRAINED="None", **{key: str(value) for key, value in variables.items()})
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folders of the training data and of the test data, and the checkpoint."""
    folder = tmp_path_factory.mktemp("detector")
    write_coco(folder / "train", images=64)
    write_coco(folder / "test", images=24, seed=1)
    done = tool("train", CONFIG, "--work-dir", folder / "out", DATA=folder / "train")
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "train", folder / "test", folder / "out/epoch_30.pth"


@pytest.mark.slow
def test_it_learns(trained):
    """AP50 of at least 0.9 on shapes that it never saw."""
    _, test, checkpoint = trained
    done = tool("test", CONFIG, checkpoint, "--work-dir", checkpoint.parent, DATA=test)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [line for line in done.stdout.splitlines() if "coco/bbox_mAP_50:" in line][-1]
    assert float(found.split("coco/bbox_mAP_50:")[1].split()[0]) >= 0.9, found


@pytest.mark.slow
def test_predictions_and_robustness(trained, tmp_path):
    """Predictions in COCO's format, and AP on corrupted images: lower, and equal to the plain test on clean ones."""
    _, test, checkpoint = trained
    place = "--work-dir", tmp_path / "work"
    done = tool("test", CONFIG, checkpoint, *place, "--out", tmp_path / "found.json", DATA=test)
    assert done.returncode == 0, done.stderr[-3000:]
    plain = float(re.findall(r"coco/bbox_mAP: ([\d.]+)", done.stdout)[-1])
    assert re.search(r"category +\| mAP .*\n.*\n\| box +\|", done.stdout)  # AP by class
    found = json.loads((tmp_path / "found.json").read_text())
    assert {entry["category_id"] for entry in found} == {3, 7}
    truth = COCO(str(test / "objects.json"))
    evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(plain, abs=1e-3)

    out = tmp_path / "robust.json"
    corrupted = "--corruptions", "gaussian_noise", "fog", "--severities", 0, 1, 5
    done = tool("test", CONFIG, checkpoint, *place, *corrupted, "--out", out, DATA=test)
    assert done.returncode == 0, done.stderr[-3000:]
    robust = json.loads(out.read_text())
    assert robust["clean"]["coco/bbox_mAP"] == plain
    by_severity = robust["corruptions"]["gaussian_noise"]
    assert plain > by_severity["5"]["coco/bbox_mAP"]
    assert by_severity["1"]["coco/bbox_mAP"] > by_severity["5"]["coco/bbox_mAP"]
    assert re.search(r"coco/bbox_mAP +┃ 1 +┃ 5 +┃ mean", done.stdout)


@pytest.mark.slow
def test_the_checkpoint_answers_alone(trained, tmp_path):
    _, test, checkpoint = trained
    done = tool("infer", checkpoint, test / "images", test / "objects.json", "--out", tmp_path)
    assert done.returncode == 1  # the JSON is no image
    written = json.loads((tmp_path / "results.json").read_text())["results"]
    assert "not a readable image" in written[-1]["error"]
    assert all((tmp_path / entry["picture"]).exists() for entry in written[:-1])
    model = load(checkpoint)
    assert model.classes == NAMES
    paths = sorted(map(str, (test / "images").iterdir()))
    asked = Inferencer(model)([*paths, cv2.imread(paths[0])[..., ::-1]])
    for entry, other in zip(written[:-1], asked):
        assert entry["objects"] == other["objects"]
    assert asked[-1]["objects"] == asked[0]["objects"]  # an array answers as its file
    truth = json.loads((test / "objects.json").read_text())
    name = {3: "box", 7: "ball"}
    wanted = {(e["image_id"], name[e["category_id"]]) for e in truth["annotations"]}
    found = {(int(Path(e["input"]).stem), o["name"]) for e in asked[:-1] for o in e["objects"] if o["score"] > 0.3}
    assert len(wanted & found) >= 0.9 * len(wanted)


@pytest.mark.slow
def test_a_picture_of_detections(trained, tmp_path):
    _, test, checkpoint = trained
    out = tmp_path / "found.png"
    done = tool("visualize", "detections", CONFIG, checkpoint, "--items", 0, 5, "--out", out, DATA=test)
    assert done.returncode == 0, done.stderr[-2000:]
    assert cv2.imread(str(out)).std() > 20
    done = tool("visualize", "detections", CONFIG, checkpoint, "--items", 99, "--out", tmp_path / "x.png", DATA=test)
    assert done.returncode == 2
    assert "item 99: the data set has items 0 to 23" in done.stderr


@pytest.mark.slow
def test_the_doctor_finds_nothing_wrong(trained, tmp_path):
    train, _, _ = trained
    done = tool("doctor", CONFIG, "--out", tmp_path / "targets.png", "--steps", 60, DATA=train)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "64 images, 128 objects" in done.stdout
    assert "16 of its 16 objects are found" in done.stdout
    assert "boxes behind the pipeline overlap those of the file by 1.00" in done.stdout
    assert (tmp_path / "targets.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_doctor_says_what_is_wrong(tmp_path):
    write_coco(tmp_path, images=8)
    found = json.loads((tmp_path / "objects.json").read_text())
    found["categories"].append(dict(id=9, name="cone"))
    (tmp_path / "objects.json").write_text(json.dumps(found))
    config = tmp_path / "config.py"
    config.write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500)]\n"
    )
    done = tool("doctor", config, "--steps", 0, DATA=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "without an object: cone" in done.stdout
    assert "the warm-up of 500 updates is over a quarter of the training" in done.stdout
    missing = tool("doctor", CONFIG, DATA=tmp_path / "none")
    assert missing.returncode == 2
    assert "none/objects.json do not exist" in missing.stderr
