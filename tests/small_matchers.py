"""A matcher small enough for a test, and images of noise."""

import torch

from attlas.dense.matching.matcher import Matcher

BACKBONE = dict(
    type="ResNet", dims=(8, 8, 16), depths=(1, 1, 1), bottleneck=False, strides=(2, 4, 8), out_indices=(0, 1, 2)
)
NETWORK = dict(type="UFC", dim=8, heads=2, depths=(1, 1, 1), refine_last=False)


def matcher(**options):
    torch.manual_seed(0)
    return Matcher(**dict(backbone=BACKBONE, network=NETWORK, size=(16, 24)) | options).eval()


def image(height, width, seed=0):
    return 255 * torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))
