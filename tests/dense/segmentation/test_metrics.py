"""Figures of maps against the definition, pixel by pixel."""

import numpy as np
import pytest
import torch

from attlas.dense.segmentation.metrics import MapIoU, areas

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


def test_what_cannot_be_judged():
    truth = np.zeros((4, 4), int)
    with pytest.raises(ValueError, match="no pixel of the evaluated images has a label"):
        judged([(truth, truth + 255)])
    with pytest.raises(ValueError, match="true labels go from 7 to 7, and there are 5 classes"):
        judged([(truth, truth + 7)])
    with pytest.raises(ValueError, match=r"\(4, 4\) was predicted, and the truth is \(2, 4\)"):
        areas(torch.tensor(truth), torch.tensor(truth[:2]), 5)
