"""What restoration networks share."""

import pytest
import torch

from attlas.dense.restoration.network import pad_to


@pytest.mark.parametrize("multiple", [1, 2, 8, 16])
def test_padding_adds_what_is_missing_and_no_more(multiple):
    """-h % w, not w - h % w: sides that are multiples get no window more."""
    for height in (1, 7, 8, 16, 17, 31, 32):
        for width in (1, 15, 16, 48):
            x = torch.rand(2, 3, height, width)
            padded = pad_to(x, multiple)
            assert padded.shape == (2, 3, height + -height % multiple, width + -width % multiple)
            assert torch.equal(padded[..., :height, :width], x)


def test_padding_reflects_or_repeats():
    row = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    assert pad_to(row.view(1, 1, 1, 5), 4)[0, 0, 0].tolist() == [1, 2, 3, 4, 5, 4, 3, 2]
    assert pad_to(row[:2].view(1, 1, 1, 2), 8)[0, 0, 0].tolist() == [1] + 7 * [2]  # too few to reflect
    assert pad_to(torch.ones(1, 1, 1, 1), 16).shape == (1, 1, 16, 16)
