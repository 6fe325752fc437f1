"""The stand-in for mmcv's compiled extension: when it is used, and that mmcv's own operators work on it."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from golden_records import Record

import attlas  # noqa: F401  before mmcv
from attlas import kernels
from attlas.kernels import deform_roi_pool, mmcv_ext, roi_align, roi_pool

pytest.importorskip("mmcv")  # the machine of `make gpu` has none


def run(code: str) -> str:
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_every_name_can_be_imported():
    """mmcv asks for its 113 names when it is imported."""
    importlib.import_module("mmcv.ops")
    extension = importlib.import_module("mmcv._ext")
    assert importlib.util.find_spec("mmcv._ext") is not None
    for name in mmcv_ext.__all__:
        assert getattr(extension, name) is getattr(mmcv_ext, name)
    with pytest.raises(AttributeError, match="no attribute '__wrapped__'"):
        extension.__wrapped__  # noqa: B018


def test_a_missing_operator_says_what_to_do():
    extension = importlib.import_module("mmcv._ext")
    with pytest.raises(RuntimeError, match=r"operator upfirdn2d needs mmcv's compiled extension.*pip install"):
        extension.upfirdn2d(1, 2)


def test_a_compiled_extension_comes_first(tmp_path):
    (tmp_path / "mmcv").mkdir()
    (tmp_path / "mmcv/__init__.py").touch()
    (tmp_path / "mmcv/_ext.py").write_text("compiled = True")
    find = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run(f"{find}; import attlas, mmcv._ext; print(vars(mmcv._ext).get('compiled'))") == "True"


def test_importing_attlas_imports_nothing_else():
    assert run("import attlas, sys; print({'torch', 'numpy', 'mmcv', 'mmengine'} & set(sys.modules))") == "set()"


# --- carafe ----------------------------------------------------------------------------------------------------------


def test_carafe_of_mmcv():
    ops = importlib.import_module("mmcv.ops")
    features = torch.randn(2, 4, 3, 5, dtype=torch.float64, requires_grad=True)
    masks = torch.randn(2, 18, 6, 10, dtype=torch.float64, requires_grad=True)
    settings = 3, 2, 2  # kernel size, groups, scale
    assert torch.autograd.gradcheck(lambda *x: ops.carafe(*x, *settings), (features, masks))
    naive, out = ops.carafe_naive(features, masks, *settings), ops.carafe(features, masks, *settings)
    assert torch.equal(naive, out)
    expected = torch.autograd.grad(out.sum(), [features, masks])
    given = torch.ones_like(out), features, masks
    got = [torch.zeros_like(features), torch.zeros_like(masks)]
    mmcv_ext.carafe_naive_backward(*given, *got, *settings)  # mmcv's own function wants a GPU here
    torch.testing.assert_close(got, [*expected])
    with pytest.raises(ValueError, match=r"masks must have shape \(2, 9, 6, 10\), got \(2, 18, 6, 10\)"):
        mmcv_ext.carafe_naive_forward(features, masks, out, 3, 1, 2)


# --- deform_roi_pool -------------------------------------------------------------------------------------------------


def test_deform_roi_pool():
    from mmcv.ops import DeformRoIPool

    features = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[1, 2.0, 3.0, 20.0, 15.0], [0, -4.0, 1.0, 9.0, 30.0]], dtype=torch.float64)
    offset = torch.randn(2, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    layer = DeformRoIPool((3, 2), 0.5, 2, 0.2)
    assert_gradients_agree(layer, lambda *x: deform_roi_pool(*x, (3, 2), 0.5, 2, 0.2), (features, rois, offset))
    assert_gradients_agree(layer, lambda *x: roi_align(*x, (3, 2), 0.5, 2), (features, rois))


# --- deformable_attention --------------------------------------------------------------------------------------------


def test_deformable_attention():
    """mmcv's function on our operator, against mmcv's Python form; it casts places and weights to the values' dtype."""
    from mmcv.ops.multi_scale_deform_attn import (
        MultiScaleDeformableAttnFunction,
        multi_scale_deformable_attn_pytorch,
    )

    sizes = torch.tensor([(4, 3), (2, 5)])
    value = torch.randn(2, 22, 2, 4, dtype=torch.float64, requires_grad=True)
    locations = torch.rand(2, 3, 2, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    weights = torch.rand(2, 3, 2, 2, 2, dtype=torch.float64, requires_grad=True)

    def ours(value, locations, weights):
        start = torch.tensor([0, 12])
        return MultiScaleDeformableAttnFunction.apply(value, sizes, start, locations, weights, 64)

    def theirs(value, locations, weights):
        return multi_scale_deformable_attn_pytorch(value, sizes, locations, weights)

    assert_gradients_agree(ours, theirs, (value, locations, weights))
    half = value.detach().half().requires_grad_()
    out = ours(half, locations.detach().float(), weights.detach().float())
    assert_agree("half", out.detach(), theirs(half.float(), locations.half().float(), weights.half().float()).half())
    assert torch.autograd.grad(out.sum(), half)[0].dtype == torch.float16


# --- deformable_convolution ------------------------------------------------------------------------------------------


KEPT = pytest.mark.skipif(not mmcv_ext.KEEPS_WRITES, reason="its graph breaks in this PyTorch")


def convolution_of_mmcv(record):
    """mmcv's function, and its differentiable arguments in order."""
    ops, inputs = importlib.import_module("mmcv.ops"), record.inputs
    inputs["offset"] *= record.config["offset_scale"]
    steps = tuple(record.config["steps"].values())
    kernel = inputs["weight"].shape[2:]
    offset_groups = inputs["offset"].shape[1] // (2 * kernel.numel())
    names = ("x", "offset", "mask", "weight", "bias") if "mask" in inputs else ("x", "offset", "weight")
    function = ops.modulated_deform_conv2d if "mask" in inputs else ops.deform_conv2d
    leaves = {name: inputs[name].requires_grad_() for name in names}
    return lambda *tensors: function(*tensors, *steps, offset_groups), leaves, inputs["grad"]


@pytest.mark.parametrize("traced", [False, pytest.param(True, marks=KEPT)])
@pytest.mark.parametrize(
    "case", ["deform_conv", "deform_conv_groups", "modulated_deform_conv_groups", "modulated_deform_conv_larger"]
)
def test_deformable_convolutions_of_mmcv(case, traced):
    """They equal the compiled extension, and go through torch.compile in one graph. In the last case offsets and masks
    are of a larger map, as mmdet's DyHead passes them."""
    record = Record(f"mmcv/{case}")
    function, leaves, grad = convolution_of_mmcv(record)
    out = (torch.compile(function, fullgraph=True, backend="aot_eager") if traced else function)(*leaves.values())
    names = record.config["gradients"]
    gradients = torch.autograd.grad(out, [leaves[name] for name in names], grad)
    for number, got in enumerate((out, *gradients)):
        torch.testing.assert_close(got.float(), record.output(number), rtol=1e-5, atol=1e-5)


def test_a_deformable_convolution_of_several_steps_and_none_of_a_bias():
    """mmcv's `im2col_step`, the images at a time, changes nothing; without a bias it passes an empty one."""
    ops = importlib.import_module("mmcv.ops")
    x, offset = torch.randn(4, 2, 5, 6), torch.randn(4, 18, 5, 6)
    weight, ones = torch.randn(3, 2, 3, 3, requires_grad=True), torch.ones(4, 9, 5, 6)
    whole, by_one = (ops.deform_conv2d(x, offset, weight, 1, 1, 1, 1, 1, False, step) for step in (32, 1))
    assert torch.equal(whole, by_one)
    out = ops.modulated_deform_conv2d(x, offset, ones, weight, None, 1, 1)
    torch.testing.assert_close(out, whole)
    (grad,) = torch.autograd.grad(out.sum(), weight)
    torch.testing.assert_close(grad, torch.autograd.grad(whole.sum(), weight)[0])


def test_offsets_of_a_smaller_map_are_refused():
    ops = importlib.import_module("mmcv.ops")
    x, offset, mask, weight = (
        torch.randn(1, 4, 5, 6),
        torch.randn(1, 18, 5, 5),
        torch.ones(1, 9, 5, 6),
        torch.randn(3, 4, 3, 3),
    )
    with pytest.raises(ValueError, match=r"offset and mask must have at least the 5 x 6 pixels .* got 5 x 5"):
        ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1)


