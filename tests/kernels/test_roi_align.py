import pytest
import torch
from agreement import assert_agree, assert_gradients_agree
from golden_records import Record

from attlas.kernels.roi_align import grids, roi_align, roi_align_backward_op, roi_align_op

# outside on one or all sides, far away, of no width, no height or neither, smaller than a pixel, larger than the map
BOXES = [
    [0, 1.3, 2.1, 17.7, 13.2], [1, -3.2, -4.6, 9.1, 6.3], [0, 4.2, 5.4, 4.2, 9.9], [1, 5, 6, 5, 6],
    [1, 10.3, 9.7, 31.2, 29.4], [0, 60, 50, 70, 61], [1, 12.1, 7.3, 12.9, 7.6], [0, -7.3, 3.1, 41.9, 5.5],
]  # fmt: skip
OPTIONS = [(mode, aligned, ratio) for mode in ("avg", "max") for aligned in (True, False) for ratio in (0, 2)]


def sample(plane, y, x):
    """Bilinear, by definition: (H, W) at a place."""
    height, width = plane.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return None
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    near = lambda a, b: max(0.0, 1 - abs(a - b))  # noqa: E731
    rows, columns = range(int(y), min(int(y) + 2, height)), range(int(x), min(int(x) + 2, width))
    return sum(near(y, i) * near(x, j) * plane[i, j] for i in rows for j in columns)


