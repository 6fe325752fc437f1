import functools
import importlib
import math

import pytest
import torch
from golden_records import Record
from operator_calls import Draw, boxes

from attlas.kernels import bbox_overlaps, nms, nms_match, nms_rotated, soft_nms
from attlas.kernels.dispatch import translations
from attlas.kernels.nms import nms_match_op, nms_op, soft_nms_op

THRESHOLDS = (0, 0.05, 0.3, 0.5, 0.9)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks of few boxes."""
    monkeypatch.setattr(importlib.import_module("attlas.kernels.nms"), "BLOCK", 256)


def crowd(count, side=10.0, device="cpu", dtype=torch.float32, rotated=False):
    """Boxes of sides up to 1 in a square, of scores with many ties."""
    corner, size = torch.rand(count, 2) * side, torch.rand(count, 2) + 0.05
    x = torch.cat([corner, size, torch.randn(count, 1)] if rotated else [corner, corner + size], 1)
    return x.to(device, dtype), torch.rand(count).mul(20).round().div(20).to(device)


def by_definition(x, scores, threshold, offset=0, groups=None):
    """Kept boxes, one after the other, and who removes each."""
    area = [(x2 - x1 + offset) * (y2 - y1 + offset) for x1, y1, x2, y2 in x.tolist()]
    rows, kept, remover = x.tolist(), [], {}
    for j in sorted(range(len(rows)), key=lambda j: (-scores[j].item(), j)):
        for i in kept:
            if groups is not None and groups[i] != groups[j]:
                continue
            (a, b, c, d), (e, f, g, h) = rows[i], rows[j]
            inside = max(0, min(c, g) - max(a, e) + offset) * max(0, min(d, h) - max(b, f) + offset)
            if inside and inside / (area[i] + area[j] - inside) > threshold:
                remover[j] = i
                break
        else:
            kept.append(j)
            remover[j] = j
    return kept, [remover[j] for j in range(len(rows))]


@pytest.mark.parametrize(("threshold", "offset"), [(0, 0), (0.1, 1), (0.5, 0), (1, 0)])
def test_nms_equals_definition(path, device, threshold, offset):
    x, scores = crowd(270, side=5 + 9 * offset, dtype=torch.float64, device=device)
    groups = torch.randint(3, (270,), device=device) - 2**61
    kept, remover = by_definition(x, scores, threshold, offset)
    assert nms(x, scores, threshold, offset).tolist() == kept
    assert nms_match(x, scores, threshold, offset).tolist() == remover
    assert nms(x, scores, threshold, offset, groups).tolist() == by_definition(x, scores, threshold, offset, groups)[0]
    assert 3 < len(kept) < 270 or threshold == 1


@pytest.mark.parametrize("threshold", [0.1, 0.5])
def test_nms_rotated_equals_reference(path, device, threshold, monkeypatch):
    x, scores = crowd(270, side=2, rotated=True, device=device)
    groups = torch.randint(3, (270,), device=device)
    got = nms_rotated(x, scores, threshold), nms_rotated(x, scores, threshold, groups)
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    assert torch.equal(got[0], nms_rotated(x, scores, threshold))
    assert torch.equal(got[1], nms_rotated(x, scores, threshold, groups))
    assert 3 < len(got[0]) < len(got[1]) < 270


@pytest.mark.parametrize("rotated", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_the_grid_misses_nothing(seed, rotated, monkeypatch):
    """Sides over many orders of magnitude, far from the origin, many equal, all thresholds."""
    draw = Draw(seed)
    x = boxes(draw, 250, torch.float32, rotated).detach().double()
    scale = 10 ** (torch.rand(250, 1, dtype=torch.float64, generator=draw.generator) * draw.choice((0, 2, 6)) - 3)
    x[:, :4] *= scale
    x[:, : 2 if rotated else 4] += draw.choice((0, 0, 1e3, 1e9, -1e12))
    scores = torch.rand(250, generator=draw.generator)
    calls = [nms_rotated] if rotated else [nms, functools.partial(nms_match, offset=1)]
    got = [call(x, scores, threshold) for call in calls for threshold in THRESHOLDS]
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    expected = [call(x, scores, threshold) for call in calls for threshold in THRESHOLDS]
    assert all(torch.equal(*both) for both in zip(got, expected))


def test_properties(path, device):
    """No two kept boxes overlap too much; a kept box of higher or equal score removes each of the others."""
    x, scores = crowd(200, side=4, device=device)
    kept = nms(x, scores, 0.4)
    overlaps = bbox_overlaps(x[kept], x[kept]).fill_diagonal_(0)
    assert overlaps.max() <= 0.4
    assert torch.equal(scores[kept], scores[kept].sort(descending=True).values)
    remover = nms_match(x, scores, 0.4)
    assert torch.equal(remover[kept], kept)
    assert set(remover.tolist()) == set(kept.tolist())
    removed = remover != torch.arange(200, device=device)
    assert (bbox_overlaps(x, x[remover], aligned=True)[removed] > 0.4).all()
    assert (scores[remover] >= scores).all()
    assert nms(x, scores, 1.0).shape == nms(x, scores, 7.5).shape == (200,)


def test_ties_duplicates_and_boxes_without_an_area(path, device):
    nan, inf = math.nan, math.inf
    x = torch.tensor(
        [[0, 0, 2, 2], [0, 0, 2, 2], [5, 5, 5, 9], [5, 5, 5, 9], [9, 9, 8, 8], [9, 9, 8, 8], [0, 0, 2, 1.0]],
        device=device,
    )
    scores = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 0.5], device=device)
    assert nms(x, scores, 0.5).tolist() == [4, 5, 0, 2, 3, 6]  # an overlap of just 0.5 does not exceed it
    assert nms(x, scores, 0.49).tolist() == [4, 5, 0, 2, 3]
    assert nms(x, scores, 0.49, offset=1).tolist() == [4, 5, 0, 2]  # 5, 5, 5, 9 is one pixel wide
    assert nms_match(x, scores, 0.49).tolist() == [0, 0, 2, 3, 4, 5, 0]
    if device.type == "cpu":
        x[0, 2], x[1, 0], x[3] = nan, -inf, inf
        assert nms(x, scores, 0).tolist() == [4, 5, 0, 1, 2, 3, 6]
        scores[6] = nan
        assert nms(x, scores, 0)[0] == 6


def soft_by_definition(x, scores, threshold, sigma, least, method):
    left, out = dict(enumerate(scores.tolist())), []
    overlaps = bbox_overlaps(x, x).nan_to_num(0).tolist()
    while left:
        best = max(left, key=lambda i: (left[i], -i))
        out.append((best, left.pop(best)))
        for i in [*left]:
            overlap = overlaps[best][i]
            if method == "gaussian":
                left[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[i] *= 1 - overlap if method == "linear" else 0
            if left[i] < least:
                del left[i]
    return out


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
@pytest.mark.parametrize("least", [0, 1e-3, 0.5])
def test_soft_nms_equals_definition(path, device, method, least):
    x, scores = crowd(120, side=3, dtype=torch.float64, device=device)
    index, values = soft_nms(x, scores.double(), 0.3, 0.4, least, method)
    expected = soft_by_definition(x, scores.double(), 0.3, 0.4, least, method)
    assert index.tolist() == [i for i, _ in expected]
    assert values.tolist() == pytest.approx([value for _, value in expected], rel=1e-12)
    assert index.device == values.device == x.device


def test_soft_nms_naive_is_nms(path, device):
    x, scores = crowd(100, side=4, device=device)
    scores = scores + 0.1  # above 0, which is what a removed box gets
    assert torch.equal(soft_nms(x, scores, 0.5, min_score=0.01, method="naive")[0], nms(x, scores, 0.5))


def test_the_first_box_is_taken_whatever_its_score(path, device):
    x, scores = crowd(10, device=device)
    index, values = soft_nms(x, scores * 1e-6, min_score=0.1)
    assert index.tolist() == [int(scores.argmax())]
    assert values.tolist() == pytest.approx([scores.max().item() * 1e-6])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(path, device, dtype):
    x, scores = crowd(80, side=4, device=device, dtype=dtype)
    scores = scores.to(dtype)
    assert torch.equal(nms(x, scores, 0.5), nms(x.float(), scores.float(), 0.5))
    index, values = soft_nms(x, scores)
    expected = soft_nms(x.float(), scores.float())
    assert torch.equal(index, expected[0])
    assert torch.equal(values, expected[1].to(dtype))


@pytest.mark.parametrize("count", [0, 1])
def test_few_boxes(path, device, count):
    x, scores = crowd(count, device=device)
    groups = torch.zeros(count, dtype=torch.int64, device=device)
    one = list(range(count))
    assert nms(x, scores, 0.5).tolist() == nms(x, scores, 0.5, groups=groups).tolist() == one
    assert nms_match(x, scores, 0.5).tolist() == soft_nms(x, scores)[0].tolist() == one
    assert nms_rotated(*crowd(count, rotated=True, device=device), 0.5, groups).tolist() == one


def test_boxes_of_any_size():
    """Areas that are 0 or infinite overlap nothing."""
    x, scores = crowd(80, side=3, dtype=torch.float64)
    for scale in (1e-320, 1e-200, 1e200, 1e308):
        assert len(nms(x * scale, scores, 0.1)) == 80
    for scale in (1e-150, 1e150):
        assert torch.equal(nms(x * scale, scores, 0.1), nms(x, scores, 0.1))


def test_strided(path, device):
    x, scores = crowd(50, side=3, device=device)
    wide, twice = torch.stack([x, x], 2).flatten(1)[:, ::2], torch.stack([scores, scores], 1)[:, 0]
    assert torch.equal(nms(wide, twice, 0.3), nms(x, scores, 0.3))
    assert torch.equal(soft_nms(wide, twice)[1], soft_nms(x, scores)[1])


def test_operators(path, device):
    x, scores = crowd(30, side=2, device=device)
    groups = torch.randint(2, (30,), device=device)
    torch.library.opcheck(nms_op, (x, scores, 0.5, 0, groups))
    torch.library.opcheck(nms_op, (crowd(30, rotated=True, device=device)[0], scores, 0.5, 0, None))
    torch.library.opcheck(nms_match_op, (x, scores, 0.5, 1))
    torch.library.opcheck(soft_nms_op, (x, scores, 0.5, 0.5, 0.0, "linear", 0))


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_one_graph():
    """As any operator whose output has as many rows as it finds, it needs the compiler's permission."""
    graph = torch.compile(lambda x, scores: x[nms(x, scores, 0.5)] * 2, fullgraph=True, backend="aot_eager")
    x, scores = crowd(60, side=2)
    assert torch.equal(graph(x, scores), x[nms(x, scores, 0.5)] * 2)
    graph = torch.compile(lambda x, scores: nms_match(x, scores, 0.5) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(x, scores), nms_match(x, scores, 0.5) + 1)


