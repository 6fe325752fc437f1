"""Figures of maps against the definition, pixel by pixel."""

import numpy as np
import pytest
import torch

from attlas.confusion import read_results
from attlas.dense.segmentation import metrics
from attlas.dense.segmentation.metrics import MapIoU, boundary_areas, confusion

NAMES = ("sky", "road", "car", "cat", "dog")


def judged(pairs, **options):
    """The figures of (predicted, true) maps."""
    metric = MapIoU(**options)
    metric.dataset_meta = dict(classes=NAMES)
    for found, truth in pairs:
        sample = dict(
            pred_sem_seg=dict(data=torch.tensor(found)[None]), gt_sem_seg=dict(data=torch.tensor(truth)[None])
        )
        metric.process(None, [sample])
    return metric.evaluate(len(pairs))


def slow(pairs, ignored=255):
    """The definition: for each class the sets of pixels, image by image, and of all."""
    by_image, pooled = [], {name: [0, 0] for name in NAMES}
    right = total = 0
    for found, truth in pairs:
        ious = []
        pixels = [(f, t) for f, t in zip(np.ravel(found).tolist(), np.ravel(truth).tolist()) if t != ignored]
        right += sum(f == t for f, t in pixels)
        total += len(pixels)
        for label, name in enumerate(NAMES):
            if label == ignored:
                continue
            both = sum(f == label and t == label for f, t in pixels)
            either = sum(label in (f, t) for f, t in pixels)
            pooled[name][0] += both
            pooled[name][1] += either
            ious += [both / either] if either else []
        by_image += [sum(ious) / len(ious)] if ious else []
    there = {name: both / either for name, (both, either) in pooled.items() if either}
    figures = dict(mIoU=sum(there.values()) / len(there), mIoU_image=sum(by_image) / len(by_image), aAcc=right / total)
    return figures | {f"IoU/{name}": value for name, value in there.items()}


@pytest.mark.parametrize("ignored", [255, 1])
def test_against_the_definition(ignored):
    """A class that is nowhere has no figure, and does not lower the mean; nor has one that is ignored."""
    draw = np.random.default_rng(0)
    pairs = [(draw.integers(0, 4, (6, 7)), draw.integers(0, 4, (6, 7))) for _ in range(3)]
    for _, truth in pairs:
        truth[0] = ignored
    pairs.append((draw.integers(0, 4, (6, 7)), np.full((6, 7), ignored)))  # an image without a label
    found, expected = judged(pairs, ignore_index=ignored), slow(pairs, ignored)
    if ignored == 1:  # predicted where another class is, it lowers that one's figure, and has none itself
        assert "IoU/road" not in found
    assert "IoU/dog" not in found
    assert {name: value for name, value in found.items() if name != "mAcc"} == pytest.approx(
        {name: 100 * value for name, value in expected.items()}, abs=0.006
    )


def test_a_room_without_an_object():
    """Its class is absent, not at 0; if it was seen in a pixel where it is not, it is at 0."""
    truth = np.zeros((4, 4), int)
    truth[:, 2:] = 1
    assert judged([(truth, truth)]) == {
        "mIoU": 100, "mIoU_image": 100, "mAcc": 100, "aAcc": 100, "IoU/sky": 100, "IoU/road": 100
    }  # fmt: skip
    found = truth.copy()
    found[0, 0] = 2
    figures = judged([(found, truth)])
    assert figures["IoU/car"] == 0
    assert figures["mIoU"] == pytest.approx(100 * (7 / 8 + 1 + 0) / 3, abs=0.006)


def test_the_log_says_which_classes_were_averaged(monkeypatch):
    """Of five, without the ignored one and the two that are nowhere."""
    told = []
    monkeypatch.setattr(metrics, "print_log", lambda text, **_: told.append(text))
    truth = np.zeros((4, 4), int)
    truth[:, 1:] = 1
    truth[:, 2:] = 2
    figures = judged([(truth, truth)], ignore_index=0)
    assert figures["mIoU"] == figures["mAcc"] == figures["aAcc"] == 100
    assert "mean over 2 of 5 classes" in told[-1]
    assert "absent, and left out: sky, cat, dog" in told[-1]


