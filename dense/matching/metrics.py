"""How near predicted matches are to known ones: percentage of correct key points, and end-point error.

Both are measured in pixels of the target as it was given, on known matches of the source, whatever size the network
works at. What a figure is, its name and a line of the log say.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from ...data import one_of
from ...files import printable
from ...registry import METRICS

REFERENCES = ("bbox", "image", "pixels")


class MatchMetric(BaseMetric):
    """Base of the metrics: errors (K,) of each pair, in pixels of its target."""

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        for sample in data_samples:
            name = printable(sample.get("name") or "a pair")
            if "source_points" not in sample:
                raise ValueError(f"{name} has no known matches (source_points, target_points): nothing to measure.")
            there = sample["there"]
            source, target = (sample[f"{side}_points"].to(there.shares) for side in ("source", "target"))
            known = ~(source.isnan().any(-1) | target.isnan().any(-1))
            error = (there.at(source[known]) - target[known]).norm(dim=-1)
            if not torch.isfinite(error).all():
                raise ValueError(f"the network gives NaN or infinite numbers for {name}.")
            self.results.append((error.double().cpu().numpy(), self.unit(sample, name), sample.get("category")))

    def unit(self, sample: dict, name: str) -> float:
        """The length that an error is compared with."""
        return 1.0

    def used(self, results: Sequence[tuple]) -> list[tuple]:
        """The pairs that have any known match; the log counts the others."""
        kept = [result for result in results if len(result[0])]
        if not kept:
            raise ValueError(f"{type(self).__name__}: no pair has a known match.")
        if len(kept) < len(results):
            print_log(f"{len(results) - len(kept)} of {len(results)} pairs have no known match.", logger="current")
        return kept


@METRICS.register_module()
class PCK(MatchMetric):
    """Percentage of key points that are transferred to at most `alpha` times a length from where they are.

    `PCK_<of>@<alpha>` is the mean over pairs of each pair's share, `..._by_point` the share of all points together; the
    field reports either under one name. With `by_category`, also `.../<category>`, by pair.

    Args:
        of: the length: "bbox", the longer side of the target's box (SPair-71k, PF-WILLOW); "image", the longer side of
            the target (PF-PASCAL); "pixels", one pixel of the target (HPatches).
        alphas: thresholds.
        by_category: whether each category gets figures of its own.
        prefix: begin of the names.
    """

    def __init__(
        self,
        of: str = "image",
        alphas: Sequence[float] = (0.05, 0.1, 0.15),
        by_category: bool = False,
        prefix: str | None = None,
        **options,
    ):
        super().__init__(prefix=prefix, **options)
        self.of, self.alphas = one_of("PCK.of", of, REFERENCES), tuple(alphas)
        if not self.alphas or not all(alpha > 0 for alpha in self.alphas):
            raise ValueError(f"PCK.alphas is {alphas!r}; it must be positive numbers, at least one.")
        self.by_category = by_category

    def unit(self, sample, name):
        if self.of == "pixels":
            return 1.0
        if self.of == "image":
            return float(max(sample["there"].other.size))
        if "target_box" not in sample:
            raise ValueError(f"PCK of='bbox': {name} has no box of its target; of may be 'image' or 'pixels'.")
        left, top, right, bottom = map(float, sample["target_box"])
        return max(right - left, bottom - top)

    def compute_metrics(self, results: list) -> dict[str, float]:
        results = self.used(results)
        lengths = dict(
            bbox="the longer side of the target's box", image="the longer side of the target", pixels="1 pixel"
        )
        print_log(
            f"PCK: errors at most alpha times {lengths[self.of]}, in %, of {len(results)} pairs.", logger="current"
        )
        found = {}
        for alpha in self.alphas:
            name = f"PCK_{self.of}@{alpha:g}"
            right = [errors <= alpha * unit for errors, unit, _ in results]
            shares = np.array([100 * each.mean() for each in right])
            found[name] = float(shares.mean())
            found[f"{name}_by_point"] = float(100 * np.concatenate(right).mean())
            if self.by_category:
                for category in sorted({str(result[2]) for result in results}):
                    of_it = [share for share, result in zip(shares, results) if str(result[2]) == category]
                    found[f"{name}/{category}"] = float(np.mean(of_it))
        return found


@METRICS.register_module()
class EndPointError(MatchMetric):
    """Mean distance, in pixels of the target, of known matches from where the network puts them: `EPE`, the mean over
    pairs of each pair's mean, and `EPE_by_point`, the mean of all points together. With `by_category`, also
    `EPE/<category>`, by pair.

    Args:
        by_category, prefix: as of `PCK`.
    """

    def __init__(self, by_category: bool = False, prefix: str | None = None, **options):
        super().__init__(prefix=prefix, **options)
        self.by_category = by_category

    def compute_metrics(self, results: list) -> dict[str, float]:
        results = self.used(results)
        means = np.array([errors.mean() for errors, *_ in results])
        found = dict(EPE=float(means.mean()), EPE_by_point=float(np.concatenate([r[0] for r in results]).mean()))
        print_log(f"EPE: in pixels of the targets as they were given, of {len(results)} pairs.", logger="current")
        if self.by_category:
            for category in sorted({str(result[2]) for result in results}):
                of_it = [mean for mean, result in zip(means, results) if str(result[2]) == category]
                found[f"EPE/{category}"] = float(np.mean(of_it))
        return found
