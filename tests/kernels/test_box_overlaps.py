import math

import pytest
import torch
from agreement import TOLERANCE, assert_agree
from golden_records import Record

from attlas.kernels import bbox_overlaps, box_iou_rotated
from attlas.kernels.box_overlaps import bbox_overlaps_op, box_iou_rotated_op


def upright(count, dtype=torch.float64, device="cpu"):
    corner, size = torch.rand(count, 2, dtype=dtype), torch.rand(count, 2, dtype=dtype)
    return torch.cat([corner, corner + size], 1).to(device)


def rotated(count, dtype=torch.float64, device="cpu"):
    box = [torch.rand(count, 2), torch.rand(count, 2) + 0.05, torch.randn(count, 1) * 3]
    return torch.cat(box, 1).to(device, dtype)


def rotated_from(boxes):
    x1, y1, x2, y2 = boxes.unbind(1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1, torch.zeros_like(x1)], 1)


def by_counting(a, b, offset):
    """Intersection and areas of boxes with integer corners, as numbers of cells."""
    cells = [{(x, y) for x in range(x1, x2 + offset) for y in range(y1, y2 + offset)} for x1, y1, x2, y2 in (a, b)]
    return len(cells[0] & cells[1]), len(cells[0]), len(cells[0] | cells[1])


@pytest.mark.parametrize("offset", [0, 1])
def test_bbox_overlaps_counts_pixels(path, device, offset):
    corner, size = torch.randint(6, (9, 2)), torch.randint(1, 5, (9, 2))
    boxes = torch.cat([corner, corner + size], 1)
    counts = torch.tensor([[by_counting(a, b, offset) for b in boxes.tolist()] for a in boxes.tolist()], device=device)
    inside, area, union = counts.double().unbind(2)
    boxes = boxes.double().to(device)
    assert torch.equal(bbox_overlaps(boxes, boxes, offset=offset), inside / union)
    assert torch.equal(bbox_overlaps(boxes, boxes, "iof", offset=offset), inside / area)
    expected = (inside / union)[:-1].diagonal(1)
    assert torch.equal(bbox_overlaps(boxes[:-1], boxes[1:], aligned=True, offset=offset), expected)


def area_by_polygons(a, b):
    """The intersection, by cutting the polygon of a along the four sides of b (Sutherland and Hodgman)."""

    def corners(box):
        x, y, w, h, angle = box
        turn = complex(math.cos(angle), math.sin(angle))
        return [complex(x, y) + turn * complex(i * w, j * h) / 2 for i, j in ((-1, -1), (1, -1), (1, 1), (-1, 1))]

    polygon, sides = corners(a), corners(b)
    for start, end in zip(sides, sides[1:] + sides[:1]):
        signs = [((end - start).conjugate() * (p - start)).imag for p in polygon]
        cut = []
        for i, (p, q) in enumerate(zip(polygon, polygon[1:] + polygon[:1])):
            s, t = signs[i], signs[(i + 1) % len(signs)]
            cut += [p] if s >= 0 else []
            cut += [p + (q - p) * s / (s - t)] if s * t < 0 else []
        polygon = cut
        if not polygon:
            return 0.0
    return sum((p.conjugate() * q).imag for p, q in zip(polygon, polygon[1:] + polygon[:1])) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", ["iou", "iof"])
def test_box_iou_rotated_equals_cut_polygons(path, device, dtype, mode):
    a, b = rotated(9), rotated(17)
    inside = torch.tensor([[area_by_polygons(p, q) for q in b.tolist()] for p in a.tolist()], dtype=torch.float64)
    area, other = (a[:, 2] * a[:, 3])[:, None], b[:, 2] * b[:, 3]
    expected = (inside / (area + other - inside if mode == "iou" else area)).to(dtype)
    a, b = a.to(device, dtype), b.to(device, dtype)
    assert_agree("overlaps", box_iou_rotated(a, b, mode).cpu(), expected)
    assert_agree("pairs", box_iou_rotated(a, b[:9], mode, aligned=True).cpu(), expected[:, :9].diagonal())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_that_share_edges(path, device, dtype):
    """Equal boxes, halves of a box, neighbors, a box in a box that touches it, turned together by any angle."""
    plain = torch.tensor([[0, 0, 4, 2], [0, 0, 4, 2], [1, 0, 2, 2], [4, 0, 4, 2], [-1, 0.5, 2, 1]], dtype=dtype)
    expected = torch.tensor([1, 1, 0.5, 0, 0.25], dtype=dtype)
    for angle in torch.linspace(-7, 7, 23, dtype=dtype).tolist():
        turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]], dtype=dtype)
        boxes = torch.cat([plain[:, :2] @ turn, plain[:, 2:], torch.full((5, 1), angle, dtype=dtype)], 1).to(device)
        overlaps = box_iou_rotated(boxes[:1].expand(5, -1), boxes, aligned=True).cpu()
        assert (overlaps - expected).abs().max() < 10 * TOLERANCE[dtype]
        assert overlaps.max() <= 1


def test_an_angle_turns_x_towards_y(path, device):
    """A long box along the diagonal x = y contains (1, 1), and not (1, -1)."""
    box = torch.tensor([[0, 0, 4, 0.2, math.pi / 4]], device=device)
    points = torch.tensor([[1, 1, 0.01, 0.01, 0], [1, -1, 0.01, 0.01, 0]], device=device)
    assert box_iou_rotated(points, box, "iof").flatten().tolist() == pytest.approx([1, 0], abs=1e-4)


