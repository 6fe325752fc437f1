"""How far predicted frames are from the real ones: the loss to train by, and the scores that tell anomalies.

Frames are (..., C, H, W) in [0, 1]. A score is a number for each frame, higher where the prediction is worse.
"""

from collections.abc import Callable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ...data import one_of, positive

WINDOW, SIGMA = 11, 1.5  # taps of the Gaussian window
C1, C2 = 0.01**2, 0.03**2
LEAST = 1e-10  # of a mean squared error: equal frames have a PSNR of 100 dB


def windowed(x: Tensor) -> Tensor:
    """Maps (..., H, W) averaged with a Gaussian window of 11 x 11 (sigma 1.5), without padding: 10 rows and columns
    fewer. An axis shorter than the window stays as it is."""
    place = torch.arange(WINDOW, dtype=x.dtype, device=x.device) - WINDOW // 2
    taps = (-(place**2) / (2 * SIGMA**2)).exp()
    taps = taps / taps.sum()
    maps = x.reshape(-1, 1, *x.shape[-2:])
    for axis in (0, 1):
        if x.shape[axis - 2] >= WINDOW:
            maps = F.conv2d(maps, taps.view(1, 1, -1, 1) if axis == 0 else taps.view(1, 1, 1, -1))
    return maps.reshape(*x.shape[:-2], *maps.shape[-2:])


def similarity(predicted: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity of frames (..., C, H, W), the mean over channels and places: (...). As Wang et al. (IEEE
    TIP 2004), with K1 = 0.01, K2 = 0.03, range 1, variances of the population, and windows of `windowed`."""
    mean, other = windowed(predicted), windowed(truth)
    both = windowed(predicted * truth) - mean * other
    variances = windowed(predicted**2) - mean**2 + windowed(truth**2) - other**2
    of_means = (2 * mean * other + C1) / (mean**2 + other**2 + C1)
    return (of_means * (2 * both + C2) / (variances + C2)).flatten(-3).mean(-1)


def losses(predicted: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """The two terms of the paper's loss, both means over all frames: "ssim", 1 - SSIM, and "l1", absolute differences
    in Gaussian windows. The paper weighs each by half."""
    return dict(ssim=1 - similarity(predicted, truth).mean(), l1=windowed((predicted - truth).abs()).mean())


# --- scores ----------------------------------------------------------------------------------------------------------


def psnr_score(predicted: Tensor, truth: Tensor) -> Tensor:
    """Minus the PSNR of each frame, in dB: 10 log10(mean squared error), peak 1, at least -100."""
    return 10 * (predicted - truth).square().flatten(-3).mean(-1).clamp(min=LEAST).log10()


def patch_score(predicted: Tensor, truth: Tensor, size: int = 16) -> Tensor:
    """The largest mean squared error of a patch, in dB as of `psnr_score`: a small anomaly counts as much in a large
    frame as in a small one.

    Args:
        predicted, truth: frames (..., C, H, W).
        size: side of the square patches, which begin at every second pixel; at most that of the frame.
    """
    error = (predicted - truth).square().mean(-3)
    patch = [min(positive("size", size), side) for side in error.shape[-2:]]
    means = F.avg_pool2d(error.reshape(-1, 1, *error.shape[-2:]), patch, stride=2)
    return 10 * means.flatten(1).amax(1).clamp(min=LEAST).log10().reshape(error.shape[:-2])


def ssim_score(predicted: Tensor, truth: Tensor) -> Tensor:
    """1 - SSIM of each frame."""
    return 1 - similarity(predicted, truth)


Score = Callable[[Tensor, Tensor], Tensor]
SCORES: Mapping[str, Score] = dict(psnr=psnr_score, patch=patch_score, ssim=ssim_score)
ABOUT = dict(
    psnr="minus the PSNR, in dB",
    patch="largest mean squared error of a patch, in dB",
    ssim="1 - SSIM",
)


def score_of(error: str, patch: int | None = None) -> Score:
    """The score of a name of SCORES.

    Args:
        error: the name.
        patch: side of the patches of 'patch'; None for its default, and for the others.

    Raises:
        ValueError: there is no such score, or it has no patches.
    """
    found = SCORES[one_of("error", error, tuple(SCORES))]
    if patch is None:
        return found
    if error != "patch":
        raise ValueError(f"patch is {patch!r}, and error={error!r} has no patches.")
    return partial(patch_score, size=positive("patch", patch))