def by_definition(features, rois, size, scale, ratio, mode, aligned):
    """One number after another."""
    out = []
    for box in rois.double().tolist():
        left, top, right, bottom = (edge * scale - aligned / 2 for edge in box[1:])
        high, wide = bottom - top, right - left
        if not aligned:
            high, wide = max(high, 1), max(wide, 1)
        n_y, n_x = (ratio or -int(-side // bins) for side, bins in ((high / size[0], 1), (wide / size[1], 1)))
        for plane in features[int(box[0])]:
            for p in range(size[0]):
                for q in range(size[1]):
                    ys = [top + (p + (i + 0.5) / n_y) * high / size[0] for i in range(n_y)]
                    xs = [left + (q + (j + 0.5) / n_x) * wide / size[1] for j in range(n_x)]
                    values = [sample(plane, y, x) for y in ys for x in xs]
                    values = [plane.sum() * 0 if value is None else value for value in values]
                    if not values:
                        out.append(plane.sum() * 0)
                    else:
                        out.append(sum(values) / len(values) if mode == "avg" else torch.stack(values).max())
    return torch.stack(out).view(len(rois), features.shape[1], *size)


def make(device="cpu", dtype=torch.float64, channels=3, shape=(9, 11)):
    features = torch.randn(2, channels, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    rois = torch.tensor(BOXES, dtype=torch.float64)
    return features.to(device, dtype).requires_grad_(), rois.to(device, torch.promote_types(dtype, torch.float32))


def pooled(size=(3, 2), scale=0.5, ratio=0, mode="avg", aligned=True):
    return lambda features, rois: roi_align(features, rois, size, scale, ratio, mode, aligned)


def channels_last(features):
    return features.detach().contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize(("mode", "aligned", "ratio"), OPTIONS)
def test_equals_mmcv(path, device, mode, aligned, ratio):
    """The compiled extension's results and gradients. Where a bin is empty, its maximum is -10000, and ours 0."""
    record = Record("mmcv/roi_align")
    number = 2 * record.config["cases"].index([mode, aligned, ratio])
    features, rois, grad = (record.input(key).to(device) for key in ("features", "rois", "grad"))
    features.requires_grad_()
    options = (record.config["output_size"], record.config["spatial_scale"], ratio, mode, aligned)
    out = roi_align(features, rois, *options)
    expected = record.output(number).to(device)
    expected = expected.where(expected != -10000, 0)
    torch.testing.assert_close(out.detach().float(), expected, rtol=1e-5, atol=1e-6)
    (got,) = torch.autograd.grad(out, features, grad)
    torch.testing.assert_close(got.float(), record.output(number + 1).to(device), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("mode", "aligned", "ratio"), OPTIONS)
def test_equals_the_definition(path, device, mode, aligned, ratio):
    features, rois = make(device, channels=2)
    rois = rois[[0, 1, 4, 6, 7]]  # elsewhere float64 decides whether a box of no width is one

    def expected(features, rois):
        return by_definition(features.cpu(), rois, (2, 3), 0.5, ratio, mode, aligned).to(device)

    assert_gradients_agree(pooled((2, 3), 0.5, ratio, mode, aligned), expected, (features, rois))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["avg", "max"])
def test_dtypes(path, device, dtype, mode):
    features, rois = make(device, dtype, channels=5)
    rois = rois[:2]  # the interpreter is slow
    wide = features.detach().to(rois.dtype).requires_grad_()
    for maps in (features, channels_last(features)):
        out, expected = pooled(mode=mode)(maps, rois), pooled(mode=mode)(wide, rois)
        assert_agree("out", out.detach(), expected.detach().to(dtype))
        grad = torch.randn_like(out)
        got, expected = torch.autograd.grad(out, maps, grad), torch.autograd.grad(expected, wide, grad.to(wide.dtype))
        assert_agree("gradient", got[0], expected[0].to(dtype))


def test_tiles_of_bins_and_channels(triton_path, device):
    """More bins, and channels, than one tile; against the CPU's path or the reference."""
    features, rois = make(device, channels=67)
    for mode in ("avg", "max"):
        out = roi_align(features, rois[:2], (7, 5), 0.5, 1, mode)
        grad = torch.randn_like(out)
        got = torch.autograd.grad(out, features, grad)[0]
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ATTLAS_KERNELS", "reference")
            expected = roi_align(features, rois[:2], (7, 5), 0.5, 1, mode)
            assert_agree("gradient", got, torch.autograd.grad(expected, features, grad)[0])
        assert_agree("out", out.detach(), expected.detach())


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_boxes_and_channels_of_several_blocks(device, mode, monkeypatch):
    features, rois = make(device, channels=150)
    rois = rois.repeat(5, 1)
    out = pooled(mode=mode)(features, rois)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, features, grad)[0]
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    expected = pooled(mode=mode)(features, rois)
    assert_agree("out", out.detach(), expected.detach())
    assert_agree("gradient", got, torch.autograd.grad(expected, features, grad)[0])


def test_a_ramp_is_averaged_exactly(path, device):
    """Inside the map, the mean of a linear map over a bin is its value at the bin's center; the maximum lies at a
    corner sample."""
    y, x = torch.meshgrid(torch.arange(9.0), torch.arange(11.0), indexing="ij")
    ramp = (2 * x - 3 * y).double().to(device).view(1, 1, 9, 11)
    box = torch.tensor([[0, 2.5, 1.5, 8.5, 7.5]], dtype=torch.float64, device=device)  # pixels 2..8 and 1..7
    for ratio in (0, 1, 2, 5):
        out = roi_align(ramp, box, 2, 1.0, ratio)
        centers = torch.tensor([3.5, 6.5]).double(), torch.tensor([2.5, 5.5]).double()
        expected = 2 * centers[0].view(1, 2) - 3 * centers[1].view(2, 1)
        assert_agree("mean", out[0, 0], expected.to(device))
    half = 1.5 * (1 - 1 / 3)  # from the center of a bin of 3 pixels to its last of three samples
    assert_agree("maximum", roi_align(ramp, box, 2, 1.0, 0, "max")[0, 0], (expected + 5 * half).to(device))


def test_a_maximum_takes_the_first_of_equals(path, device):
    """Of samples inside; those outside take part as 0, and lose ties."""
    flat = torch.zeros(1, 1, 4, 4, dtype=torch.float64, device=device, requires_grad=True)
    boxes = torch.tensor([[0, 0, 0, 4, 4], [0, -4, -4, 4, 4], [0, 9, 9, 12, 12]], dtype=torch.float64, device=device)
    for box, expected in zip(boxes, [1.0, 1.0, 0.0]):
        out = roi_align(flat, box[None], 1, 1.0, 2, "max", aligned=False)
        (grad,) = torch.autograd.grad(out.sum(), flat)
        assert grad.sum().item() == expected
    (grad,) = torch.autograd.grad(roi_align(flat, boxes[:1], 1, 1.0, 2, "max", aligned=False).sum(), flat)
    assert grad.nonzero().tolist() == [[0, 0, 1, 1]]
    below = torch.full_like(flat, -1.0).requires_grad_()
    out = roi_align(below, boxes[1:], 1, 1.0, 2, "max", aligned=False)
    assert out.flatten().tolist() == [0, 0]
    assert torch.autograd.grad(out.sum(), below)[0].eq(0).all()


def test_a_nan_stays_in_its_image(path, device):
    features, rois = make(device)
    clean = pooled()(features, rois).detach()
    spoiled = features.detach().clone()
    spoiled[0] = torch.nan
    out = pooled()(spoiled, rois)
    assert torch.equal(out[rois[:, 0] == 1], clean[rois[:, 0] == 1])


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_enormous_boxes(device, mode):
    """What lies outside is not visited: neither memory nor time grow with a box."""
    features, _ = make(device)
    box = torch.tensor([[0, -1e30, -1e30, 1e30, 1e30], [1, -1e7, 2, 1e7, 4]], dtype=torch.float64, device=device)
    out = roi_align(features, box, 2, 1.0, 0, mode)
    assert torch.isfinite(out).all()
    assert torch.isfinite(torch.autograd.grad(out.sum(), features)[0]).all()


def test_memory_format(path, device):
    features, rois = make(device)
    rois = rois[:2]
    assert pooled()(features, rois).is_contiguous()
    last = channels_last(features)
    out = pooled()(last, rois)
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert_agree("out", out.detach(), pooled()(features, rois).detach())
    (grad,) = torch.autograd.grad(out.sum(), last)  # a gradient that is one number, expanded
    assert_agree("gradient", grad, torch.autograd.grad(pooled()(features, rois).sum(), features)[0])


def test_strided(path, device):
    features, rois = make(device)
    strided = features.detach().flip(1).transpose(2, 3).contiguous().transpose(2, 3).requires_grad_()
    boxes = torch.cat([rois, rois], 1)[:, :5]
    out, expected = pooled()(strided, boxes), pooled()(strided.detach().contiguous(), rois)
    assert_agree("out", out.detach(), expected)


def test_deterministic_gradient(path, device):
    features, rois = make(device, torch.float32)
    rois = rois[:3]
    torch.use_deterministic_algorithms(True)
    try:
        for mode in ("avg", "max"):
            first, second = (torch.autograd.grad(pooled(mode=mode)(features, rois).sum(), features)[0] for _ in "12")
            assert torch.equal(first, second)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("mode", "ratio"), [("avg", 0), ("avg", 2), ("max", 2)])
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, kernels, mode, ratio):
    monkeypatch.setenv("ATTLAS_KERNELS", kernels)
    features, rois = make(device, channels=1, shape=(4, 5))
    assert torch.autograd.gradcheck(lambda x: pooled(2, 0.3, ratio, mode)(x, rois), (features,))


