"""What goes on inside of a detector while it looks at an image: relations between queries, and key points.

`pictures.py` draws it. Modules are listened to while the detector answers as it always does; what a kernel never writes
out (the weights of key points) is computed again for one query.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn

from ... import checkpoint as checkpoints
from ...browsing import choose
from ...data import drawn
from ...files import printable
from ...images import read_image
from ...inference import Inferencer
from ..masks import decoded, rasterized
from ..transforms import ReadImage
from .bvr import BVRMixin, BVRRoIHead
from .inference import Detection
from .position_relation import PositionRelation


@dataclass
class Subject:
    """An image to look at."""

    image: np.ndarray  # uint8 (H, W, 3), red, green, blue
    name: str
    truth: list[dict] | None = None  # its annotations as `attlas.drawing.draw_objects` takes them; None without any


def subject(dataset: Any, item: int) -> Subject:
    """An image of a data set of mmdet, as its annotations have it.

    Raises:
        ValueError: there is no item of this number, or its image cannot be read.
    """
    choose(dataset, 1, [item])
    info = dataset.get_data_info(item)
    names = dataset.metainfo["classes"]
    image = ReadImage().transform(dict(info))["img"][..., ::-1]
    truth = []
    for entry in info["instances"]:
        label, crowd = entry["bbox_label"], " (crowd)" if entry.get("ignore_flag") else ""
        mask = rasterized(entry["mask"], image.shape[:2]) if entry.get("mask") else None
        truth.append(dict(label=label, name=f"{names[label]}{crowd}", box=entry["bbox"], mask=mask))
    return Subject(image, f"{item}: {Path(info['img_path']).name}", truth)


def file_subject(path: Path) -> Subject:
    """An image file, of which nothing is known."""
    return Subject(read_image(path), path.name)


def detector(checkpoint: Path, config: Config) -> Inferencer:
    """The detector of a checkpoint, to be asked.

    Raises:
        ValueError: the model of the config is none that detects; or what `attlas.load` raises.
    """
    asked = Inferencer(checkpoint, config)
    if not isinstance(asked.task, Detection):
        raise ValueError(f"{config.filename}: the model is a {type(asked.model).__name__}, and must be a detector.")
    return asked


def trained(checkpoint: Path) -> str:
    """How long a checkpoint was trained, "epoch 4", or its name where it does not say so."""
    meta = checkpoints.read(checkpoint).get("meta")
    for key, name in (("epoch", "epoch"), ("iter", "iteration")):
        if isinstance(meta, dict) and isinstance(meta.get(key), int) and meta[key] > 0:
            return f"{name} {meta[key]:,}"
    return printable(checkpoint.name, 40)


def detections(asked: Inferencer, subject: Subject) -> list[dict]:
    """The objects that a detector finds, the best first, as `attlas.drawing.draw_objects` takes them."""
    return _answer(asked, subject)[1]


def _answer(asked: Inferencer, subject: Subject) -> tuple[Any, list[dict]]:
    """What the model gives (a sample of mmdet), and the objects in it."""
    # the image as the annotations have it, which a file may turn by EXIF
    source = asked.task.take(subject.image)
    data = drawn(asked.model.transforms, copy.deepcopy(source), subject.name, 0)
    with torch.inference_mode():
        (sample,) = asked.model.test_step(pseudo_collate([data]))
        try:
            found = asked.task.result(sample, source, asked.model.classes, asked.task.top)["objects"]
        except ValueError as error:
            raise ValueError(f"{printable(subject.name)}: {error}") from None
    return sample, [{**entry, "mask": decoded(entry["mask"])} if "mask" in entry else entry for entry in found]


@contextmanager
def _hooked(*handles: Any) -> Iterator[None]:
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _scores(head: nn.Module, logits: Tensor) -> Tensor:
    """Scores of the classes (..., C), without a background."""
    return logits.sigmoid() if head.loss_cls.use_sigmoid else logits.softmax(-1)[..., :-1]  # type: ignore[union-attr]


def _name(asked: Inferencer, label: int) -> str:
    return asked.model.classes[label] if asked.model.classes else f"class {label}"


# --- position relation -----------------------------------------------------------------------------------------------


@dataclass
class Relation:
    """The bias of one query's self-attention in a layer of a decoder, by the places of all queries."""

    layer: int  # of the decoder, from 1
    layers: int  # of the decoder
    query: int
    bias: np.ndarray  # (heads, N), of the attention's logits, at least 0
    box: np.ndarray  # (4,), the box of the query in the relation, [x1, y1, x2, y2] in pixels of the image
    boxes: np.ndarray  # (N, 4), those of all queries as keys, which were refined once more
    scores: np.ndarray  # (N,), the highest score of each query behind the last layer
    names: list[str]  # (N,), the class of that score
    found: list[dict]  # what the detector finds


