"""What a trained network answers about files, folders and arrays.

    from attlas.inference import Inferencer

    results = Inferencer("work_dirs/shvit_furniture_views/epoch_20.pth")(["chair.jpg", "photos", array])

`load` makes a ready model of a checkpoint, `Inferencer` walks inputs, batches them and gathers what fails. What an
input is and what becomes of an answer, the class of the model says by its `task`, a `Task` of `tasks`.

A checkpoint may be a stranger's, and with it the config that it holds. That is read as data and never run. Of it only
the model and the transforms are built, and only of classes that Attlas registers.
"""

import copy
import glob
import importlib
import json
import os
import re
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config, ConfigDict
from mmengine.dataset import pseudo_collate
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from . import checkpoint as checkpoints
from .config import load_config, parse_plain
from .data import build_transforms, drawn, fill_classes, positive
from .files import near_files, printable
from .registry import DATASETS, MIXERS, MODELS, TASK_UTILS, TRANSFORMS, Registry
from .tasks import ModelError, Task, task_of

# Classes of models that may be told from a file without a config. Their `recognize(state)` gives configs (model,
# transforms) by name, and of what it is not the reasons by name.
RECOGNIZING = ("attlas.dense.restoration.restorer.Restorer",)

# --- a model from a checkpoint ---------------------------------------------------------------------------------------


def load(
    checkpoint: str | Path,
    config: str | Path | Config | None = None,
    device: str | torch.device | None = None,
    container: str | None = None,
) -> nn.Module:
    """A ready model of a checkpoint, in inference mode.

    Args:
        checkpoint: file of a training of ours, or of weights that fit the model of `config`.
        config: file of a config, or what `load_config` made of it; by default the config that the checkpoint holds.
            That is read as data: one that imports modules, or names classes that Attlas does not register, is refused.
            A file that holds none may be of a network that its names and shapes tell, as of restorers. `init_cfg` and
            `pretrained` are left out of either, because all weights come from the checkpoint.
        device: where the model goes; by default the GPU if there is one.
        container: name under which the file has the wanted weights, where it has several; see `checkpoint.load`.

    Returns:
        The model, with `classes` (names, from the checkpoint, or those of the config's data set where it is a published
        one; () if neither has them) and `transforms` (those of the config's test data, from an input as it was read to
        an item of a batch).

    Raises:
        FileNotFoundError: no such checkpoint or config; names the files near.
        ValueError: the checkpoint holds no config, one that is not built, or not all weights of the model.
    """
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={str(device)!r}: PyTorch finds no GPU here.")
    found = checkpoints.read(checkpoint)
    meta = found["meta"] if isinstance(found.get("meta"), Mapping) else {}
    given: Any = load_config(config) if isinstance(config, (str, Path)) else config
    if given is None:
        source = f"the config inside {printable(checkpoint)}"
        model, transforms, scope = config_within(found, checkpoint, container)
    else:
        source = printable(given.filename or "the given config")
        model, transforms, scope = _parts(given, source)
    names = class_names(meta) or _published_classes(given or {})
    if names:
        fill_classes(model, lambda: len(names))
    try:
        with _scoped(scope):
            built = MODELS.build(model)
            built_transforms = build_transforms(transforms)
    except TypeError as error:  # of arguments that a class does not take
        raise ValueError(f"{source} does not build: {printable(error, 1000)}") from error
    task = task_of(built)
    if task is None:
        raise ValueError(f"{source}: the model is a {type(built).__name__}, and no task says how it is to be asked.")
    account = checkpoints.load(built, found, container=container)
    account.source = printable(checkpoint)
    if account.missing or account.mismatched:
        raise ValueError(f"{account}\nThe network would be partly untrained.")
    checkpoints.log(account)
    built.classes = names
    built.transforms = task().prepare(built_transforms)
    return built.eval().to(place)


def config_within(
    found: Mapping, checkpoint: str | Path, container: str | None = None
) -> tuple[dict[str, Any], list[dict[str, Any]], str]:
    """The configs of the model, and of the transforms of the test data, that a checkpoint holds; and the scope of their
    names.

    Args:
        found: content of the checkpoint, as `checkpoint.read` gives it.
        checkpoint: name of its file, for errors.
        container: name under which the file has the weights, where it has several.

    Raises:
        ValueError: the checkpoint holds no config, or one that `load` does not use either.
    """
    meta = found["meta"] if isinstance(found.get("meta"), Mapping) else {}
    state = checkpoints.weights(found, container)
    if not isinstance(meta.get("cfg"), str):
        return _recognized(state, checkpoint)
    size = sum(tensor.numel() for tensor in state.values())
    return _within(meta["cfg"], f"the config inside {printable(checkpoint)}", size)


