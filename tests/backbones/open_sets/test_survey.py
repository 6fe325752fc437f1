"""The survey of all scores: its data, its figures, its tables and its picture."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from mmengine.config import Config
from torch import nn

from attlas.backbones.open_sets.metrics import accuracy_at, auroc
from attlas.backbones.open_sets.survey import ALL, Loaders, loaders, measure, parse

# Features are the inputs: three known classes about the axes; two unknown ones between and behind them.
CENTERS = {0: (6, 0, 0, 0), 1: (0, 6, 0, 0), 2: (0, 0, 6, 0), "surrogate": (-3, -3, 0, 4), "strange": (2, 2, 2, 5)}


def batches(*kinds, count=40, labels=None):
    found = []
    for kind in kinds:
        x = torch.tensor(CENTERS[kind], dtype=torch.float32) + torch.randn(count, 4)
        label = -1 if isinstance(kind, str) else kind
        found += list(zip(x.split(16), torch.full((count,), label if labels is None else labels).split(16)))
    return found


@pytest.fixture
def data():
    return Loaders(
        batches(0, 1, 2), batches(0, 1, 2, "surrogate"), batches(0, 1, 2, "strange"), batches("surrogate", labels=0)
    )


@pytest.fixture
def model():
    network = nn.Sequential(nn.Identity(), nn.Linear(4, 3))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(3, 4))
        network[1].bias.zero_()
    return network


def test_all_scores(model, data):
    survey = measure(model, data, classes=("a", "b", "c"))
    assert tuple(survey.scores) == ALL
    assert survey.failed == {}
    assert survey.counts == {
        "known": 120, "unknown": 80, "of these surrogates": 40, "held-out known": 120, "held-out surrogates": 40,
    }  # fmt: skip
    test, extra = data.test, data.surrogates
    features = torch.cat([x for x, _ in (*test, *extra)])
    labels = torch.cat([*(y for _, y in test), *(torch.full_like(y, -1) for _, y in extra)]).numpy()
    own = len(torch.cat([y for _, y in test]))
    for name, figures in survey.metrics.items():
        scores = survey.scores[name](features).double().numpy()
        assert figures["AUROC"] == pytest.approx(auroc(scores, labels))
        predictions = model(features).argmax(1).numpy()
        assert figures["closed_set"] == pytest.approx((predictions == labels)[labels >= 0].mean())
        threshold = survey.thresholds[name]["surrogates"]
        oosa = accuracy_at(threshold, scores[:own], labels[:own], predictions[:own])  # without the surrogates
        assert figures["OOSA_surrogates"] == pytest.approx(oosa)
        assert figures["AUOSCR_from_origin"] <= figures["closed_set"] <= 1
    assert survey.metrics["nearest_mean"]["AUROC"] > 0.99
    assert survey.metrics["costarr"]["AUROC"] > survey.metrics["max_logit"]["AUROC"]  # what weights throw away tells


def test_what_is_printed_names_every_choice(model, data):
    survey = measure(model, data, ("energy", "costarr"))
    first, second = survey.tables()
    heads = [column.header for column in first.columns]
    for name in ("FPR95 known positive", "FPR95 unknown positive", "AUPR known", "AUPR unknown", "AUOSCR from origin"):
        assert name in heads
    assert "CCR@FPR1%" in heads
    assert "by sample" in first.title
    assert [column.header for column in second.columns][1:4] == ["rule", "threshold", "OOSA"]
    notes = "\n".join(survey.notes())
    for part in (
        "Unit: sample",
        "(0, 0), which is a choice",
        "closed-set accuracy",
        "95 % of the unknown are rejected",
    ):
        assert part in notes
    record = json.loads(json.dumps(survey.record(), allow_nan=False))
    assert record["unit"] == "sample"
    assert record["thresholds"]["costarr"].keys() == {"surrogates", "known"}


def test_undefined_figures_are_called_so(model, data):
    everywhere = [(x, y) for x, y in data.test if (y >= 0).all()] + [(torch.full((3, 4), 90.0), torch.full((3,), -1))]
    survey = measure(model, data._replace(test=everywhere, surrogates=None), ("max_logit",))
    assert math.isnan(survey.metrics["max_logit"]["AUOSCR"])  # an unknown sample is on top
    assert survey.record()["scores"]["max_logit"]["AUOSCR"] is None
    row = survey.tables()[0].columns
    assert "undefined" in [cell for column in row for cell in column.cells]


def test_without_validation_data_there_is_no_threshold(model, data):
    survey = measure(model, data._replace(validation=None), ("energy",))
    assert survey.thresholds["energy"] == {}
    assert len(survey.tables()) == 1
    assert "No thresholds" in survey.notes()[-1]
    with pytest.raises(ValueError, match="no threshold by the rule 'known'"):
        survey.detector("energy", "known")


def test_without_surrogates_known_samples_choose(model, data):
    survey = measure(model, data._replace(validation=batches(0, 1, 2), surrogates=None), ("energy",))
    assert survey.thresholds["energy"].keys() == {"known"}
    detector = survey.detector("energy", "known")
    assert detector.rule == "95% of held-out known samples are accepted"
    with pytest.raises(ValueError, match="'ghost' was not fitted"):
        survey.detector("ghost", "known")


def test_a_score_that_cannot_be_fitted_is_told(model, data):
    few = batches(0, 1, 2)[:6]  # no sample of class 2
    survey = measure(model, data._replace(fit=few), ("energy", "ghost", "costarr"))
    assert tuple(survey.metrics) == ("energy", "costarr")
    assert "class 2 has 0" in survey.failed["ghost"]
    assert any(note.startswith("ghost could not be fitted") for note in survey.notes())
    with pytest.raises(ValueError, match="no score could be fitted"):
        measure(model, data._replace(fit=few), ("ghost",))


def test_the_picture(model, data):
    figure = measure(model, data, ("energy", "costarr")).draw()
    (axes,) = figure.axes
    assert axes.get_xscale() == "log"
    assert {line.get_label() for line in axes.lines} >= {"energy", "costarr"}
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    assert np.asarray(canvas.buffer_rgba())[..., :3].std() > 5


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("costarr", ("costarr", {})),
        ("costarr:features=pre,clip=true", ("costarr", dict(features="pre", clip=True))),
        ("nnguide:bank=50", ("nnguide", dict(bank=50))),
        ("energy:temperature=0.5", ("energy", dict(temperature=0.5))),
    ],
)
def test_names_with_options(text, found):
    assert parse(text) == found
    assert type(next(iter(parse(text)[1].values()), 0)) is type(next(iter(found[1].values()), 0))


def test_a_name_with_half_an_option():
    with pytest.raises(ValueError, match="options are NAME=VALUE"):
        parse("costarr:features")


# --- the data of a config --------------------------------------------------------------------------------------------


def config(train, val, test):
    def loader(**dataset):
        return dict(
            batch_size=2, num_workers=0, dataset=dataset, sampler=dict(type="DefaultSampler", shuffle=True),
            collate_fn=dict(type="pseudo_collate"),
        )  # fmt: skip

    sampled = [dict(type="SamplePoints", num=32, include_normals=True)]
    parts = dict(train=[*sampled, dict(type="UnitSphere")], val=sampled, test=sampled)
    given = dict(train=train, val=val, test=test)
    return Config(
        {
            f"{part}_dataloader": loader(
                **{**given[part], "dataset": dict(type="Furniture14", split=split, transforms=parts[part])}
            )
            for part, split in (("train", "train"), ("val", "train"), ("test", "test"))
        }
        | dict(default_scope="attlas")
    )


KNOWN = ("sofa", "bed")


def labels_of(loader):
    return [int(cloud.y) for batch in loader for cloud in batch]


def test_the_data_of_a_config():
    wrapper = dict(type="KnownClasses", classes=KNOWN)
    found = loaders(
        config(
            dict(wrapper, share=0.3, part="rest"),
            dict(wrapper, share=0.3, part="held_out"),
            wrapper,
        ),
        KNOWN,
        ("car", "door"),
    )
    fit, held = (loader.dataset for loader in found[:2])
    assert {fit.name(i) for i in range(len(fit))}.isdisjoint(held.name(i) for i in range(len(held)))
    assert len(fit.dataset.transform.transforms) == 1  # as the test data are prepared
    assert set(labels_of(found.fit)) == {0, 1}
    assert set(labels_of(found.validation)) == {0, 1, -1}
    assert labels_of(found.test).count(0) == 7  # sofas
    assert labels_of(found.test).count(-1) == 122 - 7 - 4 - 5 - 4  # without beds, cars and doors
    assert len(labels_of(found.surrogates)) == 5 + 4


def test_the_data_of_a_config_without_known_classes():
    turned = dict(type="RotatedViews", views=dict(z=1))
    plain = config(turned, turned, turned)
    for part in ("train", "test"):
        inner = plain[f"{part}_dataloader"].dataset.dataset
        assert inner.type == "Furniture14"
    found = loaders(plain, KNOWN)
    assert found.validation is None  # it would be training data
    plain.val_dataloader = dict(plain.test_dataloader, dataset=dict(type="Furniture14", split="test", transforms=[]))
    found = loaders(plain, KNOWN)
    assert found.validation is None  # it would be the test data, unturned
    assert found.surrogates is None
    assert labels_of(found.test).count(-1) == 122 - 7 - 4


def test_wrong_names_are_refused():
    given = config(*[dict(type="KnownClasses", classes=KNOWN)] * 3)
    for known, surrogates, said in (
        (("sofa", "couch"), (), "'couch' is no class"),
        (KNOWN, ("sofa",), "surrogate 'sofa' is not among the unknown"),
        (KNOWN, ("ufo",), "surrogate 'ufo'"),
    ):
        with pytest.raises(ValueError, match=said):
            loaders(given, known, surrogates)
    from attlas.furniture import CLASSES

    with pytest.raises(ValueError, match="no class is unknown"):
        loaders(given, CLASSES)
    given.pop("train_dataloader")
    with pytest.raises(ValueError, match="no train_dataloader"):
        loaders(given, KNOWN)
