"""HorNet's UperNet head: the authors' to the digit, in a segmentor, and what it refuses."""

import pytest
import torch
from golden_records import Record
from mmseg.models.decode_heads.uper_head import UPerHead

from attlas import checkpoint
from attlas.dense.segmentation import GNUPerHead

SMALL = dict(in_channels=[6, 10, 12, 20], in_index=[0, 1, 2, 3], channels=8, num_classes=5, norm_cfg=dict(type="BN"))


def count(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("case", ["uper-7x7", "uper-default", "uper-gf"])
def test_equals_the_authors(case):
    record = Record(f"horfpn/{case}")
    options = dict(record.config)
    given = options.pop("conv_cfg")
    gnconv = {key: given[key] for key in ("kernel_size", "dim_ratio", "proj_out", "order") if key in given}
    if given["type"] == "gngf":
        gnconv["filter_size"] = given["h"], given["w"]
    head = GNUPerHead(gnconv, **options).double().eval()
    account = checkpoint.load(head, record.state_dict())
    assert account.complete, str(account)
    assert count(head) == record.params
    found = head([record.input(key) for key in record.fields["inputs"]])
    torch.testing.assert_close(found.float(), record.output(), rtol=1e-5, atol=1e-5)
    if case == "uper-default":
        assert GNUPerHead(**options).state_dict().keys() == head.state_dict().keys()


@pytest.mark.parametrize(
    ("gnconv", "params"),
    [(dict(kernel_size=7, proj_out=True), 24_590_998), (dict(filter_size=(32, 17), proj_out=True), 24_976_918)],
)
def test_parameters_of_the_released_heads(gnconv, params):
    """Of HorNet-S on ADE20K; the figures are counts of the authors' modules. 4C -> C by a plain 3 x 3 is far larger."""
    options = dict(SMALL, in_channels=[96, 192, 384, 768], channels=512, num_classes=150)
    with torch.device("meta"):
        assert count(GNUPerHead(gnconv, **options)) == params
        assert count(UPerHead(**options)) > params + 6_000_000


def test_gradients():
    torch.manual_seed(0)
    head = GNUPerHead(dict(kernel_size=7, proj_out=True, dim_ratio=2, order=3), **SMALL)
    head.init_weights()
    maps = [torch.randn(2, width, *size) for width, size in zip((6, 10, 12, 20), ((13, 18), (6, 9), (3, 4), (1, 2)))]
    found = head(maps)
    assert found.shape == (2, 5, 13, 18)
    found.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in head.parameters())
    assert all(p.grad.any() for p in head.fpn_bottleneck.parameters() if p.ndim > 1)


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"dim_ratio=2 needs proj_out=True, which brings 16 channels to 8"):
        GNUPerHead(dict(dim_ratio=2, proj_out=False), **SMALL)
    with pytest.raises(ValueError, match=r"dim_ratio=0\.5 must be a whole number, 1 or more"):
        GNUPerHead(dict(dim_ratio=0.5), **SMALL)
    with pytest.raises(ValueError, match=r"dim \* dim_ratio=24 must be divisible by 2\^\(order-1\) = 16"):
        GNUPerHead(dict(dim_ratio=3, order=5), **SMALL)
    with pytest.raises(ValueError, match="gnconv: in_dim, type must be left out"):
        GNUPerHead(dict(type="RALA", in_dim=3), **SMALL)
    with pytest.raises(TypeError, match="topk"):
        GNUPerHead(dict(topk=3), **SMALL)
