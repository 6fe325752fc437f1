"""Loss and scores, by hand and by another implementation."""

import numpy as np
import pytest
import torch

from attlas.dense.restoration.metrics import psnr, ssim
from attlas.dense.video.errors import SCORES, losses, patch_score, psnr_score, score_of, similarity, windowed


def frames(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def test_similarity_and_psnr_equal_those_of_restoration():
    draw = np.random.default_rng(0)
    first = draw.integers(0, 256, (23, 31), dtype=np.uint8)
    second = np.clip(first + draw.normal(0, 20, first.shape), 0, 255).astype(np.uint8)
    pair = [torch.from_numpy(image / 255.0)[None, None] for image in (first, second)]
    assert float(similarity(*pair)) == pytest.approx(ssim(first, second), abs=1e-9)
    assert float(psnr_score(*pair)) == pytest.approx(-psnr(first, second), abs=1e-9)


def test_windows_skip_a_short_axis():
    x = frames(2, 1, 8, 15)
    taps = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    expected = np.lib.stride_tricks.sliding_window_view(x.numpy(), 11, axis=3) @ (taps / taps.sum())
    np.testing.assert_allclose(windowed(x).numpy(), expected)
    assert torch.equal(windowed(frames(1, 1, 7, 10)), frames(1, 1, 7, 10))


def test_loss_by_hand():
    truth = frames(2, 3, 12, 14)
    terms = losses(truth, truth)
    assert float(terms["ssim"]) == pytest.approx(0, abs=1e-12)
    assert float(terms["l1"]) == 0
    assert float(losses(truth, truth + 0.25)["l1"]) == pytest.approx(0.25)
    changed = frames(1, 1, 11, 12, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: sum(losses(x, truth[:1, :1, :11, :12]).values()), changed)


@pytest.mark.parametrize("name", SCORES)
def test_scores_are_one_for_each_frame_and_higher_where_worse(name):
    truth = frames(2, 5, 3, 20, 26)
    worse = torch.linspace(0.01, 0.2, 5, dtype=torch.double).view(5, 1, 1, 1) * frames(2, 5, 3, 20, 26, seed=1)
    scores = SCORES[name](truth + worse, truth)
    assert scores.shape == (2, 5)
    assert (scores.diff(dim=1) > 0).all()
    equal = SCORES[name](truth, truth)
    assert torch.isfinite(equal).all()
    assert (equal < scores).all()
    torch.testing.assert_close(SCORES[name](truth[1, 2:3], truth[0, 2:3]), SCORES[name](truth[1], truth[0])[2:3])


def test_a_patch_does_not_fade_in_a_large_frame():
    truth, changed = torch.zeros(1, 1, 64, 80), torch.zeros(1, 1, 64, 80)
    changed[..., 20:36, 30:46] = 0.5
    assert float(patch_score(changed, truth)) == pytest.approx(10 * np.log10(0.25), abs=1e-4)
    assert float(psnr_score(changed, truth)) == pytest.approx(10 * np.log10(0.25 * 256 / 5120), abs=1e-4)
    small = changed[..., :36, :46], truth[..., :36, :46]  # a patch of the whole frame
    assert float(patch_score(*small, size=200)) == pytest.approx(float(psnr_score(*small)), abs=1e-4)


def test_names():
    assert float(score_of("patch", 4)(torch.ones(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))) == 0
    with pytest.raises(ValueError, match=r"error is 'pnsr'; it may be 'psnr', 'patch', 'ssim'\. Did you mean 'psnr'"):
        score_of("pnsr")
    with pytest.raises(ValueError, match="patch is 4, and error='psnr' has no patches"):
        score_of("psnr", 4)
    with pytest.raises(ValueError, match="patch is 0"):
        score_of("patch", 0)