def position_relation(
    asked: Inferencer, subject: Subject, layer: int | None = None, query: int | None = None
) -> Relation:
    """The position relation of a query in a DETR's decoder.

    Args:
        asked: the detector.
        subject: the image.
        layer: number of a layer of the decoder, from 1; by default the last.
        query: number of a query, from 0; by default the one with the highest score.

    Raises:
        ValueError: the detector has no position relation, or no such layer or query.
    """
    model = asked.model
    decoders = [m for m in model.modules() if isinstance(getattr(m, "position_relation", None), PositionRelation)]
    if not decoders:
        raise ValueError(
            f"the detector, a {type(model).__name__}, has no position relation. One is in the decoder of "
            "attlas.RelationDETR, RelationDINO, RelationDeformableDETR or RelationDABDETR with "
            "decoder=dict(position_relation=...)."
        )
    (decoder,) = decoders
    latest: list[tuple[Tensor, ...]] = []  # the relation that was computed last
    biases: dict[int, tuple[Tensor, ...]] = {}  # what each layer gets
    answers: list[Tensor] = []

    def related(_, inputs, bias):
        latest[:] = [(*inputs[:2], bias)]

    def reached(number):
        return lambda *_: biases.update({number: latest[0]} if latest else {})

    with _hooked(
        decoder.position_relation.register_forward_hook(related),
        model.bbox_head.register_forward_hook(lambda _, inputs, outputs: answers.append(outputs[0])),
        *(each.register_forward_pre_hook(reached(number)) for number, each in enumerate(decoder.layers, 1)),
    ):
        _, found = _answer(asked, subject)
    layer = len(decoder.layers) if layer is None else layer
    if not biases:
        raise ValueError(
            f"no layer of the decoder has a position relation: it relates the boxes of two layers, and "
            f"the decoder has {len(decoder.layers)}."
        )
    if layer not in biases:
        raise ValueError(
            f"layer is {layer}; of the {len(decoder.layers)} layers of the decoder, {min(biases)} to {max(biases)} "
            "have a position relation."
        )
    scores, labels = _scores(model.bbox_head, answers[0][-1, 0].float()).max(-1)
    source, target, bias = biases[layer]
    query = int(scores.argmax()) if query is None else query
    if not 0 <= query < len(scores):
        raise ValueError(f"query is {query}; the detector has queries 0 to {len(scores) - 1}.")
    height, width = subject.image.shape[:2]
    center, size = torch.cat([source[:, query], target[0]]).float().cpu().double().split(2, -1)
    boxes = torch.cat([center - size / 2, center + size / 2], -1) * torch.tensor([width, height] * 2)
    return Relation(
        layer,
        len(decoder.layers),
        query,
        bias[:, query].float().cpu().numpy(),
        boxes[0].numpy(),
        boxes[1:].numpy(),
        scores.cpu().numpy(),
        [_name(asked, label) for label in labels.tolist()],
        found,
    )


# --- key points ------------------------------------------------------------------------------------------------------


@dataclass
class KeyPoints:
    """The key points of a type that a detector chose."""

    heat: np.ndarray  # (H, W), the highest score of all classes and levels at each pixel of the finest level
    extent: tuple[float, float]  # width and height of that map in pixels of the image
    positions: np.ndarray  # (K, 2), x and y in pixels of the image, by descending score
    scores: np.ndarray  # (K,)


@dataclass
class Attended:
    """How much the query that made a detection attends to the key points of a type."""

    use: str  # what the attention refines: "score" or "box"
    kind: str  # type of the key points
    place: np.ndarray  # (2,), where the query is, x and y in pixels of the image
    weights: np.ndarray  # (heads, K), each row with the sum 1


@dataclass
class Bridging:
    """Key points of an image, by type, and the attention to them of one detection, if there is any."""

    points: dict[str, KeyPoints]
    found: list[dict]  # what the detector finds, the best first
    detection: dict | None
    attended: list[Attended]


