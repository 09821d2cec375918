"""Track objects through videos with SAM 2, from their masks on the first frame (or on any): DAVIS, MOSE, SA-V, ...

    sa2va vos --sam2_checkpoint sam2.1_hiera_large.pt --base_video_dir DAVIS/JPEGImages/480p \\
        --input_mask_dir DAVIS/Annotations/480p --output_mask_dir outputs/davis [--video_list_file LIST.txt]
    torchrun --nproc_per_node 8 -m sa2va_hf.commands.vos_inference ...       # the processes share the videos

Frames are JPEG or PNG files in a folder per video, or VIDEO.mp4 in its place. With --truth_dir MASKS the run that
finds all videos finished prints J&F and writes it to OUTPUT/scores.json, as sav_evaluator or DAVIS compute it.

--sam2_checkpoint is a .pt of SAM 2 or 3, a folder that it was converted to or fine-tuned in, or a Sa2VA. For SA-V:
--per_obj_png_file --track_object_appearing_later_in_video. The same command resumes with the videos that are not
finished. If videos fail, the others are finished first, then the errors are listed and the exit status is 1.
"""

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

CONVENTIONS = ("davis", "sa_v")


def make_parser() -> argparse.ArgumentParser:
    """The parser of this command; building it imports neither torch nor transformers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sam2_checkpoint", "--model", required=True, help=".pt or folder; which SAM it is, is read off it"
    )
    parser.add_argument(
        "--base_video_dir", type=Path, required=True, help="a folder of frames per video, or video files"
    )
    parser.add_argument("--input_mask_dir", type=Path, required=True, help="a folder of masks per video")
    parser.add_argument("--output_mask_dir", type=Path, required=True)
    parser.add_argument("--video_list_file", type=Path, help="one name per line; default: all with masks")
    parser.add_argument("--score_thresh", type=float, default=0.0, help="of the mask logits")
    parser.add_argument("--use_all_masks", action="store_true", help="give every mask, not only the first one")
    parser.add_argument("--per_obj_png_file", action="store_true", help="write a folder per object (SA-V)")
    parser.add_argument("--track_object_appearing_later_in_video", action="store_true")
    parser.add_argument("--apply_postprocessing", action="store_true", help="fill small holes")
    parser.add_argument("--use_vos_optimized_video_predictor", action="store_true", help="compile the network")
    parser.add_argument(
        "--resample", choices=["bilinear", "bicubic"], default="bilinear", help="how frames are resized"
    )
    parser.add_argument("--truth_dir", type=Path, help="score against the masks here: a folder per video")
    parser.add_argument("--convention", choices=CONVENTIONS, default="sa_v", help="how that is scored")
    parser.add_argument("--device", help="default: cuda where there is one")
    return parser


def score(names: Sequence[str], arguments: argparse.Namespace) -> dict[str, float]:
    """J&F of all videos, also written to scores.json. ValueError naming what cannot be scored."""
    from sa2va_hf.data.clips.vos import MaskFolder
    from sa2va_hf.evaluation.following import score_folder, summarize

    objects = []
    for name in names:
        truth, drawn = (MaskFolder(folder / name) for folder in (arguments.truth_dir, arguments.output_mask_dir))
        objects += score_folder(truth, drawn, arguments.convention)
    found = {"videos": len(names), "objects": len(objects), "convention": arguments.convention}
    found |= summarize(objects, arguments.convention)
    (arguments.output_mask_dir / "scores.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def videos_of(arguments: argparse.Namespace) -> list[str]:
    """Names of the videos. Raises: ValueError when there is none. Hidden folders and those of tools are skipped."""
    from sa2va_hf.data.listing import subfolders
    from sa2va_hf.data.sources.clips import read_names

    if arguments.video_list_file:
        names = read_names(arguments.video_list_file)
    else:
        names = [folder.name for folder in subfolders(arguments.input_mask_dir)]
    if not names:
        masks = arguments.input_mask_dir
        raise ValueError(f"no folder of masks in {masks}: expected a folder per video, as {masks}/VIDEO/00000.png")
    return names


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with `argv`; default: the arguments of the process."""
    arguments = make_parser().parse_args(argv)
    import torch
    from PIL import Image

    from sa2va_hf.checkpoints.trackers import load_tracker
    from sa2va_hf.inference import choose_device
    from sa2va_hf.prediction import writable
    from sa2va_hf.vos_inference import VosOptions, follow_video, read_video

    rank, world = (int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1)))
    cuda = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    options = VosOptions(
        score_threshold=arguments.score_thresh,
        all_masks=arguments.use_all_masks,
        later_objects=arguments.track_object_appearing_later_in_video,
        per_object=arguments.per_obj_png_file,
        postprocessing=arguments.apply_postprocessing,
        resample=getattr(Image.Resampling, arguments.resample.upper()),
    )
    try:
        device = choose_device(arguments.device or (cuda if torch.cuda.is_available() else None))
        writable(arguments.output_mask_dir).mkdir(parents=True, exist_ok=True)
        names = videos_of(arguments)
        encoder, _ = load_tracker(arguments.sam2_checkpoint)
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    encoder = encoder.to(device).eval()
    sam = encoder.network
    if arguments.apply_postprocessing:
        sam.binarize_mask_from_pts_for_mem_enc = True  # as SAM 3 does at all times
    if arguments.use_vos_optimized_video_predictor:
        for part in (encoder.image_encoder, sam.memory_attention, sam.memory_encoder, encoder.mask_decoder):
            part.forward = torch.compile(part.forward, dynamic=part is sam.memory_attention)
    precision = torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" else contextlib.nullcontext()
    problems = []
    for name in names[rank::world]:
        output = arguments.output_mask_dir / name
        if output.is_dir():
            continue
        try:
            files = read_video(arguments.base_video_dir / name, arguments.input_mask_dir / name)
            with precision:
                follow_video(encoder, files, output, options, device)
            print(f"{name}: {len(files.stems)} frames", flush=True)
        except ValueError as error:
            problems.append(f"{name}: {error}")
    if arguments.truth_dir and not problems and all((arguments.output_mask_dir / name).is_dir() for name in names):
        try:
            print(json.dumps(score(names, arguments), indent=2))
        except ValueError as error:
            problems.append(str(error))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
