"""Excitation backpropagation against the definition of its probabilities."""

import pytest
import torch
import torch.nn.functional as F
from networks import build
from torch import nn

from attlas.backbones.inspection.excitation import contrastive_excitation
from attlas.backbones.inspection.targets import logit


class Residual(nn.Module):
    """Convolutions with batch norms, one of which has negative factors, a sum, an average, and ReLUs in place."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace=True))
        self.conv, self.norm = nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.relu, self.pool = nn.ReLU(inplace=True), nn.MaxPool2d(2)
        self.fc = nn.Linear(6, 4)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.running_mean)
        self.double().eval()

    def forward(self, x):
        x = self.stem(x)
        y = self.pool(self.relu(x + self.norm(self.conv(x))))
        return self.fc(F.adaptive_avg_pool2d(y, 1).flatten(1))


def image(*size, batch=2):
    return torch.randn(batch, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def by_definition(network, x, classes, dual=False):
    """P at the stem's output, unit by unit: the products of the conditional probabilities, as matrices."""
    a = network.stem(x).detach()
    scale = network.norm.weight * (network.norm.running_var + network.norm.eps).rsqrt()
    weight = (network.conv.weight * scale[:, None, None, None]).clamp(min=0)
    main = F.conv2d(a, weight, padding=1)
    y = (a + network.norm(network.conv(a))).relu()
    z, winners = F.max_pool2d(y, 2, return_indices=True)
    fc = (-network.fc.weight if dual else network.fc.weight).clamp(min=0)
    found = []
    for i, chosen in enumerate(classes):
        mean = z[i].mean((1, 2))
        p = fc[chosen] * mean / (fc[chosen] * mean).sum()  # of the channels
        p = p[:, None, None] * z[i] / z[i].sum((1, 2), keepdim=True).clamp(min=1e-300)  # of the pooled places
        p = F.max_unpool2d(p[None], winners[i : i + 1], 2, output_size=y.shape[2:])[0]
        branch = network.norm(network.conv(a))[i].clamp(min=0)
        both = a[i] + branch
        share = torch.where(both > 0, p / both.clamp(min=1e-300), 0)
        through = torch.where(main[i] > 0, share * branch / main[i].clamp(min=1e-300), 0)
        back = F.conv_transpose2d(through[None], weight, padding=1)[0]
        found.append((a[i] * (share + back)).sum(0))
    return torch.stack(found)


@pytest.mark.parametrize("size", [(6, 6), (7, 9)])
def test_probabilities(size):
    network, x, classes = Residual(), image(*size), [1, 3]
    (found,) = contrastive_excitation(network, x, logit(classes), "stem", contrast=False)
    won = by_definition(network, x, classes)
    torch.testing.assert_close(found, won)
    assert (found >= 0).all()
    torch.testing.assert_close(found.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    (contrast,) = contrastive_excitation(network, x, logit(classes), "stem")
    torch.testing.assert_close(contrast, (won - by_definition(network, x, classes, dual=True)).clamp(min=0))


def test_probability_is_passed_on_through_all_layers():
    """Of a ResNet of ours: hardly any is lost at any level, and the contrast tells classes apart."""
    network = build("ResNet", num_classes=5).double()
    x, layers = image(48, 64), [f"stages.{i}" for i in range(4)]
    for maps in contrastive_excitation(network, x, logit([0, 4]), layers, contrast=False):
        sums = maps.sum((1, 2))
        assert (sums <= 1 + 1e-9).all()  # a winner that nothing but its bias excites passes nothing on
        assert (sums > 0.5).all()
    one, other = (contrastive_excitation(network, x, logit(c), "stages.2")[0] for c in (0, 4))
    assert not torch.allclose(one, other, atol=1e-3)


def test_nothing_without_a_rule():
    torch.manual_seed(0)
    for part, name in ((nn.GELU(), "gelu"), (nn.GroupNorm(1, 6), "group_norm"), (nn.Sigmoid(), "sigmoid")):
        network = nn.Sequential(nn.Conv2d(3, 6, 3), part, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2)).eval()
        with pytest.raises(ValueError, match=f"no rule for .*{name}.*another method"):
            contrastive_excitation(network, image(6, 6).float(), logit(0), "0")


def test_the_plain_gradient_is_back_afterwards():
    network, x = Residual(), image(6, 8)
    before = network(x)
    contrastive_excitation(network, x, logit(0), "stem")
    assert torch.equal(network(x), before)
    x.requires_grad_()
    (slope,) = torch.autograd.grad(network(x)[0, 0], x)
    torch.autograd.gradcheck(lambda x: network(x)[:, 0], x.detach()[:1, :, :4, :4].requires_grad_())
    assert slope.lt(0).any()
