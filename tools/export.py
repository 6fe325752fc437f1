"""Export a network: by torch.export (.pt2), which keeps the operators of Attlas, or to ONNX (.onnx), which needs none.

A network is a backbone with its head, or whatever the task of a model says: a detector with its decoding and its NMS,
or a network of points (.pt2 alone).

python tools/export.py work_dirs/shvit_s1_folder/epoch_200.pth shvit.onnx
python tools/export.py biformer_tiny biformer_tiny.onnx --weights biformer_tiny_best.pth
python tools/export.py configs/hornet/hornet_furniture_views.py hornet.pt2 --size 64 --dynamic batch,height,width
python tools/export.py work_dirs/retinanet_biformer_rooms/epoch_12.pth rooms.onnx

The file holds metadata: names of the outputs, sizes, normalization and, where the checkpoint has them, classes. They
are the metadata_props of an ONNX file, and the extra file "metadata.json" of a .pt2. docs/exports.md says which sizes
each system can leave free.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.fx.experimental._config
from torch.fx.experimental.symbolic_shapes import is_concrete_int

from attlas.files import check_out, replacing
from attlas.inference import class_names, config_within, dataset_meta, load, task_within
from attlas.tasks import Exportable, Task

SIZES = dict(batch=0, height=2, width=3)  # what may be free, and its axis in an image (B, C, H, W)
FORMATS = (".onnx", ".pt2")


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "network",
        help="a checkpoint of a training, a config with a backbone, or a variant (attlas.backbones.list() names all)",
    )
    parser.add_argument("out", type=Path, metavar="OUT.onnx|OUT.pt2")
    parser.add_argument("--weights", type=Path, help="a checkpoint of the authors or of ours")
    parser.add_argument(
        "--size",
        type=int,
        nargs="+",
        metavar="PIXELS",
        help="of the image to trace with, or number of points (that of the test data; 224 where none is known)",
    )
    parser.add_argument(
        "--batch", type=int, default=1, help="images or clouds to trace with; all that a fixed batch takes (1)"
    )
    parser.add_argument(
        "--dynamic",
        metavar="SIZES",
        help=f"sizes that are free, of {','.join(SIZES)}; none for none (batch, of restorers height and width, "
        "where the network can)",
    )
    parser.add_argument("--num-classes", type=int, help="of the head")
    parser.add_argument("--dense", action="store_true", help="without a head: maps of all levels")
    parser.add_argument("--fuse", action="store_true", help="merge batch norms into convolutions first")
    parser.add_argument("--overwrite", action="store_true")
    return parser


# --- what is free ----------------------------------------------------------------------------------------------------


def free_sizes(network: Exportable, asked: str | None, suffix: str) -> tuple[list[str], str]:
    """The sizes that the file leaves free, and a sentence about what was not asked for but stays fixed.

    Raises:
        ValueError: a size that there is not, or that this network cannot leave free in this format; says why.
    """
    fixed = network.fixed_sizes.get(suffix, {})
    if asked is None:
        wanted = network.default_free[suffix]
        told = [f"The {name} is fixed: {fixed[name]}." for name in wanted if name in fixed]
        return [name for name in wanted if name not in fixed], " ".join(told)
    names = [] if asked == "none" else [name.strip() for name in asked.split(",")]
    if unknown := [name for name in names if name not in SIZES]:
        raise ValueError(f"--dynamic={asked}: {unknown[0]!r} must be one of {', '.join(SIZES)}; or none, alone")
    if refused := [name for name in names if name in fixed]:
        free = ",".join(name for name in SIZES if name not in fixed) or "none"
        raise ValueError(
            f"{network.name} needs a fixed {refused[0]} in {suffix}: {fixed[refused[0]]}. "
            f"What can be free: --dynamic {free}"
        )
    return [name for name in SIZES if name in names], ""


def table() -> str:
    """What exports with which free sizes, of all systems, as a table in Markdown."""
    from attlas import backbones

    rows = [f"| System | {' | '.join(f'{suffix} {size}' for suffix in FORMATS for size in SIZES)} |"]
    rows.append("|---|" + ":-:|" * (len(FORMATS) * len(SIZES)))
    notes: list[str] = []
    for name, system in sorted(backbones.systems().items()):
        cells = []
        for suffix in FORMATS:
            for size in SIZES:
                why = system.fixed_sizes.get(suffix, {}).get(size)
                if why and why not in notes:
                    notes.append(why)
                cells.append(f"fixed ({notes.index(why) + 1})" if why else "free")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([*rows, "", *(f"{i}. {why[0].upper()}{why[1:]}." for i, why in enumerate(notes, 1))])


# --- the export ------------------------------------------------------------------------------------------------------


class ExportedBackbone(Exportable):
    """A backbone: images (B, C, H, W) to logits, to features, or to maps of all levels.

    Args:
        network: backbone, in inference mode.
        steps: configs of the transforms of its test data.
        weights: checkpoint that may name the classes.
    """

    def __init__(self, network: Any, steps: Sequence[Mapping[str, Any]] = (), weights: str | Path | None = None):
        classes = network.num_classes
        maps = [f"level{i}" for i in network.out_indices] if classes is None else []
        outputs = maps or ["logits" if classes else "features"]
        super().__init__(
            type(network).__name__, outputs, of_images(steps) | of_classes(weights, classes), network.fixed_sizes
        )
        self.network, self.steps = network, steps

    def inputs(self, batch, size):
        size = size or image_size(self.steps)
        return (torch.randn(batch, self.network.in_channels, size[0], size[-1]),)

    def forward(self, image):
        return self.network(image)


def several(outputs) -> tuple:
    return tuple(outputs) if isinstance(outputs, (tuple, list)) else (outputs,)


def trace(
    network: torch.nn.Module, inputs: Sequence[torch.Tensor], free: Sequence[str]
) -> torch.export.ExportedProgram:
    """The program, in which exactly the sizes named are free.

    Raises:
        RuntimeError: a size that was to be free is not.
    """
    sizes = {SIZES[name]: torch.export.Dim.AUTO for name in free}
    # where height and width are free, without guards that forbid maps of one row or column for their memory layout
    config: Any = torch.fx.experimental._config
    with config.patch(backed_size_oblivious=not {"height", "width"}.isdisjoint(free)):
        shapes = tuple(sizes for _ in inputs) if sizes else None
        program = torch.export.export(network, tuple(inputs), dynamic_shapes=shapes)
    name = program.graph_signature.user_inputs[0]
    (shape,) = (node.meta["val"].shape for node in program.graph.nodes if node.name == name)
    if fixed := [name for name in free if is_concrete_int(shape[SIZES[name]])]:
        raise RuntimeError(f"{', '.join(fixed)} did not stay free: some operation needs the size of the trace")
    return program


def save_pt2(program: torch.export.ExportedProgram, out: Path, metadata: Mapping[str, str]):
    """Write the file; returns what runs it: inputs -> tuple of outputs."""
    torch.export.save(program, out, extra_files={"metadata.json": json.dumps(metadata)})
    module = torch.export.load(out).module()
    return lambda *inputs: several(module(*inputs))


def save_onnx(program: torch.export.ExportedProgram, out: Path, metadata: Mapping[str, str], image: torch.Tensor, free):
    """Write the file; returns what runs it: images -> tuple of outputs."""
    import onnxruntime

    from attlas.kernels.dispatch import decompositions, translations

    axes = {SIZES[name]: name for name in free}
    written = torch.onnx.export(
        program.run_decompositions(decompositions()),
        (image,),
        input_names=["image"],
        output_names=metadata["outputs"].split(","),
        dynamic_shapes=(axes,) if axes else None,
        custom_translation_table=translations(),
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    assert written is not None
    written.model.metadata_props.update(metadata)
    written.save(out, external_data=False)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    return lambda image: tuple(map(torch.from_numpy, session.run(None, {"image": image.numpy()})))


def export(
    network: Exportable, *inputs: torch.Tensor, out: Path, free: Sequence[str] = ()
) -> tuple[float, dict[str, str], list[str]]:
    """Write the file and run it, where a size is free at a second size, too.

    Args:
        network: network in inference mode.
        *inputs: tensors to trace with, of `network.inputs`; for a file .onnx an image (B, C, H, W).
        out: path of the file, .onnx or .pt2.
        free: names of SIZES that the file leaves free.

    Returns:
        How much it differs from the network, the metadata, and sentences on what the file refuses and what the
        comparison is worth.

    Raises:
        RuntimeError: it differs too much, or does not run at the second size; no file is written then.
    """
    warnings.filterwarnings("ignore", category=FutureWarning)  # of PyTorch, about itself
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it misses torchvision, which we do without
    if "batch" in free and len(inputs[0]) == 1:  # a trace takes a batch of one for a fixed size
        inputs = tuple(x.expand(2, *x.shape[1:]).contiguous() for x in inputs)
    axes = {SIZES[name]: name for name in free}
    tries = [inputs]
    if list(free) == ["batch"]:
        tries.append(tuple(torch.cat([x, x[:1].flip(1)]) for x in inputs))
    elif free:
        more = [n + 1 + (n // 3 if i else 0) if i in axes else n for i, n in enumerate(inputs[0].shape)]
        tries.append((torch.randn(more),))
    with torch.no_grad(), replacing(out) as temporary:
        program = trace(network, inputs, free)
        operators = {getattr(node.target, "namespace", "") for node in program.graph.nodes if node.op != "placeholder"}
        metadata = dict(
            network.about,
            input=",".join(axes.get(axis, str(size)) for axis, size in enumerate(inputs[0].shape)),
            size=",".join(map(str, inputs[0].shape[2:] if inputs[0].dim() == 4 else inputs[0].shape[1:2])),
            outputs=",".join(network.outputs),
            imports="attlas.kernels" if out.suffix == ".pt2" and "attlas" in operators else "",
        )
        if out.suffix == ".pt2":
            run = save_pt2(program, temporary, metadata)
        else:
            run = save_onnx(program, temporary, metadata, inputs[0], free)
        difference, remarks = 0.0, []
        for tried in tries:
            try:
                outputs = run(*tried)
            except Exception as error:  # of whatever runs the file
                raise RuntimeError(
                    f"what was exported for {tuple(inputs[0].shape)} does not run for {tuple(tried[0].shape)}, "
                    f"nothing was written: {str(error).strip().splitlines()[0]}"
                ) from error
            expected = several(network(*tried))
            now = network.difference(outputs, expected)
            difference = now if not now <= difference else difference  # or NaN
            if not difference < 1e-2:
                raise RuntimeError(
                    f"what was exported differs from the network by {difference:.1e} for {tuple(tried[0].shape)}: "
                    "nothing was written"
                )
            remarks.append(network.remark(expected))
        if "batch" in free:
            try:
                run(*(x[:1] for x in inputs))
            except Exception:  # a guard of the trace about memory layout, where height and width are free, too
                remarks.append("It refuses a batch of one; for single images: --dynamic height,width.")
    return difference, metadata, list(dict.fromkeys(filter(None, remarks)))


def settings(what: str) -> tuple[Mapping[str, Any], Sequence[Mapping[str, Any]], str]:
    """The model and the transforms of the test data of a config, or of a checkpoint that holds one, and the scope of
    their names; of a variant, what its weights were published for."""
    from attlas import backbones, checkpoint
    from attlas.config import load_config

    if not Path(what).suffix:
        variant = backbones.variant(what)[1]
        pack = dict(type="PackImage", mean=variant.mean, std=variant.std)
        return {}, [dict(type="CenterCrop", size=variant.size), pack], "attlas"
    if not what.endswith(".py"):
        return config_within(checkpoint.read(what), what)
    config = load_config(what)
    dataset = (config.get("test_dataloader") or {}).get("dataset") or {}
    steps = [
        step
        for data in (dataset.get("dataset") or {}, dataset)
        for step in data.get("transforms") or data.get("pipeline") or ()
    ]
    return config.get("model") or {}, steps, config.get("default_scope") or "attlas"


def last(steps: Sequence[Mapping[str, Any]], *types: str) -> Mapping[str, Any]:
    """The last transform of one of these types; {} if there is none."""
    found = (step for step in reversed(steps) if str(step.get("type")).removeprefix("attlas.") in types)
    return next(found, {})


def image_size(steps: Sequence[Mapping[str, Any]]) -> Sequence[int]:
    """Height and width, or the side, of the test images; 224 where the transforms leave it open."""
    size = last(steps, "CenterCrop").get("size") or last(steps, "Resize").get("size")
    if isinstance(size, int):  # of `Resize` alone it is the shorter side
        return [size] if last(steps, "CenterCrop") else [224]
    return size or [224]


def of_images(steps: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What a user of the file must know of its images."""
    from attlas.backbones.classification.transforms import MEAN, STD

    pack = last(steps, "PackImage")
    return dict(
        layout="RGB, (image - mean) / std, levels of 0 to 255",
        mean=",".join(map(str, pack.get("mean", MEAN))),
        std=",".join(map(str, pack.get("std", STD))),
    )