def test_bad_arguments():
    x, scores = crowd(5)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 4\), got \(5, 5\)"):
        nms(torch.zeros(5, 5), scores, 0.5)
    with pytest.raises(ValueError, match=r"boxes must have shape \(N, 5\), got \(5, 4\)"):
        nms_rotated(x, scores, 0.5)
    with pytest.raises(ValueError, match=r"scores must have shape \(5,\), one per box, got \(4,\)"):
        nms(x, scores[:4], 0.5)
    with pytest.raises(TypeError, match="boxes must be floating point"):
        nms_match(x.long(), scores, 0.5)
    with pytest.raises(TypeError, match="scores must be a tensor, got None"):
        soft_nms(x, None)
    with pytest.raises(ValueError, match=r"iou_threshold must be at least 0 and finite, got -0.5"):
        nms(x, scores, -0.5)
    with pytest.raises(ValueError, match=r"groups must be int64 of shape \(5,\), one per box, got torch.int32 \(5,\)"):
        nms(x, scores, 0.5, groups=torch.zeros(5, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"offset must lie in 0..1, got 3"):
        nms_match(x, scores, 0.5, offset=3)
    with pytest.raises(ValueError, match="method must be one of"):
        soft_nms(x, scores, method="cubic")
    with pytest.raises(ValueError, match="sigma must be positive"):
        soft_nms(x, scores, sigma=0)


def test_equals_the_compiled_extension(path, device):
    record = Record("mmcv/upright_boxes")
    x, scores, order = (record.arrays[name].to(device) for name in ("boxes", "scores", "order"))
    falling = torch.linspace(1, 0, len(x), device=device)  # for boxes in the extension's order
    wide = (x[:, 2:] != x[:, :2]).all(1)
    for number, (name, option, offset, *_) in enumerate(record.config["cases"]):
        expected = record.output(number).to(device)
        match name:
            case "nms":
                got = nms(x, scores, option, offset)
            case "nms tied":
                got = order[nms(x[order], falling, option, offset)]
            case "nms_match":  # there a box at the threshold is removed
                got = nms_match(x, scores, option - 1e-7)
            case "soft_nms":
                index, values = soft_nms(x[wide], scores[wide], 0.3, 0.5, 0.05, option, offset)
                assert torch.allclose(values, expected[:, 1])
                got, expected = index, expected[:, 0]
            case _:
                continue
        assert torch.equal(got, expected.long()), (name, option, offset)


def test_rotated_equals_the_compiled_extension(path, device):
    record = Record("mmcv/rotated_boxes")
    boxes, scores = record.arrays["boxes"].to(device), record.arrays["scores"].to(device)
    for number, (name, threshold, *_) in enumerate(record.config["cases"]):
        if name == "nms_rotated":
            got = nms_rotated(boxes, scores, threshold)
            assert torch.equal(got.cpu(), record.output(number).long()), threshold


@pytest.mark.parametrize(("offset", "grouped"), [(0, False), (1, True)])
def test_exports_to_onnx(tmp_path, offset, grouped):
    """By the operator that ONNX has: the same boxes in the same order, for any number of them."""
    onnxruntime = pytest.importorskip("onnxruntime")

    class Suppress(torch.nn.Module):
        def forward(self, x, scores, groups):
            return nms(x, scores, 0.3, offset, groups if grouped else None)

    def inputs(count):
        return crowd(count)[0], torch.randperm(count) / count - 0.5, torch.randint(3, (count,))

    some = torch.export.Dim("count", min=2)
    program = torch.export.export(Suppress(), inputs(50), dynamic_shapes=({0: some},) * 3)
    written = torch.onnx.export(program, custom_translation_table=translations(), dynamo=True, verbose=False)
    written.save(tmp_path / "nms.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "nms.onnx", providers=["CPUExecutionProvider"])
    for count in (300, 2):
        given = inputs(count)
        named = {x.name: value.numpy() for x, value in zip(session.get_inputs(), given)}
        (kept,) = session.run(None, named)
        assert torch.equal(torch.from_numpy(kept), Suppress()(*given))


def test_boxes_in_any_orientation_do_not_export_to_onnx():
    class Suppress(torch.nn.Module):
        def forward(self, x, scores):
            return nms_rotated(x, scores, 0.3)

    program = torch.export.export(Suppress(), crowd(20, rotated=True))
    with pytest.raises(torch.onnx.OnnxExporterError) as error:
        torch.onnx.export(program, custom_translation_table=translations(), dynamo=True, verbose=False)
    causes = [error.value]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    assert any("nms_rotated has no counterpart in ONNX" in str(cause) for cause in causes)
