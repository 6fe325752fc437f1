"""Results of dense prediction: rooms, boxes, masks, labels, scanpaths, pictures, matches, anomalies."""

import argparse
from pathlib import Path

from .common import Commands, against, check_names, command, detector, named


def add(commands: Commands) -> None:
    sub = command(commands, "confusion", draw_confusion, "confusion matrices of tools/test.py --out")
    sub.add_argument("results", type=Path, nargs="+")
    sub = command(commands, "room", draw_room, "furnished rooms, and the truth about the first of them", window=True)
    sub.add_argument("--split", choices=("train", "test"), default="train", help="whose furniture (train)")
    sub.add_argument("--seed", type=int, default=0, help="of the series of rooms (0)")
    sub.add_argument("--number", type=int, nargs="+", required=True, metavar="N", help="rooms of the series, from 0")
    sub = detector(commands, "detections", draw_detections, "what a detector finds, below the annotations")
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    score(sub)
    sub = detector(commands, "maps", draw_maps, "the labels that a segmentor gives, below the true ones")
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    sub = detector(
        commands, "scanpaths", draw_scanpaths, "the order of looks that a network predicts, below the true one"
    )
    sub.add_argument("--items", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="of the test data (0 1 2)")
    sub = detector(commands, "strip", draw_strip, "what a detector finds in one image, over its training", several=True)
    image(sub)
    score(sub)
    sub = detector(commands, "relation", draw_relation, "the position relation of one query of a DETR, by head")
    image(sub)
    sub.add_argument("--layer", type=int, help="of the decoder, from 1 (the last)")
    sub.add_argument("--query", type=int, help="from 0 (that of the highest score)")
    sub.add_argument("--others", type=int, default=40, metavar="N", help="queries drawn, of the highest scores (40)")
    sub = detector(
        commands, "keypoints", draw_keypoints, "the key points of BVR, and the attention of one detection to them"
    )
    image(sub)
    sub.add_argument("--detection", type=int, help="0 is the one with the highest score (0)")
    sub = detector(commands, "restored", draw_restored, "what restorers make of a part of a picture, beside the truth")
    sub.add_argument("--item", type=int, default=0, help="number of a picture of the test data (0)")
    sub.add_argument(
        "--crop", type=int, nargs=3, required=True, metavar=("ROW", "COLUMN", "SIDE"), help="of the part, in the truth"
    )
    sub.add_argument("--name", help="of the first network in the picture (its class)")
    against(sub)
    sub = detector(
        commands, "anomalies", draw_anomalies, "how badly the frames of a video are predicted, as a curve, with frames"
    )
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--item", type=int, default=0, help="number of a video of the test data (0)")
    source.add_argument("--file", type=Path, help="a video, or a folder of frames")
    sub.add_argument("--threshold", type=float, help="score from which a frame is anomalous (measured in training)")
    sub = command(
        commands, "attribution", draw_attribution, "which pixels a restored patch is made of (local attribution maps)"
    )
    sub.add_argument("network", type=named, metavar="[NAME=]CHECKPOINT", help="of a restorer, or its authors' file")
    sub.add_argument(
        "--against", type=named, nargs="+", default=[], metavar="[NAME=]CHECKPOINT", help="others of that scale"
    )
    sub.add_argument("--file", type=Path, required=True, help="the picture to restore")
    sub.add_argument(
        "--place", type=int, nargs=2, required=True, metavar=("ROW", "COLUMN"), help="of the patch, in what is restored"
    )
    sub.add_argument("--side", type=int, default=16, metavar="PIXELS", help="of the patch, there (16)")
    sub.add_argument(
        "--around", type=int, default=64, metavar="PIXELS", help="side of the part of the picture that is restored (64)"
    )
    sub.add_argument("--steps", type=int, default=50, help="of the integral (50)")
    sub.add_argument("--sigma", type=float, default=1.2, metavar="PIXELS", help="of the strongest blur (1.2)")
    sub.add_argument("--edges", choices=("differences", "sobel"), default="differences", help="what is attributed")
    sub = detector(
        commands,
        "matches",
        draw_matches,
        "where the pixels of an image are in another: truth, flow, the other image warped",
    )
    sub.add_argument("--items", type=int, nargs="+", default=[0], metavar="N", help="pairs of the test data (0)")


def image(sub: argparse.ArgumentParser) -> None:
    source = sub.add_mutually_exclusive_group()
    source.add_argument("--item", type=int, default=0, help="number of an image of the test data (0)")
    source.add_argument("--file", type=Path, help="an image")