def test_offsets_of_other_groups_than_named_are_refused():
    ops = importlib.import_module("mmcv.ops")
    x, offset, weight = torch.randn(1, 4, 5, 6), torch.randn(1, 36, 5, 6), torch.randn(3, 4, 3, 3)
    with pytest.raises(ValueError, match=r"offset must have 18 channels, for 1 deformable groups .* got 36"):
        ops.deform_conv2d(x, offset, weight, 1, 1)


# --- masked_conv -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0, 0.4, 1])
def test_masked_convolution_of_mmcv(share):
    """It is the convolution where the mask is positive, and zero elsewhere."""
    layer = importlib.import_module("mmcv.ops").MaskedConv2d(3, 4, (3, 5), padding=(1, 2))
    x, mask = torch.randn(1, 3, 6, 7), torch.rand(1, 6, 7) - 1 + share
    with torch.no_grad():
        got, expected = layer(x, mask), layer(x).where(mask > 0, 0)
    torch.testing.assert_close(got, expected)


# --- psa_mask --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["collect", "distribute"])
def test_psa_mask_of_mmcv(mode):
    ops, record = importlib.import_module("mmcv.ops"), Record(f"mmcv/psamask_{mode}")
    x, grad = (record.input(f"psamask_{mode}.{name}", torch.float32) for name in ("x", "grad"))
    out = ops.PSAMask(mode, tuple(record.config["kernel_size"]))(x.requires_grad_())
    assert torch.equal(out, record.output(0))
    assert torch.equal(torch.autograd.grad(out, x, grad)[0], record.output(1))


