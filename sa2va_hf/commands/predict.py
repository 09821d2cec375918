"""Answer a question about an image or a video, and write the text, the masks and an overlay.

    sa2va predict --model DIR --image FILE --text "Please segment the dog." --output DIR
    sa2va predict --model DIR --video FILE_OR_FOLDER --text "Please segment the dog." --output DIR

Writes into the output folder: text.txt, the answer; masks/object1_frame00000.png ... with values 0 and 255, one per
object and frame (--format rle: masks.json, coco: coco.json); overlay.png, or for a video overlay.mp4 (without PyAV, or
with --frames, overlay/00000.png ...).
"""

from __future__ import annotations

import argparse
import json
import logging
import math
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sa2va_hf.command_line import mistakes

if TYPE_CHECKING:
    from sa2va_hf.prediction import Prediction
    from sa2va_hf.streaming import MaskStream

FORMATS = ("png", "rle", "coco")  # as `prediction.FORMATS`


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image")
    source.add_argument("--video", help="a video file or a folder of frames")
    parser.add_argument("--text", required=True, help="the question")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--region", action="append", help="mask PNG of a region of the image; region1, region2 ...")
    parser.add_argument("--answer", help="predict the masks of this answer ('Sure, [SEG].') instead of generating one")
    parser.add_argument(
        "--answer_with",
        choices=("masks", "boxes"),
        default="masks",
        help="boxes: the model writes boxes of --text, a phrase as 'the dog', and SAM 2 segments what is in them",
    )
    parser.add_argument("--num_frames", type=int, default=5, help="key frames: frames of a video that the LLM reads")
    parser.add_argument("--video_mode", help="how masks get onto all frames; default: the predictor's")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default="png",
        help="of the masks: pictures, run lengths (masks.json), or COCO results (coco.json); default: %(default)s",
    )
    parser.add_argument("--max_objects", type=int, help="how many [SEG] of the answer get masks; default: 100")
    parser.add_argument("--frames", action="store_true", help="write the overlay of a video as PNG frames, not mp4")
    return parser


def predict(arguments: argparse.Namespace) -> Prediction | MaskStream:
    """The answer. The masks of a video are predicted while they are written, unless they come from boxes."""
    from sa2va_hf.inference import Sa2VAPredictor
    from sa2va_hf.mask_pictures import from_png

    with_boxes = arguments.answer_with == "boxes"
    if with_boxes and (arguments.region or arguments.answer is not None or arguments.video_mode):
        raise ValueError("--answer_with boxes: --region, --answer and --video_mode do not apply")
    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    question = {"image": arguments.image, "video": arguments.video, "text": arguments.text}
    if with_boxes:
        limits = {"num_frames": arguments.num_frames, "max_new_tokens": arguments.max_new_tokens}
        return predictor.locate(**question, **limits, masks=True)
    question["num_frames"] = arguments.num_frames
    if arguments.max_objects is not None:
        question["max_objects"] = arguments.max_objects
    if arguments.video_mode:
        question["video_mode"] = arguments.video_mode
    if arguments.video and arguments.region:
        raise ValueError("--region marks a region of an image; with --video it does not apply")
    if arguments.video:
        del question["image"]
        return predictor.stream(**question, answer=arguments.answer, max_new_tokens=arguments.max_new_tokens)
    question["regions"] = [from_png(file) for file in arguments.region or []]
    if arguments.answer is not None:
        return predictor.segment(**question, answer=arguments.answer)
    return predictor(**question, max_new_tokens=arguments.max_new_tokens)


def write_boxes(prediction: Prediction, folder: Path) -> None:
    """boxes.json: per object and frame [x0, y0, x1, y1] in pixels, or null, and what could not be read."""
    tracks = [[None if any(map(math.isnan, box)) else box for box in track] for track in prediction.boxes.tolist()]
    folder.mkdir(parents=True, exist_ok=True)
    content = {"boxes": tracks, "problems": list(prediction.problems)}
    (folder / "boxes.json").write_text(json.dumps(content) + "\n", encoding="utf-8")
    for problem in prediction.problems:
        print(f"not read: {problem}")


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command with `argv`; default: the arguments of the process."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = make_parser().parse_args(argv)
    from sa2va_hf.model.frames import check_count
    from sa2va_hf.model.visuals import open_image
    from sa2va_hf.prediction import frame_rate, writable

    for name in ("num_frames", "max_new_tokens", "max_objects"):  # before a model is loaded
        if (value := getattr(arguments, name)) is not None:
            check_count(f"--{name}", value)
    if not arguments.text.strip():
        raise ValueError("--text: expected a question, got an empty text")
    writable(arguments.output)
    if arguments.image:
        open_image(arguments.image)
    prediction = predict(arguments)
    print(prediction.text)
    source = Path(arguments.image or arguments.video)
    name = int(source.stem) if source.stem.isdecimal() else source.name
    rate = frame_rate(arguments.video) if arguments.video and find_spec("av") else None
    if arguments.answer_with == "boxes":
        write_boxes(prediction, arguments.output)
    saved = prediction.save(arguments.output, arguments.format, name, rate, as_frames=arguments.frames)
    frames, scores = saved if isinstance(saved, tuple) else (prediction.packed.shape[1], prediction.scores)
    count = len(scores)
    scores = ", ".join(f"{score:.2f}" for score in scores)
    print(f"{count} objects on {frames} frames{f', expected IoU {scores}' if count else ''} -> {arguments.output}")


if __name__ == "__main__":
    main()
