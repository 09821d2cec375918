"""What a model can and cannot do on held-out `shapes`: scores per kind of expression, for pictures and clips.

    python scripts/score_shapes.py --model shapes-tiny [--count 200] [--clips 20] [--world default] [--max_objects 3]

Answers are generated; one without [SEG] is an empty mask. "emission" is the share of expressions with a target that
are answered with [SEG]; for "no_target" it is the share that are rightly answered without. Prints a markdown table.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sa2va_hf import Sa2VAPredictor
from sa2va_hf.data.media import load_frames
from sa2va_hf.data.schema import Expression, Sample
from sa2va_hf.data.shapes import shapes
from sa2va_hf.evaluation.metrics import CumulativeIoU
from sa2va_hf.evaluation.video_metrics import j_and_f
from sa2va_hf.masks import decode

ASKED = 5  # expressions per picture
BATCH = 16


def truth(sample: Sample, expression: Expression) -> np.ndarray:
    """bool (frames, H, W): the union of the targets."""
    empty = np.zeros((sample.num_frames, sample.height, sample.width), dtype=bool)
    for target in expression.targets:
        empty |= np.stack([decode(mask) for mask in sample.objects[target].masks])
    return empty


def answers(
    predictor: Sa2VAPredictor, asked: list[tuple[Sample, Expression]], kind: str
) -> list[tuple[np.ndarray, bool]]:
    """(mask (frames, H, W), whether [SEG] was said) of every question."""
    found = []
    for start in tqdm(range(0, len(asked), BATCH), desc=f"{kind}s", mininterval=2):
        batch = asked[start : start + BATCH]
        media = [load_frames(sample, list(range(sample.num_frames))) for sample, _ in batch]
        media = [frames[0] for frames in media] if kind == "image" else media
        texts = [f"Please segment {expression.text}." for _, expression in batch]
        predictions = predictor(**{kind: media}, text=texts, max_new_tokens=12)
        for (sample, expression), prediction in zip(batch, predictions, strict=True):
            said = len(prediction.masks) > 0
            found.append((prediction.masks.any(0) if said else np.zeros_like(truth(sample, expression)), said))
    return found


def score(predictor: Sa2VAPredictor, kind: str, samples: list[Sample]) -> dict[str, dict[str, float]]:
    asked = [(sample, expression) for sample in samples for expression in sample.expressions[:ASKED]]
    sums, video, emitted = defaultdict(CumulativeIoU), defaultdict(list), defaultdict(list)
    for (sample, expression), (mask, said) in zip(asked, answers(predictor, asked, kind), strict=True):
        target = truth(sample, expression)
        emitted[expression.kind].append(said == bool(expression.targets))
        if expression.targets:
            for name in (expression.kind, "all with a target"):
                sums[name].add(mask, target)
                if kind == "video":
                    video[name].append(j_and_f(mask, target)["J&F"])
    emitted["all with a target"] = [x for name, values in emitted.items() if name != "no_target" for x in values]
    table = {}
    for name, values in sorted(emitted.items()):
        row = {"expressions": len(values), "emission": float(np.mean(values))}
        if name in sums:
            row |= {"cIoU": sums[name].ciou(), "gIoU": sums[name].giou()}
        if name in video:
            row["J&F"] = float(np.mean(video[name]))
        table[f"{kind}: {name}"] = row
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-tiny")
    parser.add_argument("--count", type=int, default=200, help="pictures")
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--world", default="default")
    parser.add_argument("--max_objects", type=int, default=3)
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    arguments = parser.parse_args()
    predictor = Sa2VAPredictor.from_pretrained(arguments.model)
    options = {"world": arguments.world, "max_objects": arguments.max_objects}
    table = {}
    for kind, count, clips in (("image", arguments.count, 0.0), ("video", arguments.clips, 1.0)):
        if count:
            samples = list(shapes(None, "val", count=count, clip_fraction=clips, **options))
            table |= score(predictor, kind, samples)
    columns = ("expressions", "emission", "cIoU", "gIoU", "J&F")
    print("| | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1))
    for name, row in table.items():
        cells = [row.get(column, "") for column in columns]
        print(f"| {name} | " + " | ".join(f"{c:.3f}" if isinstance(c, float) else str(c) for c in cells) + " |")
    if arguments.output:
        arguments.output.write_text(json.dumps(table, indent=2))


if __name__ == "__main__":
    main()