def key_points(asked: Inferencer, subject: Subject, detection: int | None = None) -> Bridging:
    """The key points of BVR in an image, and how the query of a detection attends to them.

    Args:
        asked: the detector.
        subject: the image.
        detection: number of a detection, 0 the one with the highest score; by default that one, if there is any.

    Raises:
        ValueError: the detector has no key points, or finds no detection of this number.
    """
    heads = [module for module in asked.model.modules() if isinstance(module, (BVRMixin, BVRRoIHead))]
    if not heads:
        raise ValueError(
            f"the detector, a {type(asked.model).__name__}, has no key points. They are in the heads "
            "attlas.BVRRetinaHead, BVRFCOSHead, BVRATSSHead and BVRRoIHead."
        )
    head: Any = heads[0]
    predictor: Any = head if isinstance(head, BVRMixin) else head.bbox_head
    heard: dict[str, Any] = {}

    def outputs_of(name):
        return lambda _, inputs, outputs: heard.update({name: outputs})

    def inputs_of(name):
        return lambda _, inputs: heard.update({name: inputs})

    with _hooked(
        head.keypoint_head.register_forward_hook(outputs_of("levels")),
        predictor.register_forward_hook(outputs_of("predicted")),
        head.cls_bridge.register_forward_pre_hook(inputs_of("score")),
        head.reg_bridge.register_forward_pre_hook(inputs_of("box")),
    ):
        sample, found = _answer(asked, subject)
    scale = torch.tensor(sample.metainfo["scale_factor"][:2]).float()
    with torch.inference_mode():
        points = {kind: _points(head.keypoint_head, levels, scale) for kind, levels in heard["levels"].items()}
        if detection is None and not found:
            return Bridging(points, found, None, [])
        chosen = 0 if detection is None else detection
        if not 0 <= chosen < len(found):
            told = f"has detections 0 to {len(found) - 1}" if found else "has no detection"
            raise ValueError(f"detection is {detection}; {printable(subject.name)} {told}.")
        box = torch.tensor(found[chosen]["box"]) * scale.repeat(2)
        query = _query_of(predictor, heard, box, found[chosen]["label"], sample.metainfo["img_shape"][:2])
        attended = []
        for use, bridge, types in (
            ("score", head.cls_bridge, head.cls_types),
            ("box", head.reg_bridge, head.reg_types),
        ):
            queries, places, keys, key_positions, units = heard[use]
            level, index = query
            places = [place[:, index : index + 1] for place in places[level]]
            weights = bridge.weights(queries[level][:, index : index + 1], places, keys, key_positions, units[level])
            attended += [
                Attended(use, kind, (place[0, 0].float().cpu() / scale).numpy(), weight[0, :, 0].float().cpu().numpy())
                for kind, place, weight in zip(types, places, weights)
            ]
    return Bridging(points, found, found[chosen], attended)


def _points(head: Any, levels: list[tuple[Tensor, Tensor]], scale: Tensor) -> KeyPoints:
    finest = head.strides[0]
    height, width = levels[0][0].shape[2:]
    heat = torch.zeros(height, width)
    for (logits, _), stride in zip(levels, head.strides):
        scores = logits[0].float().sigmoid().amax(0).cpu()
        rows, columns = (
            (torch.arange(count) * finest // stride).clamp(max=most - 1)
            for count, most in zip((height, width), scores.shape)
        )
        heat = torch.maximum(heat, scores[rows][:, columns])
    keys = head.keys(levels)
    extent = (torch.tensor([width, height]) * finest / scale).tolist()
    positions = keys.positions[0].float().cpu() / scale
    return KeyPoints(heat.numpy(), tuple(extent), positions.numpy(), keys.scores[0].float().cpu().numpy())


def _query_of(predictor: Any, heard: dict[str, Any], box: Tensor, label: int, shape: tuple) -> tuple[int, int]:
    """The level and the number of the query that predicts a box: of those whose box it is, the one with the best score.

    Non-maximum suppression keeps no track of it, so all queries' boxes are decoded again.
    """
    one_stage = isinstance(predictor, BVRMixin)
    if one_stage:
        scores, boxes, *factors = heard["predicted"]
        sizes = [x.shape[2:] for x in scores]
        priors = predictor.prior_generator.grid_priors(sizes, dtype=boxes[0].dtype, device=boxes[0].device)
        candidates = []
        for level, prior in enumerate(priors):
            count = predictor.num_base_priors
            of_classes = scores[level][0].permute(1, 2, 0).reshape(-1, predictor.cls_out_channels)
            score = _scores(predictor, of_classes.float())[:, label]
            if factors:
                score = score * factors[0][level][0].permute(1, 2, 0).reshape(-1).sigmoid()
            moved = boxes[level][0].permute(1, 2, 0).reshape(-1, 4)
            candidates.append((score, predictor.bbox_coder.decode(prior, moved, max_shape=shape), count))
    else:
        scores, moved = heard["predicted"]
        first, last = heard["box"][1][0]  # the proposals' corners
        proposals = torch.cat([first[0], last[0]], -1)
        own = slice(None) if predictor.reg_class_agnostic else slice(4 * label, 4 * label + 4)
        decoded_boxes = predictor.bbox_coder.decode(proposals, moved[:, own], max_shape=shape)
        candidates = [(_scores(predictor, scores.float())[:, label], decoded_boxes, 1)]
    best: tuple[float, float, tuple[int, int]] | None = None
    for level, (score, boxes_of_level, count) in enumerate(candidates):
        away = (boxes_of_level.float().cpu() - box).abs().amax(1)
        rank = score.cpu().where(away <= away.min() + 0.01, -1)
        index = int(rank.argmax())
        entry = (round(float(away[index]), 2), -float(rank[index]), (level, index // count))
        best = entry if best is None or entry < best else best
    assert best is not None
    return best[2]
