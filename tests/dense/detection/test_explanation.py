"""Scores of queries and boxes of a DETR and of a dense head, and the targets that users name."""

import copy

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from networks import image
from small_detectors import dense, detector, two_stages

from attlas.backbones.inspection.capture import look
from attlas.backbones.inspection.normgrad import normgrad
from attlas.backbones.inspection.relevance import propagate
from attlas.dense.detection.explanation import Answers, Proposed, box_side, class_logit
from attlas.dense.detection.inference import Detection


@pytest.fixture(scope="module")
def detr():
    return Answers(detector().eval())


@pytest.fixture(scope="module")
def retina():
    return Answers(dense("retina").eval())


@pytest.mark.parametrize("kind", ["detr", "retina"])
def test_the_class_and_the_box_of_one_query(kind, request):
    network, x = request.getfixturevalue(kind), image(64, 96)
    with torch.no_grad():
        found = network(x)
    count = found.boxes.shape[1]
    assert found.logits.shape[:2] == (2, count)
    scores = [class_logit([1, 2], [3, count - 1]), box_side("right", [3, count - 1])]
    torch.testing.assert_close(scores[0](found), torch.stack([found.logits[0, 3, 1], found.logits[1, -1, 2]]))
    torch.testing.assert_close(scores[1](found), found.boxes[[0, 1], [3, count - 1], 2])
    layer = "detector.backbone.layer4"
    for score in scores:
        (together,) = normgrad(network, x, score, layer)
        assert together.shape == (2, 2, 3)
        for i in range(2):
            (alone,) = normgrad(network, x[i : i + 1], score.of_sample(i), layer)
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-5)
    other = look(network, x, class_logit(0, 0), layer)[0].gradient
    assert not torch.allclose(other, look(network, x, class_logit(0, 1), layer)[0].gradient)


def test_boxes_are_those_of_the_detectors_answer(retina):
    """Decoded as mmdet does it, before duplicates are removed."""
    x = image(64, 96)[:1]
    with torch.no_grad():
        found = retina(x)
        (answer,) = retina.detector.predict(x, [_sample((64, 96))], rescale=False)
    best = answer.pred_instances
    assert len(best)
    rows = found.logits[0].sigmoid()
    query = (rows[:, best.labels[0]] - best.scores[0]).abs().argmin()
    torch.testing.assert_close(rows[query, best.labels[0]], best.scores[0])
    limits = torch.tensor([96, 64, 96, 64])
    torch.testing.assert_close(found.boxes[0, query].clamp(min=0).minimum(limits), best.bboxes[0], rtol=1e-4, atol=1e-3)


def test_targets_by_name(retina):
    model = retina.detector
    model.classes, model.transforms = ("chair", "table", "lamp", "sofa", "bed"), _pack
    source = Detection().take(np.random.default_rng(0).integers(0, 255, (64, 90, 3), dtype=np.uint8))
    task = Detection()
    best, second = task.question(model, source, None), task.question(model, source, "1:lamp")
    assert second.said.startswith("lamp, query ")
    side = task.question(model, source, "0:left")
    assert "left side of" in side.said
    with torch.no_grad():
        found = best.network(*best.inputs)
    assert best.score(found) == found.logits.max()
    assert side.score(found) == pytest.approx(side.box[0])
    assert best.picture.shape[:2] == tuple(best.inputs[0].shape[-2:])
    assert abs(best.picture[:64, :90].astype(int) - source["img"][..., ::-1]).max() <= 1
    for target, said in (("chair", "must begin with the rank"), ("9999", "rank of a query"), ("0:chiar", "chair")):
        with pytest.raises(ValueError, match=said):
            task.question(model, source, target)


def _pack(data):
    sample = _sample(data["img"].shape[:2])
    return dict(inputs=torch.from_numpy(data["img"]).permute(2, 0, 1), data_samples=sample)


def _sample(size):
    return DetDataSample(metainfo=dict(img_shape=size, ori_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0)))


def test_bad_queries(detr):
    x = image(64, 96)
    for score, said in (
        (class_logit(9, 0), "class 9: the detector has 0 to"),
        (class_logit(0, 4000), "query 4000: the detector has 0 to"),
        (class_logit(0, [0, 1, 2]), "query: 3 numbers for 2 images"),
    ):
        with pytest.raises(ValueError, match=said):
            look(detr, x, score, "detector.backbone.layer4")
    with pytest.raises(ValueError, match=r"side 'middle' is none of left"):
        box_side("middle", 0)
    with pytest.raises(ValueError, match="a Linear has no head that answers for whole images"):
        Answers(torch.nn.Linear(2, 2))