def score(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--score", type=float, default=0.3, help="from which an object is drawn (0.3)")


def draw_confusion(args: argparse.Namespace):
    from attlas.confusion import draw_confusions, shortest_names

    return draw_confusions(dict(zip(shortest_names(args.results), args.results)))


def draw_room(args: argparse.Namespace):
    from attlas import rendering
    from attlas.dense.rooms import Room

    rooms = [Room(args.split, args.seed, number) for number in args.number]
    if args.out is None:
        return rendering.window([rendering.joined(*room.meshes) for room in rooms], "furnished rooms")
    from attlas.dense.room_pictures import draw_rooms

    return draw_rooms(rooms)


def detector_config(args: argparse.Namespace):
    from attlas.backbones.channels import fill_channels
    from attlas.config import load_config

    config = load_config(args.config)
    fill_channels(config.model, config.get("default_scope"))
    return config


def image_of(args: argparse.Namespace, config):
    from attlas.browsing import config_dataset
    from attlas.dense.detection import inspection

    if args.file is not None:
        return inspection.file_subject(args.file)
    return inspection.subject(config_dataset(config, "test"), args.item)


def draw_detections(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    dataset = config_dataset(config, "test")
    subjects = [inspection.subject(dataset, item) for item in args.items]
    return pictures.draw_detections(inspection.detector(args.checkpoint, config), subjects, args.score)


def draw_maps(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.segmentation.pictures import draw_maps
    from attlas.inference import Inferencer

    config = detector_config(args)
    return draw_maps(config_dataset(config, "test"), Inferencer(args.checkpoint, config), args.items)


def draw_scanpaths(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.dense.gaze.pictures import draw_predictions
    from attlas.inference import Inferencer

    config = detector_config(args)
    return draw_predictions(config_dataset(config, "test"), Inferencer(args.checkpoint, config), args.items)


def draw_strip(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject = image_of(args, config)
    asked = ((inspection.trained(path), inspection.detector(path, config)) for path in args.checkpoint)
    return pictures.draw_strip(asked, len(args.checkpoint), subject, args.score)


def draw_relation(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject, asked = image_of(args, config), inspection.detector(args.checkpoint, config)
    seen = inspection.position_relation(asked, subject, args.layer, args.query)
    return pictures.draw_relation(subject, seen, args.others)


def draw_keypoints(args: argparse.Namespace):
    from attlas.dense.detection import inspection, pictures

    config = detector_config(args)
    subject, asked = image_of(args, config), inspection.detector(args.checkpoint, config)
    return pictures.draw_key_points(subject, inspection.key_points(asked, subject, args.detection))


def restorer(checkpoint: Path, config=None):
    from attlas.dense.restoration import Restorer
    from attlas.inference import load

    model = load(checkpoint, config)
    if not isinstance(model, Restorer):
        raise ValueError(f"{checkpoint}: the model is a {type(model).__name__}, and must be a restorer")
    return model


def draw_restored(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.config import load_config
    from attlas.dense.restoration.pictures import draw_restored

    config = load_config(args.config)
    first = restorer(args.checkpoint, config)
    name = args.name or type(first.network).__name__
    check_names(name, args)
    asked = {name: first} | {name: restorer(checkpoint, load_config(own)) for name, own, checkpoint in args.against}
    return draw_restored(config_dataset(config, "test"), asked, args.item, args.crop)


def draw_anomalies(args: argparse.Namespace):
    from attlas.browsing import choose, config_dataset
    from attlas.config import load_config
    from attlas.dense.video import Video, VideoAnomalyDetector
    from attlas.dense.video.pictures import draw_anomalies
    from attlas.inference import Inferencer, load

    config = load_config(args.config)
    model = load(args.checkpoint, config)
    if not isinstance(model, VideoAnomalyDetector):
        raise ValueError(
            f"{args.checkpoint}: the model is a {type(model).__name__}, and must be a VideoAnomalyDetector"
        )
    inferencer, truth = Inferencer(model, threshold=args.threshold), None
    if args.file is None:
        dataset = config_dataset(config, "test")
        item = dataset[choose(dataset, 1, [args.item])[0]]
        video, truth = item["video"], item["truth"]
    else:
        video = Video(args.file)
    (result,) = inferencer(video.path)
    if "error" in result:
        raise ValueError(f"{video.name}: {result['error']}")
    return draw_anomalies(video, result, truth, Path(video.name).name)


def draw_attribution(args: argparse.Namespace):
    from attlas.dense.restoration.pictures import draw_attribution
    from attlas.images import read_image

    image, asked = read_image(args.file), {}
    for given, path in (args.network, *args.against):
        model = restorer(path)
        name = given or type(model.network).__name__
        if name in asked:
            raise ValueError(f"two networks would be named {name!r}; name them: NAME=CHECKPOINT")
        asked[name] = model
    options = dict(steps=args.steps, sigma=args.sigma, edges=args.edges)
    return draw_attribution(image, asked, args.place, args.side, args.around, **options)


def draw_matches(args: argparse.Namespace):
    from attlas.browsing import config_dataset
    from attlas.config import load_config
    from attlas.dense.matching import Matcher
    from attlas.dense.matching.pictures import draw_pairs
    from attlas.inference import load

    config = load_config(args.config)
    model = load(args.checkpoint, config)
    if not isinstance(model, Matcher):
        raise ValueError(f"{args.checkpoint}: the model is a {type(model).__name__}, and must be a matcher")
    return draw_pairs(config_dataset(config, "test"), model, args.items)
