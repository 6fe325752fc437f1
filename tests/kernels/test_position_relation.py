import math
import sys

import pytest
import torch
from agreement import assert_agree
from torch.utils._python_dispatch import TorchDispatchMode

from attlas.kernels.position_relation import (
    position_relation,
    position_relation_backward_op,
    position_relation_op,
    relation_terms,
)

MODULE = sys.modules[position_relation.__module__]


def by_definition(source, target, weight, bias, mask=None):
    """Number by number, in float64."""
    (batch, sources, _), targets, heads = source.shape, target.shape[1], len(weight)
    count = weight.shape[1] // 8
    out = []
    for b, i, j in ((b, i, j) for b in range(batch) for i in range(sources) for j in range(targets)):
        (x, y, w, h), (x2, y2, w2, h2) = source[b, i].tolist(), target[b, j].tolist()
        w, h, w2, h2 = w + 1e-5, h + 1e-5, w2 + 1e-5, h2 + 1e-5
        terms = math.log(abs(x - x2) / w + 1), math.log(abs(y - y2) / h + 1), math.log(w / w2), math.log(h / h2)
        angles = [term * 100 / 10000 ** (2 * k / (2 * count)) for term in terms for k in range(count)]
        sines = torch.tensor([f(angle) for angle in angles for f in (math.sin, math.cos)], dtype=torch.float64)
        value = (weight.double() @ sines + bias.double()).relu()
        out.append(value if mask is None or not mask[i, j] else torch.full_like(value, -math.inf))
    return torch.stack(out, -1).view(heads, batch, sources, targets).transpose(0, 1)


def tensors(batch=2, sources=5, targets=7, heads=3, dimensions=16, dtype=torch.float64, device="cpu"):
    source, target = torch.rand(batch, sources, 4).double(), torch.rand(batch, targets, 4).double()
    weight, bias = torch.randn(heads, 4 * dimensions).double() / 8, torch.randn(heads).double()
    boxes = [x.to(device, torch.promote_types(dtype, torch.float32)) for x in (source, target)]
    return [*boxes, *(x.to(device, dtype).requires_grad_() for x in (weight, bias))]


def check(inputs, mask=None, tolerance=1e-10):
    """Outputs and gradients are those of the definition, relative to the largest number."""
    weight, bias = inputs[2:]
    out = position_relation(*inputs, mask)
    wide = [x.detach().double().cpu() for x in inputs]
    leaves = [x.requires_grad_() for x in wide[2:]]
    expected = by_definition(*wide[:2], *leaves, mask)
    assert (out.dtype, out.shape) == (weight.dtype, expected.shape)
    assert torch.equal(out.detach().isinf().cpu(), expected.isinf())
    grad = torch.randn_like(expected)
    if mask is not None:
        grad[..., mask] = math.nan  # what a softmax says of them does not count
    got = [
        out.detach().cpu().double(),
        *(x.cpu().double() for x in torch.autograd.grad(out, [weight, bias], grad.to(out))),
    ]
    finite = torch.where(expected.isinf(), 0, expected)
    wanted = [expected.detach(), *torch.autograd.grad((finite * grad.nan_to_num()).sum(), leaves)]
    for name, a, b in zip(("output", "gradient of weight", "gradient of bias"), got, wanted):
        b, a = b[~b.isinf()], a[~b.isinf()]
        assert (a - b).abs().max() <= tolerance * b.abs().max(), name
        assert b.abs().max() > 0


@pytest.mark.parametrize(
    "sizes",
    [
        dict(),
        dict(sources=1, targets=1, batch=1),
        dict(heads=17, dimensions=2),
        dict(dimensions=6, sources=13, targets=11),
    ],
)
def test_equals_the_definition(path, device, sizes):
    check(tensors(**sizes, device=device))


def test_mask(path, device):
    mask = torch.rand(5, 7) < 0.3
    inputs = tensors(device=device)
    assert mask.any()
    check(inputs, mask) if device.type == "cpu" else check(inputs, mask.to(device))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_dtypes(path, device, dtype, tolerance):
    check(tensors(dtype=dtype, device=device), tolerance=tolerance)


def test_several_blocks(device, monkeypatch):
    monkeypatch.setattr(MODULE, "PAIRS", 20)
    check(tensors(sources=11, device=device))


def test_identical_boxes(path, device):
    """All terms are zero: what is left of the weight is that of the cosines."""
    boxes = torch.rand(2, 1, 4, dtype=torch.float64, device=device)
    assert relation_terms(boxes, boxes).eq(0).all()
    _, _, weight, bias = tensors(device=device)
    out = position_relation(boxes, boxes, weight, bias)
    assert_agree("out", out[0, :, 0, 0].detach(), (weight[:, 1::2].sum(1) + bias).relu().detach())


