"""Learned positions: of any size, and from files of any layout."""

import pytest
import torch
from torch import nn

from attlas import checkpoint
from attlas.backbones.layers import ClassPositionTable, PositionTable, Tokens


def table(size, dim=8):
    torch.manual_seed(0)
    return PositionTable(dim, size)


def test_it_is_added():
    position, x = table((4, 6)), torch.randn(2, 8, 4, 6)
    assert torch.equal(position(x), x + position.weight)
    larger = position(torch.zeros(1, 8, 9, 5))
    assert larger.shape == (1, 8, 9, 5)
    nn.init.constant_(position.weight, 0.3)
    torch.testing.assert_close(position(torch.zeros(1, 8, 9, 5)), torch.full((1, 8, 9, 5), 0.3))


def test_rows_of_a_file_with_as_many_channels_as_rows_of_pixels():
    source, target = table(8, dim=8), table(8, dim=8)
    nn.init.zeros_(target.weight)
    assert checkpoint.load(target, {"weight": source.weight.flatten(2).mT.detach()}).complete
    assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_layouts_of_files(size):
    """As rows, as a map, and with the channels last; square or not."""
    source, target = table(size), table(size)
    nn.init.zeros_(target.weight)
    for layout in (
        source.weight.flatten(2).mT,
        source.weight,
        source.weight.permute(0, 2, 3, 1),
    ):
        nn.init.zeros_(target.weight)
        assert checkpoint.load(target, {"weight": layout.detach()}).complete
        assert torch.equal(target.weight, source.weight)


@pytest.mark.parametrize("layout", ["rows", "map", "channels last"])
def test_files_of_another_size(layout):
    """Bicubically; rows of another size are those of a square."""
    smooth = torch.linspace(0, 1, 4).view(1, 1, 4, 1).expand(1, 8, 4, 4)  # grows from row to row
    file = {"rows": smooth.flatten(2).mT, "map": smooth, "channels last": smooth.permute(0, 2, 3, 1)}[layout]
    network = nn.Sequential(nn.Identity(), table((8, 6)))
    account = checkpoint.load(network, {"1.weight": file.contiguous()})
    assert list(account.resized) == ["1.weight"]
    resized = network[1].weight[0, 0]
    torch.testing.assert_close(resized, resized[:, :1].expand(8, 6))
    assert (resized[1:, 0] > resized[:-1, 0]).all()


def test_files_that_fit_no_grid():
    for shape in ((1, 17, 8), (1, 16, 9), (1, 9, 4, 4)):
        with pytest.raises(ValueError, match=rf"weight: \({', '.join(map(str, shape))}\) in the file, \(1, 8, 4, 4\)"):
            checkpoint.load(table(4), {"weight": torch.randn(shape)})


def test_tokens():
    tokens = Tokens(2, 8)
    assert tokens(3).shape == (3, 2, 8)
    assert torch.equal(tokens(3)[1], tokens.weight[0])
    assert tokens.weight.std() < 0.05


@pytest.mark.parametrize("mode", ["bicubic", "bilinear"])
def test_modes(mode):
    """Without antialiasing, for maps and from files."""
    position, other = PositionTable(8, 4, mode=mode), PositionTable(8, (2, 8), mode=mode)
    expected = nn.functional.interpolate(position.weight, (2, 8), mode=mode)
    assert torch.equal(position(torch.zeros(1, 8, 2, 8)), expected)  # a map of as many pixels, but another shape
    checkpoint.load(other, position.state_dict())
    assert torch.equal(other.weight, expected)


def test_bad_mode():
    with pytest.raises(ValueError, match="mode='nearest' must be 'bicubic' or 'bilinear'"):
        PositionTable(8, 4, mode="nearest")


