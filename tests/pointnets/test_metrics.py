import logging
import math

import numpy as np
import pytest
import torch
from mmengine.logging import MMLogger

from attlas.pointnets.metrics import (
    ClassificationMetric,
    PartSegmentationMetric,
    SceneSegmentationMetric,
    rotation_effect,
)
from attlas.registry import METRICS

CLASSES = ("bed", "chair", "sofa")


def sample(probabilities, label, cloud, protocol=None):
    return dict(log_probs=torch.tensor(probabilities).log(), label=torch.tensor(label), cloud=cloud, protocol=protocol)


def evaluate(samples, size=None, **options):
    metric = ClassificationMetric(**options)
    metric.dataset_meta = dict(classes=CLASSES)
    for start in range(0, len(samples), 2):
        metric.process(None, samples[start : start + 2])
    return metric.evaluate(size or len(samples))


# three beds, of which two are found, and one chair, which is not; no sofa
PLAIN = [
    sample([0.8, 0.1, 0.1], 0, 0),
    sample([0.5, 0.2, 0.3], 0, 1),
    sample([0.1, 0.7, 0.2], 0, 2),
    sample([0.1, 0.3, 0.6], 1, 3),
]


def test_accuracies_by_hand():
    metrics = evaluate(PLAIN)
    assert metrics == {"OA": pytest.approx(50), "mAcc": pytest.approx(100 / 3)}  # (2/3 + 0/1) / 2; no sofa, no term


def test_protocols_and_the_effect_of_rotation():
    views = [
        sample([0.8, 0.1, 0.1], 0, 0, "z"),
        sample([0.2, 0.4, 0.4], 1, 1, "z"),
        sample([0.7, 0.2, 0.1], 0, 0, "SO3"),
        sample([0.6, 0.2, 0.2], 1, 1, "SO3"),
        sample([0.8, 0.1, 0.1], 0, 0, "SO3"),
        sample([0.2, 0.5, 0.3], 1, 1, "SO3"),
    ]
    assert evaluate(views) == {
        "z/OA": pytest.approx(100),
        "z/mAcc": pytest.approx(100),
        "SO3/OA": pytest.approx(75),
        "SO3/mAcc": pytest.approx(75),
        "log_prob_change": pytest.approx(math.log(3)),  # cloud 1, class 0: 0.2 and 0.6; cloud 0, class 1: log 2
        "log_prob_change_median": pytest.approx((math.log(3) + math.log(2)) / 2),
        "flips": pytest.approx(50),
    }


def test_views_are_compared_within_a_cloud_only():
    log_probs = np.array([[-1.0, -2], [-3, -1], [-1, -2.5]])
    assert rotation_effect(log_probs, np.array([0, 1, 2])) == {}
    effect = rotation_effect(log_probs, np.array([0, 1, 0]))
    assert effect == dict(log_prob_change=0.5, log_prob_change_median=0.5, flips=0.0)


def test_padding_of_the_last_batch_is_dropped():
    assert evaluate([*PLAIN, PLAIN[3], PLAIN[3]], size=4) == evaluate(PLAIN)


def test_out_file_holds_everything_and_is_not_overwritten(tmp_path):
    path = tmp_path / "new" / "result.npz"
    samples = [sample([0.8, 0.1, 0.1], 0, 7, "z"), sample([0.2, 0.3, 0.5], 1, 8, "SO3")]
    evaluate(samples, out_file=path)
    with np.load(path, allow_pickle=False) as file:
        assert tuple(file["classes"]) == CLASSES
        assert file["labels"].tolist() == [0, 1]
        assert file["clouds"].tolist() == [7, 8]
        assert file["protocols"].tolist() == ["z", "SO3"]
        np.testing.assert_allclose(np.exp(file["log_probs"]), [[0.8, 0.1, 0.1], [0.2, 0.3, 0.5]], rtol=1e-6)
        assert file["confusion_z"].tolist() == [[1, 0, 0], [0, 0, 0], [0, 0, 0]]
        assert file["confusion_SO3"].tolist() == [[0, 0, 0], [0, 0, 1], [0, 0, 0]]
    assert [p.name for p in path.parent.iterdir()] == ["result.npz"]
    with pytest.raises(FileExistsError, match=r"result\.npz exists\. To replace it"):
        ClassificationMetric(out_file=path)
    evaluate(PLAIN, out_file=path, overwrite=True)
    with np.load(path, allow_pickle=False) as file:
        assert file["confusion"].tolist() == [[2, 1, 0], [0, 0, 1], [0, 0, 0]]


