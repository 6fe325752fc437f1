"""Let a trained model of bytes go on with a text.

    python tools/generate.py work_dirs/transnormer_python/iter_1200.pth "def main(" --count 400
    python tools/generate.py CHECKPOINT "import " --greedy

A checkpoint of a training of ours holds its config, which is read as data and never run; other weights need --config.
"""

import argparse
import codecs
import os
import sys
from itertools import islice
from pathlib import Path


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("prompt", help="text to begin with, at least one character")
    parser.add_argument("--config", type=Path, help="config of the model, for weights that hold none")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="bytes to write (300)")
    parser.add_argument("--temperature", type=float, default=0.9, help="of the draws (0.9)")
    parser.add_argument("--top-k", type=int, metavar="N", help="draw from the N likeliest bytes alone")
    parser.add_argument("--greedy", action="store_true", help="take the likeliest byte always: temperature 0")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (0)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (the GPU if there is one)")
    return parser


def shown(text: str) -> str:
    """A piece of text without what a terminal would obey, or could not print: bytes of a prompt that are no UTF-8."""
    return "".join(c if c.isprintable() or c in "\n\t" else "�" for c in text)


def write(args: argparse.Namespace) -> None:
    from attlas import inference  # here: not for --help
    from attlas.backbones.language import stream
    from attlas.backbones.language.model import LanguageModel

    if args.count < 0:
        raise ValueError(f"--count is {args.count}; it must be at least 0")
    model = inference.load(args.checkpoint, args.config, args.device)
    if not isinstance(model, LanguageModel):
        raise ValueError(f"{args.checkpoint} is of a {type(model).__name__}, and a LanguageModel was expected")
    if (vocabulary := model.network.vocabulary) != 256:
        raise ValueError(f"{args.checkpoint} is of a model of {vocabulary} tokens, and one of 256 bytes was expected")
    temperature = 0.0 if args.greedy else args.temperature
    tokens = stream(model.network, os.fsencode(args.prompt), temperature, args.top_k, args.seed)
    print(shown(args.prompt), end="", flush=True)
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    for token in islice(tokens, args.count):
        print(shown(decode(bytes([token]))), end="", flush=True)
    print(shown(decode(b"", True)))  # of a character that was begun


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        write(args)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        parser.error(str(error))
    except KeyboardInterrupt:
        print()
        sys.exit(130)  # as of a shell: 128 + SIGINT


if __name__ == "__main__":
    main()
