import math

import pytest
import torch
import torch.nn.functional as F
from agreement import assert_agree, assert_gradients_agree

from attlas.kernels import sigmoid_focal_loss, softmax_focal_loss
from attlas.kernels.focal_loss import (
    sigmoid_focal_loss_backward_op,
    sigmoid_focal_loss_op,
    softmax_focal_loss_backward_op,
    softmax_focal_loss_op,
)

LOSSES = {sigmoid_focal_loss: 0, softmax_focal_loss: -1}  # and their lowest targets


def sigmoid_by_definition(logits, target, weight=None, gamma=2.0, alpha=0.25):
    p = logits.sigmoid()
    yes = F.one_hot(target, logits.shape[1] + 1)[:, :-1].bool()
    loss = torch.where(yes, -alpha * (1 - p) ** gamma * p.log(), -(1 - alpha) * p**gamma * (1 - p).log())
    factors = [1.0 if weight is None or t == logits.shape[1] else weight[t].item() for t in target.tolist()]
    return loss * logits.new_tensor(factors).unsqueeze(1)


def softmax_by_definition(logits, target, weight=None, gamma=2.0, alpha=0.25):
    losses = []
    for p, t in zip(logits.softmax(1), target.tolist()):
        losses.append(p[0] * 0 if t < 0 else -alpha * (1 - p[t]) ** gamma * p[t].log())
        losses[-1] = losses[-1] * (1 if weight is None or t < 0 else weight[t])
    return torch.stack(losses)


DEFINITIONS = {sigmoid_focal_loss: sigmoid_by_definition, softmax_focal_loss: softmax_by_definition}


def tensors(loss, rows=37, classes=5, dtype=torch.float64, device="cpu"):
    logits = (torch.randn(rows, classes, dtype=dtype) * 2).to(device).requires_grad_()
    target = torch.randint(classes + 1, (rows,), device=device) + LOSSES[loss]
    return logits, target, torch.rand(classes, dtype=dtype, device=device)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("gamma", "alpha", "sizes"), [(2.0, 0.25, {}), (0.5, 1, {"classes": 2}), (3, 0, {"rows": 1})])
def test_equals_definition(path, device, loss, dtype, gamma, alpha, sizes):
    logits, target, weight = tensors(loss, **sizes, dtype=dtype, device=device)
    if sizes:
        target = target.clamp(min=0, max=0)  # a class, or the gradients would be zero
    alpha = alpha or 0.1
    for factors in (None, weight):
        # in float64, as the definition's logarithms of rounded probabilities are worse than ours
        wide = logits.detach().double().requires_grad_()
        expected = DEFINITIONS[loss](wide, target, factors, gamma, alpha)
        got = loss(logits, target, factors, gamma, alpha)
        assert_agree("loss", got.detach(), expected.detach().to(dtype))
        grad = torch.randn(expected.shape, dtype=torch.float64).to(device)
        (expected,) = torch.autograd.grad(expected, wide, grad)
        (got,) = torch.autograd.grad(got, logits, grad.to(dtype))
        assert_agree("gradient", got, expected.to(dtype))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2.0])
def test_gradcheck(path, device, loss, gamma):
    logits, target, weight = tensors(loss, rows=5, classes=3, device=device)
    assert torch.autograd.gradcheck(lambda x: loss(x, target, weight, gamma, 0.3), (logits,))


