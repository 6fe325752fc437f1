"""How far estimated normals are from those that clouds have, and what it takes to estimate them.

    python tools/normals.py configs/risurconv/risurconv_room_clouds.py
    python tools/normals.py CONFIG --k 16 32 64 --noise 0.005 --points 4096

The clouds are those of the config's test data, as they are in their files. Angles are between lines, because the sign
of an estimated normal is arbitrary; how often it is that of the data stands beside them. Open3D's estimate_normals,
which gives no sign, takes turns with ours. Times are those of one thread, unless --threads says otherwise.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for the benchmark beside this file

WIDE = 30  # degrees, of an angle that no smooth surface explains


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--k", type=int, nargs="+", default=[8, 16, 32], metavar="K", help="neighbors (8 16 32)")
    parser.add_argument("--clouds", type=int, default=8, metavar="N", help="number of clouds, spread over the data (8)")
    parser.add_argument("--points", type=int, metavar="N", help="points that are drawn of each cloud (all)")
    parser.add_argument(
        "--without", nargs="+", default=[], metavar="CLASS", help="classes whose points are not counted"
    )
    parser.add_argument("--noise", type=float, default=0.0, metavar="S", help="standard deviation of noise (0)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="cores to use (1)")
    return parser


def estimators(k: int) -> dict[str, Callable]:
    """Normals (N, 3) of points (N, 3), both float32 tensors, by name."""
    import numpy as np
    import open3d as o3d
    import torch

    from attlas.kernels import local_reference_axis

    def open3d(points):
        cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(points.numpy()))
        cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(k))
        return torch.from_numpy(np.asarray(cloud.normals, np.float32))

    return {"attlas": lambda points: local_reference_axis(points[None], k)[0], "open3d": open3d}


def clouds(args: argparse.Namespace) -> list[Any]:
    """Clouds with normals.

    Raises:
        ValueError: they have no normals to compare with, or an argument makes no sense.
    """
    import torch

    from attlas.browsing import choose
    from attlas.config import load_config
    from attlas.data import one_of, positive, seeded
    from attlas.pointnets.transforms import RandomPoints
    from attlas.pointnets.viewer import config_dataset

    if not 0 <= args.noise < math.inf:
        raise ValueError(f"--noise is {args.noise}; it must be a finite number of at least 0")
    positive("--clouds", args.clouds)
    if args.points is not None:
        positive("--points", args.points)
    dataset: Any = config_dataset(load_config(args.config))
    dataset = getattr(dataset, "dataset", dataset)  # that of RotatedViews
    left_out = torch.tensor(
        [dataset.classes.index(one_of("--without", name, dataset.classes)) for name in args.without]
    )
    found = []
    for item in choose(dataset, min(args.clouds, len(dataset))):
        data = dataset.get(item)
        if data.face is None and data.get("normal") is None:
            raise ValueError(f"{dataset.name(item)} has no normals to compare with")
        with seeded(0, item):
            if args.points or data.face is not None:
                data = RandomPoints(args.points or 10_000)(data)
            data.pos = (data.pos + args.noise * torch.randn_like(data.pos)).float()
        labels = data.get("point_label")
        if labels is None and args.without:
            raise ValueError(f"--without leaves out points by their labels, and {dataset.name(item)} has none")
        data.counted = torch.ones(len(data.pos), dtype=torch.bool) if labels is None else ~torch.isin(labels, left_out)
        found.append(data)
    if not any(data.counted.any() for data in found):
        raise ValueError(f"--without {' '.join(args.without)} leaves no point of the clouds to count")
    return found


def rows(found: Sequence[Any], ks: Sequence[int]) -> list[list[str]]:
    """A row for each number of neighbors and each estimator."""
    import numpy as np
    import torch
    from benchmark.measure import timed

    rows = []
    for k in ks:
        calls = estimators(k)
        for call in calls.values():  # the first compiles
            call(found[0].pos)
        cosines: dict[str, list[torch.Tensor]] = {name: [] for name in calls}
        seconds = dict.fromkeys(calls, 0.0)
        for data in found:
            for name, call in calls.items():
                taken, normals = timed(partial(call, data.pos), torch.device("cpu"))
                seconds[name] += taken
                cosines[name].append((normals.double() * data.normal.double()).sum(1)[data.counted])
        for name in calls:
            cosine = torch.cat(cosines[name]).clamp(-1, 1)
            angle = cosine.abs().acos().rad2deg()
            sign = f"{100 * float((cosine > 0).double().mean()):.1f}" if name == "attlas" else "-"
            median, high = np.quantile(angle.numpy(), [0.5, 0.95])  # torch's takes 16 million at most
            beyond = 100 * float((angle > WIDE).double().mean())
            million = 1e6 * seconds[name] / sum(len(data.pos) for data in found)
            ratio = seconds[name] / seconds["open3d"]
            rows.append([str(k), name, f"{median:.1f}", f"{high:.1f}", f"{beyond:.1f}", sign, f"{million:.2f}"])
            rows[-1].append(f"{ratio:.2f}")
    return rows


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        from benchmark.measure import use_threads

        from attlas.data import positive

        use_threads(positive("--threads", args.threads))  # before libraries are loaded that ask at their start
        found = clouds(args)
        count = sum(int(data.counted.sum()) for data in found)
        threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
        title = f"{len(found)} clouds, {count:,} points counted, noise {args.noise:g}; {threads}"
        columns = "k", "by", "median, °", "95 %, °", f"> {WIDE}°, %", "sign right, %", "s a million", "over Open3D"
        table = Table(*columns, title=title, title_justify="left")
        for row in rows(found, args.k):
            table.add_row(*row)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    from attlas.files import console

    console().print(table)


if __name__ == "__main__":
    main()
