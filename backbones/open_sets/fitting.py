"""Fitting a score to a trained classifier, choosing its threshold, and keeping both in a file.

    reader = Reader(model)                              # an ImageClassifier, a PointClassifier, or any network
    score = fit([create("costarr", reader.layer)], reader, training_loader)[0]
    detector = Detector("costarr", score, classes, threshold=..., rule="...", unit="image")
    detector.save("costarr.safetensors")
    attach(model, "costarr.safetensors")                # its predictions now say known or unknown

Batches are what the loaders of a config give: dict(image, label), a list of clouds with their label as `y`, or a pair
(inputs, labels).
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ... import checkpoint
from ...data import one_of
from ...files import printable
from .costarr import Costarr
from .scores import Energy, Ghost, MaxLogit, MaxSoftmax, NearestMean, NNGuide, Score

SCORES: dict[str, type[Score]] = {
    "max_softmax": MaxSoftmax,
    "max_logit": MaxLogit,
    "energy": Energy,
    "nearest_mean": NearestMean,
    "nnguide": NNGuide,
    "ghost": Ghost,
    "costarr": Costarr,
}


def create(name: str, layer: nn.Linear, **options) -> Score:
    """The score of a name in `SCORES` for a classifier's last layer, not fitted yet.

    Raises:
        ValueError: no such score, an option that it does not have, or a bad value of one.
    """
    one_of("score", name, tuple(SCORES))
    try:
        return SCORES[name](layer.weight, layer.bias, **options).to(layer.weight.device)
    except TypeError:
        known = ", ".join(SCORES[name](layer.weight, layer.bias).options) or "none"
        raise ValueError(f"{name} takes the options {known}, got {', '.join(options)}.") from None


# --- what the last layer reads ---------------------------------------------------------------------------------------


class Reader:
    """What the last layer of a classifier reads.

    Args:
        model: ImageClassifier, PointClassifier, or a network that maps inputs to logits (B, C). It is put into
            inference mode.
        layer: dotted name of the last layer, an nn.Linear. By default it is found when the first batch comes: the last
            one whose output is the logits.

    Calling it with a batch gives the features (B, D) and the labels (B,).

    Raises:
        ValueError: at the first batch, where the logits are not what one linear layer makes of one vector, as of two
            averaged heads, or the classifier averages mirrored images.
    """

    def __init__(self, model: nn.Module, layer: str | None = None):
        if directions := getattr(model, "mirrored", ()):
            raise ValueError(
                f"the classifier averages the probabilities of mirrored images (mirrored={directions!r}), which no "
                "features belong to: set mirrored=()."
            )
        self.model = model.eval()
        self.name = layer
        self.checked = False
        if layer is not None:
            self._layer(layer)

    def _layer(self, name: str) -> nn.Linear:
        found = dict(self.model.named_modules()).get(name)
        if not isinstance(found, nn.Linear):
            linear = [n for n, part in self.model.named_modules() if isinstance(part, nn.Linear)]
            what = "not there" if found is None else f"a {type(found).__name__}"
            raise ValueError(f"layer={name!r} is {what}; linear layers are {', '.join(linear[-5:]) or 'none'}.")
        return found

    @property
    def layer(self) -> nn.Linear:
        """The last layer; known from the first batch on."""
        if self.name is None:
            raise RuntimeError("the last layer is found when the first batch comes.")
        return self._layer(self.name)

    @torch.no_grad()
    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        inputs, labels = self._inputs(batch)
        linear = {n: part for n, part in self.model.named_modules() if isinstance(part, nn.Linear)}
        watched = linear if self.name is None else {self.name: self.layer}
        with recorded(watched) as calls:
            logits = self.model(**inputs) if isinstance(inputs, dict) else self.model(inputs)
        if not isinstance(logits, Tensor) or logits.ndim != 2:
            raise ValueError(f"{type(self.model).__name__} gives no logits (B, C).")
        if self.name is None:
            same = [name for name, (_, out) in calls.items() if out.shape == logits.shape and torch.equal(out, logits)]
            if not same:
                raise ValueError(
                    "the logits of this classifier are not the output of one of its linear layers, as where two heads "
                    "are averaged: no vector and weights belong to them. Its linear layers are "
                    f"{', '.join([*linear][-5:]) or 'none'}."
                )
            self.name = same[-1]
        if self.name not in calls:
            raise ValueError(f"the layer {self.name!r} gives no output (B, C).")
        features, out = calls[self.name]
        if not self.checked:
            if features.ndim != 2 or out.shape != logits.shape or not torch.allclose(out, logits, 1e-3, 1e-4):
                raise ValueError(f"the logits are not the output of the layer {self.name!r}.")
            self.checked = True
        return features, labels.to(features.device)

    def _inputs(self, batch: Any) -> tuple[Any, Tensor]:
        if preprocessor := getattr(self.model, "data_preprocessor", None):
            if isinstance(batch, Mapping):  # of which a label below 0 would be refused
                labels = torch.as_tensor(batch["label"])
                batch = {key: value for key, value in batch.items() if key not in ("label", "token_labels")}
            else:
                labels = torch.stack([torch.as_tensor(item.y) for item in batch])
            return {**preprocessor(batch, False), "mode": "tensor"}, labels
        inputs, labels = batch
        parameter = next(self.model.parameters())
        return inputs.to(parameter.device), torch.as_tensor(labels)


@contextmanager
def recorded(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, tuple[Tensor, Tensor]]]:
    """A dict that gets the last input and output of each of the layers whose output is (B, C), by name, while they run;
    in the order of their last calls."""
    calls: dict[str, tuple[Tensor, Tensor]] = {}

    def record(name: str):
        def hook(layer, args, out):
            calls.pop(name, None)
            if out.ndim == 2:  # logits are; the maps inside a network need not be held
                calls[name] = args[0], out

        return hook

    hooks = [layer.register_forward_hook(record(name)) for name, layer in layers.items()]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def find_layer(reader: Reader, loader: Iterable[Any]) -> nn.Linear:
    """The last layer, found by the first batch of a loader if it is not known."""
    if reader.name is None:
        reader(next(iter(loader)))
    return reader.layer


def fit(
    scores: Sequence[Score], reader: Reader, loader: Iterable[Any], failed: dict[Score, str] | None = None
) -> Sequence[Score]:
    """Fit scores together, each batch of the data once for all of them in each pass.

    Args:
        scores: scores, made for the reader's last layer.
        reader: reader of the classifier.
        loader: batches of known samples, which can be gone through several times, the same each time: those of the
            classifier's training set, as its test data are prepared.
        failed: a dict that gets the scores for which these data do not suffice, with the reason, while the others are
            fitted. By default that is a ValueError.
    """
    for number in range(max((score.passes for score in scores), default=0)):
        waiting = [score for score in scores if score.number == number < score.passes]
        if not waiting:
            break
        count = 0
        for batch in loader:
            features, labels = reader(batch)
            count += len(features)
            for score in waiting:
                score.add(features, labels)
        if not count:
            raise ValueError("the loader gives no samples to fit to (in every pass: an iterator ends after the first).")
        for score in waiting:
            try:
                score.finish()
            except ValueError as error:
                if failed is None:
                    raise
                failed[score] = str(error)
    return scores


# --- with a threshold, in a file -------------------------------------------------------------------------------------


def fingerprint(layer: nn.Linear) -> str:
    """What tells a last layer from that of another training: a hash of its numbers."""
    parts = [layer.weight] if layer.bias is None else [layer.weight, layer.bias]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


@dataclass
class Detector:
    """A fitted score with its threshold.

    Args:
        name: name of the score in `SCORES`.
        score: the score.
        threshold: number from which on a sample is accepted.
        rule: how the threshold was chosen, in words.
        unit: what a score is of: "image" or "cloud".
        layer: dotted name of the last layer in the model.
        classes: names of the known classes.
    """

    name: str
    score: Score
    threshold: float
    rule: str
    unit: str
    layer: str
    classes: Sequence[str] = ()

    def __post_init__(self):
        if isinstance(self.threshold, bool) or not isinstance(self.threshold, (int, float)):
            raise ValueError(f"threshold must be a number, got {printable(repr(self.threshold))}.")
        if not math.isfinite(self.threshold):
            raise ValueError(f"threshold must be a finite number, got {self.threshold!r}.")

    def save(self, path: str | Path, layer: nn.Linear) -> None:
        """Write a safetensors file: the fitted tensors, and as metadata the options, the threshold and how it was
        chosen. The weights are not in it: it belongs to the checkpoint whose last layer is `layer`."""
        if not self.score.fitted:
            raise ValueError(f"{self.name} is not fitted: there is nothing to save.")
        told = dict(
            score=self.name,
            options=self.score.options,
            threshold=float(self.threshold),
            rule=self.rule,
            unit=self.unit,
            layer=self.layer,
            fingerprint=fingerprint(layer),
            classes=list(self.classes),
        )
        tensors = {name: getattr(self.score, name) for name in self.score.STATE}
        # safetensors hold no file without a tensor
        checkpoint.save(path, tensors or {"nothing_fitted": torch.zeros(1)}, {"open_set": json.dumps(told)})


FIELDS: dict[str, Any] = {
    "score": str, "options": dict, "threshold": (int, float), "rule": str, "unit": str, "layer": str,
    "fingerprint": str, "classes": list,
}  # fmt: skip


def load(path: str | Path, model: nn.Module) -> Detector:
    """The detector of a file that `Detector.save` wrote, for the model that it was fitted to.

    Raises:
        ValueError: the file is none of a fitted score, broken, or of another model.
    """
    found = checkpoint.read(path)
    said = f"{printable(path)} is no file of a fitted open-set score"
    meta = found.get("meta")
    try:
        told = json.loads(meta["open_set"]) if isinstance(meta, Mapping) else None
    except (KeyError, TypeError, ValueError):
        told = None
    if not isinstance(told, dict) or told.keys() != FIELDS.keys():
        raise ValueError(f"{said}; tools/test.py CONFIG CHECKPOINT --open-set --fitted FILE writes one.")
    for name, kind in FIELDS.items():
        if not isinstance(told[name], kind) or isinstance(told[name], bool):
            raise ValueError(f"{said}: its {name} is {printable(repr(told[name]))}.")
    if not all(isinstance(name, str) for name in told["classes"]):
        raise ValueError(f"{said}: its classes are {printable(repr(told['classes']))}.")
    layer = dict(model.named_modules()).get(told["layer"])
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"{printable(path)} was fitted to a last layer {printable(told['layer'])!r}, and this is none."
        )
    if fingerprint(layer) != told["fingerprint"]:
        raise ValueError(
            f"{printable(path)} was fitted to other weights than those of this checkpoint: fit it anew, for a score "
            "and its threshold belong to one training."
        )
    try:
        score = create(told["score"], layer, **told["options"])
        score.load({name: value for name, value in found["state_dict"].items() if name != "nothing_fitted"})
        detector = Detector(
            told["score"], score, told["threshold"], told["rule"], told["unit"], told["layer"], told["classes"]
        )
    except ValueError as error:
        raise ValueError(f"{said}: {printable(error, 1000)}") from None
    return detector


def attach(model: nn.Module, detector: Detector | str | Path) -> Detector:
    """Have the predictions of a classifier say whether they are of a known class: each dict that `mode="predict"` gives
    gets "open_set", dict(score, threshold, unknown, method, rule). Results of `attlas.inference.Inferencer` pass it on.

    Raises:
        ValueError: as of `load`; or the model has one attached.
    """
    if getattr(model, "open_set", None) is not None:
        raise ValueError("a detector is attached to this model already.")
    found = detector if isinstance(detector, Detector) else load(detector, model)
    Reader(model, found.layer)  # refuses what no score is of
    model.open_set = found  # type: ignore[assignment]
    kept: dict[str, Tensor] = {}
    layer = model.get_submodule(found.layer)
    layer.register_forward_pre_hook(lambda _, args: kept.update(features=args[0]))

    def tell(_, args, kwargs, predictions):
        features = kept.pop("features", None)  # no map is held beyond its batch
        if kwargs.get("mode") != "predict":
            return predictions
        if features is None or len(features) != len(predictions):
            raise RuntimeError(f"the layer {found.layer!r} did not run once for this batch.")
        for prediction, score in zip(predictions, found.score(features).tolist()):
            if math.isnan(score):
                raise ValueError("the open-set score is NaN.")
            prediction["open_set"] = dict(
                score=score, threshold=found.threshold, unknown=score < found.threshold, method=found.name,
                rule=found.rule,
            )  # fmt: skip
        return predictions

    model.register_forward_hook(tell, with_kwargs=True)
    return found