def test_without_focus_they_are_cross_entropies(path, device):
    logits, target, _ = tensors(sigmoid_focal_loss, device=device)
    yes = F.one_hot(target, 6)[:, :-1].double()
    expected = F.binary_cross_entropy_with_logits(logits, yes, reduction="none")
    assert_agree("sigmoid", 2 * sigmoid_focal_loss(logits, target, gamma=0, alpha=0.5).detach(), expected.detach())
    logits, target, _ = tensors(softmax_focal_loss, device=device)
    assert_gradients_agree(
        lambda x: softmax_focal_loss(x, target, gamma=0, alpha=1),
        lambda x: F.cross_entropy(x, target, ignore_index=-1, reduction="none"),
        [logits],
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [30, 200, 1e4])
def test_large_logits_lose_nothing(path, device, loss, size):
    """All is right, or all is wrong: losses and gradients are 0, or the logit's size; none is NaN."""
    logits = torch.tensor([[size, -size], [-size, size]], dtype=torch.float32, device=device, requires_grad=True)
    target = torch.zeros(2, dtype=torch.int64, device=device)
    value = loss(logits, target)
    right, wrong = (value if loss is softmax_focal_loss else value.sum(1)).tolist()
    assert 0 <= right < 1e-20
    assert wrong == pytest.approx(0.25 * 2 * size if loss is softmax_focal_loss else size, rel=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    assert gradient[0].abs().max() < 1e-20
    assert gradient[1].tolist() == pytest.approx([-0.25, 0.25 if loss is softmax_focal_loss else 0.75])


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types(path, device, loss, dtype):
    logits, target, weight = tensors(loss, dtype=torch.float32, device=device)
    half = logits.detach().to(dtype).requires_grad_()
    value, expected = loss(half, target, weight), loss(half.float(), target, weight)
    assert_agree("loss", value.detach(), expected.detach().to(dtype))
    (got,) = torch.autograd.grad(value.sum(), half)
    assert_agree("gradient", got, torch.autograd.grad(expected.sum(), half)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_many_classes_strides_and_no_rows(path, device, loss):
    logits, target, weight = tensors(loss, rows=3, classes=1300, device=device)
    expected = DEFINITIONS[loss](logits, target, weight)
    turned = logits.detach().mT.contiguous().mT
    assert_agree("loss", loss(turned, target, weight), expected.detach())
    assert loss(logits[:0], target[:0]).shape == ((0, 1300) if loss is sigmoid_focal_loss else (0,))


def test_operators(path, device):
    logits, target, weight = tensors(sigmoid_focal_loss, device=device)
    torch.library.opcheck(sigmoid_focal_loss_op, (logits, target, weight, 2.0, 0.25))
    for grad in (None, torch.ones_like(logits)):
        torch.library.opcheck(sigmoid_focal_loss_backward_op, (grad, logits.detach(), target, None, 2.0, 0.25))
    logits, target, weight = tensors(softmax_focal_loss, device=device)
    torch.library.opcheck(softmax_focal_loss_op, (logits, target, weight, 2.0, 0.25))
    loss, total = softmax_focal_loss_op(logits.detach(), target, weight, 2.0, 0.25)
    torch.library.opcheck(softmax_focal_loss_backward_op, (loss, logits.detach(), total, target, weight, 2.0, 0.25))


@pytest.mark.parametrize("loss", LOSSES)
def test_one_graph(loss):
    logits, target, weight = tensors(loss)
    graph = torch.compile(lambda x: loss(x, target, weight).sum(), fullgraph=True, backend="aot_eager")
    got, expected = (
        torch.autograd.grad(graph(logits), logits),
        torch.autograd.grad(loss(logits, target, weight).sum(), logits),
    )
    assert torch.equal(got[0], expected[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_bad_arguments(loss):
    logits, target, weight = tensors(loss)
    with pytest.raises(ValueError, match=r"logits must have shape \(N, C\) with C of at least 1, got \(37,\)"):
        loss(logits[:, 0], target)
    with pytest.raises(TypeError, match="logits must be floating point"):
        loss(logits.long(), target)
    with pytest.raises(ValueError, match=r"target must be int64 of shape \(37,\), one per row, got .* \(36,\)"):
        loss(logits, target[1:])
    with pytest.raises(ValueError, match=r"weight must have shape \(5,\), one per class, got \(4,\)"):
        loss(logits, target, weight[1:])
    with pytest.raises(ValueError, match="gamma must be at least 0 and finite, got nan"):
        loss(logits, target, gamma=math.nan)
    with pytest.raises(TypeError, match="alpha must be a number, got None"):
        loss(logits, target, alpha=None)
    for wrong in (LOSSES[loss] - 1, LOSSES[loss] + 6):
        with pytest.raises(IndexError, match=r"target.* must lie in 0..5"):
            loss(logits, torch.full_like(target, wrong))