@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_a_row_for_the_class_token(size):
    """The pixels are those of a `PositionTable`, at any size; the row of the token stays what it is."""
    one, other = ClassPositionTable(8, size), table(size)
    other.weight.data = one.weight.data[:, 1:].mT.unflatten(2, size)
    assert torch.equal(one.row, one.weight[:, :1])
    for shape in (size, (7, 2)):
        x = torch.randn(2, 8, *shape)
        torch.testing.assert_close(one(x), other(x))


def test_files_with_a_row_for_the_class_token():
    source, target, larger = (ClassPositionTable(8, side) for side in (4, 4, 6))
    assert checkpoint.load(target, source.state_dict()).complete
    assert torch.equal(target.weight, source.weight)
    account = checkpoint.load(larger, source.state_dict())
    assert list(account.resized) == ["weight"]
    assert torch.equal(larger.row, source.row)
    expected = source(torch.zeros(1, 8, 6, 6))
    torch.testing.assert_close(larger(torch.zeros(1, 8, 6, 6)), expected)
    for shape in ((1, 18, 8), (1, 17, 9), (1, 8, 4, 4)):
        with pytest.raises(ValueError, match=rf"weight: \({', '.join(map(str, shape))}\) in the file, \(1, 37, 8\)"):
            checkpoint.load(larger, {"weight": torch.randn(shape)})


def test_the_step_of_dinov2():
    """A step of h / (size + offset), as the authors hand it to PyTorch; the native size is as it is."""
    position = ClassPositionTable(8, (4, 5), offset=0.1)
    table = position.weight[:, 1:].mT.unflatten(2, (4, 5))
    expected = nn.functional.interpolate(table, scale_factor=(7.1 / 4, 3.1 / 5), mode="bicubic")
    assert expected.shape[2:] == (7, 3)
    torch.testing.assert_close(position(torch.zeros(1, 8, 7, 3)), expected)
    assert torch.equal(position(torch.zeros(1, 8, 4, 5)), table)
    file = ClassPositionTable(8, 6).weight.detach()
    checkpoint.load(position, {"weight": file})
    of_file = nn.functional.interpolate(
        file[:, 1:].mT.unflatten(2, (6, 6)), scale_factor=(4.1 / 6, 5.1 / 6), mode="bicubic"
    )
    torch.testing.assert_close(position(torch.zeros(1, 8, 4, 5)), of_file)
    assert torch.equal(position.row, file[:, :1])
    with pytest.raises(ValueError, match=r"offset=0\.1 and antialias=True: give one of them"):
        ClassPositionTable(8, 4, offset=0.1, antialias=True)


def test_antialiasing():
    position = ClassPositionTable(8, 9, antialias=True)
    table = position.weight[:, 1:].mT.unflatten(2, (9, 9))
    expected = nn.functional.interpolate(table, (3, 4), mode="bicubic", antialias=True)
    assert torch.equal(position(torch.zeros(1, 8, 3, 4)), expected)
    assert not torch.allclose(expected, nn.functional.interpolate(table, (3, 4), mode="bicubic"), atol=1e-3)


@pytest.mark.parametrize("side", [4, 6])
def test_files_of_class_positions(side):
    """CLIP's have two dimensions."""
    source, whole = ClassPositionTable(8, side), ClassPositionTable(8, 4)
    assert checkpoint.load(whole, {"weight": source.weight[0].detach()}).complete
    assert torch.equal(whole.row, source.row)


@pytest.mark.parametrize("size", [(2, 4), (3, 5)])
def test_no_row_of_a_file_is_lost(size):
    """9 and 16 rows are the token's and those of 2 x 4 and 3 x 5 pixels, which are no square."""
    target = ClassPositionTable(8, 4)
    before = target.weight.clone()
    with pytest.raises(ValueError, match=r"in the file, \(1, 17, 8\) in the network"):
        checkpoint.load(target, ClassPositionTable(8, size).state_dict())
    assert torch.equal(target.weight, before)
    same = ClassPositionTable(8, size)
    assert checkpoint.load(same, ClassPositionTable(8, size).state_dict()).complete