def test_one_metric_may_validate_many_times(tmp_path):
    metric = METRICS.build(dict(type="ClassificationMetric", out_file=tmp_path / "result.npz"))
    for _ in range(2):
        metric.process(None, PLAIN)
        assert metric.evaluate(4)["OA"] == pytest.approx(50)


def test_the_table_goes_to_the_log(capsys):
    MMLogger.get_instance("test_metrics", logger_name="test_metrics", log_level=logging.INFO)
    evaluate([sample([0.8, 0.1, 0.1], 0, 0, "z"), sample([0.3, 0.6, 0.1], 0, 0, "SO3")])
    lines = [line.split() for line in "".join(capsys.readouterr()).splitlines()]
    assert ["class", "shapes", "z", "SO3"] in lines
    assert ["bed", "1", "100.0", "0.0"] in lines
    assert ["chair", "0", "-", "-"] in lines
    assert ["OA", "1", "100.0", "0.0"] in lines
    assert any("largest change of a log-probability under rotation: 1.79" in " ".join(line) for line in lines)


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="log_probs of cloud 5 are NaN or infinite: the network has diverged"):
        evaluate([sample([0.5, float("nan"), 0.1], 0, 5)])
    with pytest.raises(ValueError, match="the network gives 2 log-probabilities; the data set has 3 classes"):
        evaluate([sample([0.5, 0.5], 0, 0)])
    with pytest.raises(ValueError, match=r"result\.pkl must end in \.npz"):
        ClassificationMetric(out_file=tmp_path / "result.pkl")


# --- segmentation ----------------------------------------------------------------------------------------------------

PARTS = ("Bag/0", "Bag/1", "Car/0", "Car/1", "Car/2", "Mug/0", "Mug/1")
OWNED = ((0, 1), (2, 3, 4), (5, 6))


def labelled(category, seed, size=40, used=None):
    """A cloud with random log-probabilities of all parts, and labels of its category, or of a part of that."""
    generator = torch.Generator().manual_seed(seed)
    owned = torch.tensor(used or OWNED[category])
    labels = owned[torch.randint(len(owned), (size,), generator=generator)]
    log_probs = torch.randn(size, 7, generator=generator).log_softmax(-1)
    where = dict(category=category, cloud=seed, protocol=None, votes=3, seed=5)
    return dict(log_probs=log_probs, point_labels=labels, **where)


def slow_part_ious(samples):
    """(category, IoU of the shape), written as the benchmark says it, point by point."""
    for sample in samples:
        owned = OWNED[sample["category"]]
        predictions = [max(owned, key=lambda part: float(row[part])) for row in sample["log_probs"]]
        truth = sample["point_labels"].tolist()
        ious = []
        for part in owned:
            both = sum(a == part and b == part for a, b in zip(truth, predictions))
            either = sum(a == part or b == part for a, b in zip(truth, predictions))
            ious.append(1.0 if either == 0 else both / either)
        yield sample["category"], sum(ious) / len(ious), truth, predictions


