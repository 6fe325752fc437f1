"""Records of the authors' results (tests/golden): weights rebuilt from names, inputs, expected outputs.

A record stores no weights: each parameter is filled from its own name by a fixed formula, so whoever holds the
reference's names and shapes rebuilds its state dict exactly, and loads it through the rules for official checkpoints.
"""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

FOLDER = Path(__file__).parent / "golden"


def _normal(key, shape):
    return np.random.RandomState(zlib.crc32(key.encode())).standard_normal(tuple(shape)).astype(np.float32)


def parameter(name, shape):
    """The value that the formula gives to the parameter or running statistic `name`."""
    value = _normal(name, shape)
    if name.endswith("running_var"):
        value = 0.75 + 0.25 * np.abs(value)
    elif name.endswith("running_mean"):
        value = 0.1 * value
    elif len(shape) <= 1:
        value = 0.1 * value + (1.0 if name.endswith("weight") else 0.0)
    else:
        value = value / np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, np.float32))


class Record:
    """A record by name, such as `Record("risurconv/cls-n1")`."""

    def __init__(self, name):
        path = FOLDER / f"{name}.json"
        self.fields = json.loads(path.read_text())
        with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
            self.arrays = {key: torch.from_numpy(value) for key, value in arrays.items()}
        self.config, self.params = self.fields["config"], self.fields["params"]

    def state_dict(self):
        """The reference's state dict under the reference's names."""
        return {name: parameter(name, shape) for name, shape in self.fields["state"]}

    @property
    def inputs(self):
        """All inputs by the last part of their names ("op-1d.q" is q)."""
        return {key.rpartition(".")[2]: self.input(key) for key in self.fields["inputs"]}

    def input(self, key, dtype=torch.float64):
        """The input `key`: stored, or rebuilt from its name."""
        if key in self.arrays:
            return self.arrays[key].to(dtype) if self.arrays[key].is_floating_point() else self.arrays[key].long()
        spec = self.fields["inputs"][key]
        if spec["kind"] == "image":
            noise = np.random.RandomState(zlib.crc32(f"image:{key}".encode())).random_sample(tuple(spec["shape"]))
            return torch.from_numpy(noise.astype(np.float32)).to(dtype)
        return torch.from_numpy(_normal(f"input:{key}", spec["shape"])).to(dtype)

    def output(self, number=0):
        """The expected output."""
        return self.arrays[f"out{number}"]