# --- boxes and losses ------------------------------------------------------------------------------------------------


def crowd(count=200, rotated=False):
    corner, size = torch.rand(count, 2) * 5, torch.rand(count, 2) + 0.05
    boxes = torch.cat([corner, size, torch.randn(count, 1)] if rotated else [corner, corner + size], 1)
    return boxes, torch.rand(count)


def test_nms():
    ops = importlib.import_module("mmcv.ops")
    boxes, scores = crowd()
    kept = kernels.nms(boxes, scores, 0.4, 1)
    dets, index = ops.nms(boxes, scores, 0.4, offset=1)
    assert torch.equal(index, kept)
    assert torch.equal(dets, torch.cat([boxes[kept], scores[kept, None]], 1))
    assert ops.nms(boxes.numpy(), scores.numpy(), 0.4, 1)[1].tolist() == kept.tolist()
    few = ops.nms(boxes, scores, 0.4, offset=1, score_threshold=0.5, max_num=7)[1]
    assert torch.equal(few, kept[scores[kept] > 0.5][:7])
    remover = kernels.nms_match(boxes, scores, 0.4)
    groups = ops.nms_match(torch.cat([boxes, scores[:, None]], 1), 0.4)
    assert sorted(i for group in groups for i in group.tolist()) == list(range(200))
    assert all((remover[group] == group[0]).all() for group in groups)
    one = torch.tensor([[0, 0, 2, 2, 0.9], [0, 0, 2, 1, 0.8]])
    assert len(ops.nms_match(one, 0.5)) == 1  # at the threshold
    assert len(ops.nms(one[:, :4], one[:, 4], 0.5)[1]) == 2


@pytest.mark.parametrize("kind", ["nms", "soft_nms", "nms_rotated"])
def test_batched_nms(kind):
    """By classes: as many calls as classes."""
    ops = importlib.import_module("mmcv.ops")
    (boxes, scores), classes = crowd(rotated=kind == "nms_rotated"), torch.randint(3, (200,))
    dets, index = ops.batched_nms(boxes, scores, classes, dict(type=kind, iou_threshold=0.4))
    expected = []
    for number in range(3):
        mine = (classes == number).nonzero().squeeze(1)
        expected += mine[getattr(ops, kind)(boxes[mine], scores[mine], iou_threshold=0.4)[1]].tolist()
    assert sorted(index.tolist()) == sorted(expected)
    assert torch.equal(dets[:, :-1], boxes[index])


@pytest.mark.parametrize("method", ["naive", "linear", "gaussian"])
def test_soft_nms(method):
    ops = importlib.import_module("mmcv.ops")
    boxes, scores = crowd()
    index, values = kernels.soft_nms(boxes, scores, 0.4, 0.7, 0.1, method, 1)
    dets, got = ops.soft_nms(boxes, scores, 0.4, 0.7, 0.1, method, 1)
    assert torch.equal(got, index)
    assert torch.equal(dets, torch.cat([boxes[index], values[:, None]], 1))