# --- two stages ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("agnostic", [False, True])
def test_what_a_second_stage_says_of_a_box(agnostic):
    """As mmdet predicts it, before duplicates are removed; and a batch of two equals two singles."""
    torch.manual_seed(0)
    network, x = Proposed(two_stages(reg_class_agnostic=agnostic).eval()), image(64, 96)
    boxes = torch.cat([network.propose(x[i : i + 1])[:, :9] for i in range(2)])
    with torch.no_grad():
        found = network(x, boxes)
    assert (found.logits.shape, found.boxes.shape) == ((2, 9, 6), (2, 9, 4))
    torch.testing.assert_close(found.logits.exp().sum(-1), torch.ones(2, 9))
    every = network.propose(x[:1])
    with torch.no_grad():
        of_first = network(x[:1], every)
    sample = _sample((64, 96))
    (answer,) = network.detector.predict(x[:1], [sample], rescale=False)
    best = answer.pred_instances
    assert len(best) > 1
    limits, compared = torch.tensor([96, 64, 96, 64]), 0
    for label, score, box in zip(best.labels, best.scores, best.bboxes):
        query = (of_first.logits[0, :, label].exp() - score).abs().argmin()
        torch.testing.assert_close(of_first.logits[0, query, label].exp(), score)
        if agnostic or of_first.logits[0, query, :5].argmax() == label:
            compared += 1
            inside = of_first.boxes[0, query].clamp(min=0).minimum(limits)
            torch.testing.assert_close(inside, box, rtol=1e-4, atol=1e-3)
    assert compared
    for score in (class_logit([1, 2], [3, 8]), box_side("top", [3, 8])):
        (together,) = normgrad(network, (x, boxes), score, "detector.backbone.layer4")
        assert together.any()
        for i in range(2):
            one = x[i : i + 1], boxes[i : i + 1]
            (alone,) = normgrad(network, one, score.of_sample(i), "detector.backbone.layer4")
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-5)


def test_targets_of_two_stages():
    torch.manual_seed(0)
    model = two_stages().eval()
    model.classes, model.transforms = ("chair", "table", "lamp", "sofa", "bed"), _pack
    source = Detection().take(np.random.default_rng(0).integers(0, 255, (64, 90, 3), dtype=np.uint8))
    question = Detection().question(model, source, None)
    with torch.no_grad():
        found = question.network(*question.inputs)
    assert question.score(found) == found.logits[..., :5].max()  # of no query the background
    assert Detection().question(model, source, "1:lamp").said.startswith("lamp, query ")
    for kind in ("BVRRoIHead", "NoneType"):
        wrong = torch.nn.Module()
        wrong.roi_head = type(kind, (), {})() if kind != "NoneType" else None
        with pytest.raises(ValueError, match=rf"a Module with a {kind} is not explained.*StandardRoIHead are"):
            Proposed(wrong)
    model.rpn_head.test_cfg.min_bbox_size = 1e4
    with pytest.raises(ValueError, match="proposes no box"):
        Detection().question(model, source, None)


# --- relevance -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("detr", marks=pytest.mark.slow), "retina"])
def test_relevance_of_a_query(kind, request):
    """The sum of the relevance and what constants kept is the logit; a batch of two equals two singles."""
    network, x, score = request.getfixturevalue(kind), image(64, 96), class_logit([1, 2], [3, 5])
    found = propagate(network, x, score)
    with torch.no_grad():
        torch.testing.assert_close(found.scores, score(network(x)), rtol=1e-4, atol=1e-4)
    print(found)
    assert found.inputs[0].abs().flatten(1).sum(1).min() > 0
    for i in range(2):
        alone = propagate(network, x[i : i + 1], score.of_sample(i)).inputs[0]
        assert (alone[0] - found.inputs[0][i]).abs().max() <= 1e-3 * alone.abs().max()


def test_relevance_of_a_query_without_constants_is_its_logit(retina):
    network = copy.deepcopy(retina)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if name.endswith(("bias", "running_mean")):
                value.zero_()
    found = propagate(network, image(64, 96), class_logit([1, 2], [3, 5]))
    assert (found.kept.abs() <= 1e-4 * found.inputs[0].abs().flatten(1).sum(1)).all(), str(found)
    assert found.scores.abs().min() > 1e-3
