"""Test a checkpoint.

    python tools/test.py CONFIG CHECKPOINT
    python tools/test.py CONFIG TRAINED_UNDER_Z --so3 TRAINED_UNDER_SO3
    python tools/test.py CONFIG CHECKPOINT --corruptions all
    python tools/test.py CONFIG CHECKPOINT --tta
    python tools/test.py CONFIG CHECKPOINT --open-set --surrogates vessel car --fitted costarr.safetensors

The second prints the protocol of rotation invariance: trained / tested under rotations about the up axis (z) and under
all rotations (SO3). The third tests on the images under 15 corruptions in 5 severities each, and on the clean ones
(severity 0), and prints the mean of a metric under corruption (mPC) and its share of the clean metric (rPC). The fourth
averages the predictions in several sizes of an image and its mirrored ones, as the config says: of segmentors
`tta_views`, for others mm's `tta_pipeline`. The fifth asks how well a classifier tells the classes that it was trained
on from the others of the test data, by all open-set scores (docs/open_sets.md), and keeps one with its threshold for
tools/infer.py.

--out FILE takes results: of classifiers an .npz (log-probabilities, labels, confusion matrices), of detectors a .json
in COCO's format of results, of segmentors an .npz (confusion matrix, figures by class). With --corruptions it takes all
metrics of every corruption and severity (.json), written anew after each; with --open-set all figures (.json).
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from rich.table import Table

from attlas.config import load_config
from attlas.files import check_out, console, near_files, replacing


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--so3", type=Path, metavar="CHECKPOINT", help="the same network trained under all rotations")
    parser.add_argument("--corruptions", nargs="+", metavar="NAME", help="test on corrupted images: names, or all")
    parser.add_argument(
        "--severities", nargs="+", type=int, choices=range(6), default=range(6), help="of the corruptions (0 to 5)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the corruptions (0)")
    parser.add_argument("--tta", action="store_true", help="average over sizes and mirrored images")
    sets = parser.add_argument_group("open sets")
    sets.add_argument("--open-set", action="store_true", help="test on classes that the network was not trained on")
    sets.add_argument("--known", nargs="+", metavar="CLASS", help="trained classes (those the checkpoint names)")
    sets.add_argument(
        "--surrogates", nargs="+", default=[], metavar="CLASS", help="unknown classes to choose a threshold by"
    )
    sets.add_argument("--scores", nargs="+", metavar="NAME", help="such as costarr:features=pre (all)")
    sets.add_argument("--fitted", type=Path, metavar="FILE", help="for one score and its threshold, .safetensors")
    sets.add_argument("--keep", default="costarr", metavar="NAME", help="the score that --fitted gets (costarr)")
    sets.add_argument(
        "--rule",
        choices=("surrogates", "known"),
        help="of its threshold: best accuracy with surrogates, or 95 %% of "
        "held-out known accepted (the first where there are surrogates)",
    )
    sets.add_argument("--picture", type=Path, metavar="FILE", help="for the OSCR curves")
    parser.add_argument("--metric", metavar="NAME", help="what the table of --corruptions is of (the first metric)")
    parser.add_argument("--work-dir", type=Path, help="for the logs (work_dirs/<name of the config>)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for the predictions, or the metrics of --corruptions")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing file of results")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0)
    return parser


def first_evaluator(cfg: Config) -> dict:
    return cfg.test_evaluator[0] if isinstance(cfg.test_evaluator, (list, tuple)) else cfg.test_evaluator


def test(cfg: Config, checkpoint: Path, out: Path | None) -> dict[str, float]:
    from attlas.engine import Runner  # not for --help

    cfg = cfg.copy()
    cfg.load_from = str(checkpoint)
    if out:
        first_evaluator(cfg).update(out_file=str(out), overwrite=True)  # `prepare` has looked
    return Runner.from_cfg(cfg).test()


def test_corrupted(cfg: Config, args: argparse.Namespace) -> Table:
    """The table of one metric. Whenever a test has ended, the file of results is written anew."""
    from attlas.robustness import measure

    cfg = cfg.copy()
    cfg.load_from = str(args.checkpoint)
    for robustness in measure(cfg, args.corruptions, args.severities, args.seed):
        try:
            metric = robustness.metric(args.metric)
        except ValueError as error:  # after the first test
            raise SystemExit(f"--metric: {error}") from None
        if args.out and is_main_process():
            found = dict(checkpoint=str(args.checkpoint), seed=args.seed, **robustness.record())
            with replacing(args.out) as temporary:
                temporary.write_text(json.dumps(found, indent=1) + "\n")
    return robustness.table(metric)


# of the table, what a metric gives
ROWS = {
    "class_mIoU": "class mIoU (mean over categories), %",
    "instance_mIoU": "instance mIoU (mean over shapes), %",
    "pooled_mIoU": "pooled mIoU (of all points together), %",
    "mIoU": "mIoU (of all points together), %",
    "OA": "overall accuracy, %",
    "mAcc": "class accuracy, %",
}


def protocol_table(z: dict[str, float], so3: dict[str, float] | None) -> Table:
    """The table of the field. Columns: trained / tested under."""
    columns: dict[str, tuple[str, dict[str, float]]] = {"z/z": ("z", z), "z/SO3": ("SO3", z)}
    if so3 is not None:
        columns["SO3/SO3"] = ("SO3", so3)
    table = Table("trained / tested", *columns)
    for key, name in ROWS.items():
        if f"z/{key}" in z:
            table.add_row(name, *(f"{metrics[f'{group}/{key}']:.2f}" for group, metrics in columns.values()))
    changes = [m.get("log_prob_change") if group == "SO3" else None for group, m in columns.values()]
    if any(change is not None for change in changes):
        table.add_row("largest change of a log-probability", *("" if c is None else f"{c:.2g}" for c in changes))
    return table


def outs(args: argparse.Namespace) -> list[Path]:
    """The files of results: of the checkpoint, and of that of --so3."""
    if args.out is None:
        return []
    return [args.out, args.out.with_stem(f"{args.out.stem}_so3")][: 2 if args.so3 else 1]


def results_suffix(cfg: Config) -> str:
    """How the file ends into which the evaluator writes results."""
    from attlas.registry import METRICS

    name = first_evaluator(cfg)["type"]
    with METRICS.switch_scope_and_registry(cfg.get("default_scope")) as registry:
        suffix = getattr(registry.get(name), "out_suffix", None)
    if suffix is None:
        raise ValueError(
            f"--out: the evaluator, {name}, writes no file. Some that do: attlas.CocoBoxes (COCO's format of results), "
            "attlas.MapIoU (a confusion matrix of pixels, figures by class)"
        )
    return suffix


def test_open_set(args: argparse.Namespace) -> None:
    """Print the tables of all scores, and write the files that were asked for."""
    from attlas.backbones.channels import fill_channels
    from attlas.backbones.open_sets import survey
    from attlas.files import PICTURES, save_figure
    from attlas.inference import load

    if args.so3 or args.corruptions or args.tta:
        raise ValueError("--open-set, --so3, --corruptions and --tta: one of them at a time")
    for path, endings in ((args.out, (".json",)), (args.fitted, (".safetensors",)), (args.picture, PICTURES)):
        if path:
            check_out(path, endings, args.overwrite)
    names = list(args.scores or survey.ALL)
    if args.fitted and args.keep not in names:
        raise ValueError(f"--keep {args.keep} is not among the scores: {', '.join(names)}")
    cfg = load_config(args.config, args.cfg_options)
    fill_channels(cfg.model, cfg.get("default_scope"))
    model: Any = load(args.checkpoint, cfg)
    known = args.known or model.classes
    if not known:
        raise ValueError("the checkpoint names no classes: give the trained ones in order, --known CLASS ...")
    found = survey.measure(model, survey.loaders(cfg, known, args.surrogates), names, known)
    for table in found.tables():
        console().print(table)
    print("\n".join(found.notes()))
    if args.out:
        with replacing(args.out) as temporary:
            temporary.write_text(json.dumps(dict(checkpoint=str(args.checkpoint), **found.record()), indent=1) + "\n")
    if args.picture:
        save_figure(found.draw(), args.picture)
    if args.fitted:
        detector = found.detector(args.keep, args.rule or ("surrogates" if args.surrogates else "known"))
        detector.save(args.fitted, model.get_submodule(found.layer))
        print(f"{args.keep} with the threshold {detector.threshold:.6g} ({detector.rule}): {args.fitted}")


def check_corruptions(args: argparse.Namespace) -> None:
    """Raise unless these can be tested; "all" becomes their names."""
    from attlas.corruptions import CORRUPTIONS, package
    from attlas.data import check_seed, one_of

    if args.so3:
        raise ValueError("--so3 tests clouds, and --corruptions images: one of them at a time")
    check_seed(args.seed)
    names = [name for entry in args.corruptions for name in entry.split(",")]
    for name in names:
        one_of("--corruptions", name, (*CORRUPTIONS, "all"))
    args.corruptions = CORRUPTIONS if "all" in names else tuple(dict.fromkeys(names))
    package()


def prepare(args: argparse.Namespace) -> Config:
    from attlas.backbones.channels import fill_channels
    from attlas.data import fill_classes_from_data

    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = str(args.work_dir or cfg.get("work_dir") or Path("work_dirs") / args.config.stem)
    cfg.resume = False
    if cfg.get("test_dataloader") is None:
        raise ValueError(f"{args.config} has no test_dataloader (with test_cfg and test_evaluator): nothing to test.")
    if cfg.get("model"):
        fill_channels(cfg.model, cfg.get("default_scope"))
        fill_classes_from_data(cfg, "test")
    for stage in ("train", "val"):  # their data need not be on this machine
        for name in ("dataloader", "cfg", "evaluator"):
            cfg[f"{stage}_{name}"] = None
    cfg.optim_wrapper = cfg.param_scheduler = None
    for path in outs(args):  # before hours of testing, not after
        suffix = ".json" if args.corruptions else results_suffix(cfg)
        check_out(path, (suffix,), args.overwrite)
    if args.corruptions:
        check_corruptions(args)
    if args.tta:
        if args.corruptions:
            raise ValueError("--tta and --corruptions: one of them at a time")
        from attlas.dense.segmentation.views import add_views

        add_views(cfg)
    for path in filter(None, (args.checkpoint, args.so3)):
        if not path.is_file():
            raise FileNotFoundError(f"The checkpoint {path} does not exist. {near_files(path)}")
    return cfg


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    if args.open_set:
        try:
            test_open_set(args)
        except (ImportError, OSError, ValueError) as error:
            parser.error(str(error))
        return
    if alone := [
        name for name in ("known", "surrogates", "scores", "fitted", "rule", "picture") if getattr(args, name)
    ]:
        parser.error(f"--{alone[0]} belongs to --open-set")
    try:
        cfg = prepare(args)
    except (ImportError, OSError, ValueError) as error:
        parser.error(str(error))
    if args.corruptions:
        table: Table | None = test_corrupted(cfg, args)
    else:
        files: list = outs(args) or [None, None]
        metrics = test(cfg, args.checkpoint, files[0])
        so3 = test(cfg, args.so3, files[1]) if args.so3 else None
        table = protocol_table(metrics, so3) if {"z/OA", "SO3/OA"} <= metrics.keys() else None
    if table and is_main_process():
        console().print(table)
    from attlas.engine import end_processes

    end_processes()


if __name__ == "__main__":
    main()
