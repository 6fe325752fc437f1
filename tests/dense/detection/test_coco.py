"""Annotations in COCO's format: what is right, what is set right, what is counted, and what is refused."""

import json

import cv2
import numpy as np
import pytest
import torch
from coco_files import NAMES, write_coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from attlas.dense.detection import CocoBoxes, CocoDetection, CocoFile, ReadImage
from attlas.dense.masks import decoded


@pytest.fixture
def coco(tmp_path):
    """A function that writes the data with a change of the JSON, and gives the path of it."""

    def write(change=lambda found: None, **options):
        path = write_coco(tmp_path, **options)
        found = json.loads(path.read_text())
        change(found)
        path.write_text(json.dumps(found))
        return path

    return write


def dataset(path, **options):
    options = dict(pipeline=[], test_mode=True) | options
    return CocoDetection(ann_file=str(path), data_prefix=dict(img=str(path.parent / "images")), **options)


def test_things_come_first(coco):
    names = dict(classes=NAMES, thing_classes=NAMES[1:], stuff_classes=NAMES[:1])
    with pytest.raises(ValueError, match="classes must be thing_classes and, behind them, stuff_classes; class 0 is"):
        dataset(coco(), metainfo=names)
    assert len(dataset(coco(), metainfo=names | dict(thing_classes=NAMES[:1], stuff_classes=NAMES[1:]))) == 6


def test_boxes_labels_and_names(coco):
    path = coco()
    data, found = dataset(path), json.loads(path.read_text())
    assert data.metainfo["classes"] == NAMES
    assert len(data) == 6
    for number in range(6):
        boxes = [entry["bbox"] for entry in found["annotations"] if entry["image_id"] == number]
        labels = [(3, 7).index(e["category_id"]) for e in found["annotations"] if e["image_id"] == number]
        info = data.get_data_info(number)
        assert [entry["bbox"] for entry in info["instances"]] == [[x, y, x + w, y + h] for x, y, w, h in boxes]
        assert [entry["bbox_label"] for entry in info["instances"]] == labels
        assert info["img_path"].endswith(f"images/{number}.png")


def test_classes_are_found_by_name_in_any_order(coco):
    """mmdet takes the order of the file, and shifts labels where a name is misspelt."""
    path = coco()
    given, turned = dataset(path), dataset(path, metainfo=dict(classes=NAMES[::-1]))
    for number in range(6):
        labels = [[e["bbox_label"] for e in data.get_data_info(number)["instances"]] for data in (given, turned)]
        assert labels[1] == [1 - label for label in labels[0]]
    balls = dataset(path, metainfo=dict(classes=("ball",)))
    assert {entry["bbox_label"] for number in range(6) for entry in balls.get_data_info(number)["instances"]} == {0}
    with pytest.raises(ValueError, match=r"no category 'bal'. Near names: ball"):
        dataset(path, metainfo=dict(classes=("box", "bal")))
    with pytest.raises(ValueError, match=r"a sequence of names, not 'ball'; of one class: \('ball',\)"):
        CocoFile(path).get_cat_ids("ball")


def perfect(path, metric):
    """What a metric says of the true boxes with score 1."""
    found = json.loads(path.read_text())
    classes = {3: 0, 7: 1}
    metric.dataset_meta = dict(classes=NAMES)
    samples = []
    for image in found["images"]:
        own = [e for e in found["annotations"] if e["image_id"] == image["id"] and e.get("bbox")]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in own)]).float().reshape(-1, 4)
        labels = torch.tensor([classes[e["category_id"]] for e in own], dtype=torch.long)
        prediction = dict(bboxes=boxes, scores=torch.ones(len(own)), labels=labels)
        samples.append(dict(pred_instances=prediction, img_id=image["id"], ori_shape=(64, 96), img_path="a"))
    metric.process({}, samples)
    return metric.evaluate(len(samples))


@pytest.mark.parametrize(
    "change",
    [
        lambda found: None,
        lambda found: [entry.update(id=number) for number, entry in enumerate(found["annotations"])],  # from 0
        lambda found: [entry.update(id=5) for entry in found["annotations"]],
        lambda found: [entry.pop("id") for entry in found["annotations"]],
        lambda found: [(entry.pop("area"), entry.pop("iscrowd")) for entry in found["annotations"]],
        lambda found: found["annotations"].append(dict(id=99, image_id=0, category_id=3, bbox=[])),
    ],
    ids=["as it is", "ids from 0", "one id", "no ids", "no area, no iscrowd", "an empty box"],
)
def test_perfect_boxes_have_ap_1(coco, change):
    path = coco(change)
    assert perfect(path, CocoBoxes(str(path)))["coco/bbox_mAP"] == 1


