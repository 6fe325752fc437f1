"""Reading mm configs, with the mistakes that MMEngine lets pass in silence.

Two of them: a key in --cfg-options that nobody knows, and a variable that is overridden after its value was copied.
The second is the commonest surprise of mm configs: `train_dataloader = dict(dataset=dict(pipeline=train_pipeline))` in
a base copies the list, so a `train_pipeline` in the child config, or on the command line, changes nothing.

A variable that others depend on can be written so that it may be chosen: `name = "{{$BACKBONE:davit_tiny}}"` is
MMEngine's way to take it from the environment, and here --cfg-options name=davit_base does the same, before the config
is computed. It may be part of an expression, such as int("{{$EPOCHS:30}}"). A base that has no default,
`name = "{{$BACKBONE:}}"`, takes that of the config that names it as a base.
"""

import ast
import difflib
import inspect
import os
import re
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.config import config as mmengine_config
from mmengine.config.utils import MODULE2PACKAGE

from .files import near_files, printable


def _open(file: Any, mode: str = "r", encoding: str | None = None) -> Any:
    """`open` for MMEngine's configs. Some editors begin a file with a byte order mark; Python runs such files."""
    return open(file, mode, encoding="utf-8-sig" if (mode, encoding) == ("r", "utf-8") else encoding)


vars(mmengine_config)["open"] = _open

# Where MMEngine looks for the base "mmseg::...": its table has the name of a distribution, under which the maintained
# fork is not installed. By the name of the module both are found.
MODULE2PACKAGE["mmseg"] = "mmseg"


@cache
def read_keys() -> frozenset[str]:
    """The top-level names that something reads: the Runner's arguments, and what it and our tools take out of
    `runner.cfg`."""
    from mmengine.runner import Runner  # here, because it imports OpenCV

    return frozenset(inspect.signature(Runner).parameters) | {
        "activation_checkpointing",
        "compile",
        "container",
        "custom_imports",
        "efficient_conv_bn_eval",
        "find_unused_parameters",
        "fit_channels",
        "ignore_mismatched",
        "model_wrapper_cfg",
        "sync_bn",
        "tta_model",
        "tta_pipeline",
        "tta_views",
    }


def load_config(path: str | Path, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config and put the overrides of --cfg-options into it.

    Warns of every variable that is overridden without effect (on the first process; see `unread_variables`).

    Raises:
        FileNotFoundError: the config does not exist, or a base of it; names the files near, and who asked for the base.
        ValueError: an error in a config, with file and line; an override that does not fit, with what may be meant.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"The config {printable(path)} does not exist. {near_files(path)}")
    places = environment_variables(path)
    chosen = {name: value for name, value in _lent(path).items() if name not in os.environ}
    chosen |= {places[key]: str(value) for key, value in (overrides or {}).items() if key in places}
    overrides = {key: value for key, value in (overrides or {}).items() if key not in places}
    with environment(_quoted(path, chosen)):
        config = _run(path)
    known = read_keys() | set(config.keys())
    for key, value in overrides.items():
        top = key.split(".")[0]
        if top not in known:
            near = difflib.get_close_matches(top, known, n=3, cutoff=0.5)
            raise ValueError(
                f"--cfg-options {key}={value}: the config has no {top!r}."
                + (f" Near it: {', '.join(near)}." if near else f" It has {', '.join(sorted(config.keys()))}.")
            )
        try:
            config.merge_from_dict({key: value})
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"--cfg-options {key}={value} does not fit the config: {error}") from error
    if first_process():
        for name, copies in unread_variables(path, overrides).items():
            advice = f"Override {' and '.join(copies)} instead." if copies else "Override the key that should use it."
            message = f"Overriding {name!r} has no effect: its value had been copied when the config was read. {advice}"
            warnings.warn(message, stacklevel=2)
    return config


PLAIN_LENGTH = 1_000_000  # most characters of a config in a checkpoint; those of trainings have thousands


def parse_plain(text: str) -> dict[str, Any]:
    """The variables of a config that is nothing but data, as MMEngine writes it into checkpoints. Nothing is executed.

    Raises:
        ValueError: the text is no config, or is more than assignments of numbers (of at most 64 bits), texts, booleans,
            None, lists, tuples, dicts with texts as keys and `dict(...)`. Bases, references ("{{") and names that
            begin with "__" are refused, and over a million characters.
    """
    if len(text) > PLAIN_LENGTH:
        raise ValueError(f"it has {len(text):,} characters; {PLAIN_LENGTH:,} are the most")
    if "{{" in text:
        raise ValueError("it refers to something outside of it by '{{'")
    found: dict[str, Any] = {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, of a text that it would read otherwise some day
            lines = ast.parse(text).body
        for line in lines:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)]) if _plain_name(name):
                    found[name] = _plain(line.value)
                case _:
                    raise ValueError(f"line {line.lineno} is more than data")
    except (SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"it is no config ({type(error).__name__})") from None
    return found