def test_rotated_boxes():
    ops = importlib.import_module("mmcv.ops")
    (boxes, scores), labels = crowd(rotated=True), torch.randint(3, (200,))
    assert torch.equal(ops.nms_rotated(boxes, scores, 0.3)[1], kernels.nms_rotated(boxes, scores, 0.3))
    dets, index = ops.nms_rotated(boxes, scores, 0.3, labels)
    assert torch.equal(index, kernels.nms_rotated(boxes, scores, 0.3, labels))
    assert torch.equal(dets[:, :5], boxes[index])
    turned = boxes * torch.tensor([1, 1, 1, 1, -1])
    assert torch.equal(
        ops.nms_rotated(boxes, scores, 0.3, clockwise=False)[1], kernels.nms_rotated(turned, scores, 0.3)
    )
    for mode, aligned in (("iou", False), ("iof", True)):
        expected = kernels.box_iou_rotated(boxes, boxes.flip(0), mode, aligned)
        assert torch.equal(ops.box_iou_rotated(boxes, boxes.flip(0), mode, aligned), expected)


@pytest.mark.parametrize(("mode", "aligned", "offset"), [("iou", False, 0), ("iof", True, 1)])
def test_bbox_overlaps(mode, aligned, offset):
    ops, bbox = importlib.import_module("mmcv.ops"), importlib.import_module("mmcv.ops.bbox")
    (boxes, _), (others, _) = crowd(50), crowd(50)
    got = ops.bbox_overlaps(boxes, others, mode, aligned, offset)
    assert torch.equal(got, bbox._bbox_overlaps_cpu(boxes, others, mode, aligned, offset))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("background", [False, True])
def test_focal_losses(reduction, background):
    ops, weight = importlib.import_module("mmcv.ops"), torch.rand(7, dtype=torch.float64)
    logits = torch.randn(40, 7, dtype=torch.float64, requires_grad=True)
    target = torch.randint(7 + background, (40,))
    reduce = {"none": lambda x: x, "mean": lambda x: x.sum() / 40, "sum": torch.sum}[reduction]
    layer = ops.SigmoidFocalLoss(1.5, 0.3, weight, reduction)
    ours = lambda x: reduce(kernels.sigmoid_focal_loss(x, target, weight, 1.5, 0.3))  # noqa: E731
    assert_gradients_agree(lambda x: layer(x, target), ours, [logits])
    if not background:
        layer = ops.SoftmaxFocalLoss(1.5, 0.3, weight, reduction)
        ours = lambda x: reduce(kernels.softmax_focal_loss(x, target, weight, 1.5, 0.3))  # noqa: E731
        if reduction == "none":  # mmcv's own backward multiplies (N, C) by (N,) here
            assert_agree("softmax", layer(logits, target).detach(), ours(logits).detach())
        else:
            assert_gradients_agree(lambda x: layer(x, target), ours, [logits])


def test_the_sigmoid_loss_equals_mmdet_s_own():
    pytest.importorskip("mmdet")
    losses, ops = importlib.import_module("mmdet.models.losses.focal_loss"), importlib.import_module("mmcv.ops")
    logits, target = torch.randn(40, 7, dtype=torch.float64, requires_grad=True), torch.randint(8, (40,))
    yes = torch.nn.functional.one_hot(target, 8)[:, :7]
    assert_gradients_agree(
        lambda x: ops.sigmoid_focal_loss(x, target, 2.0, 0.25, None, "none"),
        lambda x: losses.py_sigmoid_focal_loss(x, yes, reduction="none"),
        [logits],
    )


# --- points ----------------------------------------------------------------------------------------------------------