def test_a_box_without_a_turn_is_upright(path, device):
    a, b = upright(8, device=device), upright(9, device=device)
    assert_agree("overlaps", box_iou_rotated(rotated_from(a), rotated_from(b)), bbox_overlaps(a, b))


def test_boxes_without_an_area(path, device):
    nan, inf = math.nan, math.inf
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, 0, 1], [2, 2, 1, 1], [0, 0, 2, 2]], device=device)
    overlaps = bbox_overlaps(boxes, boxes).cpu()
    # the third is turned inside out: its area is positive, its intersection with anything is empty
    expected = torch.tensor([[1, 0, 0, 0.25], [0, nan, 0, 0], [0, 0, 0, 0], [0.25, 0, 0, 1]])
    assert torch.equal(overlaps.nan_to_num(-1), expected.nan_to_num(-1))
    turned = torch.tensor(
        [[0, 0, 1, 1, 0.3], [0, 0, 0, 1, 0.3], [0, 0, -1, 1, 0.3], [0, 0, -1, -1, 0.3]], device=device
    )
    expected = torch.tensor([[1.0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [1, 0, 0, 1]])
    assert (box_iou_rotated(turned, turned).cpu() - expected).abs().max() < 1e-6
    if device.type == "cpu":
        wrong = torch.tensor([[0, 0, 1, 1, nan], [inf, 0, 1, 1, 0], [0, 0, 1, inf, 0]])
        assert box_iou_rotated(wrong, turned).isnan().all()
        assert box_iou_rotated(turned, wrong).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(path, device, dtype):
    a, b = upright(5, dtype=torch.float32, device=device).to(dtype), upright(6, torch.float32, device).to(dtype)
    assert torch.equal(bbox_overlaps(a, b), bbox_overlaps(a.float(), b.float()).to(dtype))
    a, b = rotated(5, dtype, device), rotated(6, dtype, device)
    assert torch.equal(box_iou_rotated(a, b), box_iou_rotated(a.float(), b.float()).to(dtype))


def test_empty_and_strided(path, device):
    a, b = upright(5, device=device), upright(6, device=device)
    assert bbox_overlaps(a[:0], b).shape == (0, 6)
    assert bbox_overlaps(a, b[:0]).shape == (5, 0)
    assert bbox_overlaps(a[:0], b[:0], aligned=True).shape == (0,)
    assert box_iou_rotated(rotated(0, device=device), rotated(2, device=device)).shape == (0, 2)
    wide = torch.stack([a, a], 2).flatten(1)
    assert torch.equal(bbox_overlaps(wide[:, ::2], b), bbox_overlaps(a, b))


def test_operators(path, device):
    a, b = upright(5, device=device), upright(5, device=device)
    for aligned in (False, True):
        torch.library.opcheck(bbox_overlaps_op, (a, b, "iou", aligned, 1))
        torch.library.opcheck(box_iou_rotated_op, (rotated_from(a), rotated_from(b), "iof", aligned))


def test_one_graph():
    graph = torch.compile(lambda a, b: bbox_overlaps(a, b) * 2, fullgraph=True, backend="aot_eager")
    a, b = upright(5), upright(6)
    assert torch.equal(graph(a, b), bbox_overlaps(a, b) * 2)


def test_bad_arguments():
    a, b = upright(5), upright(6)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got \(5, 3\)"):
        bbox_overlaps(a[:, :3], b)
    with pytest.raises(ValueError, match=r"others must have shape \(N, 5\), got \(6, 4\)"):
        box_iou_rotated(rotated(2), b)
    with pytest.raises(TypeError, match="boxes and others must be of one floating-point dtype"):
        bbox_overlaps(a, b.float())
    with pytest.raises(TypeError, match="boxes must be a tensor"):
        bbox_overlaps([[0, 0, 1, 1]], b)
    with pytest.raises(ValueError, match=r"mode must be one of \('iou', 'iof'\), got 'giou'"):
        bbox_overlaps(a, b, "giou")
    with pytest.raises(ValueError, match="others must be as many as boxes if aligned, 5, got 6"):
        bbox_overlaps(a, b, aligned=True)
    with pytest.raises(ValueError, match=r"offset must lie in 0..1, got 2"):
        bbox_overlaps(a, b, offset=2)


@pytest.mark.parametrize("name", ["upright_boxes", "rotated_boxes"])
def test_equals_the_compiled_extension(path, device, name):
    record, tried = Record(f"mmcv/{name}"), 0
    boxes, others = record.arrays["boxes"][40:80].to(device), record.arrays["others"].to(device)
    for number, (function, *options) in enumerate(record.config["cases"]):
        expected = record.output(number).to(device)
        if function == "bbox_overlaps":
            assert torch.equal(bbox_overlaps(boxes, others, *options).nan_to_num(-1), expected.nan_to_num(-1)), options
        elif function == "box_iou_rotated":
            assert (box_iou_rotated(boxes, others, *options) - expected).abs().max() < 1e-5, options
        tried += function in ("bbox_overlaps", "box_iou_rotated")
    assert tried >= 4
