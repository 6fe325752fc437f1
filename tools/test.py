"""Test a checkpoint.

    python tools/test.py CONFIG CHECKPOINT
    python tools/test.py CONFIG TRAINED_UNDER_Z --so3 TRAINED_UNDER_SO3

The second prints the protocol of rotation invariance: trained / tested under rotations about the up axis (z) and under
all rotations (SO3).
"""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.dist import is_main_process
from rich.console import Console
from rich.table import Table

from attlas.config import load_config
from attlas.files import near_files


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--so3", type=Path, metavar="CHECKPOINT", help="the same network trained under all rotations")
    parser.add_argument("--work-dir", type=Path, help="for the logs (work_dirs/<name of the config>)")
    parser.add_argument("--out", type=Path, metavar="FILE.npz", help="log-probabilities, labels and confusion matrices")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0)
    return parser


def test(cfg: Config, checkpoint: Path, out: Path | None) -> dict[str, float]:
    from attlas.engine import Runner  # not for --help

    cfg = cfg.copy()
    cfg.load_from = str(checkpoint)
    if out:
        evaluators = cfg.test_evaluator if isinstance(cfg.test_evaluator, (list, tuple)) else [cfg.test_evaluator]
        evaluators[0].out_file = str(out)
    return Runner.from_cfg(cfg).test()


def protocol_table(z: dict[str, float], so3: dict[str, float] | None) -> Table:
    """The table of the field. Columns: trained / tested under."""
    columns: dict[str, tuple[str, dict[str, float]]] = {"z/z": ("z", z), "z/SO3": ("SO3", z)}
    if so3 is not None:
        columns["SO3/SO3"] = ("SO3", so3)
    table = Table("trained / tested", *columns)
    for name, key in (("overall accuracy, %", "OA"), ("class accuracy, %", "mAcc")):
        table.add_row(name, *(f"{metrics[f'{group}/{key}']:.2f}" for group, metrics in columns.values()))
    changes = [m.get("log_prob_change") if group == "SO3" else None for group, m in columns.values()]
    table.add_row("largest change of a log-probability", *("" if c is None else f"{c:.2g}" for c in changes))
    return table


def outs(args: argparse.Namespace) -> list[Path]:
    """The files of results: of the checkpoint, and of that of --so3."""
    if args.out is None:
        return []
    return [args.out, args.out.with_stem(f"{args.out.stem}_so3")][: 2 if args.so3 else 1]


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
        fill_channels(cfg.model)
        fill_classes_from_data(cfg, "test")
    for stage in ("train", "val"):  # their data need not be on this machine
        for name in ("dataloader", "cfg", "evaluator"):
            cfg[f"{stage}_{name}"] = None
    cfg.optim_wrapper = cfg.param_scheduler = None
    evaluator = cfg.test_evaluator[0] if isinstance(cfg.test_evaluator, (list, tuple)) else cfg.test_evaluator
    for path in outs(args):  # before hours of testing, not after
        if path.exists() and not evaluator.get("overwrite"):
            raise FileExistsError(f"--out: {path} exists. Move it away, or --cfg-options test_evaluator.overwrite=True")
    for path in filter(None, (args.checkpoint, args.so3)):
        if not path.is_file():
            raise FileNotFoundError(f"The checkpoint {path} does not exist. {near_files(path)}")
    return cfg


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        cfg = prepare(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    files: list = outs(args) or [None, None]
    metrics = test(cfg, args.checkpoint, files[0])
    so3 = test(cfg, args.so3, files[1]) if args.so3 else None
    if is_main_process() and {"z/OA", "SO3/OA"} <= metrics.keys():
        Console().print(protocol_table(metrics, so3))
    from attlas.engine import end_processes

    end_processes()


if __name__ == "__main__":
    main()