def of_classes(weights: str | Path | None, classes: int | None) -> dict[str, str]:
    """The names of the classes where the checkpoint holds those of so many."""
    from attlas import checkpoint

    meta = checkpoint.read(weights).get("meta") if weights is not None else None
    names = class_names(meta) if isinstance(meta, Mapping) else ()
    return dict(classes=json.dumps(names, ensure_ascii=False)) if classes and len(names) == classes else {}


def of_degradation(weights: str | Path) -> dict[str, str]:
    """What a restorer undoes, where its checkpoint says so."""
    from attlas import checkpoint

    meta = checkpoint.read(weights).get("meta")
    degradation = dataset_meta(meta).get("degradation") if isinstance(meta, Mapping) else None
    return dict(degradation=json.dumps(degradation)) if degradation else {}


def whole(args: argparse.Namespace, task: type[Task], suffix: str, steps: Sequence[Mapping[str, Any]]) -> Exportable:
    """What the task of a model says of it.

    Raises:
        ValueError: it cannot be exported like this; says why.
    """
    from attlas.backbones.channels import fill_channels
    from attlas.config import load_config

    if suffix not in task.exports:
        raise ValueError(f"{args.network} is of a kind that can be exported to {' and '.join(task.exports)} alone")
    if args.dense or args.fuse or args.num_classes is not None:
        raise ValueError("--dense, --fuse and --num-classes are for backbones, and this model is exported whole")
    config = None
    if args.network.endswith(".py"):
        if args.weights is None:
            raise ValueError(
                "a config of this kind of model needs --weights; a checkpoint of a training suffices alone"
            )
        config = load_config(args.network)
        fill_channels(config.model, config.get("default_scope"))
    weights = args.weights or args.network
    exported = task().exportable(load(weights, config, device="cpu"), steps).eval()
    exported.about |= of_degradation(weights)
    return exported