def test_at_least_zero_and_not_symmetric(path, device):
    source, _, weight, bias = tensors(device=device)
    out = position_relation(source, source, weight, bias)
    assert out.ge(0).all()
    assert out.eq(0).any()
    assert not torch.allclose(out, out.transpose(2, 3))


def test_boxes_get_no_gradient(path, device):
    source, target, weight, bias = tensors(device=device)
    out = position_relation(source.requires_grad_(), target.requires_grad_(), weight, bias).sum()
    grads = torch.autograd.grad(out, [source, target, weight], allow_unused=True)
    assert [g is None for g in grads] == [True, True, False]


@pytest.mark.parametrize("mode", ["reference", "auto"])
def test_gradcheck(monkeypatch, device, mode):
    monkeypatch.setenv("ATTLAS_KERNELS", mode)
    source, target, weight, bias = tensors(batch=1, sources=2, targets=3, device=device)
    assert torch.autograd.gradcheck(lambda w, b: position_relation(source, target, w, b), [weight, bias])


def test_operators(path, device):
    inputs = tensors(batch=1, sources=2, targets=3, device=device)
    for mask in (None, torch.eye(2, 3, dtype=torch.bool, device=device)):
        torch.library.opcheck(position_relation_op, (*inputs, mask))
        grad = torch.randn(1, 3, 2, 3, dtype=torch.float64, device=device)
        torch.library.opcheck(position_relation_backward_op, (grad, *(x.detach() for x in inputs), mask))


def test_strided(path, device):
    _, target, weight, bias = tensors(device=device)
    wide = torch.rand(2, 5, 8, dtype=torch.float64, device=device)[..., ::2]
    check([wide, target[:, :1].expand(-1, 7, -1), weight, bias])


@pytest.mark.parametrize("empty", ["batch", "sources", "targets"])
def test_empty(path, device, empty):
    source, target, weight, bias = tensors(**{empty: 0}, device=device)
    out = position_relation(source, target, weight, bias)
    assert out.shape == (len(source), 3, source.shape[1], target.shape[1])
    assert all(g.eq(0).all() for g in torch.autograd.grad(out.sum(), [weight, bias]))


def test_compiles_to_one_graph(device):
    inputs = tensors(device=device)
    compiled = torch.compile(lambda *x: position_relation(*x), fullgraph=True, backend="aot_eager")
    assert_agree("out", compiled(*inputs).detach(), position_relation(*inputs).detach())


def test_memory_of_a_dense_scene():
    """1,500 objects: but for the result, no tensor of either pass is larger than the sines of a block."""
    sizes = set()

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                sizes.add(out.untyped_storage().nbytes())
            return out

    source, target, weight, bias = (x.detach() for x in tensors(1, 1500, 1500, 2, 4, torch.float32))
    with Sizes():
        out = MODULE._position_relation_cpu(source, target, weight, bias, None)
        grads = MODULE._position_relation_backward_cpu(torch.ones_like(out), source, target, weight, bias, None)
    assert all(x.isfinite().all() for x in (out, *grads))
    block = 4 * 16 * MODULE.PAIRS
    *rest, largest = sorted(sizes)
    assert largest == out.untyped_storage().nbytes()
    assert block / 2 < rest[-1] <= block


def test_bad_arguments():
    source, target, weight, bias = tensors()
    for bad, message in [
        ((source[0], target, weight, bias), r"source_boxes must have shape \(B, N, 4\) .* got \(5, 4\)"),
        ((source, target[:1], weight, bias), r"target_boxes must have shape .* one B for both, got \(1, 7, 4\)"),
        ((source, target, weight[:, :4], bias), r"weight must have shape \(heads, 4 D\) with an even D, got \(3, 4\)"),
        ((source, target, weight, bias[:1]), r"bias must have shape \(3,\), one number a head, got \(1,\)"),
        ((source, target, weight, bias, torch.ones(5, 7)), r"mask must be a bool tensor of shape \(5, 7\)"),
        ((source, target, weight, bias, torch.ones(7, 5).bool()), r"mask must be .* got torch\.bool \(7, 5\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            position_relation(*bad)
    with pytest.raises(TypeError, match=r"source_boxes and target_boxes must be of one floating-point dtype"):
        position_relation(source, target.float(), weight, bias)
    with pytest.raises(TypeError, match=r"bias must be a tensor, got None"):
        position_relation(source, target, weight, None)
