"""Which of the configs that mmdet and mmseg ship work here, where nothing was compiled: a config of every folder.

    python tools/survey.py --markdown docs/survey.md          # a quarter of an hour
    python tools/survey.py --only mmdet/dcn,mmseg/psanet

Each is built with random weights in a process of its own, and must give losses, gradients and predictions for two small
random images on a CPU. The operators of mmcv's extension that it called are listed, which attlas.kernels.mmcv_ext has.
"""

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attlas  # noqa: F401  before mmcv

LIBRARIES = ("mmdet", "mmseg")
# Folders that hold no network of their own, or one for other inputs than images: parts of configs, data sets, and
# trackers and detectors that are asked in words.
LEFT_OUT = {
    "mmdet": {
        "_base_", "albu_example", "bytetrack", "cityscapes", "common", "deepfashion", "deepsort", "dsdl", "glip",
        "grounding_dino", "legacy_1.x", "lvis", "mask2former_vis", "masktrack_rcnn", "misc", "mm_grounding_dino",
        "objects365", "ocsort", "openimages", "pascal_voc", "qdtrack", "reid", "soft_teacher", "sort", "strongsort",
        "strong_baselines", "v3det", "instaboost", "simple_copy_paste",
    },
    "mmseg": {"_base_", "dsdl"},
}  # fmt: skip
BEGIN, END = "<!-- survey:begin -->", "<!-- survey:end -->"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="some folders: mmdet/dcn,mmseg/psanet")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each (300)")
    parser.add_argument("--markdown", type=Path, metavar="PAGE", help="write the table into this page")
    parser.add_argument("--one", nargs=2, metavar=("LIBRARY", "CONFIG"), help="try one config here, and print a JSON")
    return parser


def configs(only: set[str]) -> Iterator[tuple[str, Path]]:
    """For every folder of both libraries the config of the shortest name, which is the plainest."""
    for library in LIBRARIES:
        root = Path(str(find_spec(library).origin)).parent / ".mim/configs"  # type: ignore[union-attr]
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            files = [path for path in folder.glob("*.py") if not path.stem.endswith("_tta")]  # no configs of a model
            files.sort(key=lambda path: (len(path.name), path.name))
            wanted = f"{library}/{folder.name}" in only if only else folder.name not in LEFT_OUT[library]
            if files and wanted:
                yield library, files[0]


# --- one config ------------------------------------------------------------------------------------------------------


def without_files(node: Any) -> None:
    """Leave out the weights that a config would load; how else it begins, stays."""
    if isinstance(node, dict):
        if isinstance(node.get("init_cfg"), dict) and node["init_cfg"].get("type") == "Pretrained":
            node["init_cfg"] = None
        node = list(node.values())
    for part in node if isinstance(node, (list, tuple)) else ():
        without_files(part)


def changed(node: Any, key: str, value: Any) -> None:
    """Set every entry of a name, at any depth."""
    if isinstance(node, dict):
        for name in node:
            if name == key:
                node[name] = value
            else:
                changed(node[name], key, value)
    elif isinstance(node, (list, tuple)):
        for part in node:
            changed(part, key, value)


