"""Questions and answers of turns that ask for boxes, sampled with a generator that is passed in.

The wording is ours; the tasks and the number of templates are those of the spatial system (spatial_mllm): phrases in
pictures and in clips, the N-th object from a side, the N-th beside a box, and the outermost object, which may change.
"""

import numpy as np

from sa2va_hf.data.prompts.templates import choose, clean_phrase, fill
from sa2va_hf.model.configuration_sa2va import SEG_TOKEN

PICTURE_QUESTIONS = (
    "Give the bounding box of the {phrase} in this image.",
    "Where is the {phrase} in this image? Answer with a bounding box.",
    "Locate the {phrase} in this image.",
    "Find the {phrase} and give its bounding box.",
    "Please put a bounding box around the {phrase}.",
    "What are the box coordinates of the {phrase}?",
    "Detect the {phrase} in this picture.",
    "In which part of the image is the {phrase}? Give a box.",
    "Please ground the {phrase} with a bounding box.",
    "I am looking for the {phrase} in this image. Which box holds it?",
)

CLIP_QUESTIONS = (
    "Give the bounding box of the {phrase} in every frame.",
    "Where is the {phrase} in each frame of the video? Answer with bounding boxes.",
    "Locate the {phrase} in this video.",
    "Track the {phrase} and give its box in each frame.",
    "Please follow the {phrase} through the video with bounding boxes.",
    "What are the box coordinates of the {phrase}, frame by frame?",
    "Detect the {phrase} in all frames.",
    "Find the {phrase} in this clip and box it in every frame.",
    "Please ground the {phrase} in the video, with a box per frame.",
    "Show where the {phrase} is over time. Use bounding boxes.",
    "Can you mark the {phrase} with a bounding box in each frame?",
    "I want to know where the {phrase} is throughout the video. Give boxes.",
)

ABSOLUTE_QUESTIONS = (
    "Counted from the side, which object is the {phrase}? Give its box.",
    "Count along the {scene} and locate the {phrase}.",
    "Order the objects from left to right, then box the {phrase}.",
    "Where is the {phrase}? Count the objects and answer with bounding boxes.",
    "By its place in the row, find the {phrase} in the {scene}.",
    "Give the box of the {phrase}, counted by position.",
    "Locate the {phrase} among the objects of the {scene}.",
    "Please count the objects and mark the {phrase} with a box.",
    "Which box holds the {phrase} in the {scene}?",
    "Find by its order the {phrase}, and give its bounding box.",
)

RELATIVE_QUESTIONS = (
    "Start at the object that is named and locate the {phrase}.",
    "Where is the {phrase}? Answer with bounding boxes.",
    "Relative to the object that is given, find the {phrase} in the {scene}.",
    "Counted from the reference, which object is the {phrase}? Give its box.",
    "Give the box of the {phrase}, seen from the reference.",
    "Look beside the reference and box the {phrase}.",
    "In the {scene}, find by its neighbour the {phrase}.",
    "Please mark the {phrase} with a bounding box.",
    "Which box holds the {phrase} in the {scene}?",
    "Count away from the reference and locate the {phrase}.",
    "By its relation to the reference, detect the {phrase}.",
)

SWITCH_QUESTIONS = (
    "Which object is the {phrase} in each frame? Give its box.",
    "Follow the {phrase} through the video; it may become another object.",
    "Box the {phrase} in every frame and mark where it changes.",
    "Where is the {phrase} at each time? Say when another object takes its place.",
    "Track whatever is the {phrase}, frame by frame.",
    "Can you locate the {phrase} in all frames and show each switch?",
    "Give the boxes of the {phrase} over time, with every change of the object.",
    "Please find the {phrase} in each frame of the video. It need not stay the same one.",
)

QUESTIONS = {"absolute": ABSOLUTE_QUESTIONS, "relative": RELATIVE_QUESTIONS, "switch": SWITCH_QUESTIONS}

ANSWERS = (
    "It is at {boxes}.",
    "Its box is {boxes}.",
    "Here it is: {boxes}.",
    "Sure, {boxes}.",
    "The bounding box is {boxes}.",
    "It can be found at {boxes}.",
    "You can see it at {boxes}.",
    "{boxes}.",
)

SWITCH_ANSWERS = (
    "It is at {boxes}.",
    "Frame by frame: {boxes}.",
    "With every change marked, {boxes}.",
    "The object that is meant is at {boxes}.",
    "Over time it is at {boxes}.",
    "Its place in each frame is {boxes}.",
    "Sure, {boxes}.",
    "{boxes}.",
)

NO_TARGET_ANSWERS = (
    "I cannot find the {phrase}: {boxes}.",
    "Nothing here is the {phrase}: {boxes}.",
    "There is no such object: {boxes}.",
    "It is not in the {scene}: {boxes}.",
)

BOTH_ANSWERS = (
    f"It is {SEG_TOKEN}, at {{boxes}}.",
    f"Sure, {SEG_TOKEN}, {{boxes}}.",
    f"The mask is {SEG_TOKEN} and the box is {{boxes}}.",
    f"Here it is: {SEG_TOKEN}, within {{boxes}}.",
    f"{SEG_TOKEN}, {{boxes}}.",
    f"Sure, it is {SEG_TOKEN}, and its place is {{boxes}}.",
)

BOX_REQUEST = "Answer with bounding boxes."  # behind a text that is a question itself
BOTH_REQUEST = "Answer with a mask and bounding boxes."


def box_question(
    text: str, kind: str, is_clip: bool, both: bool = False, rng: np.random.Generator | None = None
) -> str:
    """How a phrase is asked for; without a generator in the form that inference uses.

    Phrases of a kind with questions of its own are asked for by the general ones too. A text with a question mark is
    a question already.
    """
    request = BOTH_REQUEST if both else BOX_REQUEST
    if "?" in text:
        return f"{text.strip()} {request}"
    general = CLIP_QUESTIONS if is_clip else PICTURE_QUESTIONS
    pool = general if kind == "switch" and not is_clip else (*general, *QUESTIONS.get(kind, ()))
    question = fill(pool[0] if rng is None else choose(pool, rng), clean_phrase(text))
    question = question.replace("{scene}", "video" if is_clip else "image")
    return f"{question} {request}" if both else question


def box_answer(
    text: str,
    kind: str,
    boxes: str,
    is_clip: bool,
    has_target: bool,
    both: bool = False,
    rng: np.random.Generator | None = None,
) -> str:
    """The answer around the boxes as text; with `both` and a target it holds one [SEG]."""
    pool = SWITCH_ANSWERS if kind == "switch" else ANSWERS
    if not has_target:
        pool = NO_TARGET_ANSWERS[2:] if "?" in text else NO_TARGET_ANSWERS
    elif both:
        pool = BOTH_ANSWERS
    answer = pool[0] if rng is None else choose(pool, rng)
    answer = fill(answer, clean_phrase(text)).replace("{scene}", "video" if is_clip else "image")
    return answer.replace("{boxes}", boxes)
