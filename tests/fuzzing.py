"""Fuzzing in child processes: a crash, a hang or a hunger for memory of one input is a result like any other.

`fuzz(function, inputs)` calls a module-level function of a test file on every input in a child. Where the child dies,
the input at hand is to blame, and another child goes on with the next one. `mutated` changes bytes. Run as a program,
this file is the child.
"""

import importlib.util
import inspect
import json
import os
import random
import resource
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

MEMORY = 2 << 30  # bytes that a child may allocate; torch, trimesh and Open3D take a fifth


ONE_OF = 1 if os.environ.get("ALL_TRIES") else 3  # inputs is tried


def tries(count: int) -> int:
    """How many of `count` inputs are tried: a third, or all of them with ALL_TRIES=1 in the environment."""
    return count // ONE_OF


def cuts(content: bytes) -> range:
    """The lengths to which a file is cut, the whole among them."""
    return range(len(content), -1, -ONE_OF)


@dataclass
class Outcome:
    """What became of one input: `value` if the function returned, `error` [class, message] if it raised, `died` if the
    child did, with the reason."""

    input: Any
    value: Any = None
    error: list[str] | None = None
    died: str | None = None


def fuzz(function: Callable, inputs: Sequence, seconds: float = 60, memory: int = MEMORY) -> list[Outcome]:
    """Call `function(input)` in a child for every input, in order. Inputs and results are what JSON holds.

    Args:
        seconds: the time after which an input is given up; the first also has to import everything.
        memory: bytes that a child may allocate; beyond it Python raises MemoryError.
    """
    outcomes: list[Outcome] = []
    while len(outcomes) < len(inputs):
        outcomes += _one_child(function, inputs[len(outcomes) :], seconds, memory)
    return outcomes


def _one_child(function: Callable, inputs: Sequence, seconds: float, memory: int) -> list[Outcome]:
    reading, writing = os.pipe()
    paths = os.pathsep.join(path or os.getcwd() for path in sys.path)  # where this process finds things
    found: list[Outcome] = []
    with os.fdopen(reading, "rb", buffering=0) as answers, tempfile.TemporaryFile() as said:
        child = subprocess.Popen(
            [sys.executable, __file__, inspect.getfile(function), function.__name__, str(writing), str(memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,  # native readers print what they like
            stderr=said,
            env={**os.environ, "PYTHONPATH": paths},
            pass_fds=[writing],
        )
        os.close(writing)
        for given in inputs:
            with suppress(BrokenPipeError):  # of a child that has died: no answer will come
                child.stdin.write(json.dumps(given).encode() + b"\n")
                child.stdin.flush()
            in_time = select.select([answers], [], [], seconds)[0]
            if not (line := _line(answers) if in_time else b""):
                child.kill()
                reason = f"exit status {child.wait()}" if in_time else f"no answer in {seconds} s"
                said.seek(0)
                found.append(Outcome(given, died=f"{reason}: {said.read()[-2000:].decode(errors='replace')}"))
                break
            found.append(Outcome(given, **json.loads(line)))
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.wait()
    return found


def _line(pipe) -> bytes:
    """A line of an unbuffered pipe; empty where the child died before its end."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := pipe.read(1 << 16)):
            return b""
        line += more
    return line


def mutated(data: bytes, draw: random.Random) -> bytes:
    """`data` with one to four changes: cut, bytes flipped, pieces doubled, left out, swapped or overwritten, numbers in
    text and in binary replaced by the awkward ones."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        if not content:
            break
        start = draw.randrange(len(content))
        end = min(len(content), start + draw.choice((1, 2, 4, 8, 64)))
        match draw.randrange(8):
            case 0:
                del content[start:]
            case 1:
                content[start] ^= 1 << draw.randrange(8)
            case 2:
                content[start:start] = content[start:end]
            case 3:
                del content[start:end]
            case 4:
                content[start:end] = draw.randbytes(end - start)
            case 5:
                number = draw.choice((0, 1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1))
                width = draw.choice((1, 2, 4, 8))
                order = draw.choice(("little", "big"))
                content[start : start + width] = (number & (1 << 8 * width) - 1).to_bytes(width, order)
            case 6:
                content[start:end] = draw.choice(
                    (b"-1", b"0", b"nan", b"inf", b"1e99", b"99999999999", b" ", b"\n", b"")
                )
            case 7:
                other = draw.randrange(len(content))
                content[start], content[other] = content[other], content[start]
    return bytes(content)


def tally(outcomes: Sequence[Outcome]) -> str:
    """A line for the closing summary: how many inputs, and what became of them."""
    errors = sum(outcome.error is not None for outcome in outcomes)
    died = sum(outcome.died is not None for outcome in outcomes)
    return f"{len(outcomes):,} ({len(outcomes) - errors - died:,} accepted, {errors:,} refused, {died:,} died)"


def _child(file: str, name: str, answers: str, memory: str) -> None:
    spec = importlib.util.spec_from_file_location("fuzzed", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzzed"] = module
    spec.loader.exec_module(module)
    function = getattr(module, name)
    resource.setrlimit(resource.RLIMIT_DATA, (int(memory),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with os.fdopen(int(answers), "w") as pipe:
        for line in sys.stdin:
            try:
                answer = {"value": function(json.loads(line))}
            except Exception as error:
                answer = {"error": [type(error).__name__, str(error)]}
            print(json.dumps(answer), file=pipe, flush=True)


if __name__ == "__main__":
    _child(*sys.argv[1:])