def _recognized(state: Mapping[str, Tensor], checkpoint: str | Path) -> tuple[dict, list, str]:
    """`_parts` of the config that a file's names and shapes tell."""
    accepted: dict[str, tuple[dict, list]] = {}
    refused: dict[str, str] = {}
    for place in RECOGNIZING:
        module, _, name = place.rpartition(".")
        found, reasons = getattr(importlib.import_module(module), name).recognize(state)
        accepted |= found
        refused |= reasons
    if len(accepted) == 1:
        return *next(iter(accepted.values())), "attlas"
    said = f"{printable(checkpoint)} holds no config"
    if accepted:
        raise ValueError(f"{said}, and may be of {' and of '.join(accepted)}. {GIVE}")
    tried = "".join(f"\n  {name}: {printable(reason, 400)}" for name, reason in refused.items())
    raise ValueError(f"{said}. {GIVE}\nNor do its names and shapes tell a network. Tried were:{tried}")


def task_within(model: Mapping, scope: str) -> type[Task] | None:
    """The task of the model that a config describes, without building it; None if it has none."""
    if scope not in LIBRARIES:
        return None
    with _scoped(scope), MODELS.switch_scope_and_registry(None) as registry:
        kind = registry.get(str(model.get("type")))
    return task_of(kind) if isinstance(kind, type) else None


def _parts(config: Mapping | Config, source: str) -> tuple[dict, list, str]:
    """The configs of the model, without what would load other weights, and of the transforms of the test data; and the
    scope of their names."""
    scope = config.get("default_scope") or "attlas"
    if scope not in LIBRARIES:
        raise ValueError(f"{source}: default_scope is {printable(scope)!r}, and may be {', '.join(LIBRARIES)}.")
    model, loader = config.get("model"), config.get("test_dataloader") or config.get("val_dataloader")
    if not isinstance(model, Mapping):
        raise ValueError(f"{source} has no model.")
    if not isinstance(loader, Mapping) or not isinstance(loader.get("dataset"), Mapping):
        raise ValueError(f"{source} has no test_dataloader, whose transforms say how an input is prepared.")
    return ConfigDict(_without_weights(model)), _transforms(loader["dataset"], source), scope


@contextmanager
def _scoped(scope: str) -> Iterator[None]:
    """Bare names mean the classes of a library, which is imported."""
    for module in LIBRARIES[scope]:
        importlib.import_module(module)
    with DefaultScope.overwrite_default_scope(scope):
        yield


def _without_weights(node: Any) -> Any:
    if isinstance(node, Mapping):
        return {k: _without_weights(value) for k, value in node.items() if k not in ("init_cfg", "pretrained")}
    return type(node)(map(_without_weights, node)) if isinstance(node, (list, tuple)) else node


def _transforms(dataset: Mapping, source: str) -> list:
    """Those of a data set, or of the one inside of it (`RotatedViews`) and then its own; mm: `pipeline`."""
    own = dataset.get("transforms", dataset.get("pipeline"))
    if isinstance(inner := dataset.get("dataset"), Mapping):
        return [*_transforms(inner, source), *(own or ())]
    if not isinstance(own, (list, tuple)):
        raise ValueError(f"{source}: the test data ({dataset.get('type')}) have no transforms.")
    return list(own)


# Scopes of configs, and what has to be imported before their classes are known.
LIBRARIES = {
    "attlas": (),
    "mmdet": ("mmdet.models", "mmdet.datasets.transforms"),
    "mmseg": ("mmseg.models", "mmseg.datasets.transforms"),
}
# What a `type` may be that no registry has: mmcv looks RoI layers up in its operators, and evaluates the type of an nms
# as Python.
OPERATORS = ("nms", "soft_nms", "RoIAlign", "RoIPool")
SMALL = 10_000  # numbers up to here ask for little, whatever they count
GIVE = "Give the config before the checkpoint: tools/infer.py CONFIG CHECKPOINT INPUT, or config=."


