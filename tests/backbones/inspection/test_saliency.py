"""Methods by name, meta-saliency, and the checks of methods."""

import pytest
import torch
from networks import build, image
from torch import nn

from attlas.backbones.inspection.capture import default_layers, look
from attlas.backbones.inspection.normgrad import contributions, normgrad
from attlas.backbones.inspection.saliency import (
    METHODS,
    class_sensitivity,
    gradcam,
    meta_saliency,
    of_method,
    randomized,
    rank_correlation,
    sanity_check,
    with_meta,
)
from attlas.backbones.inspection.targets import cross_entropy, logit


class Small(nn.Module):
    """A module that runs twice, a ReLU in place, a parameter that two modules share, a frozen one, and a buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True)
        self.second, self.twin = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.twin.weight = self.second.weight
        self.norm, self.fc = nn.BatchNorm2d(8), nn.Linear(8, 5)
        self.norm.running_mean.normal_()
        self.first.bias.requires_grad_(False)
        self.eval()

    def forward(self, x):
        x = self.relu(self.norm(self.second(self.relu(self.first(x)))))
        return self.fc(self.twin(x).mean((2, 3)))


def state_of(network):
    tensors = [*network.named_parameters(remove_duplicate=False), *network.named_buffers()]
    return (
        [(name, id(x), x.detach().clone(), x.requires_grad, x.grad) for name, x in tensors],
        [(name, module.training, len(module._forward_hooks)) for name, module in network.named_modules()],
    )


def same(before, after):
    assert before[1] == after[1]
    for one, other in zip(before[0], after[0], strict=True):
        assert torch.equal(one[2], other[2])
        assert (one[0], one[1], one[3], one[4]) == (other[0], other[1], other[3], other[4])


# --- all methods -----------------------------------------------------------------------------------------------------

OF_LAYERS = [name for name in METHODS if name != "salient"]  # which shows the input alone


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_of_two_equals_two_singles(name):
    network, x = Small(), image(9, 13)
    layers, classes = ["first", "second"] if name in OF_LAYERS else ["input"], [1, 4]
    before = state_of(network)
    together = METHODS[name](network, x, logit(classes), layers)
    same(before, state_of(network))
    for i, chosen in enumerate(classes):
        alone = METHODS[name](network, x[i : i + 1], logit(chosen), layers)
        for one, both in zip(alone, together):
            assert one.shape == (1, 9, 13)
            torch.testing.assert_close(one[0], both[i], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", OF_LAYERS)
def test_maps_respond_to_class_and_weights(name):
    """The randomised-weights sanity check, and that the maps of two classes differ."""
    network, x = Small(), image(12, 16)
    by_class = [METHODS[name](network, x, logit(c), "second")[0] for c in (0, 3)]
    assert not torch.allclose(*by_class, rtol=1e-3, atol=1e-7)
    before = state_of(network)
    found = sanity_check(METHODS[name], network, x, logit([0, 3]), ["first", "second"])
    same(before, state_of(network))
    assert found.shape == (2, 2)
    assert found.abs().max() < 0.9
    parts = sanity_check(METHODS[name], network, x, logit([0, 3]), ["first"], parts=["first.weight_of_nobody"])
    torch.testing.assert_close(parts, torch.ones(1, 2, dtype=torch.float64))  # nothing was randomized


def test_gradcam_is_the_linear_approximation_where_the_gradient_is_constant():
    """In front of a global average of a linear layer; elsewhere it is not."""
    network, x = Small(), image(9, 13)
    (cam,) = gradcam(network, x, logit([1, 2]), "twin")
    (seen,) = look(network, x, logit([1, 2]), "twin")
    torch.testing.assert_close(cam, contributions(seen.activation, seen.gradient, "scaling", "sum").clamp(min=0))
    assert (seen.gradient == seen.gradient[:, :, :1, :1]).all()
    weights = network.fc.weight[[1, 2]] / (9 * 13)
    torch.testing.assert_close(cam, torch.einsum("bc,bchw->bhw", weights, seen.activation).clamp(min=0))


def test_prefix_tokens_have_no_part_in_a_map():
    """The maps of a ViT are of its patches: registers and a class token beside them change no shape."""
    network = build("ViT", num_classes=5, registers=3, depth=3)
    maps = gradcam(network, image(64, 96), logit(1), default_layers(network, 2))
    assert [m.shape for m in maps] == [(2, 4, 6)] * 2


def test_unknown_methods():
    assert of_method("gradcam") is gradcam
    with pytest.raises(ValueError, match=r"method 'gradcm' is none of normgrad, .*excitation"):
        of_method("gradcm")


# --- meta-saliency ---------------------------------------------------------------------------------------------------


def by_hand(network, x, classes, layers, rate, negate):
    """With PyTorch's own optimizer, image by image, on copies of the network."""
    import copy

    found = []
    for i, chosen in enumerate(classes):
        own = copy.deepcopy(network)
        optimizer = torch.optim.SGD(list(own.parameters()), rate, maximize=negate)
        for parameter in own.parameters():
            parameter.requires_grad_()
        nn.functional.cross_entropy(own(x[i : i + 1]), torch.tensor([chosen])).backward()
        optimizer.step()
        found.append(normgrad(own, x[i : i + 1], logit(chosen), layers))
    return [torch.cat(maps) for maps in zip(*found)]


