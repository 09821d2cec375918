"""Pictures of object parts by a diffusion pipeline, in the folders that the source `folder_parts` reads.

What is made is decided before anything is made: a list of (part, object, prompt, seed), in one order. A picture that
is there already is kept, so a run that was stopped is resumed by the same call.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

logger = logging.getLogger(__name__)

NAME = "generated_images.json"
PROMPTS = ("a photo of a {object}, its {part} clearly visible",)
SEEDS = 2**31


@dataclass(frozen=True)
class Request:
    """One picture: its path below the root, and what it is made of."""

    path: str
    part: str
    object: str
    prompt: str
    seed: int


def requests(
    parts: Mapping[str, Sequence[str]], prompts: Sequence[str] = PROMPTS, images: int = 4, seed: int = 0
) -> list[Request]:
    """The pictures of a table of parts and the objects that have them, `images` of each.

    Prompts take turns. The seed of a picture follows from `seed`, its folder and its number: another object in the
    table changes no picture of the others.

    Raises:
        ValueError: a table, a name or a prompt that cannot be used.
    """
    if images < 1:
        raise ValueError(f"`images`: expected at least 1, got {images}")
    for prompt in prompts:
        if "{part}" not in prompt or "{object}" not in prompt:
            raise ValueError(f"`prompts`: expected {{part}} and {{object}} in each, got {prompt!r}")
    if not prompts:
        raise ValueError("`prompts`: expected at least one, got none")
    return [
        Request(
            f"{_folder(part)}/{_folder(thing)}/{number:04d}.png",
            part,
            thing,
            prompts[number % len(prompts)].replace("{part}", part).replace("{object}", thing),
            _seed(seed, part, thing, number),
        )
        for part, thing in _pairs(parts)
        for number in range(images)
    ]


def _pairs(parts: Mapping[str, Sequence[str]]) -> Iterator[tuple[str, str]]:
    if not isinstance(parts, Mapping) or not parts:
        raise ValueError(f"`parts`: expected {{part: [object, ...]}}, got {parts!r:.80}")
    for part, things in parts.items():
        if isinstance(things, str) or not isinstance(things, Sequence) or not things:
            raise ValueError(f"`parts`: {part}: expected a list of objects, got {things!r:.80}")
        for name in (part, *things):
            if not isinstance(name, str) or not name.strip(" _.") or "/" in name or name.startswith("."):
                raise ValueError(f"`parts`: expected names that can be folders, got {name!r}")
        if twice := sorted({thing for thing in things if list(things).count(thing) > 1}):
            raise ValueError(f"`parts`: {part}: {twice[0]} is listed twice")
        yield from ((part, thing) for thing in things)


def _folder(name: str) -> str:
    return name.strip().replace(" ", "_")


def _seed(*facts: object) -> int:
    return int.from_bytes(hashlib.sha256("\0".join(map(str, facts)).encode()).digest()[:8], "big") % SEEDS


def generate(
    pipeline: Any,
    wanted: Sequence[Request],
    root: Path | str,
    *,
    model_name: str,
    batch_size: int = 1,
    options: Mapping[str, Any] | None = None,
    control: Image.Image | None = None,
    control_name: str | None = None,
    progress: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Make the pictures that are not there, and write the manifest.

    Args:
        pipeline: a diffusers pipeline, called with prompt and generator, that returns `images`.
        options: further arguments of its call, such as num_inference_steps or height.
        control: a picture that a ControlNet pipeline is given for every image. control_name: of that ControlNet.
        progress: called with the number of pictures that are done.

    Returns:
        The manifest, ROOT/generated_images.json: model, options, what conditions the pictures, and by path part,
        object, prompt and seed.

    Raises:
        ValueError: a picture was made by another model, condition, prompt or seed.
    """
    root, options = Path(root), dict(options or {})
    root.mkdir(parents=True, exist_ok=True)
    settings = {"model": model_name, "options": options}
    if control is not None:
        settings["control"] = {"model": control_name, "picture": _digest(control)}
    manifest = _continued(root / NAME, settings)
    missing = [one for one in wanted if not _is_done(root, one, manifest["images"])]
    if progress is not None:
        progress(len(wanted) - len(missing))
    try:
        for start in range(0, len(missing), batch_size):
            batch = missing[start : start + batch_size]
            for one, picture in zip(batch, _pictures(pipeline, batch, options, control), strict=True):
                _save(picture, root / one.path)
                manifest["images"][one.path] = asdict(one)
            if progress is not None:
                progress(len(batch))
    finally:
        _write(root / NAME, manifest)
    return manifest


def _pictures(
    pipeline: Any, batch: Sequence[Request], options: Mapping[str, Any], control: Image.Image | None
) -> list[Image.Image]:
    """A picture of a request follows from its own seed, not from what shares its batch."""
    import torch

    given = {} if control is None else {"image": [control] * len(batch)}
    generators = [torch.Generator().manual_seed(one.seed) for one in batch]
    return pipeline(prompt=[one.prompt for one in batch], generator=generators, **given, **options).images


def _is_done(root: Path, one: Request, images: dict[str, dict]) -> bool:
    if not (root / one.path).is_file():
        return False
    if (made := images.get(one.path)) not in (None, asdict(one)):
        raise ValueError(
            f"{root / one.path}: it was made of the prompt {made['prompt']!r} with seed {made['seed']}, now it would "
            f"be of {one.prompt!r} with seed {one.seed}; choose another output folder, or delete it"
        )
    images[one.path] = asdict(one)  # saved by a run that was killed before it wrote its manifest
    return True


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(f"{picture.mode} {picture.size}".encode() + picture.tobytes()).hexdigest()


def _continued(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The manifest of an earlier run with the same settings, or an empty one."""
    if not file.is_file():
        return settings | {"images": {}}
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        before = {name: manifest[name] for name in ("model", "options")}
        before |= {name: manifest[name] for name in ("control",) if name in manifest}
        images = dict(manifest["images"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: not a manifest of generated images ({error}); choose another folder") from error
    if before != json.loads(json.dumps(settings)):
        raise ValueError(f"{file}: the folder was begun with {before}, now it is {settings}; choose another folder")
    return settings | {"images": images}


def _save(picture: Image.Image, path: Path) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part")
    picture.convert("RGB").save(beside, "PNG")
    os.replace(beside, path)


def _write(file: Path, manifest: dict[str, Any]) -> None:
    manifest["images"] = dict(sorted(manifest["images"].items()))
    beside = file.with_suffix(".part")
    beside.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(beside, file)


def load_pipeline(model: str, controlnet: str | None = None, device: str | None = None) -> Any:
    """A text-to-image pipeline of diffusers, from a folder or the Hub.

    Raises:
        ValueError: diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise ValueError('generating images needs diffusers: pip install "sa2va_hf[diffusers]"') from error
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.float16 if device.startswith("cuda") else torch.float32
    if controlnet is None:
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(model)
    else:
        control = diffusers.ControlNetModel.from_pretrained(controlnet)
        pipeline = diffusers.AutoPipelineForText2Image.from_pretrained(model, controlnet=control)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device, dtype)