def _within(text: str, source: str, size: int) -> tuple[dict, list, str]:
    """`_parts` of a config that nobody vouches for, with which nothing can be done but to build what Attlas registers.

    Args:
        text: the config.
        size: count of numbers in the file that it came with, which bounds the network and what it costs to build.
    """
    try:
        config = parse_plain(text)
        if config.get("custom_imports"):
            raise ValueError("it imports modules (custom_imports)")
        model, transforms, scope = _parts(config, "it")
        with _scoped(scope):
            _check(model, (MODELS, MIXERS, TASK_UTILS), scope, max(size, SMALL), "model")
            _check(transforms, (TRANSFORMS,), scope, max(size, SMALL), "transforms")
            build_transforms(transforms)
            with torch.device("meta"):
                needed = sum(map(torch.numel, MODELS.build(model).state_dict().values()))
        if needed > 2 * size:  # some files leave buffers out
            raise ValueError(f"its model has {needed:,} numbers, and the file {size:,}")
    except Exception as error:  # with arguments that make no sense, a class may fail in any way
        said = printable(error, 1000).removesuffix(".")
        raise ValueError(f"{source} is not used: {said}. {GIVE}") from None
    return model, transforms, scope


def _check(node: Any, registries: Sequence[Registry], scope: str, largest: int, place: str) -> None:
    """Refuse what a config could reach other code, or files, by (MMEngine imports whatever a dotted `type` names), and
    integers that would keep a machine busy, such as a depth above `largest`."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            if key.startswith("_"):
                raise ValueError(f"{place} has a key {printable(key)}")
            known = isinstance(value, str) and any(_known(value, registry, scope) for registry in registries)
            if key == "type" and not known:
                raise ValueError(f"{place}.type is {printable(value)}, which Attlas does not register")
            _check(value, registries, scope, largest, f"{place}.{key}")
    elif isinstance(node, (list, tuple)):
        for number, value in enumerate(node):
            _check(value, registries, scope, largest, f"{place}[{number}]")
    elif isinstance(node, int) and node > largest:
        raise ValueError(f"{place} is {node:,}, more than the file has numbers ({largest:,})")
    elif isinstance(node, str) and not re.fullmatch(rf"(({'|'.join(LIBRARIES)})\.)?[\w-]*", node):
        raise ValueError(f"{place} is {printable(node)!r}, which is no plain name")


def _known(name: str, registry: Registry, scope: str) -> bool:
    """Whether a class is one of ours or, in the scope of another library, one of that or of mmcv's layers."""
    own = name.removeprefix("attlas.")
    if scope == "attlas" or own != name:
        return registry.has(own)
    if name in OPERATORS:
        return True
    theirs: Any = registry.parent
    libraries = [theirs, *(child for child in theirs.children.values() if child.scope == scope)]
    return registry.has(name) or any(name.removeprefix(f"{scope}.") in library.module_dict for library in libraries)


def class_names(meta: Mapping) -> tuple[str, ...]:
    """The names that a training, or tools/publish.py, wrote into the `meta` of a checkpoint; () if there are none."""
    names: Any = dataset_meta(meta).get("classes")
    known = isinstance(names, (list, tuple)) and all(isinstance(name, str) for name in names)
    return tuple(names or ()) if known else ()


def dataset_meta(meta: Mapping) -> Mapping[str, Any]:
    """What the `meta` of a checkpoint says of the data of its training: `classes`, of restoration `scale` and
    `degradation`; {} if it says nothing."""
    told: Any = meta.get("dataset_meta")
    if isinstance(told, str):  # safetensors hold texts
        try:
            told = json.loads(told)
        except ValueError:
            told = None
    return told if isinstance(told, Mapping) else {}


def _published_classes(config: Mapping | Config) -> tuple[str, ...]:
    """The names of a data set whose classes are always the same."""
    dataset = (config.get("test_dataloader") or config.get("val_dataloader") or {}).get("dataset", {})
    while isinstance(dataset.get("dataset"), Mapping):
        if names := dataset.get("classes"):  # some of them, as of `KnownClasses`
            return tuple(names)
        dataset = dataset["dataset"]
    kind = dataset.get("type")
    return tuple(getattr(DATASETS.get(kind) if isinstance(kind, str) else kind, "CLASSES", ()))


