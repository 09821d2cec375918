"""Answer a question about an image or a video, and write the text, the masks and an overlay.

    sa2va predict --model DIR --image FILE --text "Please segment the dog." --output DIR
    sa2va predict --model DIR --video FILE_OR_FOLDER --text "Please segment the dog." --output DIR

Writes into the output folder: text.txt, the answer; masks/object1_frame00000.png ... with values 0 and 255, one per
object and frame; overlay.png, or for a video overlay.mp4 (without PyAV, or with --frames, overlay/00000.png ...).
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from sa2va_hf.command_line import mistakes

if TYPE_CHECKING:
    from PIL import Image

    from sa2va_hf.inference import Prediction

FOLDER_RATE = Fraction(10)  # frames per second of a video that is given as a folder


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder, a Hub repository, or the name of a bundled model")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--image")
    source.add_argument("--video", help="a video file or a folder of frames")
    parser.add_argument("--text", required=True, help="the question")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--region", action="append", help="mask PNG of a region of the image; region1, region2 ...")
    parser.add_argument("--answer", help="predict the masks of this answer ('Sure, [SEG].') instead of generating one")
    parser.add_argument("--num_frames", type=int, default=5, help="key frames: frames of a video that the LLM reads")
    parser.add_argument("--video_mode", help="how masks get onto all frames; default: the predictor's")
    parser.add_argument("--max_new_tokens", type=int, default=512)
    parser.add_argument("--device", help="default: cuda if there is one")
    parser.add_argument("--dtype", help="float32, bfloat16, float16; default: the checkpoint's, float32 on a CPU")
    parser.add_argument("--frames", action="store_true", help="write the overlay of a video as PNG frames, not mp4")
    return parser


def predict(arguments: argparse.Namespace) -> Prediction:
    from sa2va_hf.inference import Sa2VAPredictor
    from sa2va_hf.masks import from_png

    predictor = Sa2VAPredictor.from_pretrained(arguments.model, arguments.device, arguments.dtype)
    question = {"image": arguments.image, "video": arguments.video, "text": arguments.text}
    question |= {"regions": [from_png(file) for file in arguments.region or []], "num_frames": arguments.num_frames}
    if arguments.video_mode:
        question["video_mode"] = arguments.video_mode
    if arguments.answer is not None:
        return predictor.segment(**question, answer=arguments.answer)
    return predictor(**question, max_new_tokens=arguments.max_new_tokens)


def write_masks(prediction: Prediction, folder: Path) -> None:
    from PIL import Image

    folder.mkdir(exist_ok=True)
    for stale in folder.glob("object*_frame*.png"):  # of an earlier run with more objects
        stale.unlink()
    for number, frames in enumerate(prediction.masks, start=1):
        for frame, mask in enumerate(frames):
            Image.fromarray(mask.astype("uint8") * 255).save(folder / f"object{number}_frame{frame:05d}.png")


def overlays(prediction: Prediction) -> Iterator[Image.Image]:
    from sa2va_hf.drawing import overlay

    labels = [f"{number}" for number in range(1, len(prediction.masks) + 1)]
    for frame, picture in enumerate(prediction.history.clip):
        yield overlay(picture, prediction.masks[:, frame], list(prediction.boxes[:, frame]), labels)


def write_clip(pictures: Iterator[Image.Image], file: Path, rate: Fraction) -> None:
    import av

    with av.open(str(file), "w") as container:
        stream = None
        for picture in pictures:
            if stream is None:
                stream = container.add_stream("libx264", rate=rate)
                stream.width, stream.height = (side + side % 2 for side in picture.size)  # 4:2:0 needs even sides
                stream.pix_fmt = "yuv420p"
            even = picture.crop((0, 0, stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(even)))
        container.mux(stream.encode())


def frame_rate(video: str) -> Fraction:
    if Path(video).is_dir():
        return FOLDER_RATE
    import av

    with av.open(video) as container:
        return container.streams.video[0].average_rate or FOLDER_RATE


@mistakes()
def main(argv: Sequence[str] | None = None) -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    arguments = make_parser().parse_args(argv)
    prediction = predict(arguments)
    print(prediction.text)
    output = arguments.output
    output.mkdir(parents=True, exist_ok=True)
    (output / "text.txt").write_text(prediction.text + "\n", encoding="utf-8")
    write_masks(prediction, output / "masks")
    pictures = overlays(prediction)
    if arguments.image:
        next(pictures).save(output / "overlay.png")
    elif find_spec("av") and not arguments.frames:
        write_clip(pictures, output / "overlay.mp4", frame_rate(arguments.video))
    else:
        (output / "overlay").mkdir(exist_ok=True)
        for number, picture in enumerate(pictures):
            picture.save(output / "overlay" / f"{number:05d}.png")
    count, frames = prediction.masks.shape[:2]
    scores = ", ".join(f"{score:.2f}" for score in prediction.scores)
    print(f"{count} objects on {frames} frames{f', expected IoU {scores}' if count else ''} -> {output}")


if __name__ == "__main__":
    main()
