"""tools/train.py and tools/test.py as a user runs them, on the tiny config."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from rich.console import Console

from attlas import checkpoint

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "configs" / "tiny.py"


def start(folder: Path, tool: str, *args: str, processes: int = 1, code: int = 0, within: Sequence[str] = ()) -> str:
    """Run a tool in a folder; give what it printed.

    Args:
        within: the command that takes the tool's command as its last arguments.
    """
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        args = (*args, "--launcher", "pytorch")
    paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))  # the latter for the config's toys
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command = [*within, *launcher, str(ROOT / "tools" / tool), *args]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    text = done.stdout + done.stderr
    assert done.returncode == code, text
    return text


def killed(folder: Path, iteration: int, number: int = signal.SIGKILL) -> Path:
    """A config of the tiny training that ends by a signal before an iteration."""
    config = folder / "killed.py"
    config.write_text(
        f"_base_ = [{str(TINY)!r}]\n"
        "custom_hooks = [dict(type='RecordLosses', path='losses'), "
        f"dict(type='DieAt', iteration={iteration}, number={int(number)})]\n"
    )
    return config


def losses(folder: Path, rank: int = 0) -> dict[int, str]:
    """The last loss, with every bit, that was recorded for each iteration."""
    return {int(i): loss for i, loss in map(str.split, (folder / f"losses.{rank}").read_text().splitlines())}


def metrics(folder: Path) -> dict:
    """What the last test, or the last validation, found."""
    return json.loads(max(folder.rglob("2*.json"), key=lambda p: p.stat().st_mtime_ns).read_text().splitlines()[-1])


def test_a_variant_on_the_command_line(load):
    tool = load("train")
    path = str(ROOT / "configs/hornet/hornet_imagenet.py")
    cfg = tool.prepare(tool.arguments().parse_args([path, "--cfg-options", "name=hornet_small_gf"]))
    assert (cfg.model.backbone.name, cfg.model.backbone.drop_path_rate) == ("hornet_small_gf", 0.4)
    assert cfg.work_dir == "work_dirs/hornet_small_gf_imagenet"


def test_a_config_of_mmdet_keeps_the_backbone_of_mmdet(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, weights = tmp_path / "retina.py", tmp_path / "last.pth"
    config.write_text('_base_ = "mmdet::retinanet/retinanet_r50_fpn_1x_coco.py"\n')
    weights.touch()
    monkeypatch.setattr("attlas.data.fill_classes_from_data", lambda cfg, split: None)  # COCO is not here
    for name, given in (("train", [config]), ("test", [config, weights])):
        tool = load(name)
        cfg = tool.prepare(tool.arguments().parse_args(list(map(str, given))))
        assert cfg.model.backbone.type == "ResNet"
        assert cfg.model.neck.in_channels == [256, 512, 1024, 2048]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    text = start(folder, "train.py", str(TINY), "--amp", "--cfg-options", "batch_size=3")
    assert "mixed precision needs a GPU, and there is none: training goes on in float32" in text
    assert "Overriding 'batch_size' has no effect" in text
    assert "train_dataloader.batch_size" in text
    return folder


@pytest.mark.slow
def test_train_leaves_the_last_and_the_best_and_the_resolved_config(trained):
    work = trained / "work_dirs" / "tiny"
    assert sorted(p.name for p in work.glob("*.pth"))[-1] == "epoch_4.pth"
    assert len(list(work.glob("best_acc_epoch_*.pth"))) == 1
    assert "OneCycleLR" in (work / "tiny.py").read_text()
    assert not list(work.rglob(".*"))
    assert len(losses(trained)) == 20


def test_existing_results_are_not_overwritten_unasked(load, refusal, tmp_path):
    for name in ("epoch_3.pth", "last_checkpoint", "notes.txt"):
        (tmp_path / name).write_text(name)
    text = refusal("train", TINY, "--work-dir", tmp_path)
    assert "holds epoch_3.pth of another training" in text
    assert "--resume" in text
    assert "--overwrite" in text
    assert len(list(tmp_path.iterdir())) == 3
    train = load("train")
    train.prepare(train.arguments().parse_args([str(TINY), "--work-dir", str(tmp_path), "--overwrite"]))
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]


def test_what_the_tools_refuse(refusal, tmp_path):
    text = refusal("train", TINY.with_name("tyni.py"))
    assert "tyni.py does not exist. Near it:" in text
    assert "has no auto_scale_lr = dict(base_batch_size" in refusal(
        "train", TINY, "--work-dir", tmp_path, "--auto-scale-lr"
    )
    assert "has no 'modle'. Near it: model" in refusal(
        "train", TINY, "--work-dir", tmp_path, "--cfg-options", "modle.type=X"
    )
    (tmp_path / "best.pth").touch()
    text = refusal("test", TINY, tmp_path / "bset.pth", "--work-dir", tmp_path)
    assert re.search(r"bset\.pth does not exist\. Near it: .*best\.pth", text)
    assert "--resume: there is no checkpoint" in refusal(
        "train", TINY, "--work-dir", tmp_path, "--resume", tmp_path / "epoch_7.pth"
    )


def test_the_table_of_the_field(load):
    """Columns trained/tested: z/z and z/SO3 of the first checkpoint, SO3/SO3 of the second."""
    z = {"z/OA": 90.0, "z/mAcc": 88.0, "SO3/OA": 30.0, "SO3/mAcc": 25.0, "log_prob_change": 7.5}
    so3 = {"z/OA": 81.0, "z/mAcc": 79.5, "SO3/OA": 80.0, "SO3/mAcc": 78.5, "log_prob_change": 2e-6}
    console = Console(width=100)
    with console.capture() as shown:
        console.print(load("test").protocol_table(z, so3))
    rows = [re.findall(r"[\w./%,-]+", line) for line in shown.get().splitlines()]
    assert ["trained", "/", "tested", "z/z", "z/SO3", "SO3/SO3"] in rows
    assert ["overall", "accuracy,", "%", "90.00", "30.00", "80.00"] in rows
    assert ["class", "accuracy,", "%", "88.00", "25.00", "78.50"] in rows
    assert ["largest", "change", "of", "a", "log-probability", "7.5", "2e-06"] in rows


@pytest.mark.slow
def test_test_counts_every_sample_once_alone_and_on_two_processes(trained):
    """Seven samples in batches of four: on two processes one is a repetition, which must not count."""
    best = str(next((trained / "work_dirs" / "tiny").glob("best_acc_*.pth")))
    kept = (trained / "work_dirs" / "tiny" / "tiny.py").read_bytes()
    alone = (start(trained, "test.py", str(TINY), best), metrics(trained))[1]
    assert alone["count"] == 7
    assert alone["index_sum"] == 21
    text = start(trained, "test.py", str(TINY), best, processes=2)
    shared = metrics(trained)
    assert {k: shared[k] for k in ("count", "index_sum")} == {"count": 7, "index_sum": 21}
    assert re.search(r"(\d+) of the network's \1 tensors loaded", text)
    assert (trained / "work_dirs" / "tiny" / "tiny.py").read_bytes() == kept


@pytest.mark.slow
def test_killed_and_resumed_gives_the_same_losses_bit_for_bit(trained, tmp_path):
    at = 8  # in the middle of the second epoch of five iterations
    start(tmp_path, "train.py", str(killed(tmp_path, at)), "--work-dir", "work", code=-9)
    assert len(losses(tmp_path)) == at
    text = start(tmp_path, "train.py", str(TINY), "--work-dir", "work", "--resume", "auto")
    assert "resumed epoch: 1, iter: 5" in text
    assert losses(tmp_path) == losses(trained)
    folders = tmp_path / "work", trained / "work_dirs" / "tiny"
    ours, theirs = (checkpoint.read(folder / "epoch_4.pth")["state_dict"] for folder in folders)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
def test_two_processes_train_and_stay_equal(tmp_path):
    start(tmp_path, "train.py", str(TINY), "--work-dir", "work", processes=2)
    first, second = losses(tmp_path, 0), losses(tmp_path, 1)
    assert len(first) == len(second) == 4 * 3  # 19 samples, 10 for each, in batches of 4
    assert first != second  # other samples, other dropout
    state = checkpoint.read(tmp_path / "work" / "epoch_4.pth")
    assert state["meta"]["iter"] == 12
    found = metrics(tmp_path)
    assert found["count"] == 7
    assert found["index_sum"] == 21


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "batch"), [(3, 4), (4, 3)])
def test_several_processes_killed_and_resumed_give_the_same_bits(tmp_path, processes, batch):
    """From three on, the order in which gloo sums gradients matters."""
    left, other = tmp_path / "left", tmp_path / "killed"
    args = "--work-dir", "work", "--cfg-options", f"train_dataloader.batch_size={batch}"
    for folder in (left, other):
        folder.mkdir()
    start(left, "train.py", str(TINY), *args, processes=processes)
    start(other, "train.py", str(killed(other, iteration=5)), *args, processes=processes, code=1)
    text = start(other, "train.py", str(TINY), *args, "--resume", processes=processes)
    assert "resumed epoch: 2, iter: 4" in text
    for rank in range(processes):
        assert losses(other, rank) == losses(left, rank)
    assert len(losses(left)) == 8
    found = [{k: v for k, v in metrics(folder).items() if "time" not in k} for folder in (left, other)]
    assert found[0] == found[1]
    states = [checkpoint.read(folder / "work" / "epoch_4.pth")["state_dict"] for folder in (left, other)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_is_one_sentence(tmp_path, number):
    text = start(tmp_path, "train.py", str(killed(tmp_path, 8, number)), "--work-dir", "work", code=128 + number)
    assert text.endswith("Stopped. To go on from the newest checkpoint: --resume\n")
    assert "Traceback" not in text


FULL = """\
mount -t tmpfs -o size=4m tmpfs /mnt
head -c $(((4096 - FREE) * 1024)) /dev/zero > /mnt/filler
"$@"
code=$?
ls -A /mnt/work
exit $code
"""


def has_name_spaces() -> bool:
    try:
        command = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not has_name_spaces(), reason="this machine lets no user mount a disk of memory")
@pytest.mark.parametrize(
    ("free", "what"), [(0, "A file in /mnt/work"), (8, "/mnt/work/tiny.py"), (28, "/mnt/work/epoch_1.pth")]
)
def test_a_full_disk_is_one_sentence(tmp_path, free, what):
    """On a disk of memory with so many KB left, which is only there for the training."""
    within = ["unshare", "--map-root-user", "--mount", "bash", "-c", f"FREE={free}\n{FULL}", "bash"]
    text = start(tmp_path, "train.py", str(TINY), "--work-dir", "/mnt/work", code=1, within=within)
    assert f"{what} could not be written: No space left on device." in text
    assert "Make room there, then go on with --resume." in text
    assert "Traceback" not in text
    assert not re.search(r"^epoch_1\.pth|unfinished", text, re.M)  # of what `ls` lists