def test_nothing_detected_is_ap_0(coco, tmp_path):
    path = coco()
    metric = CocoBoxes(str(path), out_file=tmp_path / "out.json")
    metric.dataset_meta = dict(classes=NAMES)
    empty = dict(bboxes=np.zeros((0, 4)), scores=np.zeros(0), labels=np.zeros(0, int))
    assert metric.compute_metrics([({}, dict(img_id=0, **empty))])["bbox_mAP"] == 0
    assert json.loads((tmp_path / "out.json").read_text()) == []


@pytest.mark.parametrize("names", [NAMES, NAMES[::-1]])
def test_predictions_are_written_in_the_format_of_results(coco, tmp_path, names):
    """pycocotools reads them, and finds what the metric found; ids are those of the file."""
    path, out = coco(), tmp_path / "new" / "out.json"
    metric = CocoBoxes(str(path), out, metric=["bbox", "segm"], classwise=True)
    metric.dataset_meta = dict(classes=names)
    found, rng = json.loads(path.read_text()), np.random.default_rng(0)
    samples = []
    for image in found["images"]:
        own = [e for e in found["annotations"] if e["image_id"] == image["id"]]
        boxes = torch.tensor([[x, y, x + w, y + h] for x, y, w, h in (e["bbox"] for e in own)]).float()
        boxes += torch.from_numpy(rng.uniform(-3, 3, boxes.shape)).float()
        masks = torch.zeros(len(own), 64, 96, dtype=torch.bool)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist()):
            mask[max(top, 0) : bottom, max(left, 0) : right] = True
        labels = torch.tensor([names.index({3: "box", 7: "ball"}[e["category_id"]]) for e in own])
        prediction = dict(bboxes=boxes, scores=torch.rand(len(own)), labels=labels, masks=masks)
        samples.append(dict(pred_instances=prediction, img_id=image["id"], ori_shape=(64, 96), img_path="a"))
    metric.process({}, samples)
    metrics = metric.evaluate(len(samples))
    assert next(iter(metrics)) == "coco/bbox_mAP"  # and not that of a class
    assert {"coco/box_precision", "coco/ball_precision"} <= metrics.keys()
    written = json.loads(out.read_text())
    assert len(written) == len(found["annotations"])
    for entry, truth in zip(written, found["annotations"]):
        assert entry["image_id"] == truth["image_id"]
        assert entry["category_id"] == truth["category_id"]
        assert np.abs(np.subtract(entry["bbox"], truth["bbox"])).max() < 7
    assert decoded(written[0]["segmentation"]).tolist() == samples[0]["pred_instances"]["masks"][0].tolist()
    assert [p.name for p in out.parent.iterdir()] == ["out.json"]
    for kind in ("bbox", "segm"):
        truth = COCO(str(path))
        evaluation = COCOeval(truth, truth.loadRes(str(out)), kind)
        evaluation.params.maxDets = [100, 300, 1000]
        evaluation.evaluate()
        evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, :, 0, -1]
        assert metrics[f"coco/{kind}_mAP"] == pytest.approx(precision[precision > -1].mean(), abs=6e-4)
    with pytest.raises(FileExistsError, match=r"out\.json exists\. To replace it: --overwrite"):
        CocoBoxes(str(path), out)
    with pytest.raises(ValueError, match=r"must end in \.json"):
        CocoBoxes(str(path), tmp_path / "out.npz")


def test_predictions_must_be_finite(coco):
    metric = CocoBoxes(str(coco()))
    sample = dict(
        pred_instances=dict(bboxes=torch.full((1, 4), torch.nan), scores=torch.ones(1), labels=torch.zeros(1)),
        img_id=0, ori_shape=(64, 96), img_path="0.png",
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"predicted for 0\.png is NaN"):
        metric.process({}, [sample])


def test_what_cannot_be_used_is_counted_by_reason(coco):
    bad = [[0, 0, 0, 5], [0, 0, 4, -1], [200, 0, 5, 5], [0, 0, 0.5, 8], [float("nan"), 0, 5, 5], []]
    entries = [dict(id=50 + i, image_id=0, category_id=3, bbox=box) for i, box in enumerate(bad)]
    entries.append(dict(id=70, image_id=0, category_id=3, bbox=[0, 0, 5, 5], segmentation=[[0, 0, 5, 5]]))
    path = coco(lambda found: found["annotations"].extend(entries))
    told = str(CocoFile(path))
    assert "6 images, 12 objects of 2 classes" in told
    assert "2 with a box without width or height (first: annotations[12])" in told
    for reason in ("outside of the image", "smaller than a pixel", "not finite", "without a box", "fewer than three"):
        assert reason in told
    assert len(dataset(path).get_data_info(0)["instances"]) == 2