@pytest.mark.parametrize("take_max", [False, True])
def test_operators(path, device, take_max):
    features, rois = make(device, channels=2, shape=(3, 4))
    for maps in (features, channels_last(features)):
        image, grid = grids(rois[:2], (1, 2), 0.3, 1, True)
        arguments = (maps, image, grid, 1, 2, 1, take_max)
        torch.library.opcheck(roi_align_op, arguments)
        out, places = roi_align_op(*arguments)
        backward = (torch.randn_like(out), image, grid, places, list(maps.shape), 1)
        torch.library.opcheck(roi_align_backward_op, backward)


@pytest.mark.parametrize("mode", ["avg", "max"])
def test_compiles_to_one_graph(device, mode):
    inputs = make(device)
    compiled = torch.compile(lambda *x: pooled(mode=mode)(*x) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: pooled(mode=mode)(*x) * 2, inputs)


@pytest.mark.parametrize("mode", ["avg", "max"])
@pytest.mark.parametrize("empty", ["boxes", "channels", "images"])
def test_empty(path, device, mode, empty):
    features, rois = make(device)
    features = {"channels": features[:, :0], "images": features[:0]}.get(empty, features).detach().requires_grad_()
    rois = rois if empty == "channels" else rois[:0]
    out = pooled(mode=mode)(features, rois)
    assert out.shape == (len(rois), features.shape[1], 3, 2)
    (grad,) = torch.autograd.grad(out.sum(), features)
    assert grad.shape == features.shape
    assert grad.eq(0).all()


def test_bad_arguments():
    features, rois = make()
    for bad, message in [
        ((features[0], rois, 2), r"features must have shape \(B, C, H, W\) with pixels, got \(3, 9, 11\)"),
        ((features[:, :, :0], rois, 2), r"features must have .* got \(2, 3, 0, 11\)"),
        ((features, rois[:, 1:], 2), r"rois must have shape \(R, 5\).* got \(8, 4\)"),
        ((features, rois, 0), r"output_size must lie in 1\.\.32768, got 0"),
        ((features, rois, 2, 0.0), r"spatial_scale must be positive and finite, got 0\.0"),
        ((features, rois, 2, 1.0, -1), r"sampling_ratio must lie in 0\.\."),
        ((features, rois, 2, 1.0, 0, "mean"), r"mode must be one of \('avg', 'max'\), got 'mean'"),
        ((features, rois * torch.nan, 2), r"rois must be finite: 8 are not, the first is \[nan"),
        ((features, rois.flip(1).roll(1, 1), 2), r"rois must be such that left <= right and top <= bottom: "),
    ]:
        with pytest.raises(ValueError, match=message):
            roi_align(*bad)
    for bad, message in [
        ((features.long(), rois, 2), r"features must be floating point"),
        ((features, rois, (2, 3, 4)), r"output_size must be an integer or two, got \(2, 3, 4\)"),
        ((features, rois, (2, 3.0)), r"output_size must be an integer, got 3\.0"),
        ((features, rois, 2, 1.0, 0, "avg", 1), r"aligned must be True or False, got 1"),
    ]:
        with pytest.raises(TypeError, match=message):
            roi_align(*bad)
    with pytest.raises(IndexError, match=r"rois must name images 0\.\.0 in their first column, got 0 to 1"):
        roi_align(features[:1], rois, 2)


@pytest.mark.parametrize("wrong", [[0, torch.nan, 0, 1, 1], [0, 3, 0, 1, 1], [2, 0, 0, 1, 1]])
def test_a_traced_graph_checks_boxes(wrong):
    """There a loop would leave its arrays."""
    features, rois = make()
    compiled = torch.compile(pooled(), fullgraph=True, backend="aot_eager")
    compiled(features, rois[:1])
    with pytest.raises((ValueError, IndexError), match="rois must"):
        compiled(features, torch.tensor([wrong], dtype=torch.float64))
