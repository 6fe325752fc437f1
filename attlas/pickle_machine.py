"""The machine that runs the pickle of a checkpoint, without calling anything that the file names.

A pickle is a program for a machine with a stack: it names functions and classes, and has them called. torch's reader
(`weights_only=True`) runs it with some hundred real ones, among them constructors that take a size, a buffer or a
storage. This one has the functions of `pickle_values` called in their place.
"""

import argparse
import pickletools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
from mmengine.logging import HistoryBuffer
from torch import Size, Tensor

from .pickle_values import (
    DTYPES,
    KNOWN,
    METHODS,
    STORAGES,
    Foreign,
    Name,
    Refused,
    Storage,
    Unfinished,
    checked,
    checked_key,
    frozenset_of,
    set_history,
)

EXPANDED = 2**30  # bytes that the tensors of a file may stand for (by strides of 0) beyond eight times its length
WORK = 2**21  # units of work that a pickle may ask for beyond sixteen times its length; see `Machine.charge`
CONTAINER = 64  # the work of making one


class Machine:
    """Runs one pickle.

    Args:
        storage: gives the storage that a reference, a tuple of the file, names.
        length: of the file; it bounds the work and the memory.
        left_out: where names of objects that are not known are gathered; None refuses the first.
    """

    def __init__(self, storage: Callable[[tuple], Storage], length: int, left_out: set[str] | None = None):
        self.storage, self.left_out = storage, left_out
        self.work, self.bytes = WORK + 16 * length, EXPANDED + 8 * length
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}

    def run(self, source: Any) -> Any:
        """The value that the pickle makes: of bytes, or of what has `read` and `readline`, up to its last operation."""
        for operation, argument, _ in pickletools.genops(source):
            if operation.name == "STOP":
                value = self.pop()
                break
            self.step(operation.name, argument)
        return self.settled(value, {})

    def charge(self, work: int, *values: Any) -> None:
        """Pay for work, and for looking through values, which a file can have done again and again in few bytes."""
        self.work -= work + sum(len(value) for value in values if isinstance(value, SIZED))
        if self.work < 0:
            raise Refused("more work, or more objects, than its length accounts for")

    def pop(self) -> Any:
        value = self.stack.pop()
        if isinstance(value, Unfinished):
            raise Refused("an array or a dtype without its state")
        return value

    def pop_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        if any(isinstance(item, Unfinished) for item in items):
            raise Refused("an array or a dtype without its state")
        return items

    def step(self, operation: str, argument: Any) -> None:
        match operation:
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BININT" | "BININT1" | "BININT2" | "BINFLOAT":
                self.stack.append(argument)
            case "SHORT_BINBYTES" | "BINBYTES" | "BINBYTES8":
                self.stack.append(argument)
            case "LONG1" | "LONG4":
                if argument.bit_length() > 1024:
                    raise Refused(f"a whole number of {argument.bit_length()} bits")
                self.stack.append(argument)
            case "SHORT_BINSTRING" | "BINSTRING":  # text of Python 2
                self.stack.append(argument.encode("latin-1").decode())
            case "BINPUT" | "LONG_BINPUT" | "MEMOIZE":
                index = len(self.memo) if argument is None else argument
                self.memo[index] = self.stack[-1]
                if isinstance(self.stack[-1], Unfinished):
                    self.stack[-1].places.append(index)
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[operation])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT" | "EMPTY_SET":
                self.charge(CONTAINER)
                self.stack.append({"EMPTY_TUPLE": tuple, "EMPTY_LIST": list, "EMPTY_DICT": dict}.get(operation, set)())
            case "MARK":
                self.outer.append(self.stack)
                self.stack = []
            case "TUPLE":
                items = self.pop_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [self.pop() for _ in range(int(operation[-1]))]
                self.stack.append(tuple(reversed(items)))
            case "FROZENSET":
                items = self.pop_mark()
                self.stack.append(frozenset_of(items))
            case "APPEND" | "APPENDS":
                items = [self.pop()] if operation == "APPEND" else self.pop_mark()
                owner = self.stack[-1]
                checked(owner.items if isinstance(owner, Foreign) else owner, list, "items of an object").extend(items)
            case "SETITEM" | "SETITEMS":
                items = [self.pop(), self.pop()][::-1] if operation == "SETITEM" else self.pop_mark()
                owner = self.stack[-1]
                entries = checked(owner.entries if isinstance(owner, Foreign) else owner, dict, "entries of an object")
                if len(items) % 2:
                    raise Refused("entries of which one has no value")
                for key, value in zip(items[::2], items[1::2]):  # `update` of a Counter would add
                    entries[checked_key(key)] = value
            case "ADDITEMS":
                items = self.pop_mark()
                checked(self.stack[-1], set, "items of an object").update(map(checked_key, items))
            case "GLOBAL":
                self.name(*argument.rsplit(" ", 1))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                self.name(checked(module, str, "a name"), checked(name, str, "a name"))
            case "REDUCE" | "NEWOBJ":
                arguments, called = self.pop(), self.pop()
                self.call(called, checked(arguments, tuple, "arguments"))
                if isinstance(self.stack[-1], Tensor):
                    self.bytes -= self.stack[-1].numel() * self.stack[-1].element_size()
                    if self.bytes < 0:
                        raise Refused("tensors of a size that its length does not account for")
            case "BUILD":
                self.build(self.pop())
            case "BINPERSID":
                reference = checked(self.pop(), tuple, "a reference to a storage")
                if reference[:1] == ("module",) and len(reference) > 1 and self.left_out is not None:
                    self.stack.append(reference[1])  # the older format has the source beside a network's class
                else:
                    self.stack.append(self.storage(reference))
            case "PROTO" | "FRAME":
                pass
            case _:
                raise Refused(f"the operation {operation} of pickle")

    def name(self, module: str, name: str) -> None:
        text = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if text in DTYPES or text in METHODS:
            self.stack.append(DTYPES.get(text) or METHODS[text])
        elif text in KNOWN or text in STORAGES or self.left_out is not None:
            self.stack.append(Name(text))
        else:
            raise Refused("an object that it does not know", (text,))

    def call(self, called: Any, arguments: tuple) -> None:
        text = checked(called, Name, "a call of something").text
        self.charge(CONTAINER, *arguments)
        if text in KNOWN:
            try:
                self.stack.append(KNOWN[text](*arguments))
            except Refused:
                if self.left_out is None or text.startswith("torch."):
                    raise
                self.leave_out(text)
        elif self.left_out is not None and text not in STORAGES:
            self.leave_out(text)
        else:
            raise Refused("a storage that is called")

    def leave_out(self, name: str) -> None:
        self.left_out.add(name)  # type: ignore[union-attr]
        self.stack.append(Foreign(name))

    def build(self, state: Any) -> None:
        owner = self.stack[-1]
        self.charge(
            1, state, *(state if isinstance(state, tuple) else state.values() if isinstance(state, dict) else ())
        )
        if isinstance(owner, Unfinished):
            try:
                self.stack[-1] = owner.finish(state)
            except Refused:
                if self.left_out is None:
                    raise
                self.stack.pop()
                self.leave_out("numpy.ndarray")
            for place in owner.places:
                self.memo[place] = self.stack[-1]
        elif isinstance(owner, HistoryBuffer):
            set_history(owner, state)
        elif isinstance(owner, argparse.Namespace):
            vars(owner).update(
                {checked(name, str, "a name"): value for name, value in checked(state, dict, "a state").items()}
            )
        elif type(owner) is OrderedDict and isinstance(state, dict) and state.keys() <= {"_metadata"}:
            vars(owner).update(state)  # the versions of a network's modules
        elif isinstance(owner, Foreign):
            owner.state = state
        else:
            raise Refused(f"a state for a {type(owner).__name__}")

    def settled(self, value: Any, done: dict[int, tuple]) -> Any:
        """`value` without anything that stood for something else. An object that was left out becomes the weights of
        the network that it is, or the entries or items that it has, or None."""
        if isinstance(value, (Name, Foreign)):
            if self.left_out is None:
                raise Refused("a name where a value should be", (getattr(value, "text", ""),))
            if isinstance(value, Name):
                self.left_out.add(value.text)
        if isinstance(value, (Unfinished, Storage)):
            raise Refused("a storage, or an array without its state")
        if isinstance(value, Name):
            return None
        if not isinstance(value, (tuple, frozenset, list, dict, set, argparse.Namespace, Foreign)):
            return value
        if id(value) in done:
            if done[id(value)][1] is UNDONE:
                raise Refused("a tuple that holds itself")
            return done[id(value)][1]
        # what holds itself is met again before it is done: as what it is, or None; `value` is kept, for its id is
        if type(value) is Size:
            return value
        until = {tuple: UNDONE, frozenset: UNDONE, Foreign: None}.get(type(value), value)
        done[id(value)] = value, until
        if isinstance(value, Foreign):
            found = self.settled(self.state_dict(value) or value.entries or value.items or None, done)
            done[id(value)] = value, found
        elif isinstance(value, (tuple, frozenset)):
            done[id(value)] = value, type(value)(self.settled(item, done) for item in value)
        elif isinstance(value, list):
            value[:] = [self.settled(item, done) for item in value]
        elif isinstance(value, (dict, argparse.Namespace)):
            if isinstance(value, OrderedDict):
                self.settled(vars(value), done)
            entries = vars(value) if isinstance(value, argparse.Namespace) else value
            for key, item in entries.items():
                entries[key] = self.settled(item, done)
        return done[id(value)][1]

    def state_dict(self, network: Foreign) -> dict[str, Tensor]:
        """The weights of an object that has what every torch module has; of others none."""
        found: dict[str, Tensor] = {}
        waiting = [("", network)]
        while waiting:
            prefix, module = waiting.pop()
            state = module.state if isinstance(module.state, dict) else {}
            passing = state.get("_non_persistent_buffers_set")
            for kind in ("_parameters", "_buffers"):
                parts = state.get(kind)
                for name, value in parts.items() if isinstance(parts, dict) else ():
                    self.charge(1, prefix, name)
                    if isinstance(value, Tensor) and not (isinstance(passing, set) and name in passing):
                        found[f"{prefix}{checked(name, str, 'the name of a tensor')}"] = value
            modules = state.get("_modules")
            children = []
            for name, child in modules.items() if isinstance(modules, dict) else ():
                if isinstance(child, Foreign):
                    self.charge(CONTAINER, prefix, checked(name, str, "the name of a module"))
                    children.append((f"{prefix}{name}.", child))
            waiting += reversed(children)
        return found


UNDONE = object()
SIZED = (str, bytes, bytearray, list, tuple, dict, set, frozenset, np.ndarray)
