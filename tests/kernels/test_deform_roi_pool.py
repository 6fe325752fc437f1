import pytest
import torch
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import roi_align
from attlas.kernels.deform_roi_pool import deform_roi_pool, deform_roi_pool_backward_op, deform_roi_pool_op

BOXES = [
    [0, 1.3, 2.1, 17.7, 13.2], [1, -3.2, -4.6, 9.1, 6.3], [0, 4.2, 5.4, 4.2, 9.9], [1, 10.3, 9.7, 31.2, 29.4],
    [0, 60, 50, 70, 61],
]  # fmt: skip


def make(device="cpu", dtype=torch.float64, channels=3, size=(3, 2)):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, channels, 9, 11, generator=generator, dtype=torch.float64)
    rois = torch.tensor(BOXES, dtype=torch.float64)
    offset = torch.randn(len(rois), 2, *size, generator=generator, dtype=torch.float64)
    wide = torch.promote_types(dtype, torch.float32)
    return features.to(device, dtype).requires_grad_(), rois.to(device, wide), offset.to(device, wide).requires_grad_()


def pool(ratio=0, gamma=0.3):
    return lambda features, rois, offset: deform_roi_pool(features, rois, offset, offset.shape[2:], 0.5, ratio, gamma)


def by_definition(features, rois, offset, ratio, gamma):
    """Every bin by itself: RoIAlign of its box, moved."""
    high, wide = offset.shape[2:]
    out = []
    for box, shift in zip(rois.tolist(), offset):
        step_x, step_y = (box[3] - box[1]) / wide, (box[4] - box[2]) / high
        for p in range(high):
            for q in range(wide):
                left = box[1] + q * step_x + gamma * (box[3] - box[1]) * shift[0, p, q].item()
                top = box[2] + p * step_y + gamma * (box[4] - box[2]) * shift[1, p, q].item()
                edges = [[box[0], left, top, left + step_x, top + step_y]]
                out.append(
                    roi_align(
                        features, torch.tensor(edges, dtype=rois.dtype, device=rois.device), 1, 0.5, ratio
                    ).flatten()
                )
    return torch.stack(out).unflatten(0, (len(rois), high, wide)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("ratio", [0, 2])
def test_equals_the_definition(path, device, ratio):
    features, rois, offset = make(device)
    few = [1, 2] if path == "triton" else [0, 1, 2, 3, 4]  # the interpreter is slow
    rois, offset = rois[few], offset[few].detach()  # gradients of offsets: gradcheck, below
    expected = lambda features, rois, offset: by_definition(features, rois, offset, ratio, 0.3)  # noqa: E731
    assert_gradients_agree(pool(ratio), expected, (features, rois, offset))


@pytest.mark.parametrize("ratio", [0, 2])
@pytest.mark.parametrize("kernels", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, kernels, ratio):
    monkeypatch.setenv("ATTLAS_KERNELS", kernels)
    features, rois, offset = make(device, channels=2, size=(2, 1))
    inside = lambda *x: pool(ratio, 0.1)(x[0], rois, x[1])  # noqa: E731
    assert torch.autograd.gradcheck(inside, (features, offset))


def test_gradients_of_all_paths(path, device, monkeypatch):
    inputs = make(device)
    out = pool(1)(*inputs)
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, [inputs[0], inputs[2]], grad)
    monkeypatch.setenv("ATTLAS_KERNELS", "reference")
    expected = torch.autograd.grad(pool(1)(*inputs), [inputs[0], inputs[2]], grad)
    for name, *both in zip(("features", "offset"), got, expected):
        assert_agree(name, *both)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dtypes(path, device, dtype):
    features, rois, offset = make(device, dtype)
    wide = features.detach().to(offset.dtype).requires_grad_()
    out, expected = pool(1)(features, rois, offset), pool(1)(wide, rois, offset)
    assert_agree("out", out.detach(), expected.detach().to(dtype))
    grad = torch.randn_like(out)
    got = torch.autograd.grad(out, [features, offset], grad)
    expected = torch.autograd.grad(expected, [wide, offset], grad.to(wide.dtype))
    assert_agree("features", got[0], expected[0].to(dtype))
    assert_agree("offset", got[1], expected[1], dtype)


def test_without_offsets_it_is_roi_align(path, device):
    features, rois, offset = (x[:2].detach() for x in make(device))
    expected = roi_align(features, rois, (3, 2), 0.5)
    assert_agree("none", deform_roi_pool(features, rois, None, (3, 2), 0.5).detach(), expected.detach())
    assert_agree("zero", pool()(features, rois, torch.zeros_like(offset)).detach(), expected.detach())


def test_one_shift_for_all_bins_moves_the_box(path, device):
    features, rois, _ = make(device)
    rois = rois[[0, 3]]
    moved = rois.clone()
    sides = rois[:, 3:] - rois[:, 1:3]
    moved[:, 1:] += 0.1 * torch.cat([sides * torch.tensor([2, -1], device=device)] * 2, 1)
    shift = torch.tensor([2.0, -1.0], dtype=torch.float64, device=device).view(1, 2, 1, 1).expand(2, 2, 3, 2)
    expected = roi_align(features, moved, (3, 2), 0.5, 2)
    assert_agree("out", pool(2, 0.1)(features, rois, shift).detach(), expected.detach())


def test_operators(path, device):
    features, rois, offset = make(device, channels=2, size=(1, 2))
    arguments = (features, rois[:2], offset[:2], 0.5, 1, 0.1)
    torch.library.opcheck(deform_roi_pool_op, arguments)
    grad = torch.randn(2, 2, 1, 2, dtype=torch.float64, device=device)
    torch.library.opcheck(deform_roi_pool_backward_op, [x.detach() for x in (grad, *arguments[:3])] + [0.5, 1, 0.1])


def test_compiles_to_one_graph(device):
    inputs = make(device)
    compiled = torch.compile(lambda *x: pool()(*x) * 2, fullgraph=True, backend="aot_eager")
    assert_gradients_agree(compiled, lambda *x: pool()(*x) * 2, inputs)


@pytest.mark.parametrize("empty", ["boxes", "channels", "images"])
def test_empty(path, device, empty):
    features, rois, offset = make(device)
    features = {"channels": features[:, :0], "images": features[:0]}.get(empty, features).detach().requires_grad_()
    count = len(rois) if empty == "channels" else 0
    out = pool()(features, rois[:count], offset[:count])
    assert out.shape == (count, features.shape[1], 3, 2)
    for grad in torch.autograd.grad(out.sum(), [features, offset]):
        assert grad.eq(0).all()


def test_bad_arguments():
    features, rois, offset = make()
    for bad, message in [
        ((features, rois, offset[:, :1], (3, 2)), r"offset must have shape .*, \(5, 2, 3, 2\), got \(5, 1, 3, 2\)"),
        ((features, rois, offset, 2), r"offset must have shape .*, \(5, 2, 2, 2\), got \(5, 2, 3, 2\)"),
        ((features, rois, offset * torch.nan, (3, 2)), r"offset must be finite"),
        ((features, rois, offset, (3, 2), 1.0, 0, -1.0), r"gamma must be at least 0 and finite, got -1\.0"),
        ((features, rois * torch.nan, offset, (3, 2)), r"rois must be finite"),
    ]:
        with pytest.raises(ValueError, match=message):
            deform_roi_pool(*bad)
    with pytest.raises(TypeError, match=r"offset must be a tensor, got 3"):
        deform_roi_pool(features, rois, 3, (3, 2))
    with pytest.raises(TypeError, match=r"offset must be floating point"):
        deform_roi_pool(features, rois, offset.long(), (3, 2))