@pytest.mark.parametrize(("rate", "negate"), [(1e-1, False), (1e-1, True), (0, False)])
def test_meta_is_a_step_of_sgd(rate, negate):
    network, x, classes, layers = Small(), image(7, 10), [2, 0], ["first", "second"]
    before = state_of(network)
    found = meta_saliency(normgrad, network, x, logit(classes), layers, cross_entropy(classes), rate, negate)
    same(before, state_of(network))
    expected = by_hand(network, x, classes, layers, rate, negate)
    for got, want in zip(found, expected):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    if rate == 0:
        for got, plain in zip(found, normgrad(network, x, logit(classes), layers)):
            torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-7)
    else:
        assert not torch.allclose(found[0], normgrad(network, x, logit(classes), layers)[0], rtol=1e-3)


@pytest.mark.parametrize("where", ["method", "loss", "network"])
def test_an_error_leaves_the_network_as_it_was(where):
    network, x = Small(), image(6, 8)
    before = state_of(network)

    def fail(*args, **kwargs):
        assert where != "method" or not torch.equal(network.fc.weight, before[0][-5][2])
        raise KeyboardInterrupt

    method, loss = (fail if where == "method" else normgrad), (fail if where == "loss" else cross_entropy(1))
    if where == "network":
        calls = []  # the second pass, with the new parameters, fails
        network.twin.register_forward_hook(lambda *_: fail() if calls else calls.append(1))
        before = state_of(network)
    with pytest.raises(KeyboardInterrupt):
        meta_saliency(method, network, x, logit(1), "second", loss, 0.1)
    same(before, state_of(network))


def test_meta_of_any_method():
    network, x = Small(), image(7, 10)
    meta = with_meta(gradcam, cross_entropy([1, 2]), 0.1)
    (found,) = meta(network, x, logit([1, 2]), "twin")
    (plain,) = gradcam(network, x, logit([1, 2]), "twin")
    assert found.shape == plain.shape
    assert not torch.allclose(found, plain, rtol=1e-2)
    with pytest.raises(ValueError, match="depends on no parameter"):
        meta_saliency(gradcam, network, x, logit(1), "twin", lambda output: output.detach()[:, 0])


# --- checks of methods -----------------------------------------------------------------------------------------------


def test_rank_correlation():
    scipy = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 9, (2, 5, 7), generator=generator).float() for _ in range(2))  # with many ties
    found = rank_correlation(a, b)
    for i in range(2):
        assert found[i] == pytest.approx(scipy.spearmanr(a[i].flatten(), b[i].flatten()).statistic)
    torch.testing.assert_close(rank_correlation(a, 3 * a + 1), torch.ones(2, dtype=torch.float64))
    torch.testing.assert_close(rank_correlation(a, -a), -torch.ones(2, dtype=torch.float64))
    assert rank_correlation(torch.ones(1, 2, 2), a[:1, :2, :2]).isnan().all()
    assert rank_correlation(1e-15 * a, a).isnan().all()  # all of them nothing beside the offset, in float32
    with pytest.raises(ValueError, match="of one shape"):
        rank_correlation(a, b[:, :4])


def test_class_sensitivity():
    """1 for a method that does not look at the class; less for one that does."""
    network, x = Small(), image(9, 12)

    def blind(network, inputs, score, layers, grid=None):
        return [seen.activation.norm(dim=1) for seen in look(network, inputs, score, layers, grid)]

    torch.testing.assert_close(class_sensitivity(blind, network, x, ["second"]), torch.ones(1, 2, dtype=torch.float64))
    found = class_sensitivity(normgrad, network, x, ["first", "second"])
    assert found.shape == (2, 2)
    assert (found < 0.999).all()
    logits = network(x)
    named = class_sensitivity(normgrad, network, x, ["first", "second"], (logits.argmax(1), logits.argmin(1)))
    torch.testing.assert_close(found, named)


def test_randomized_by_parts():
    network, x = Small(), image(6, 8)
    plain = network.fc.weight.clone()
    with randomized(network, 1, ["fc"]):
        assert not torch.equal(network.fc.weight, plain)
        torch.testing.assert_close(network.fc.weight.flatten().sort().values, plain.flatten().sort().values)
        inside = network(x)
        assert network.twin.weight is network.second.weight
    with randomized(network, 1, ["fc"]):
        assert torch.equal(network(x), inside)
    assert torch.equal(network.fc.weight, plain)