def test_searches():
    ops = importlib.import_module("mmcv.ops")
    points, queries = torch.randn(2, 60, 3), torch.randn(2, 20, 3)
    distance = torch.cdist(queries.double(), points.double())
    order = distance.argsort(-1)
    assert torch.equal(ops.knn(5, points, queries), order[..., :5].mT.int())
    nearest, index = ops.three_nn(queries, points)
    assert torch.equal(index, order[..., :3].int())
    assert torch.allclose(nearest.double(), distance.gather(2, order[..., :3]), atol=1e-6)
    for least, most in ((0, 0.4), (0.3, 0.8)):
        found = ops.ball_query(least, most, 4, points, queries)
        for got, row in zip(found.flatten(0, 1).tolist(), distance.flatten(0, 1)):
            inside = ((row >= least) & (row < most)).nonzero().flatten().tolist()[:4]
            assert got == (inside + inside[:1] * 4 if inside else [0] * 4)[:4]


def test_farthest_points():
    """mmcv's wrapper of the first has no memory for the output without a GPU: the adapter itself is called."""
    ops = importlib.import_module("mmcv.ops")
    points = torch.randn(2, 40, 3, dtype=torch.float64)
    index, temp = torch.zeros(2, 9, dtype=torch.int32), torch.full((2, 40), 1e10, dtype=torch.float64)
    mmcv_ext.furthest_point_sampling_forward(points, temp, index, b=2, n=40, m=9)
    assert torch.equal(index.long(), kernels.farthest_point_sample(points, 9))
    squared = (points.unsqueeze(2) - points.unsqueeze(1)).square().sum(-1)
    assert torch.equal(ops.furthest_point_sample_with_dist(squared, 9), index)


def test_gathers_and_interpolation():
    ops = importlib.import_module("mmcv.ops")
    features = torch.randn(2, 5, 30, dtype=torch.float64, requires_grad=True)
    index, weight = torch.randint(30, (2, 12, 3)), torch.rand(2, 12, 3, dtype=torch.float64)
    rows = lambda x: torch.stack([cloud[:, i] for cloud, i in zip(x, index)])  # noqa: E731
    assert_gradients_agree(lambda x: ops.grouping_operation(x, index.int()), rows, [features])
    one = index[..., 0].contiguous().int()
    assert_gradients_agree(lambda x: ops.gather_points(x, one), lambda x: rows(x)[..., 0], [features])
    assert_gradients_agree(
        lambda x: ops.three_interpolate(x, index.int(), weight),
        lambda x: (rows(x) * weight.unsqueeze(1)).sum(-1),
        [features],
    )


@torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True)
def test_one_graph():
    """Where the compiled extension breaks it; the number of kept boxes needs the compiler's permission."""
    ops = importlib.import_module("mmcv.ops")
    logits, target = torch.randn(40, 7, requires_grad=True), torch.randint(7, (40,))
    boxes, weight = crowd(30)[0], torch.rand(7)  # without a weight mmcv calls new_empty, which conftest replaces

    def loss(x):
        return ops.sigmoid_focal_loss(x, target, 2.0, 0.25, weight, "sum") + ops.bbox_overlaps(boxes, boxes).sum()

    graph = torch.compile(loss, fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(logits).detach(), loss(logits).detach())
    assert torch.equal(*(torch.autograd.grad(call(logits), logits)[0] for call in (graph, loss)))
    scores = torch.rand(30)
    graph = torch.compile(lambda x: ops.nms(x, scores, 0.5)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(graph(boxes), ops.nms(boxes, scores, 0.5)[0])


# --- roi_align -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_roi_align(mode):
    from mmcv.ops import RoIAlign

    features = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[1, 2.0, 3.0, 20.0, 15.0], [0, -4.0, 1.0, 9.0, 30.0]], dtype=torch.float64)
    layer = RoIAlign((3, 2), 0.5, 0, mode, aligned=True)
    assert_gradients_agree(layer, lambda *x: roi_align(*x, (3, 2), 0.5, 0, mode), (features, rois))
    half = features.detach().half().requires_grad_()
    assert torch.autograd.grad(layer(half, rois.half()).sum(), half)[0].isfinite().all()


# --- roi_pool --------------------------------------------------------------------------------------------------------


def test_roi_pool():
    from mmcv.ops import RoIPool

    features = torch.randn(2, 3, 8, 9, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[1, 2.0, 3.0, 20.0, 15.0], [0, -4.0, 1.0, 9.0, 30.0]], dtype=torch.float64)
    assert_gradients_agree(RoIPool((3, 2), 0.5), lambda *x: roi_pool(*x, (3, 2), 0.5), (features, rois))
