"""Small networks of every system, for the tests."""

import inspect

import torch
from golden_records import parameter

from attlas import backbones

SYSTEMS = sorted(backbones.systems())


# What does not follow from the rule of `options_of`.
NARROW = dict(
    AFFNet=dict(dims=(16, 16, 24, 40)),
    CrossViT=dict(depths=((1, 2), (1, 1)), img_size=(60, 48)),
    DHVT=dict(patch_size=8),  # of 2 the exports' images have 14,336
    DuoFormer=dict(
        dim=48,
        heads=6,
        pyramid=dict(type="ResNet", dims=(16, 16, 24, 32), depths=(1, 1, 1, 1), bottleneck=False),
        img_size=64,
    ),
    IARED2=dict(groups=(1, 1), img_size=64, patch_size=8),
    OverLoCK=dict(
        dims=(16, 24, 32, 64),
        depths=(1, 1, 1, 1),
        focus_depths=(2, 1),
        kernel_sizes=(9, 7, 7, 5),
        heads=(2, 4),
        features=64,
    ),
    SHViT=dict(dims=(32, 48, 64), partial_dims=(None, 12, 16)),
    Terminator=dict(
        dims=(12, 24), layers=1, earlier=((), (0,)), dropout=0.05, img_size=64, any_size=True, patch_size=4, hidden=8
    ),
)


def options_of(system):
    """The smallest variant with a quarter of its channels, cut to one block a stage, two in the first and the last:
    networks whose blocks take turns show every kind."""
    network = backbones.systems()[system]
    options = dict(min(network.variants.values(), key=lambda variant: variant.params).options)
    for name, argument in inspect.signature(network.__init__).parameters.items():
        value = options.get(name, argument.default)
        if name.endswith("depths") and isinstance(value[0], int):
            ends = (0, len(value) - 1)
            options[name] = tuple(min(2 if i in ends else 1, depth) for i, depth in enumerate(value))
        elif name == "depth":
            options[name] = min(2, value)
        elif name == "dims":
            options[name] = tuple(dim // 4 for dim in value)
        elif name == "dim":
            options[name] = value // 4
    return {**options, **NARROW.get(system, {})}


def build(system, filled=True, **options):
    """A small network of a system, by default with weights that are neither zero nor one."""
    torch.manual_seed(0)
    network = backbones.systems()[system](**{**options_of(system), **options})
    return fill(network) if filled else network.eval()


def fill(network):
    """The network with weights that follow from their names, in inference mode."""
    fill_others(network)
    return network.eval()


def fill_others(network):
    """As `fill`, for networks of mm, whose `train()` and `eval()` give nothing back."""
    state = {
        name: parameter(name, value.shape)
        for name, value in network.state_dict().items()
        if value.is_floating_point() and name.endswith(("weight", "bias", "gamma", "running_mean", "running_var"))
    }
    network.load_state_dict(state, strict=False)
    network.eval()


def image(*size, batch=2):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(1))


def close(got, expected, tolerance=1e-4):
    got, expected = got.detach().float(), expected.detach().float()
    assert got.shape == expected.shape
    assert (got - expected).abs().max() <= tolerance * expected.abs().max().clamp(min=1e-3)


def tensors(outputs):
    """The tensors among what a network gives: maps, or logits and what stands behind them in training."""
    return [y for y in (outputs if isinstance(outputs, tuple) else (outputs,)) if isinstance(y, torch.Tensor)]
