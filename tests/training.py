"""Trainings in processes that a test may kill, without the seconds that each would take to import everything.

`Trainings()` starts one process, which imports the library once and forks for every training. Run as a program, this
file is that process.
"""

import importlib
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

ROOT = Path(__file__).parents[1]


class Trainings:
    """A context manager: within it, each call is a training."""

    def __enter__(self):
        paths = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def __call__(self, folder: Path, config: Path, changes: dict | None = None, die: dict | None = None) -> int:
        """Train, and give the exit status (the negative number of the signal that ended it).

        Args:
            folder: where to train. The work dir is `work` in it, and what is printed is appended to `printed`.
            config: the config file.
            changes: what to change in it, by dotted name.
            die: the arguments of the DieAt hook, if there is to be one.
        """
        print(json.dumps([str(folder), str(config), changes or {}, die]), file=self._process.stdin, flush=True)
        return int(self._process.stdout.readline())


def train(folder: str, config: str, changes: dict, die: dict | None) -> None:
    from mmengine import Config
    from mmengine.runner import runner

    from attlas.config import load_config
    from attlas.engine import Runner

    os.chdir(folder)
    printed = os.open("printed", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    cfg = load_config(config)
    cfg.merge_from_dict(changes)
    cfg.work_dir = "work"
    # MMEngine formats the config, and asks git, for every checkpoint: nine tenths of the time of a tiny training
    Config.pretty_text = ""
    runner.get_git_hash = lambda: ""
    if die:
        cfg.custom_hooks.append(dict(type="DieAt", **die))
    Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    for module in ("matplotlib.pyplot", "torch._dynamo", "attlas.engine", "attlas.pointnets", "tests.configs.toy"):
        importlib.import_module(module)  # what a training would import
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                train(*json.loads(line))
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)
