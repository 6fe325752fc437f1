"""Ask a trained network about files of your own: pictures, meshes or clouds, whatever it was trained on.

    python tools/infer.py work_dirs/shvit_furniture_views/epoch_20.pth chair.jpg photos 'more/*.png' --out answers
    python tools/infer.py CONFIG WEIGHTS chair.obj

A checkpoint of a training of ours holds its config, which is read as data and never run; other weights need CONFIG.
--out takes a folder for results.json and a picture for each input; of a segmentor also a PNG of its labels, or of a
cloud a PLY with labels and colors. A file that cannot be read is reported, and the others are not: the exit status is
1 then.

    python tools/infer.py walks/epoch_4.pth video.mp4 folder_of_frames --out events

A detector of anomalies takes videos, files or folders of frames, and gives events. With --out there are also the curve
of the scores with frames (PNG), and the scores of all frames (CSV).

    python tools/infer.py HAT_SRx4.pth photos --out larger

    python tools/infer.py CHECKPOINT photos --open-set costarr.safetensors

says besides of each input whether it is of a class that the classifier knows; tools/test.py --open-set makes the file.

The weights of a restorer, the authors' or ours, need no CONFIG: their names and shapes tell the network. --out then
gets the restored pictures, under the names of the inputs and in the same folders, as PNG with their depth, grey or
color, opacity and color profile. Where two inputs of a folder differ in their endings alone, these stay: photo.jpg.png.

    python tools/infer.py matcher.pth left.jpg right.jpg --mutual 8 --out matches

A matcher takes images two by two, each source before its target. --out gets a picture of the matches and the dense
field (.npz); places are x and y in pixels of the images as they were given.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import DictAction
from rich.console import Console
from rich.progress import Progress

from attlas.config import load_config
from attlas.files import check_out, printable, replacing, save_figure

CONFIGS = (".json", ".py", ".yaml", ".yml")
OPTIONS = (
    *("tile", "overlap", "half", "ensemble", "keep_tint"),  # of restorers
    *("mutual", "apart", "fusion"),  # of matchers
    *("threshold", "quantile", "gap", "least"),  # of detectors of anomalies in videos
)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s [options] [CONFIG] CHECKPOINT INPUT [INPUT ...]",
    )
    parser.add_argument("paths", nargs="+", metavar="PATH", help="[CONFIG] CHECKPOINT INPUT ...: files, folders, globs")
    parser.add_argument("--out", type=Path, metavar="DIR", help="for results.json and the pictures")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing results.json, restored pictures")
    parser.add_argument("--top", type=int, metavar="N", help="most classes (5) or objects (100) that are listed")
    parser.add_argument("--batch-size", type=int, default=32, metavar="N", help="inputs at a time (32)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (the GPU if there is one)")
    parser.add_argument("--container", help="name under which the file has the weights, such as model_ema")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    parser.add_argument(
        "--open-set", type=Path, metavar="FILE", help="of classifiers: a fitted score, known or unknown"
    )
    restorers = parser.add_argument_group("restorers", argument_default=argparse.SUPPRESS)
    restorers.add_argument("--tile", type=int, metavar="N", help="side of tiles (384 where a picture is larger)")
    restorers.add_argument("--overlap", type=int, metavar="N", help="of tiles (measured)")
    restorers.add_argument("--half", choices=("float16", "bfloat16"), help="compute in half precision")
    restorers.add_argument("--ensemble", action="store_true", help="mean over flips and turns; takes 8 times as long")
    restorers.add_argument("--keep-tint", action="store_true", help="take back what a network shifts of these")
    matchers = parser.add_argument_group("matchers", argument_default=argparse.SUPPRESS)
    matchers.add_argument("--mutual", type=float, metavar="PIXELS", help="largest error of the way there and back")
    matchers.add_argument("--apart", type=float, metavar="PIXELS", help="least distance of two matches (0)")
    matchers.add_argument("--fusion", choices=("mean", "peak", "cycle"), help="of the levels: mean, or the surest one")
    videos = parser.add_argument_group("detectors of anomalies in videos", argument_default=argparse.SUPPRESS)
    videos.add_argument("--threshold", type=float, metavar="X", help="score from which a frame is anomalous (measured)")
    videos.add_argument(
        "--quantile", type=float, metavar="Q", help="share of normal frames of the training below it (0.995)"
    )
    videos.add_argument("--gap", type=int, metavar="N", help="most frames between two parts of one event (5)")
    videos.add_argument("--least", type=int, metavar="N", help="fewest frames of an event (1)")
    return parser


def infer(args: argparse.Namespace) -> int:
    """Print an answer for each input, write what --out asks for, and give the number of inputs without an answer."""
    config, rest = (args.paths[0], args.paths[1:]) if args.paths[0].endswith(CONFIGS) else (None, args.paths)
    if len(rest) < 2:
        raise ValueError(f"a checkpoint and at least one input were expected, and got {' '.join(rest) or 'neither'}")
    if config is None and args.cfg_options:
        raise ValueError("--cfg-options override a config: name it before the checkpoint")
    results_file = args.out and check_out(args.out / "results.json", (".json",), args.overwrite)  # before the work
    from attlas.backbones.channels import fill_channels  # not for --help
    from attlas.inference import Inferencer

    cfg = config and load_config(config, args.cfg_options)
    if cfg and cfg.get("model"):
        fill_channels(cfg.model, cfg.get("default_scope"))
    options = {name: getattr(args, name) for name in OPTIONS if name in args}
    inferencer = Inferencer(rest[0], cfg, args.device, args.container, **options)
    sources, task = inferencer.find(rest[1:]), inferencer.task
    if args.open_set:
        from attlas.backbones.open_sets.fitting import attach

        attach(inferencer.model, args.open_set)
    stems = {} if task.figures else stems_of(sources, args.out, args.overwrite)
    results: list[dict[str, Any]] = []
    bar = Progress(
        console=Console(stderr=True),
        disable=not sys.stderr.isatty(),
        redirect_stdout=sys.stdout.isatty(),
        transient=True,
    )
    try:
        with bar:
            job = bar.add_task("inputs", total=len(sources))
            if hasattr(inferencer.model, "progress"):
                tiles = bar.add_task("tiles", visible=False)
                inferencer.model.progress = lambda done, total: bar.update(
                    tiles, completed=done, total=total, visible=1 < total != done
                )
            for result, source in inferencer.stream(sources, args.batch_size, args.top):
                answer = task.said(result) if "error" not in result else f"no answer: {result['error']}"
                if args.out and "error" not in result:
                    name = stems.get(result["input"], f"{len(results) + 1:04d}_{safe(Path(result['input']).stem)}")
                    if task.figures:
                        save_figure(task.draw(source, result), args.out / f"{name}.png")
                    result |= dict(picture=f"{name}.png", **task.save(source, result, args.out / name))
                results.append(result)  # when all is written that it names, and what json cannot hold is out of it
                print(f"{printable(result['input'])}: {answer}", flush=True)
                bar.advance(job)
    except KeyboardInterrupt:
        answered = sum("error" not in result for result in results)
        raise KeyboardInterrupt(f"stopped; {answered} answered") from None
    finally:
        if results_file and results:  # whatever ended it: hours of answers are not thrown away
            found = dict(checkpoint=rest[0], classes=inferencer.model.classes, results=results)
            with replacing(results_file) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
    if inferencer.left_out:
        endings = sorted({path.suffix.lower() or "without a suffix" for path in inferencer.left_out})
        print(f"Left out of folders for their endings: {len(inferencer.left_out)} ({printable(' '.join(endings))}).")
    failed = [result for result in results if "error" in result]
    if failed:
        print("No answer to:")
    for result in failed:
        print(f"  {printable(result['input'])}")
    where = f" Results: {results_file}" if results_file else ""
    unknown = sum(result.get("open_set", {}).get("unknown", False) for result in results)
    told = f" Of an unknown class: {unknown}." if args.open_set else ""
    print(f"{len(results) - len(failed)} of {len(results)} inputs answered.{told}{where}")
    return len(failed)


def stems_of(sources: Iterable[Any], out: Path | None, overwrite: bool) -> dict[str, str]:
    """Paths below `out`, without their ending .png, of the answers to the files among the sources, by name: as they lie
    in the innermost folder that holds all of them. A file that would be replaced is an error, an input in any case."""
    if out is None:
        raise ValueError("the answers are pictures: name a folder for them, --out DIR")
    files = {source.name: Path(os.path.abspath(source.value)) for source in sources if isinstance(source.value, Path)}
    if not files:
        return {}
    top = os.path.commonpath([file.parent for file in files.values()])
    kept = {file: file.with_suffix("") for file in files.values()}
    while True:  # a whole name may be the beginning of another: of x.png and x.jpg, and of x.jpg.png beside them
        count = Counter(kept.values())
        shared = [file for file, stem in kept.items() if stem != file and count[stem] > 1]
        if not shared:
            break
        kept |= {file: file for file in shared}
    stems = {name: kept[file].relative_to(top).as_posix() for name, file in files.items()}
    inputs = {os.path.realpath(file) for file in files.values()}
    for stem in stems.values():
        answer = out / f"{stem}.png"
        if os.path.realpath(answer) in inputs:
            raise ValueError(f"{printable(answer)} is an input, which no answer may replace: name another --out")
        if answer.exists() and not overwrite:
            raise FileExistsError(f"{printable(answer)} exists. To replace it: --overwrite.")
    return stems


def safe(stem: str) -> str:
    """The name of a file as a part of another's, on any system."""
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in stem)[:100]


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        failed = infer(args)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        parser.error(str(error))
    except KeyboardInterrupt as stop:
        print(str(stop) or "stopped; 0 answered", file=sys.stderr)
        sys.exit(130)  # as of a shell: 128 + SIGINT
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