def test_what_cannot_be_judged():
    truth = np.zeros((4, 4), int)
    with pytest.raises(ValueError, match="no pixel of the evaluated images has a label"):
        judged([(truth, truth + 255)])
    with pytest.raises(ValueError, match="true labels go from 7 to 7, and there are 5 classes"):
        judged([(truth, truth + 7)])
    with pytest.raises(ValueError, match=r"\(4, 4\) was predicted, and the truth is \(2, 4\)"):
        confusion(torch.tensor(truth), torch.tensor(truth[:2]), 5)


def slow_boundary(found, truth, label, distance, ignored):
    """Boundary IoU of a class, by its sets of pixels."""
    height, width = truth.shape

    def near(labels):
        pixels = {(y, x) for y in range(height) for x in range(width) if labels[y, x] == label}
        steps = [(a, b) for a in range(-distance, distance + 1) for b in range(-distance, distance + 1)]
        return {(y, x) for y, x in pixels if any((y + a, x + b) not in pixels for a, b in steps)}

    g, p = near(truth), near(np.where(truth == ignored, ignored, found))
    return len(g & p) / len(g | p) if g | p else None


@pytest.mark.parametrize("ignored", [255, 3])
@pytest.mark.parametrize("distance", [1, 2, 9])
def test_boundaries_against_the_definition(distance, ignored):
    """Also a distance as large as the image, where it is the plain IoU."""
    draw = np.random.default_rng(distance)
    truth = np.repeat(np.repeat(draw.integers(0, 4, (3, 2)), 5, 0), 6, 1)
    found = np.roll(truth, (1, 2), (0, 1))
    truth[4:7, 3:8] = ignored
    both, one, other = boundary_areas(found, truth, 5, distance, ignored)
    for label in range(5):
        if label == ignored:
            continue
        union = one[label] + other[label] - both[label]
        assert (both[label] / union if union else None) == slow_boundary(found, truth, label, distance, ignored)
    if distance == 9:
        plain = confusion(torch.tensor(found), torch.tensor(truth), 5, ignored).numpy()
        labels = [i for i in range(5) if i != ignored]
        assert np.array_equal(both[labels], plain.diagonal()[labels])
        assert np.array_equal(other[labels], plain.sum(1)[labels])


def test_a_coarse_boundary_lowers_its_figure_more():
    truth = np.zeros((60, 80), int)
    truth[:, 40:] = 1
    found = np.zeros_like(truth)
    found[:, 41:] = 1
    truth[:5] = found[:5] = 255
    truth[:5] = 255
    figures = judged([(np.where(found == 255, 0, found), truth)], boundary=0.02)  # 2 pixels of a diagonal of 100
    assert figures["BIoU/road"] < figures["IoU/road"] - 20
    assert figures["mBIoU"] == pytest.approx((figures["BIoU/sky"] + figures["BIoU/road"]) / 2, abs=0.011)
    assert not any("car" in name for name in figures)  # absent, not 0
    assert judged([(truth % 255, truth)], boundary=0.02)["mBIoU"] == 100
    with pytest.raises(ValueError, match="boundary=3 must be a share of the image's diagonal"):
        MapIoU(boundary=3)


def test_the_file_of_results(tmp_path):
    """It holds the table by class, NaN for those that are absent, and the matrix of a picture."""
    truth = np.zeros((4, 4), int)
    truth[:, 2:] = 1
    truth[0, 0] = 255
    found = np.where(truth == 1, 2, 0)
    path = tmp_path / "maps.npz"
    judged([(found, truth), (truth % 255, truth)], out_file=path, boundary=0.1)
    classes, confusions = read_results(path)
    assert classes == NAMES
    expected = np.zeros((5, 5), int)
    expected[0, 0], expected[1, 2], expected[1, 1] = 14, 8, 8
    assert np.array_equal(confusions[""], expected)
    with np.load(path) as file:
        np.testing.assert_allclose(file["iou"], [100, 50, 0, np.nan, np.nan])
        np.testing.assert_allclose(file["accuracy"], [100, 50, np.nan, np.nan, np.nan])
        np.testing.assert_allclose(file["boundary_iou"], [100, 50, 0, np.nan, np.nan])
    with pytest.raises(FileExistsError):
        MapIoU(out_file=path)