# --- asking it -------------------------------------------------------------------------------------------------------


class Source(NamedTuple):
    """An input by its name: a file, an array, or the error that stands for it."""

    name: str
    value: Any


class _Item(NamedTuple):
    name: str
    source: Any = None  # as it was read
    data: Any = None  # behind the transforms
    form: Hashable = None
    error: str | None = None


class Inferencer:
    """Predictions for files, folders, globs and arrays.

    Args:
        model: file of a checkpoint, or what `load` made of one.
        config: config of the checkpoint; see `load`.
        device: where the model goes; see `load`.
        container: name of the wanted weights; see `load`.
        **options: what the model's task takes besides; of restorers see `Restoration.configure`, of matchers
            `Matching.configure`. Those of the model are set on it, and stay with it where it is given to another.

    Attributes:
        left_out: files in folders that the last `find` passed over, for their endings.
    """

    def __init__(
        self,
        model: str | Path | nn.Module,
        config: str | Path | Config | None = None,
        device: str | torch.device | None = None,
        container: str | None = None,
        **options: Any,
    ):
        if not isinstance(model, nn.Module):
            model = load(model, config, device, container)
        elif (config, device, container) != (None, None, None):
            raise ValueError(
                "config, device and container belong to a checkpoint; the model that was given is built already."
            )
        lacking = [name for name in ("classes", "transforms") if not hasattr(model, name)]
        if (task := task_of(model)) is None:
            lacking.insert(0, "task")
        if task is None or lacking:
            raise ValueError(f"The {type(model).__name__} has no {' and no '.join(lacking)}: attlas.load makes models.")
        self.model: Any = model
        self.left_out: list[Path] = []
        self.task = task()
        self.task.configure(model, **options)

    def __call__(self, inputs: Any, batch_size: int = 32, top: int | None = None) -> list[dict[str, Any]]:
        """A result for each input, and for each file of a folder.

        Args:
            inputs: paths of files and folders, globs, and arrays (images uint8 (H, W, 3) or (H, W); of restorers uint8
                or uint16, (H, W), (H, W, 3) or (H, W, 4), red, green, blue, opacity; points (N, 3), with normals
                (N, 6), or a dict of pos (N, 3) and perhaps normal (N, 3), face (F, 3) and category, a number that
                networks of parts want; of videos uint8 (T, H, W, 3) or (T, H, W)); one, or a sequence, of which
                matchers take two by two.
            batch_size: most items at a time. Those of different sizes do not share a batch.
            top: most classes, or objects, that a result lists; by default the task's number.

        Returns:
            Dicts with "input" (the path; of arrays "input 0", ...) and what the task says: of classification "classes",
            a list of dict(label, name, probability), the likeliest first; of detection "objects", a list of dict(label,
            name, score, box), the best first; of segmentation "classes", a list of dict(label, name, share), the
            largest first, and of points also "labels", one for each point, of images a "mask" of each class; of
            restoration "restored", the picture; of matching "matches", a list of dict(source, target, confidence,
            cycle_error), the surest first, and a "field" of places; of video anomaly detection "events" and "scores".
            Where an input cannot be read, or the network fails at it (as for want of memory), "error" says why instead.
            A result does not depend on the inputs beside it.
        """
        return [result for result, _ in self.stream(self.find(inputs), batch_size, top)]

    def find(self, inputs: Any) -> list[Source]:
        """What `inputs` mean, in their order; the files of a folder, and of the folders in it, by name."""
        if isinstance(inputs, (str, os.PathLike, Mapping)) or hasattr(inputs, "shape"):
            inputs = [inputs]
        self.left_out = []
        found: list[Source] = []
        for number, given in enumerate(inputs):
            if isinstance(given, (str, os.PathLike)):
                found += self._files(Path(given).expanduser())
            else:
                found.append(Source(f"input {number}", given))
        return self._together(found)

    def _together(self, sources: list[Source]) -> list[Source]:
        """The sources of items, where several inputs make one."""
        count = self.task.together
        if count == 1:
            return sources
        if len(sources) % count:
            raise ValueError(
                f"inputs are taken {count} by {count}, and {len(sources)} were given: {printable(sources[-1].name)} is "
                "left over."
            )
        items = []
        for start in range(0, len(sources), count):
            part = sources[start : start + count]
            name = " and ".join(source.name for source in part)
            errors = [ValueError(f"{s.name}: {s.value}") for s in part if isinstance(s.value, Exception)]
            items.append(Source(name, errors[0] if errors else tuple(source.value for source in part)))
        return items

    def _files(self, path: Path) -> list[Source]:
        matches = [path] if os.path.lexists(path) else [Path(p) for p in sorted(glob.glob(str(path), recursive=True))]
        if not matches:
            return [Source(str(path), FileNotFoundError(f"it does not exist. {near_files(path)}"))]
        found: list[Source] = []
        for match in matches:
            whole = not match.is_dir() or self.task.is_input(match)
            files = [match] if whole else list(self._in_folder(match))
            nothing = ValueError(f"the folder holds no file that ends in {' '.join(sorted(self.task.suffixes))}")
            found += [Source(str(file), file) for file in files] or [Source(str(match), nothing)]
        return found

    def _in_folder(self, folder: Path) -> Iterator[Path]:
        seen = set()
        for top, folders, names in os.walk(folder, followlinks=True):
            folders[:] = sorted(name for name in folders if name[0] != ".")
            if (real := os.path.realpath(top)) in seen:  # a link to a folder above
                folders.clear()
                continue
            seen.add(real)
            if self.task.is_input(Path(top)):
                yield Path(top)
                continue
            for path in (Path(top, name) for name in sorted(names) if name[0] != "."):
                if path.suffix.lower() in self.task.suffixes:
                    yield path
                else:
                    self.left_out.append(path)

    def stream(
        self, sources: Iterable[Source], batch_size: int = 32, top: int | None = None
    ) -> Iterator[tuple[dict[str, Any], Any]]:
        """(result, input as it was read) for each of what `find` gave, in that order, read as they are needed."""
        top = self.task.top if top is None else top
        positive("batch_size", batch_size)
        positive("top", top)
        waiting: list[_Item] = []
        for item in map(self._read, sources):
            if len(waiting) == batch_size or len({i.form for i in (*waiting, item) if i.error is None}) > 1:
                yield from self._results(waiting, top)
                waiting = []
            waiting.append(item)
        yield from self._results(waiting, top)

    def _read(self, source: Source) -> _Item:
        name, value = source
        try:
            if isinstance(value, Exception):
                raise value
            given = value if self.task.together > 1 else (value,)
            parts = [self.task.read(part) if isinstance(part, Path) else self.task.take(part) for part in given]
            value = self.task.join(parts) if self.task.together > 1 else parts[0]
            # one seed for all, so that a result depends on nothing but its input
            data = drawn(self.model.transforms, copy.deepcopy(value), name, 0)
            return _Item(name, value, data, self.task.form(data))
        except Exception as error:  # transforms and readers of users have errors of any kind
            return _Item(name, error=_said(error, name))

    def _results(self, items: Sequence[_Item], top: int) -> Iterator[tuple[dict[str, Any], Any]]:
        answers = iter(self._answers([item for item in items if item.error is None], top))
        for item in items:
            answer = next(answers) if item.error is None else dict(error=item.error)
            yield dict(input=item.name, **answer), item.source

    def _answers(self, items: Sequence[_Item], top: int) -> list[dict[str, Any]]:
        if not items:
            return []
        try:
            with torch.inference_mode():
                predictions = self.model.test_step(pseudo_collate([item.data for item in items]))
            pairs = zip(predictions, items)
            return [self.task.result(found, item.source, self.model.classes, top) for found, item in pairs]
        except ModelError:
            raise
        except Exception as error:  # also of memory that is out: those behind it may fit
            if len(items) == 1:
                return [dict(error=_said(error, items[0].name))]
        # Which of them it is shows one by one: here, where the error holds no memory of the batch any more.
        return [answer for item in items for answer in self._answers([item], top)]


def _said(error: Exception, name: str) -> str:
    """An error in one line, without the name of its input, which stands before it."""
    text = str(error)
    for begin in (f"{name}: ", f"{name} is ", f"{name} "):
        text = text.removeprefix(begin)
    kind = "" if isinstance(error, (ValueError, OSError)) and text else f"{type(error).__name__}: "
    return printable(kind + text, 1000)