def found(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from [value] if name == key else found(value, key)
    elif isinstance(node, (list, tuple)):
        for part in node:
            yield from found(part, key)


def detection_inputs(config: Any) -> dict:
    from mmdet.testing import demo_mm_inputs

    classes = min((number for number in found(config.model, "num_classes") if isinstance(number, int)), default=10)
    side = 512 if "DETR" in config.model.type or "DINO" in config.model.type else 320  # 900 tokens at least
    return demo_mm_inputs(
        2, [(3, side, side)] * 2, num_items=[3, 2], num_classes=min(classes, 10), with_mask=True, with_semantic=True
    )


def segmentation_inputs(config: Any) -> dict:
    import torch
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size = (128, 128)
    config.model.test_cfg = dict(mode="whole")
    config.model.data_preprocessor.update(size=size)
    config.model.data_preprocessor.pop("size_divisor", None)
    samples = []
    for _ in range(2):
        sample = SegDataSample(gt_sem_seg=PixelData(data=torch.randint(0, 2, (1, *size))))
        sample.gt_edge_map = PixelData(data=torch.randint(0, 2, (1, *size)))
        sample.set_metainfo(dict(ori_shape=size, img_shape=size, pad_shape=size, flip=False, flip_direction=None))
        samples.append(sample)
    return dict(inputs=[torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(2)], data_samples=samples)


def try_one(library: str, path: str) -> dict:
    """What became of a config: `ok`, `seconds`, the `operators` that were called, and an `error`."""
    import torch
    from mmengine.config import Config
    from mmengine.registry import DefaultScope

    torch.manual_seed(0)
    began, calls = time.perf_counter(), Counter[str]()
    extension: Any = importlib.import_module("mmcv._ext")

    def counting(name, function):
        def call(*args, **kwargs):
            calls[name] += 1
            return function(*args, **kwargs)

        return call

    for name in importlib.import_module("attlas.kernels.mmcv_ext").__all__:
        vars(extension)[name] = counting(name, getattr(extension, name))
    stage = "build"
    try:
        importlib.import_module(f"{library}.models")
        config = Config.fromfile(path)
        without_files(config.model)
        changed(config.model, "pretrained", None)
        changed(config.model.get("test_cfg"), "score_thr", 0.0)  # so that random weights find something
        data = detection_inputs(config) if library == "mmdet" else segmentation_inputs(config)
        with DefaultScope.overwrite_default_scope(library):
            model = importlib.import_module(f"{library}.registry").MODELS.build(config.model)
            from mmengine.model.utils import revert_sync_batchnorm

            model.init_weights()
            model = revert_sync_batchnorm(model).train()
            stage = "loss"
            batch = model.data_preprocessor(data, True)
            losses = model(**batch, mode="loss")
            total = model.parse_losses(losses)[0]
            stage = "backward"
            total.backward()
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            if not torch.isfinite(total) or not all(torch.isfinite(gradient).all() for gradient in gradients):
                raise ValueError("a loss or a gradient is not finite")
            stage = "predict"
            with torch.no_grad():
                predictions = model.eval()(**model.data_preprocessor(data, False), mode="predict")
            assert len(predictions) == 2
    except Exception as error:
        text = f"{stage}: {type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        return dict(ok=False, seconds=time.perf_counter() - began, operators=sorted(calls), error=text[:200])
    return dict(ok=True, seconds=time.perf_counter() - began, operators=sorted(calls), error="")


# --- all -------------------------------------------------------------------------------------------------------------


def run(library: str, path: Path, limit: float) -> dict:
    command = [sys.executable, "-W", "ignore", __file__, "--one", library, str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return dict(ok=False, seconds=limit, operators=[], error=f"over {limit:g} s")
    lines = [line for line in done.stdout.splitlines() if line.startswith('{"ok"')]
    if not lines:
        return dict(ok=False, seconds=0.0, operators=[], error=f"ended with {done.returncode}: {done.stderr[-150:]}")
    return json.loads(lines[-1])


def page(rows: list[tuple[str, Path, dict]]) -> str:
    lines = []
    for library in LIBRARIES:
        own = [(path, row) for name, path, row in rows if name == library]
        good = sum(row["ok"] for _, row in own)
        lines += [f"{library}: {good} of {len(own)} configs work.", "", "| config | | operators of mmcv's extension |"]
        lines += ["|---|---|---|"]
        for path, row in own:
            said = "works" if row["ok"] else row["error"].replace("|", "/")
            lines.append(f"| {path.parent.name}/{path.stem} | {said} | {', '.join(row['operators'])} |")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    if args.one:
        print(json.dumps(try_one(*args.one)))
        return
    if args.markdown and not (args.markdown.is_file() and BEGIN in args.markdown.read_text()):
        parser.error(f"--markdown: {args.markdown} has no place for the table ({BEGIN} ... {END})")
    rows = []
    for library, path in configs({name for name in args.only.split(",") if name}):
        row = run(library, path, args.limit)
        print(f"{library} {path.parent.name}/{path.stem}: {'works' if row['ok'] else row['error']}", flush=True)
        rows.append((library, path, row))
    if args.markdown:
        text = args.markdown.read_text()
        before, after = text.split(BEGIN)[0], text.split(END)[1]
        args.markdown.write_text(f"{before}{BEGIN}\n{page(rows)}{END}{after}")
    print(f"{sum(row['ok'] for *_, row in rows)} of {len(rows)} configs work.")


if __name__ == "__main__":
    main()