def _plain_name(name: Any) -> bool:
    return isinstance(name, str) and not name.startswith("__") and name != "_base_"


def _plain(node: ast.expr) -> Any:
    match node:
        case ast.Constant(value=bool() | str() | float() | None as value):
            return value
        case ast.Constant(value=int() as value) if value < 2**64:
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)) if number <= 2**63:
            return -number
        case ast.List(elts=items):
            return [_plain(item) for item in items]
        case ast.Tuple(elts=items):
            return tuple(_plain(item) for item in items)
        case ast.Dict(keys=keys, values=values):
            names = [_plain(key) if key else None for key in keys]  # None where it is **something
            if all(map(_plain_name, names)):
                return dict(zip(names, map(_plain, values)))
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=words):
            if all(_plain_name(word.arg) for word in words):
                return {str(word.arg): _plain(word.value) for word in words}
    raise ValueError(f"line {node.lineno} is more than data")


def _run(path: Path) -> Config:
    try:
        return Config.fromfile(path)
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__}: {printable(error)}{_origin(path, str(error))}"
        files = [source.path.absolute() for source in _chain(path)]
        lines = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) in files]
        if lines:
            raise ValueError(f"{printable(lines[-1].filename)}, line {lines[-1].lineno}: {said}") from error
        raise ValueError(f"{printable(next(filter(_fails, reversed(files)), path))}: {said}") from error


def _origin(path: Path, said: str) -> str:
    """Where the user says what an error in a config speaks of, if the value of one of its variables is in it."""
    for variable, name in environment_variables(path).items():
        defaults = [default for source in _chain(path) for _, n, default in _of_environment(source) if n == name]
        value = os.environ.get(name) or next(filter(None, defaults), "")
        if value and repr(printable(value)) in said:
            return f" This is {variable}, to be given as {name}=... in the environment or --cfg-options {variable}=..."
    return ""


def _fails(path: Path) -> bool:
    """Whether a config cannot be read, taken alone."""
    try:
        Config.fromfile(path)
    except (Exception, SystemExit):
        return True
    return False


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these environment variables, and afterwards give them the values that they had before."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def environment_variables(path: str | Path) -> dict[str, str]:
    """The variables of a config that are written as `"{{$NAME:default}}"`, with the names in the environment."""
    return {variable: name for source in reversed(_chain(Path(path))) for variable, name, _ in _of_environment(source)}


def _of_environment(source: "_Source") -> Iterator[tuple[str, str, str]]:
    """The variables of one file, the names that they have in the environment, and their defaults."""
    for variable, value in _assignments(source.tree):
        texts = [str(node.value) for node in ast.walk(value) if isinstance(node, ast.Constant)]
        matches = [re.fullmatch(r"\{\{\s*\$(\w+)\s*:\s*(.*?)\s*\}\}", text) for text in texts]
        names = {match[1]: match[2] for match in matches if match}
        if len(names) == 1:
            yield variable, *names.popitem()


def _lent(path: Path) -> dict[str, str]:
    """The defaults that configs lend to their bases: of variables of the environment that have none in a base."""
    found: dict[str, str] = {}
    for source in _chain(path):
        for _, name, default in _of_environment(source):
            found[name] = found.get(name) or default
    empty = {name for source in _chain(path) for _, name, default in _of_environment(source) if not default}
    return {name: default for name, default in found.items() if default and name in empty}


def _quoted(path: Path, chosen: Mapping[str, str]) -> dict[str, str]:
    """What to set in the environment so that a config gets the variables of the environment, and those `chosen`, as
    they are: MMEngine puts them into the text, through a template of `re.sub`, where quotes and backslashes count."""
    names = {name for source in _chain(path) for name in re.findall(r"\{\{\s*\$(\w+)\s*:", source.text)}
    values = {name: os.environ[name] for name in names if name in os.environ} | dict(chosen)
    written = {name: re.sub(r"""(['"\\])""", r"\\\1", value).replace("\n", "\\n") for name, value in values.items()}
    changed = {name: text.replace("\\", "\\\\") for name, text in written.items() if text != values[name]}
    return {**chosen, **changed}