def backbone(args: argparse.Namespace, model: Mapping[str, Any], steps: Sequence[Mapping[str, Any]]) -> Exportable:
    """The backbone of a config or of a checkpoint, or a variant."""
    from attlas.backbones.zoo import find

    options = dict(num_classes=None, out_indices=None) if args.dense else {}
    if args.num_classes is not None:
        options["num_classes"] = args.num_classes
    network = find(args.network, args.weights, **options)
    if args.fuse:
        network.fuse()
    source = args.weights or (args.network if model and not args.network.endswith(".py") else None)
    return ExportedBackbone(network, steps, source)


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        out = check_out(args.out, FORMATS, args.overwrite)
        if len(args.size or ()) > 2 or min([args.batch, *(args.size or ())]) < 1:
            raise ValueError("--size takes one number, or height and width; these and --batch must be positive")
        model, steps, scope = settings(args.network)
        task = task_within(model, scope) if "type" in model else None
        if task is not None and task.exports and not (args.dense and "backbone" in model):
            network = whole(args, task, out.suffix, steps)
        else:
            network = backbone(args, model, steps)
        free, fixed = free_sizes(network, args.dynamic, out.suffix)
        inputs = network.inputs(args.batch, args.size)
        difference, metadata, remarks = export(network, *inputs, out=out, free=free)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
        parser.error(str(error))
    print(
        f"{out}: {out.stat().st_size / 2**20:.1f} MiB, for ({metadata['input'].replace(',', ', ')}), gives "
        f"{metadata['outputs'].replace(',', ', ')}; differs from the network by {difference:.1e} (relative)"
    )
    for remark in filter(None, (fixed, *remarks)):
        print(remark)
    if metadata["imports"]:
        print(f"Before torch.export.load: import {metadata['imports']}, which brings its operators.")


if __name__ == "__main__":
    main()
