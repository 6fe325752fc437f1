"""Train what a config describes.

python tools/train.py configs/risurconv/risurconv_furniture14.py
python tools/train.py CONFIG --resume auto
torchrun --nproc-per-node 8 tools/train.py CONFIG --launcher pytorch --amp
"""

import argparse
import os
import signal
import sys
import warnings
from pathlib import Path

import torch
from mmengine.config import Config, DictAction

from attlas.config import first_process, load_config
from attlas.files import NoRoom, near_files, no_room


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--work-dir", type=Path, help="for checkpoints and logs (work_dirs/<name of the config>)")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="auto|PATH",
        help="go on from the newest checkpoint of the work dir, or from the one named",
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the checkpoints that are in the work dir")
    parser.add_argument("--amp", action="store_true", help="automatic mixed precision (needs a GPU)")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, metavar="KEY=VALUE", help="override the config")
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local-rank", "--local_rank", type=int, default=0)
    return parser


def use_amp(cfg: Config, wanted: bool) -> None:
    """Turn mixed precision on, or, without a GPU, off: MMEngine's AmpOptimWrapper would stop with an assertion."""
    wrapper = cfg.optim_wrapper
    wanted = wanted or wrapper.get("type") == "AmpOptimWrapper"
    if wanted and torch.cuda.is_available():
        wrapper.type = "AmpOptimWrapper"
        wrapper.setdefault("loss_scale", "dynamic")
    elif wanted:
        if first_process():
            warnings.warn("mixed precision needs a GPU, and there is none: training goes on in float32", stacklevel=2)
        wrapper.type = "OptimWrapper"
        for key in ("loss_scale", "dtype", "use_fsdp"):
            wrapper.pop(key, None)


def clear(work_dir: Path, overwrite: bool) -> None:
    """Refuse to train over the results of another training, or remove its checkpoints if that was asked."""
    found = [*work_dir.glob("[!.]*.pth"), *work_dir.glob("last_checkpoint")]
    if found and not overwrite:
        raise FileExistsError(
            f"{work_dir} holds {found[0].name} of another training. Go on with it: --resume. "
            "Keep it: another --work-dir. Train anew in its place: --overwrite."
        )
    for path in found:
        path.unlink()


def prepare(args: argparse.Namespace) -> Config:
    from attlas.backbones.channels import fill_channels
    from attlas.data import fill_classes_from_data

    cfg = load_config(args.config, args.cfg_options)
    cfg.launcher = args.launcher
    cfg.work_dir = str(args.work_dir or cfg.get("work_dir") or Path("work_dirs") / args.config.stem)
    for name in ("model", "train_dataloader", "train_cfg", "optim_wrapper"):
        if cfg.get(name) is None:
            raise ValueError(f"{args.config} has no {name}: nothing to train.")
    if cfg.get("sync_bn") and cfg.model.get("type", "").endswith("PointClassifier"):
        # MMEngine's conversion takes axis 1 for the channels; there they are last
        raise ValueError("sync_bn: the networks of attlas.pointnets normalise in each process; it may only be unset.")
    fill_channels(cfg.model, cfg.get("default_scope"))
    fill_classes_from_data(cfg, "train")
    use_amp(cfg, args.amp)
    if args.auto_scale_lr:
        if "base_batch_size" not in (cfg.get("auto_scale_lr") or {}):
            raise ValueError(f"--auto-scale-lr: {args.config} has no auto_scale_lr = dict(base_batch_size=...).")
        cfg.auto_scale_lr.enable = True
    if args.resume:
        cfg.resume = True
        cfg.load_from = None if args.resume == "auto" else args.resume
        if cfg.load_from and "://" not in cfg.load_from and not Path(cfg.load_from).is_file():
            raise FileNotFoundError(f"--resume: there is no checkpoint {args.resume}. {near_files(Path(args.resume))}")
    elif first_process() and not cfg.get("resume"):
        clear(Path(cfg.work_dir), args.overwrite)
    return cfg


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    from attlas.engine import Runner, end_processes  # not for --help
    from attlas.preflight import CannotTrain

    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    try:
        cfg = prepare(args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    signal.signal(signal.SIGINT, stop)
    if args.launcher == "none":  # several processes may be waiting for each other, where no handler runs
        signal.signal(signal.SIGTERM, stop)
    try:
        Runner.from_cfg(cfg).train()
    except CannotTrain as error:
        sys.exit(str(error))
    except OSError as error:
        if isinstance(error, NoRoom):
            text = str(error)
        elif reason := no_room(error):  # of a log or the like
            text = f"{error.filename or f'A file in {cfg.work_dir}'} could not be written: {reason}."
        else:
            raise
        sys.exit(f"{text} Make room there, then go on with --resume.")
    end_processes()


def stop(number: int, _: object) -> None:
    """Leave without a traceback, but tidily: the terminal gets its cursor back, half a file goes."""
    if first_process():
        print("Stopped. To go on from the newest checkpoint: --resume", file=sys.stderr)
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