def first_process() -> bool:
    """Whether this is the process that prints, before torch.distributed knows (by the launchers' variables)."""
    return all(os.environ.get(name, "0") == "0" for name in ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK"))


def resolved(config: Config) -> str:
    """The config as text, without the variables that were only there to be copied, and without empty keys."""
    kept = {key: value for key, value in config.items() if key in read_keys() and value is not None and value != {}}
    return Config(kept).pretty_text


def unread_variables(path: str | Path, overrides: Mapping[str, Any] | None = None) -> dict[str, list[str]]:
    """Find the top-level variables that a config, or --cfg-options, overrides without effect.

    A variable is overridden without effect if it is not a key that the Runner reads, a base config (for --cfg-options:
    the config itself) defines it, and no file from the overriding one on uses it.

    Returns:
        For each such variable, the keys into which its value was copied, as --cfg-options spells them.
    """
    chain = _chain(Path(path))
    found: dict[str, list[str]] = {}
    for index, source in enumerate(chain):
        bases = [base.tree for base in chain[index + 1 :]]
        below = [name for base in bases for name in _assigned(base)]
        read = {name for other in chain[: index + 1] for name in _used(other.tree, other.text)}
        read |= {name for base in chain[index + 1 :] for name, _, default in _of_environment(base) if not default}
        for name in _assigned(source.tree):
            if name in below and name not in read_keys() and name not in read:
                found[name] = sorted(set(_copies(name, bases)))
    trees = [source.tree for source in chain]
    everywhere = [name for tree in trees for name in _assigned(tree)]
    for key in overrides or {}:
        name, _, rest = key.partition(".")
        if name in everywhere and name not in read_keys():
            copies = sorted(set(_copies(name, trees)))
            found[name] = [f"{copy}.{rest}" if rest else copy for copy in copies]
    return found


# Python's syntax is enough for all of this: the files are parsed, not run. Configs in the newer `read_base()` style and
# yaml are left alone.


class _Source(NamedTuple):
    path: Path
    tree: ast.Module
    text: str


def _chain(path: Path, above: tuple[Path, ...] = ()) -> list[_Source]:
    """The parsed files of a config: itself, then its bases, theirs, ...; `above` are those that lead to this one."""
    if path.suffix != ".py":
        return []
    try:
        text = path.read_text(encoding="utf-8-sig")
        # {{_base_.x}} and {{fileDirname}} are no Python; what they stand for does not matter here but for the name
        tree = ast.parse(re.sub(r"\{\{\s*([\w.:]+)\s*\}\}", lambda m: re.sub(r"\W", ".", m[1]), text))
    except UnicodeDecodeError as error:
        raise ValueError(f"The config {printable(path)} is no text in UTF-8: {printable(error)}.") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise ValueError(f"{printable(path)}{line} is no Python: {printable(said)}.") from None
    files = [_Source(path, tree, text)]
    try:
        bases = Config._get_base_files(str(path))
        places = [Path(Config._get_cfg_path(base, str(path))[0]) for base in bases]
    except Exception as error:
        raise ValueError(f"{printable(path)}, _base_: {type(error).__name__}: {printable(error)}") from error
    for base, place in zip(bases, places):
        if not place.is_file():
            raise FileNotFoundError(
                f"{printable(path)} names the base {printable(base)!r}, which does not exist. {near_files(place)}"
            )
        if place.resolve() in (path.resolve(), *above):
            raise ValueError(f"{printable(path)} names the base {printable(base)!r}, which has it as a base itself.")
        files += _chain(place, (*above, path.resolve()))
    return files


def _assigned(tree: ast.Module) -> list[str]:
    return [name for name, _ in _assignments(tree) if not name.startswith("_")]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr]]:
    for line in tree.body:
        if isinstance(line, ast.Assign):
            yield from ((target.id, line.value) for target in line.targets if isinstance(target, ast.Name))


def _used(tree: ast.AST, text: str = "") -> set[str]:
    """The names that a piece of a config reads, also as `_base_.name`."""
    names = {n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute) and _root(n) == "_base_"}
    return names | attributes | set(re.findall(r"\{\{\s*_base_\.(\w+)", text))


def _root(node: ast.expr) -> str | None:
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def _copies(name: str, trees: list[ast.Module]) -> Iterator[str]:
    """Where the value of a variable ends, as dotted keys that the Runner reads, through other variables if need be."""
    for tree in trees:
        for target, value in _assignments(tree):
            if target == name or target.startswith("_"):
                continue
            for place in _places(name, value):
                keys = [target] if target in read_keys() else _copies(target, trees)
                yield from (".".join([key, *place]) for key in keys)


def _places(name: str, value: ast.expr) -> Iterator[list[str]]:
    if isinstance(value, ast.Call) and _root(value.func) == "dict":
        for keyword in value.keywords:
            yield from ([keyword.arg, *place] for place in _places(name, keyword.value) if keyword.arg)
    elif isinstance(value, ast.Dict):
        for key, item in zip(value.keys, value.values):
            if isinstance(key, ast.Constant):
                yield from ([str(key.value), *place] for place in _places(name, item))
    elif isinstance(value, (ast.List, ast.Tuple)):
        for index, item in enumerate(value.elts):
            yield from ([str(index), *place] for place in _places(name, item))
    elif name in _used(value):
        yield []
