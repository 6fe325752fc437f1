"""A whole scene, labelled by `PointSegmenter` as configs/risurconv/risurconv_s3dis.py has it: seconds and memory of a
process that does nothing else. No other implementation stands beside it."""

import multiprocessing
from typing import Any

import torch
from torch import Tensor

from .cases import OURS, Run
from .measure import PeakMemory, timed

ROOM = (10.0, 8.0, 3.0)  # meters
CLASSES = 13
OPTIONS: dict[str, Any] = dict(num_points=4096, block=1.0, overlap=2, up="z", draws=2)
NETWORK = dict(type="RISurConvSegmenter", num_classes=CLASSES, num_categories=0)
SMALL: dict[str, Any] = dict(
    channels=(8, 8, 8, 8),
    neighbors=(4, 4, 4, 4),
    decoder=((8, 8), (8, 8), (8, 8), (8,)),
    decoder_neighbors=(4, 4, 4, 4),
)


def room(count: int) -> Tensor:
    """Points (N, 3) all over the floor, the ceiling and the walls of an empty room."""
    draw = torch.Generator().manual_seed(0)
    size = torch.tensor(ROOM)
    areas = (size.prod() / size).repeat_interleave(2)  # of the two sides across each axis
    side = torch.multinomial(areas, count, replacement=True, generator=draw)
    points = torch.rand(count, 3, generator=draw)
    points[torch.arange(count), side // 2] = (side % 2).float()
    return points * size


def worker(pipe, count: int, quick: bool, device_name: str, threads: int) -> None:
    """A process that labels a scene, and answers with seconds, of normals and in all, and its peak memory."""
    from attlas.kernels import local_reference_axis
    from attlas.pointnets.segmenter import PointSegmenter

    device = torch.device(device_name)
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    small = dict(SMALL, num_points=64) if quick else dict(num_points=1024)
    options = dict(OPTIONS, num_points=256) if quick else OPTIONS
    model = PointSegmenter(dict(NETWORK, **small), **options).eval().to(device)
    with torch.inference_mode():
        few = room(OPTIONS["num_points"]).to(device) / max(ROOM)  # in a block or two
        model.predict(few, local_reference_axis(few[None], 32)[0])  # compiles
        memory = PeakMemory(device)
        points = room(count).to(device)
        of_normals, normals = timed(lambda: local_reference_axis(points[None], 32)[0], device)
        of_labels, found = timed(lambda: model.predict(points, normals), device)
    if found.shape != (count, CLASSES) or not found.isfinite().all():
        raise ValueError(f"log-probabilities {tuple(found.shape)}, or some that are not finite")
    pipe.send((of_normals, of_normals + of_labels, memory.mib()))


def measure_scene(run: Run, quick: bool) -> dict:
    """The record of a room of 1,000,000 points, which takes minutes."""
    count = 10_000 if quick else 1_000_000
    spawn = multiprocessing.get_context("spawn")
    pipe, theirs = spawn.Pipe()
    process = spawn.Process(target=worker, args=(theirs, count, quick, str(run.device), run.threads), daemon=True)
    process.start()
    theirs.close()
    of_normals, seconds, memory = pipe.recv()  # EOFError: the process ended, and said why
    process.join()
    result = {"ms": 1e3 * seconds, "normals_ms": 1e3 * of_normals, "points_per_s": count / seconds, **memory}
    return {"operator": "scene", "sizes": {"N": count}, "results": {OURS: result}}
