"""One furnished room, and what every pipeline says of it: a page (docs/one_room.md) with its pictures beside it.

    python tools/one_room.py --out room.md                              # with the checkpoints that are there
    python tools/one_room.py --out room.md --train                      # first train what has none; to go on: again
    python tools/one_room.py --out room.md --models matches=my.pth      # with one of yours, which holds its config

A pipeline without a checkpoint is left out, and the page says how it is trained.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from attlas.files import check_out, near_files, printable, replacing, save_figure

# The library is imported where it is used, as in tools/visualize.py.

ROOT = Path(__file__).absolute().parents[1]
WALK, FRAMES = 1, 48  # the video, and with it the room, unless others are asked for; frames of the video
SIZE, SMALL = (320, 240), (64, 48)  # pixels of the pictures, and of the video
POINTS = 40_000
PART = 96  # pixels of a side of what is shown of the restored picture
COARSEST = 4  # pixels of a side of the smallest map of attention that is shown


class Subject:
    """What the pipelines are asked about: the room of one of the walks of `RoomWalks`, of the test data."""

    def __init__(self, walk: int):
        from attlas.dense.video.room_walks import Walk

        self.number = walk
        self.walk = Walk("test", 0, walk, FRAMES)
        self.room = self.walk.room
        self.view, self.other = (self.room.see(self.room.camera(number), *SIZE) for number in (0, 1))

    @cached_property
    def pieces(self) -> list[tuple[Any, dict]]:
        """The objects that the view shows, the largest box first: of the room, and as `draw_objects` takes them."""
        from attlas.dense.rooms import LABELS

        found = [
            (self.room.things[number - 1], dict(label=int(label), name=LABELS[label], box=box.tolist()))
            for box, label, number in zip(*self.view.boxes())
        ]
        if not found:
            raise ValueError(f"--walk {self.number}: nothing stands in the view of its room; name another")
        return sorted(found, key=lambda piece: -area(piece[1]["box"]))

    @property
    def shown(self) -> dict:
        """The largest object that lies within the view, or the largest where none does."""
        (width, height), boxes = SIZE, [piece for _, piece in self.pieces]
        inside = [
            piece
            for piece in boxes
            if min(piece["box"][:2]) > 0 and piece["box"][2] < width and piece["box"][3] < height
        ]
        return (inside or boxes)[0]

    def crop(self, side: int) -> tuple[int, int, int]:
        """First row, first column and side of a square of the view around that object."""
        left, top, right, bottom = self.shown["box"]
        side, ends = min(side, *SIZE), SIZE[::-1]
        middles = (top + bottom) // 2, (left + right) // 2
        row, column = (min(max(m - side // 2, 0), end - side) for m, end in zip(middles, ends))
        return row, column, side


def area(box: list[int]) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


# --- what is asked, and drawn: each gives a figure, and what is said in words ----------------------------------------


def answer(asked: Any, given: Any) -> tuple[dict, Any]:
    """The result of an input, and the input as it was read."""
    ((result, source),) = asked.stream(asked.find(given))
    if "error" in result:
        raise ValueError(f"the {type(asked.model).__name__} fails: {result['error']}")
    return result, source


def told(asked: Any, given: Any, title: str) -> tuple[Any, str]:
    """What the task itself draws and says of an input."""
    result, source = answer(asked, given)
    return asked.task.draw(source, result | dict(input=title)), asked.task.said(result)


def classified(asked: Any, subject: Subject, inputs: list[Any], what: str) -> tuple[Any, str]:
    from matplotlib.figure import Figure

    from attlas.drawing import draw_objects

    truth, found = [piece for _, piece in subject.pieces], []
    for piece, given in zip(truth, inputs):
        best = answer(asked, [given])[0]["classes"][0]
        found.append(piece | dict(label=best["label"], name=best["name"], score=best["probability"]))
    figure = Figure((9.5, 4.0), layout="constrained", dpi=110)
    sides = figure.subplots(1, 2)
    for axes, objects, title in zip(sides, (truth, found), ("truth", what)):
        draw_objects(subject.view.image, objects[::-1], title, axes)
    wrong = [
        f"{there['name']} taken for {said['name']}"
        for there, said in zip(truth, found)
        if there["name"] != said["name"]
    ]
    right = f"{len(truth) - len(wrong)} of {len(truth)} right"
    return figure, right + (f"; {', '.join(wrong)}" if wrong else "")


def draw_clouds(asked: Any, subject: Subject) -> tuple[Any, str]:
    import numpy as np

    meshes = [thing.placed() for thing, _ in subject.pieces]
    inputs = [
        dict(pos=np.asarray(mesh.vertices, np.float32), face=np.asarray(mesh.triangles, np.int64)) for mesh in meshes
    ]
    return classified(asked, subject, inputs, "from the cloud of each piece")


def draw_views(asked: Any, subject: Subject) -> tuple[Any, str]:
    import numpy as np

    from attlas.backbones.classification.views import Scene

    inputs = [
        Scene(thing.model.mesh).picture(np.random.default_rng([0, number]), 96)
        for number, (thing, _) in enumerate(subject.pieces)
    ]
    return classified(asked, subject, inputs, "from a picture of each piece alone")


def question(asked: Any, subject: Subject) -> Any:
    """About the part of the view around one object."""
    left, top, right, bottom = subject.shown["box"]
    row, column, side = subject.crop(max(right - left, bottom - top))
    part = subject.view.image[row : row + side, column : column + side]
    return asked.task.question(asked.model, asked.task.take(part), None)


def draw_attention(asked: Any, subject: Subject) -> tuple[Any, str]:
    from attlas.backbones.inspection.attention_maps import draw, look

    about = question(asked, subject)
    looks = look(asked.model.backbone, about.inputs[0], (0.5, 0.5))
    fine = [seen for seen in looks if min(seen.maps.shape[1:]) >= COARSEST]
    return draw(about.picture, fine or looks, "", 4), f"Asked from the middle of the {subject.shown['name']}"


def draw_why(asked: Any, subject: Subject) -> tuple[Any, str]:
    from attlas.backbones.inspection.capture import default_layers
    from attlas.backbones.inspection.explaining import explain
    from attlas.backbones.inspection.pictures import draw_saliency

    about = question(asked, subject)
    layers = {"gradcam": default_layers(about.network, 3), "normgrad": default_layers(about.network, 3), "lrp": None}
    figure = draw_saliency([about], [[explain(about, method, of) for method, of in layers.items()]], list(layers))
    return figure, f"Asked why {about.said}; it is a {subject.shown['name']}"


def draw_restored(asked: Any, subject: Subject) -> tuple[Any, str]:
    from attlas.dense.restoration.degradations import imresize
    from attlas.dense.restoration.metrics import psnr
    from attlas.dense.restoration.pictures import comparison

    truth, scale = subject.view.image, asked.model.scale
    if scale < 2 or any(side % scale for side in SIZE):
        raise ValueError(f"--models restored: the model has scale={scale}; the page shrinks the view, so it must be 2")
    small = imresize(truth, 1 / scale)
    result, _ = answer(asked, [small])
    pictures = {
        "low resolution": small.repeat(scale, 0).repeat(scale, 1),
        "bicubic": imresize(small, scale),
        result["network"]: result["restored"],
    }
    values = {name: psnr(picture, truth, scale) for name, picture in list(pictures.items())[1:]}
    said = ", ".join(f"{name} {value:.2f} dB" for name, value in values.items())
    return comparison(truth, subject.crop(PART), pictures, values, "the view"), said


def draw_view(asked: Any, subject: Subject) -> tuple[Any, str]:
    return told(asked, [subject.view.image], f"room {subject.room.number}")


def draw_matches(asked: Any, subject: Subject) -> tuple[Any, str]:
    import numpy as np

    pair = [subject.view.image, subject.other.image]
    result, source = answer(asked, pair)
    places, visible = subject.room.correspondence(subject.view, subject.other)
    # a place is counted from the middle of the first pixel there, from its corner here
    error = np.linalg.norm(result["field"]["places"] - (places + 0.5), axis=-1)[visible]
    said = f"where both views see a point, {error.mean():.1f} pixels beside it (median {np.median(error):.1f})"
    return asked.task.draw(source, result | dict(input="two views of the room")), said


def draw_points(asked: Any, subject: Subject) -> tuple[Any, str]:
    import numpy as np

    from attlas.dense.rooms import LABELS
    from attlas.pointnets.pictures import Labelled, draw_segments

    cloud = subject.room.points(POINTS)
    result, _ = answer(asked, [dict(pos=cloud["pos"], normal=cloud["normal"])])
    points, found = cloud["pos"].astype(np.float64), np.array(result["labels"])
    name = type(asked.model.network).__name__
    seen = Labelled(
        f"room {subject.room.number}",
        points - points.mean(0),
        cloud["normal"].astype(np.float64),
        cloud["color"],
        cloud["label"],
        {name: found},
        LABELS,
        "y",
    )
    right = 100 * (found == cloud["label"]).mean()
    return draw_segments([seen], size=480), f"{right:.1f} % of {POINTS:,} points right"


def draw_anomalies(asked: Any, subject: Subject) -> tuple[Any, str]:
    import numpy as np

    from attlas.dense.rooms import LABELS
    from attlas.dense.video.pictures import draw_anomalies

    result, source = answer(asked, [np.stack([subject.walk.see(frame, *SMALL) for frame in range(FRAMES)])])
    truth = subject.walk.anomalous
    about = f"a walk through the room, {FRAMES} frames"
    said = asked.task.said(result)
    if subject.walk.mover is not None:
        first, last = np.flatnonzero(truth)[[0, -1]]
        mover = LABELS[subject.room.things[subject.walk.mover].label]
        said += f" (in truth a {mover} breaks the rule in frames {first} to {last}: {subject.walk.kind})"
    return draw_anomalies(source["video"], result, truth, about), said


# --- the panels of the page ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Panel:
    """One pipeline.

    Args:
        name: name of its model in --models, and of its picture; panels with `model` ask that of another.
        title: headline.
        about: what it is asked, a sentence.
        draw: function of the asked `Inferencer` and of the `Subject`.
        task: name of the class that says how its models are asked.
        config: config that trains it.
        shown: the command that shows the same, behind `tools/visualize.py` or another tool; "{number}" and "{walk}" are
            those of the room and of the walk.
        shipped: its weights, where they lie beside the config.
        before: command that makes the data, and the file that says that they are there.
    """

    name: str
    title: str
    about: str
    draw: Callable[[Any, Subject], tuple[Any, str]] = field(repr=False)
    task: str
    config: str
    shown: str
    shipped: str | None = None
    before: tuple[str, str] | None = None
    model: str | None = None


VIEWS: dict[str, Any] = dict(
    task="ImageClassification",
    config="configs/biformer/biformer_furniture_views.py",
    shipped="configs/biformer/biformer_furniture_views.safetensors",
)
PANELS = (
    Panel(
        "clouds",
        "Classes of clouds",
        "Each piece that the view shows is a cloud of points, as it is turned in the room; RISurConv names it.",
        draw_clouds,
        "PointClassification",
        "configs/risurconv/risurconv_furniture14_so3.py",
        "tools/infer.py {config} {checkpoint} piece.obj",
        "configs/risurconv/risurconv_furniture14_so3.safetensors",
    ),
    Panel(
        "views",
        "Classes of pictures",
        "Each of these pieces, seen alone from a random side; BiFormer names it.",
        draw_views,
        shown="tools/infer.py {config} {checkpoint} piece.png",
        **VIEWS,
    ),
    Panel(
        "attention",
        "Attention",
        "What the mixers of that BiFormer look at in a part of the room's picture.",
        draw_attention,
        shown="tools/visualize.py attention {config} --weights {checkpoint} --image part.png --size 64 --out looks.png",
        model="views",
        **VIEWS,
    ),
    Panel(
        "why",
        "Saliency and relevance",
        "Which places of that part its best answer comes from. It has learned pieces alone, on a plain ground.",
        draw_why,
        shown="tools/visualize.py saliency {checkpoint} part.png --config {config} --method lrp --out why.png",
        model="views",
        **VIEWS,
    ),
    Panel(
        "restored",
        "Restoration",
        "The view at half its size, doubled by HAT, which has learned from photographs.",
        draw_restored,
        "Restoration",
        "configs/hat/hat_small_x2_photos.py",
        "tools/infer.py {config} {checkpoint} room.png --out restored",
        "configs/hat/hat_small_x2_photos.safetensors",
    ),
    Panel(
        "detection",
        "Detection",
        "What a RetinaNet with RelationNet++ finds in the view.",
        draw_view,
        "Detection",
        "configs/bvr/bvr_retinanet_biformer_rooms.py",
        "tools/visualize.py detections {config} {checkpoint} --items {number} --out found.png",
    ),
    Panel(
        "segmentation",
        "Segmentation",
        "The classes that LSNet in a Semantic FPN gives to the pixels of the view.",
        draw_view,
        "Segmentation",
        "configs/semantic_fpn/semantic_fpn_lsnet_rooms.py",
        "tools/visualize.py maps {config} {checkpoint} --items {number} --out maps.png",
    ),
    Panel(
        "points",
        "Segmentation of points",
        "The classes that RISurConv gives to the points of the whole room.",
        draw_points,
        "PointSegmentation",
        "configs/risurconv/risurconv_room_clouds.py",
        "tools/visualize.py segments {config} {checkpoint} --items {number} --out segments.png",
        before=("tools/make_room_clouds.py data/room_clouds", "data/room_clouds/classes.txt"),
    ),
    Panel(
        "matches",
        "Matching",
        "Where UFC finds the pixels of the view in a second view of the room.",
        draw_matches,
        "Matching",
        "configs/ufc/ufc_room_pairs.py",
        "tools/visualize.py matches {config} {checkpoint} --items {number} --out matches.png",
    ),
    Panel(
        "anomalies",
        "Anomalies of a video",
        "The rule is that furniture stands still. Which frames of a walk break it, ConvTTrans with LI-ConvLSTM says.",
        draw_anomalies,
        "AnomalyDetection",
        "configs/conv_temporal_vad/conv_temporal_vad_small_walks.py",
        "tools/visualize.py anomalies {config} {checkpoint} --item {walk} --out curve.png",
    ),
)
OWN = {panel.name: panel for panel in PANELS if panel.model is None}  # those that have a model


def given_models(texts: list[str]) -> dict[str, Path]:
    """The files of --models by the names of panels.

    Raises:
        ValueError: a text is no NAME=CHECKPOINT, or a name is none, or is there twice.
        FileNotFoundError: there is no such file; names those near.
    """
    found: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not (equals and path):
            raise ValueError(f"--models {printable(text)}: NAME=CHECKPOINT was expected")
        if name not in OWN:
            raise ValueError(f"--models {printable(text)}: the names are {', '.join(OWN)}")
        if name in found:
            raise ValueError(f"--models names {name} twice")
        if not Path(path).is_file():
            raise FileNotFoundError(f"--models {printable(text)}: there is no such file. {near_files(Path(path))}")
        found[name] = Path(path)
    return found


def work_dir(panel: Panel, folder: Path) -> Path:
    return folder / Path(panel.config).stem


def train(panel: Panel, folder: Path) -> None:
    """Train as a user does, or go on with it; the data first, where a tool makes them."""
    if panel.before and not (ROOT / panel.before[1]).exists():
        call(panel.before[0].split())
    call(["tools/train.py", panel.config, "--work-dir", str(work_dir(panel, folder).absolute()), "--resume"])


def call(command: list[str]) -> None:
    """Run a tool of the repository.

    Raises:
        ValueError: it fails.
    """
    if code := subprocess.run([sys.executable, *command], cwd=ROOT).returncode:
        raise ValueError(f"python {' '.join(command)} ended with {code}; the same --train goes on from there")


def checkpoint_of(panel: Panel, folder: Path) -> Path | None:
    """The newest checkpoint of its training, else the shipped weights, else None."""
    from mmengine.runner import find_latest_checkpoint

    if panel.shipped:
        return ROOT / panel.shipped
    place = work_dir(panel, folder)
    latest = find_latest_checkpoint(str(place)) if place.is_dir() else None
    return Path(latest) if latest else None


def ask(panel: Panel, checkpoint: Path, own: bool) -> Any:
    """The model of a panel.

    Raises:
        ValueError: it is one of another task, or its checkpoint does not fit.
    """
    from attlas.backbones.channels import fill_channels
    from attlas.config import load_config
    from attlas.inference import Inferencer

    config = None
    if not own:  # shipped weights hold no config
        config = load_config(ROOT / panel.config)
        fill_channels(config.model, config.get("default_scope"))
    asked = Inferencer(checkpoint, config)
    if (task := type(asked.task).__name__) != panel.task:
        raise ValueError(
            f"--models {panel.name}={checkpoint}: the task of the model is {task}, and must be {panel.task}"
        )
    return asked


# --- the page --------------------------------------------------------------------------------------------------------


def commands(panel: Panel, subject: Subject, checkpoint: str) -> tuple[str, str]:
    """The lines that train, and that show."""
    trains = [f"`python {panel.before[0]}`"] if panel.before else []
    trains.append(f"`python tools/train.py {panel.config}`")
    shown = panel.shown.format(
        config=panel.config, checkpoint=checkpoint, number=subject.room.number, walk=subject.number
    )
    return ", then ".join(trains), f"`python {shown}`"


def page(
    subject: Subject, said: dict[str, str], files: dict[str, Path], names: dict[str, str], options: str = ""
) -> str:
    """The text of the page.

    Args:
        subject: the room.
        said: what a pipeline says, by panel; those that were not asked have none.
        files: pictures by panel.
        names: names of checkpoints by panel; those that are not trained have none.
        options: what else the command was given.
    """
    room = subject.room
    size = " x ".join(f"{side:.1f}" for side in room.size)
    lines = [
        "# One room",
        "",
        f"Room {room.number} of the built-in test rooms: {size} meters (width, height, depth), with {len(room.things)} "
        f"pieces of furniture that no network has learned from. The view shows {len(subject.pieces)} of them. What "
        "each pipeline says of it, by one command, which is repeatable:",
        "",
        "```bash",
        "python tools/one_room.py --out docs/one_room.md --overwrite"
        + options
        + (f" --walk {subject.number}" if subject.number != WALK else ""),
        "```",
        "",
    ]
    for panel in PANELS:
        if panel.name not in said:
            continue
        lines += [f"## {panel.title}", "", f"{panel.about} *{said[panel.name]}.*", ""]
        lines += [f"![{panel.title}]({files[panel.name].name})", ""]
    missing = [panel for panel in PANELS if panel.name not in names]
    lines += [
        "## How each is trained, and shown",
        "",
        "| pipeline | weights | trains | shows |",
        "|---|---|---|---|",
    ]
    for panel in PANELS:
        name = names.get(panel.name)
        lines.append(
            " | ".join(
                [f"| {panel.title}", name or "not trained here", *commands(panel, subject, name or "CHECKPOINT")]
            )
            + " |"
        )
    lines.append("")
    if missing:
        titles = ", ".join(panel.title.lower() for panel in missing)
        lines += [
            f"Not trained here, and so not asked: {titles}. `python tools/one_room.py --train --out docs/one_room.md "
            "--overwrite` trains them, in `work_dirs`, and goes on where it was stopped; it takes minutes to a "
            "quarter of an hour each on a CPU. `--models NAME=CHECKPOINT` takes a checkpoint of yours "
            f"(names: {', '.join(OWN)}).",
            "",
        ]
    lines += [
        "Scanpaths have shelves of furniture and not rooms ([gaze.md](gaze.md)). The commands with `room.png`, "
        "`part.png`, `piece.png` and `piece.obj` take files of yours.",
        "",
    ]
    return "\n".join(lines)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="the page (.md); pictures go beside it")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing page and its pictures")
    parser.add_argument("--models", nargs="+", default=[], metavar="NAME=CHECKPOINT", help=f"of {', '.join(OWN)}")
    parser.add_argument("--only", nargs="+", choices=[panel.name for panel in PANELS], help="ask these panels (all)")
    parser.add_argument("--train", action="store_true", help="train what is neither shipped nor in --models")
    parser.add_argument("--work-dirs", type=Path, default=Path("work_dirs"), help="of the trainings (work_dirs)")
    parser.add_argument("--walk", type=int, default=WALK, metavar="N", help=f"number of a walk of the test ({WALK})")
    return parser


def run(args: argparse.Namespace) -> None:
    out = check_out(args.out, (".md",), args.overwrite)  # before the work, not after it
    models = given_models(args.models)
    if args.walk < 0:
        raise ValueError(f"--walk is {args.walk}; it must be at least 0")
    panels = [panel for panel in PANELS if args.only is None or panel.name in args.only]
    pictures = {p.name: check_out(out.with_name(f"{out.stem}_{p.name}.jpg"), (".jpg",), args.overwrite) for p in panels}
    found: dict[str, Path] = dict(models)
    wanted = {panel.model or panel.name for panel in panels}
    for name, panel in OWN.items():
        if args.train and name in wanted and name not in models and not panel.shipped:
            train(panel, args.work_dirs)
        if name not in models and (checkpoint := checkpoint_of(panel, args.work_dirs)):
            found[name] = checkpoint
    subject = Subject(args.walk)
    names = {p.name: shown_name(found[p.model or p.name]) for p in PANELS if (p.model or p.name) in found}
    said: dict[str, str] = {}
    asked: dict[str, Any] = {}
    for panel in panels:
        name = panel.model or panel.name
        if name not in found:
            print(f"{panel.name}: not trained here", flush=True)
            continue
        if name not in asked:
            asked[name] = ask(OWN[name], found[name], own=name in models)
        figure, said[panel.name] = panel.draw(asked[name], subject)
        save_figure(figure, pictures[panel.name])
        print(f"{panel.name}: {said[panel.name]}", flush=True)
    options = f" --only {' '.join(args.only)}" if args.only else ""
    with replacing(out) as temporary:
        temporary.write_text(page(subject, said, pictures, names, options), encoding="utf-8")
    print(out)


def shown_name(checkpoint: Path) -> str:
    """A checkpoint as the page names it: from the repository on, or by its name alone."""
    path = checkpoint.absolute()
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def main() -> None:
    parser = arguments()
    args = parser.parse_args()
    try:
        run(args)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