def test_part_segmentation_as_the_benchmark_defines_it(tmp_path):
    samples = [labelled(0, 1), labelled(0, 2, 15), labelled(1, 3, 60, used=(2, 3)), labelled(1, 4), labelled(1, 5, 7)]
    samples[2]["log_probs"][:, 4] = -50.0  # a part that is absent from truth and prediction
    samples[0]["log_probs"][:, 5] = 0.0  # the likeliest of all, but of another category
    metric = PartSegmentationMetric(out_file=tmp_path / "counts.npz")
    metric.dataset_meta = dict(classes=PARTS)
    metric.process(None, samples)
    logged = []
    MMLogger.get_instance("parts").addHandler(handler := Kept(logged))
    found = metric.evaluate(len(samples))
    MMLogger.get_current_instance().removeHandler(handler)
    shapes = list(slow_part_ious(samples))
    instance = np.mean([iou for _, iou, _, _ in shapes])
    by_category = [np.mean([iou for c, iou, _, _ in shapes if c == category]) for category in (0, 1)]  # no mug, no term
    truth, predictions = (np.concatenate([shape[i] for shape in shapes]) for i in (2, 3))
    pooled = [
        ((truth == part) & (predictions == part)).sum() / ((truth == part) | (predictions == part)).sum()
        for part in np.unique(truth)
    ]
    assert found == {
        "instance_mIoU": pytest.approx(100 * instance),
        "class_mIoU": pytest.approx(100 * np.mean(by_category)),
        "pooled_mIoU": pytest.approx(100 * np.mean(pooled)),
        "OA": pytest.approx(100 * (truth == predictions).mean()),
    }
    assert len({round(found[key], 6) for key in ("instance_mIoU", "class_mIoU", "pooled_mIoU")}) == 3
    assert any("162 points, all that the data have; votes 3, seed 5" in text for text in logged)
    with np.load(tmp_path / "counts.npz") as arrays:
        assert arrays["truth"].sum() == len(truth)
        assert arrays["both"].sum() == (truth == predictions).sum()


class Kept(logging.Handler):
    def __init__(self, texts):
        super().__init__()
        self.texts = texts

    def emit(self, record):
        self.texts.append(record.getMessage())


def scene(predictions, labels, cloud, protocol="z"):
    log_probs = torch.nn.functional.one_hot(torch.tensor(predictions), 4).float().sub(1)
    where = dict(category=None, cloud=cloud, protocol=protocol, votes=1, seed=0)
    return dict(log_probs=log_probs, point_labels=torch.tensor(labels), **where)


def test_a_class_that_no_scene_has_is_absent_not_zero():
    metric = SceneSegmentationMetric()
    metric.dataset_meta = dict(classes=("floor", "wall", "door", "lamp"))
    # no lamp in the truth, though it is predicted once; the scenes are pooled
    first, second = ([0, 0, 1, 3], [0, 0, 1, 1], 0), ([1, 1, 2], [1, 2, 2], 1)
    metric.process(None, [scene(*first), scene(*second), scene(*first, "SO3"), scene(*second, "SO3")])
    logged = []
    MMLogger.get_instance("scenes").addHandler(handler := Kept(logged))
    found = metric.evaluate(4)
    MMLogger.get_current_instance().removeHandler(handler)
    assert any("(7 points, all that the data have" in text for text in logged)  # in two views
    assert {key: found[key] for key in found if key[0] == "z"} == {
        "z/mIoU": pytest.approx(100 * np.mean([2 / 2, 2 / 4, 1 / 2])),
        "z/mAcc": pytest.approx(100 * np.mean([2 / 2, 2 / 3, 1 / 2])),
        "z/OA": pytest.approx(100 * 5 / 7),
    }
    assert any(line.split() == ["lamp", "absent", "absent"] for text in logged for line in text.splitlines())


def test_all_classes_of_scenes_compete_whatever_their_names():
    """The data set of a scene gives it the category 0."""
    metric = SceneSegmentationMetric()
    metric.dataset_meta = dict(classes=("floor/wood", "floor/stone", "wall/wood", "wall/stone"))
    metric.process(None, [scene([0, 1, 2, 3], [0, 1, 2, 3], 0) | dict(category=0)])
    assert metric.evaluate(1)["z/mIoU"] == 100


def test_labels_that_do_not_fit():
    metric = PartSegmentationMetric()
    metric.dataset_meta = dict(classes=PARTS)
    good = labelled(0, 1)
    for change, message in (
        (dict(point_labels=None), "cloud 1 has no labels"),
        (dict(point_labels=good["point_labels"][:-1]), "39 labels and 40 predictions"),
        (dict(point_labels=good["point_labels"] + 6), r"lie in 6\.\.7; of 7 classes"),
        (dict(category=None), "cloud 1 has no category"),
        (dict(category=3), "the category is 3, and the classes are of 3 categories"),
        (dict(log_probs=good["log_probs"] * torch.nan), "NaN or infinite"),
        (dict(log_probs=good["log_probs"][:, 1:]), "gives 6 log-probabilities; the data set has 7 classes"),
    ):
        with pytest.raises(ValueError, match=message):
            metric.process(None, [good | change])
