"""Every record of a backbone or an operator of images, driven by what the record itself says under "attlas":

    "attlas": {
        "model": "backbones.hornet.HorNet(dims=(16, 32, 64, 128), ...)",    how to build ours; absent for a function
        "rules": "backbones.hornet.RULES",                                  rules that rename it (the model's own)
        "outputs": ["model(img)[0]", ...],                                  one for each output of the record, in order
        "tolerance": 1e-4                                                   of the largest difference (1e-5)
    }

The expressions see `model`, the inputs by name, an empty dict `notes`, `torch`, `F`, `attlas`, `backbones`, `kernels`.
"""

import importlib
import math

import pytest
import torch
import torch.nn.functional as F
from golden_records import FOLDER, Record

import attlas
from attlas import backbones, checkpoint, kernels

RECORDS = sorted(
    path.relative_to(FOLDER).with_suffix("").as_posix()
    for path in FOLDER.glob("*/*.json")
    if '"attlas":' in path.read_text()
)
NAMES = {"torch": torch, "F": F, "attlas": attlas, "backbones": backbones, "kernels": kernels, "math": math}


@pytest.mark.parametrize("name", RECORDS)
def test_equals_the_authors(name):
    record = Record(name)
    ours = record.fields["attlas"]
    scope = {**NAMES, **record.inputs, "notes": {}}
    with torch.random.fork_rng():
        if ours.get("model"):
            model = scope["model"] = eval(ours["model"], scope).double().eval()
            rules = eval(ours["rules"], scope) if "rules" in ours else None
            account = checkpoint.load(model, record.state_dict(), rules=rules)
            assert account.complete, str(account)
            if ours.get("params", True):
                assert sum(p.numel() for p in model.parameters()) == record.params
        with torch.no_grad():
            for number, expression in enumerate(ours["outputs"]):
                got, expected = eval(expression, scope).float(), record.output(number)
                assert got.shape == expected.shape, f"out{number}: {tuple(got.shape)}, record {tuple(expected.shape)}"
                error = (got - expected).abs().max() / expected.abs().max()
                assert error < ours.get("tolerance", 1e-5), f"out{number}: relative difference {error:.1e}"


def test_every_record_of_a_system_is_used():
    """A record without an "attlas" entry would never be run."""
    read_by_their_tests = {"bvr", "carve", "conv-temporal-vad", "costarr", "ffnet", "hat", "horfpn", "mmcv"}
    read_by_their_tests |= {
        "ms-guided-attention",
        "normgrad",
        "oat",
        "relation-detr",
        "risurconv",
        "salient-relevance",
        "ufc",
        "vision-remember",
        "weighted-convolution",
    }
    for path in FOLDER.glob("*/*.json"):
        if path.parent.name not in read_by_their_tests:
            assert '"attlas":' in path.read_text(), path.name
            name = path.parent.name.replace("-", "_")
            assert any(importlib.util.find_spec(f"attlas.backbones{folder}.{name}") for folder in ("", ".mixers"))