def test_crowds_are_ignored_regions(coco):
    runs = dict(size=[64, 96], counts=[0, 64 * 96])
    crowd = dict(id=90, image_id=0, category_id=3, bbox=[0, 0, 96, 64], area=6144, iscrowd=1, segmentation=runs)
    path = coco(lambda found: found["annotations"].append(crowd))
    instances = dataset(path).get_data_info(0)["instances"]
    assert [entry["ignore_flag"] for entry in instances] == [0, 0, 1]
    assert instances[-1]["mask"] == runs
    found = json.loads(path.read_text())
    found["annotations"].pop()
    truth = path.with_name("truth.json")
    truth.write_text(json.dumps(found))
    assert perfect(truth, CocoBoxes(str(path)))["coco/bbox_mAP"] == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda found: found.pop("categories"), r"no list of categories; it has images, annotations"),
        (lambda found: found["annotations"][1].update(image_id=77), r"annotations\[1\]\.image_id is 77, the id of"),
        (lambda found: found["annotations"][2].pop("category_id"), r"annotations\[2\] has no category_id"),
        (lambda found: found["annotations"][0].update(bbox=[1, 2, 3]), r"bbox must be \[x, y, width, height\]"),
        (lambda found: found["images"].append(found["images"][2]), r"images\[2\] and images\[6\] have the same id"),
        (lambda found: found["images"][1].update(file_name="0.png"), r"the same file_name, '0\.png'"),
        (lambda found: found["images"][1].update(width="96"), r"images\[1\]\.width must be a number of pixels"),
        (lambda found: found["categories"][1].update(name="box"), r"categories\[0\] and categories\[1\]"),
        (lambda found: found["annotations"].insert(0, 3), r"annotations\[0\] must be an object, not 3"),
    ],
)
def test_bad_files_are_refused_by_entry(coco, change, said):
    with pytest.raises(ValueError, match=said):
        dataset(coco(change))


def test_what_is_no_annotation_file(tmp_path):
    path = write_coco(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"objects\.json"):
        CocoFile(tmp_path / "object.json")
    path.write_text("{'images'")
    with pytest.raises(ValueError, match="is no JSON"):
        CocoFile(path)
    path.write_text("[]")
    with pytest.raises(ValueError, match="a list, as files of results are"):
        CocoFile(path)


def test_a_filter_that_leaves_nothing(coco):
    with pytest.raises(
        ValueError, match=r"leaves none of its 6 images, which have 12 objects of the classes box, ball"
    ):
        dataset(coco(), test_mode=False, filter_cfg=dict(min_size=500))


def test_sizes_are_held_to_the_files(coco):
    path = coco(lambda found: [image.pop("width") for image in found["images"]])
    assert dataset(path).get_data_info(0)["width"] == 96
    path = coco(lambda found: found["images"][0].update(width=100))
    with pytest.raises(ValueError, match=r"0\.png has 96 x 64 pixels, and its annotations are of 100 x 64"):
        dataset(path, pipeline=[dict(type="attlas.ReadImage")])[0]


def turned_jpeg(path, orientation):
    """A JPEG of 8 x 16 pixels, left half bright, with an EXIF orientation."""
    image = np.zeros((8, 16, 3), np.uint8)
    image[:, :8] = 250
    _, data = cv2.imencode(".jpg", image)
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + bytes([orientation, 0, 0, 0]) + bytes(4)
    content = data.tobytes()
    path.write_bytes(content[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + content[2:])


@pytest.mark.parametrize(("size", "shape"), [((8, 16), (8, 16)), ((16, 8), (16, 8)), ((None, None), (16, 8))])
def test_exif_turns_an_image_as_its_annotations_say(tmp_path, size, shape):
    turned_jpeg(tmp_path / "a.jpg", 6)
    found = ReadImage().transform(dict(img_path=str(tmp_path / "a.jpg"), height=size[0], width=size[1]))
    assert found["img"].shape[:2] == found["ori_shape"] == shape
    bright = found["img"].mean(-1) > 125
    assert bright[0].all() if shape == (16, 8) else bright[:, 0].all()


def test_draws_repeat_by_number_and_epoch(coco):
    pipeline = [dict(type="attlas.ReadImage"), dict(type="mmdet.RandomFlip", prob=0.5)]
    data = dataset(coco(), pipeline=pipeline, test_mode=False)
    draws = [[data[i + epoch * 6].get("flip") for i in range(6)] for epoch in range(4)]
    assert draws == [[data[i + epoch * 6].get("flip") for i in range(6)] for epoch in range(4)]
    assert len({tuple(draw) for draw in draws}) > 1
    other = dataset(coco(), pipeline=pipeline, test_mode=False, seed=1)
    assert [[other[i + epoch * 6].get("flip") for i in range(6)] for epoch in range(4)] != draws
