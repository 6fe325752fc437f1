"""The main job in one command: train RISurConv on furniture, turn the furniture, and see that nothing changes.

    python tools/demo.py

Trains configs/risurconv/risurconv_furniture14.py (an interrupted run goes on where it was), tests it beside PointNet++
and DGCNN under the rotations of the field's three protocols, and leaves in work_dirs/demo: the checkpoint, the results,
report.md and demo.png. The weights of the others, and those trained under all rotations, lie beside the configs that
made them.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from attlas.files import replacing

ROOT = Path(__file__).resolve().parent.parent
NETWORKS = {"RISurConv": "risurconv", "PointNet++": "pointnet2", "DGCNN": "dgcnn"}
SHOWN = 22  # a chair of the test set, chosen as one that all three get right while it stands upright
console = Console()


def config(network: str, protocol: str = "z") -> Path:
    suffix = "" if protocol == "z" else "_so3"
    return ROOT / "configs" / network / f"{network}_furniture14{suffix}.py"


def run(*command) -> None:
    """One of our own tools, as a user would type it; its failure ends the demo."""
    shown = " ".join(str(part).removeprefix(f"{ROOT}/") for part in command)
    console.print(f"\n[bold]$ python {shown}[/bold]")
    if subprocess.run([sys.executable, *map(str, command)], cwd=ROOT).returncode:
        raise SystemExit(f"python {shown} failed; what it printed stands above.")


def weights(network: str, protocol: str, folder: Path) -> Path:
    """What the demo trained, or what lies beside the config."""
    from attlas.resumption import latest_checkpoint  # here, as everything of the library: not for --help

    if (network, protocol) == ("risurconv", "z"):
        trained = latest_checkpoint(folder)
        if trained is None:
            raise SystemExit(f"{folder} holds no checkpoint, though the training ended well: was it moved?")
        return trained
    return config(network, protocol).with_suffix(".safetensors")


def draw_picture(folder: Path) -> None:
    """demo.png: a chair under six rotations with everybody's answers, the accuracies, our confusion matrix."""
    from attlas.config import load_config
    from attlas.pointnets import viewer

    configs = {name: load_config(config(network)) for name, network in NETWORKS.items()}
    networks = {name: viewer.config_network(cfg, weights(NETWORKS[name], "z", folder)) for name, cfg in configs.items()}
    shape = viewer.subject(viewer.config_dataset(configs["RISurConv"]), item=SHOWN)
    results = {name: folder / f"{network}.npz" for name, network in NETWORKS.items()}
    viewer.figure(shape, networks, results, folder / "demo.png", overwrite=True)


def protocol_rows(folder: Path) -> list[dict]:
    """Per network the figures of the three protocols, from the npz files that tools/test.py wrote."""
    from attlas.confusion import class_accuracy
    from attlas.pointnets.metrics import rotation_effect

    rows = []
    for name, network in NETWORKS.items():
        row: dict = {"name": name}
        for trained, path in (("z", folder / f"{network}.npz"), ("SO3", folder / f"{network}_so3.npz")):
            with np.load(path, allow_pickle=False) as results:
                for tested in ("z", "SO3"):
                    confusion = results[f"confusion_{tested}"]
                    accuracy = 100 * np.trace(confusion) / confusion.sum()
                    row[f"{trained}/{tested}"] = accuracy, np.nanmean(class_accuracy(confusion))
                if trained == "z":
                    row["effect"] = rotation_effect(results["log_probs"], results["clouds"])
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, default=ROOT / "work_dirs" / "demo")
    args = parser.parse_args()
    from attlas.resumption import latest_checkpoint

    folder = args.work_dir.resolve()
    began = time.perf_counter()
    fresh = latest_checkpoint(folder) is None
    run(ROOT / "tools/train.py", config("risurconv"), "--work-dir", folder, "--resume", "auto")
    trained = time.perf_counter() - began

    for network in NETWORKS.values():
        run(
            ROOT / "tools/test.py",
            config(network),
            weights(network, "z", folder),
            "--so3",
            weights(network, "SO3", folder),
            "--work-dir",
            folder / network,
            "--out",
            folder / f"{network}.npz",
            "--cfg-options",
            "test_evaluator.overwrite=True",  # the demo's own results of an earlier run
        )

    rows = protocol_rows(folder)
    title = "Overall (class) accuracy in percent, trained/tested under"
    table = Table("", "z/z", "z/SO3", "SO3/SO3", "largest change of log p", title=title)
    markdown = ["| | z/z | z/SO3 | SO3/SO3 | largest change of a log-probability |", "|---|---|---|---|---|"]
    for row in rows:
        cells = [f"{row[key][0]:.1f} ({row[key][1]:.1f})" for key in ("z/z", "z/SO3", "SO3/SO3")]
        cells.append(f"{row['effect']['log_prob_change']:.2g}")
        table.add_row(row["name"], *cells)
        markdown.append(f"| {row['name']} | {' | '.join(cells)} |")

    draw_picture(folder)
    effect, table_text = rows[0]["effect"], "\n".join(markdown)
    training = f"in {trained / 60:.1f} minutes" if fresh else "in an earlier run, wholly or in part"
    report = f"""# Furniture, turned

RISurConv was trained on 286 furniture models, {training}, and tested on 122 others, each
turned five times. Overall accuracy, and class accuracy in brackets, in percent; trained/tested under
rotations about the up axis (z), or under all rotations (SO3, Haar-uniform). RISurConv gets normals and 40
epochs, the others points alone and 30; DGCNN gets 512 points, the others 1,024.

{table_text}

Under rotation no log-probability of RISurConv changed by more than {effect["log_prob_change"]:.2g}
(median over the clouds: {effect["log_prob_change_median"]:.2g}), and {effect["flips"]:.1f} % of the clouds
changed their class. This is float32; what changes is how near ties between points are decided.

![One model under six rotations, the accuracies, and the confusion matrix of RISurConv](demo.png)
"""
    with replacing(folder / "report.md") as temporary:
        temporary.write_text(report)
    console.print()
    console.print(table)
    console.print(f"Picture: {folder / 'demo.png'}\nReport: {folder / 'report.md'}")
    console.print(f"{(time.perf_counter() - began) / 60:.1f} minutes; RISurConv was trained {training}.")


if __name__ == "__main__":
    main()
