"""How well a trained network does on corrupted images (see `attlas.corruptions`), by the metrics of its config.

Of Michaelis et al., Benchmarking Robustness in Object Detection: Autonomous Driving when Winter is Coming (2019): the
mean performance under corruption (mPC) is the mean of a metric over corruptions and severities, and the relative one
(rPC) its share of the metric on the clean images.
"""

import copy
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from rich.table import Table

from .corruptions import with_corruption


@dataclass
class Robustness:
    """Metrics under corruptions.

    Args:
        corruptions: names, of `corruptions.CORRUPTIONS`.
        severities: 1 to 5, and 0 for the clean images, on which all corruptions are one.
        found: metrics, of what has been tested, by corruption and severity; the clean ones are those of ("clean", 0).
    """

    corruptions: Sequence[str]
    severities: Sequence[int]
    found: dict[tuple[str, int], dict[str, float]] = field(default_factory=dict)

    def jobs(self) -> list[tuple[str, int]]:
        """What is to be tested, in order."""
        clean = [("clean", 0)] if 0 in self.severities else []
        return clean + [(name, severity) for name in self.corruptions for severity in self.severities if severity]

    def metric(self, name: str | None) -> str:
        """A name of a metric; by default that of the first.

        Raises:
            ValueError: there is no metric of this name.
        """
        names = list(next(iter(self.found.values())))
        if name is not None and name not in names:
            raise ValueError(f"there is no metric {name!r}; the evaluator gives {', '.join(names)}.")
        return name or names[0]

    def mean(self, metric: str, corruptions: Sequence[str] | None = None) -> float:
        """Of a metric over some corruptions, by default all (mPC), and the severities from 1 on; NaN of nothing."""
        wanted = self.corruptions if corruptions is None else corruptions
        values = [metrics.get(metric, math.nan) for (name, _), metrics in self.found.items() if name in wanted]
        return statistics.fmean(values) if values else math.nan

    def clean(self, metric: str) -> float:
        return self.found.get(("clean", 0), {}).get(metric, math.nan)

    def relative(self, metric: str) -> float:
        """rPC in percent; NaN where nothing is right on the clean images."""
        clean = self.clean(metric)
        return 100 * self.mean(metric) / clean if clean > 0 else math.nan

    def record(self) -> dict[str, Any]:
        """What JSON can hold: `clean`, `corruptions` by name and severity, and, when all has been tested, `mPC` and
        `rPC` of each metric."""
        found: dict[str, Any] = dict(clean=self.found.get(("clean", 0), {}), corruptions={})
        for (name, severity), metrics in self.found.items():
            if severity:
                found["corruptions"].setdefault(name, {})[str(severity)] = metrics
        if len(self.found) == len(self.jobs()):
            for key, function in (("mPC", self.mean), ("rPC", self.relative)):
                values = {name: function(name) for name in next(iter(self.found.values()))}
                found[key] = {name: value for name, value in values.items() if math.isfinite(value)}
        return found

    def table(self, metric: str) -> Table:
        """Of one metric: corruptions by severities, and the means."""

        def shown(value: float) -> str:
            return "-" if math.isnan(value) else f"{value:.4g}"

        corrupted = [severity for severity in self.severities if severity]
        table = Table(metric, *map(str, corrupted), "mean")
        for name in self.corruptions if corrupted else ():
            values = [self.found[name, severity].get(metric, math.nan) for severity in corrupted]
            table.add_row(name, *map(shown, values), shown(self.mean(metric, [name])))
        table.add_section()
        blank = [""] * len(corrupted)
        table.add_row("clean", *blank, shown(self.clean(metric)))
        table.add_row("corrupted (mPC)", *blank, shown(self.mean(metric)))
        table.add_row("corrupted / clean (rPC), %", *blank, shown(self.relative(metric)))
        return table


def measure(config: Config, corruptions: Sequence[str], severities: Sequence[int], seed: int) -> Iterator[Robustness]:
    """Test a network on corrupted images; gives what is known after each test.

    Args:
        config: the config of a test, with the checkpoint as `load_from`.
        corruptions, severities: as of `Robustness`.
        seed: seed of the corruptions (>= 0).
    """
    from .engine import Runner  # here, because a tool prints its help without it

    robustness = Robustness(corruptions, sorted(set(severities)))
    runner = Runner.from_cfg(config)
    for name, severity in robustness.jobs():
        loader = copy.deepcopy(config.test_dataloader)
        # severity 0 changes no image, but finds out that there are images
        loader.dataset = with_corruption(loader.dataset, name if severity else corruptions[0], severity, seed)
        runner.test_loop.dataloader = runner.build_dataloader(loader, seed=runner.seed)
        print_log(f"{name}, severity {severity}", logger="current")
        metrics = {key: value for key, value in runner.test().items() if isinstance(value, (int, float))}
        robustness.found[name, severity] = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        yield robustness
