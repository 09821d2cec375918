"""Clips, and relations between the objects in them."""

import io
import json
import shutil
from dataclasses import replace

import av
import numpy as np
import test_paired_frames
import test_sav
import test_spatial_relations
import test_video_referring
import test_vos_folders
import test_vos_relations
import test_youtube_vos
from on_disk import Fixture, block, change, cut, drop, grey, put, said, text, thing, with_options
from PIL import Image

from sa2va_hf import masks
from sa2va_hf.data.schema import Object, Sample

# ---------------------------------------------------------------- referring expressions

PHRASES = test_video_referring  # its clips have 3 frames of 12 x 8
SHAPE = (PHRASES.WIDTH, PHRASES.HEIGHT)


def of_clip(*rles):
    """An object of a clip with these masks and no boxes."""
    return Object(list(rles), [None] * len(rles))


LEFT = of_clip(block(SHAPE, 0, 1, 2, 3), block(SHAPE, 1, 1, 3, 3), masks.empty(*SHAPE[::-1]))
RIGHT = of_clip(*[block(SHAPE, 6, 1, 9, 4)] * 3)


def clip(sample_id, folder, objects, expressions, source):
    frames = [str(folder / f"{name}.jpg") for name in PHRASES.FRAMES]
    of_clip = {"frames": frames, "objects": objects, "expressions": expressions, "source": source}
    return Sample(sample_id, "referring", *SHAPE, **of_clip)


def mask_dict_damage(file, mask_dict, video="zoo", key="0"):
    """Damage to the first expression of a video whose annotation is 0."""
    at = ("videos", video, "expressions", key)
    return {
        "has no 'exp'": cut(file, *at, "exp"),
        "anno_id 3 is not among the": put(file, *at, "anno_id", [3]),
        "anno_id 0: mask 0: RLE garbage": put(mask_dict, "0", 0, {"size": [8, 12], "counts": "!"}),
        "anno_id 0: it has 2 masks for 3 annotated frames": put(mask_dict, "0", PHRASES.RIGHT[:2]),
    }


def mevis():
    file, mask_dict = "train/meta_expressions.json", "train/mask_dict.json"

    def make(root):
        first = {"0": PHRASES.expression("the left one", [0]), "1": PHRASES.expression("Both move.", [0, 7])}
        of_videos = PHRASES.videos(first, frames=PHRASES.FRAMES[::-1])  # masks follow the sorted frames
        of_videos |= PHRASES.videos({"0": PHRASES.expression("it", [9])}, video="den")
        content = {"0": PHRASES.LEFT, "7": PHRASES.RIGHT, "9": PHRASES.RIGHT}
        PHRASES.write_mevis(root, of_videos, content)

    def expected(root):
        folder, both = root / "train/JPEGImages", said(("the left one", 0), ("Both move", 0, 1))
        return [
            clip("mevis/zoo", folder / "zoo", [LEFT, RIGHT], both, "mevis"),
            clip("mevis/den", folder / "den", [RIGHT], said(("it", 0)), "mevis"),
        ]

    missing = {"1 of its 3 frames are missing in": drop("train/JPEGImages/zoo/00005.jpg")}
    return Fixture(
        make,
        expected,
        mask_dict_damage(file, mask_dict) | missing,
        {"must have a dict 'videos'": put(file, "videos", []), "mask_dict.json is not JSON": text(mask_dict, "{")},
    )


def revos():
    file, videos = "meta_expressions_train_.json", ("TAO/frames/a", "TAO/frames/b")

    def make(root):
        expressions = [
            {"0": PHRASES.expression("left", [0], type_id=0), "9": PHRASES.expression("a truck", [], type_id=2)},
            {"0": PHRASES.expression("which would fall first?", [1], type_id=1)},
        ]
        content = {}
        for video, of_video in zip(videos, expressions, strict=True):
            PHRASES.draw_frames(root / video)
            content |= PHRASES.videos(of_video, video=video, height=SHAPE[1], width=SHAPE[0])
        (root / file).write_text(json.dumps({"videos": content}))
        (root / "mask_dict.json").write_text(json.dumps({"0": PHRASES.LEFT, "1": PHRASES.RIGHT}))

    def expected(root):
        first = said(("left", 0), kind="referring") + said(("a truck",), kind="no_target")
        second = said(("which would fall first?", 0), kind="reasoning")
        return [
            clip(f"revos/{videos[0]}", root / videos[0], [LEFT], first, "revos"),
            clip(f"revos/{videos[1]}", root / videos[1], [RIGHT], second, "revos"),
        ]

    return Fixture(
        make,
        expected,
        mask_dict_damage(file, "mask_dict.json", videos[0])
        | {"'type_id' must be int, got []": put(file, "videos", videos[0], "expressions", "0", "type_id", [])},
        {"is not JSON": text(file, "{"), "the masks (mask_dict) not found": drop("mask_dict.json")},
    )


def ref_sav_eval():
    file = "meta_expressions_valid.json"

    def make(root):
        content = {}
        for number, video in enumerate(("zoo", "den")):
            PHRASES.draw_frames(root / "videos" / video)
            content |= PHRASES.videos({"0": PHRASES.expression("A cup.", [number], type_id=number)}, video=video)
        (root / file).write_text(json.dumps({"videos": content}))
        (root / "mask_dict.json").write_text(json.dumps({"0": PHRASES.LEFT, "1": PHRASES.RIGHT}))

    def expected(root):
        return [
            clip(
                f"ref_sav_eval/{video}", root / "videos" / video, [one], said(("A cup", 0), kind=kind), "ref_sav_eval"
            )
            for video, one, kind in (("zoo", LEFT, "long"), ("den", RIGHT, "short"))
        ]

    return Fixture(
        make,
        expected,
        mask_dict_damage(file, "mask_dict.json"),
        {"is not JSON": text(file, "{"), "the annotation file not found": drop(file)},
        split="valid",
    )


def draw_palettes(folder, *tracks):
    """Palette pictures in which index n is the n-th track."""
    for at, name in enumerate(PHRASES.FRAMES):
        ids = sum(n * masks.decode(track.masks[at]).astype(np.uint8) for n, track in enumerate(tracks, 1))
        test_vos_folders.save(folder / f"{name}.png", ids)


def ref_youtube_vos():
    file, zoo = "meta_expressions/train/meta_expressions.json", "train/Annotations/zoo"

    def make(root):
        first = {"0": PHRASES.expression("left", obj_id="1"), "1": PHRASES.expression("right", obj_id="2")}
        of_videos = PHRASES.videos(first) | PHRASES.videos({"0": PHRASES.expression("it", obj_id="1")}, video="den")
        PHRASES.write_ytvos(root, of_videos)
        draw_palettes(root / zoo, LEFT, RIGHT)
        draw_palettes(root / "train/Annotations/den", RIGHT)

    def expected(root):
        folder, name = root / "train/JPEGImages", "ref_youtube_vos"
        return [
            clip(f"{name}/zoo", folder / "zoo", [LEFT, RIGHT], said(("left", 0), ("right", 1)), name),
            clip(f"{name}/den", folder / "den", [RIGHT], said(("it", 0)), name),
        ]

    at = ("videos", "zoo", "expressions", "0")
    return Fixture(
        make,
        expected,
        {
            "'exp' must be a non-empty text, got ' .'": put(file, *at, "exp", " ."),
            "its masks cover no pixel on any of the 3 annotated frames": put(file, *at, "obj_id", "3"),
            "00000.png is 5 x 5 (width x height) but its photo is 12 x 8": grey(f"{zoo}/00000.png", 5, 5),
            "'obj_id' must be the number of one object, got ['1', '2']": put(file, *at, "obj_id", ["1", "2"]),
        },
        {"the masks (mask_dict) not found": drop("train/Annotations"), "is not JSON": text(file, "")},
    )


def ref_davis17():
    """DAVIS itself, and the folder of the texts."""
    texts, frames, annotations = "davis_text_annotations", "JPEGImages/480p", "Annotations/480p"
    lines = {
        "Davis17_annot1": 'zoo 1 "the caf\xe9"\nden 1 "a bear"\nother 1 "of another split"\n',
        "Davis17_annot1_full_video": 'zoo 1 "the place"\nden 1 "one bear"\n',
        "Davis17_annot2": 'zoo 1 "it"\nden 1 "a brown bear"\n',
        "Davis17_annot2_full_video": 'zoo 1 "that"\nden 1 "this bear"\n',
    }

    def make(root):
        for video, track in (("zoo", LEFT), ("den", RIGHT)):
            PHRASES.draw_frames(root / frames / video)
            draw_palettes(root / annotations / video, track)
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/val.txt").write_text("zoo\nden\n")
        (root / texts).mkdir()
        for name, content in lines.items():
            (root / texts / f"{name}.txt").write_bytes(content.encode("cp1252"))

    def expected(root):
        annotators = ("first_frame_1", "full_video_1", "first_frame_2", "full_video_2")
        samples = []
        for video, track in (("den", RIGHT), ("zoo", LEFT)):
            own = [line.split('"')[1] for one in lines.values() for line in one.splitlines() if line.startswith(video)]
            expressions = [said((one, 0), kind=kind)[0] for one, kind in zip(own, annotators, strict=True)]
            samples.append(clip(f"ref_davis17/{video}", root / frames / video, [track], expressions, "ref_davis17"))
        return samples

    return Fixture(
        make,
        expected,
        {
            "'frames' must be a non-empty list of names": drop(f"{frames}/zoo"),
            "00000.png is 5 x 5 (width x height) but its photo is 12 x 8": grey(f"{annotations}/zoo/00000.png", 5, 5),
            "object 7 of": text(f"{texts}/Davis17_annot3.txt", 'zoo 7 "who?"'),
        },
        {
            "line 1 must be VIDEO OBJECT \"TEXT\", got 'zoo one'": text(f"{texts}/Davis17_annot3.txt", "zoo one"),
            "the list of the split val not found": drop("ImageSets"),
        },
        split="valid",
    )


# ---------------------------------------------------------------- SA-V

SAV, SAV_SHAPE = "sav_train/sav_000", (test_sav.WIDTH, test_sav.HEIGHT)


def write_video(path, size, frames):
    """A video, every frame of another grey."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for number in range(frames):
            grey = np.full((size[1], size[0], 3), 20 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        container.mux(stream.encode())


def make_sav(root):
    for stem, count in (("sav_000001", 10), ("sav_000002", 12)):
        test_sav.write(root, test_sav.record(float(count)), stem=stem, video=False)
        write_video(root / SAV / f"{stem}.mp4", SAV_SHAPE, count)


def sav_sample(root, stem, count, objects, expressions, source):
    where = {"video": str(root / SAV / f"{stem}.mp4"), "num_frames": count, "annotated": [0, 4, 8]}
    return Sample(stem, "referring", *SAV_SHAPE, **where, objects=objects, expressions=expressions, source=source)


NOT_LOOKED_FOR = of_clip(block(SAV_SHAPE, 0, 2, 2, 4), block(SAV_SHAPE, 1, 2, 3, 4), None)
COMES_LATER = of_clip(
    masks.empty(*SAV_SHAPE[::-1]), block(SAV_SHAPE, 7, 2, 9, 4), block(SAV_SHAPE, 6, 2, 8, 4)
)  # of test_sav.MASKLET


def sav():
    def expected(root):
        objects = [NOT_LOOKED_FOR, COMES_LATER]
        videos = [("sav_000001", 10), ("sav_000002", 12)]
        samples = [sav_sample(root, stem, count, objects, [], "sav") for stem, count in videos]
        return [replace(one, id=f"{one.id}_manual") for one in samples]

    file = f"{SAV}/sav_000001_manual.json"
    garbage = {"size": SAV_SHAPE[::-1], "counts": "!"}
    return Fixture(
        make_sav,
        expected,
        {
            "'masklet' has 3 entries but a video of 13 frames needs 4, one per 4 frames": put(
                file, "video_frame_count", 13.0
            ),
            "mask 0: RLE garbage": put(file, "masklet", 0, 0, garbage),
            "its video was not found; looked for": drop(f"{SAV}/sav_000001.mp4"),
            "'video_width' must be a whole number, got inf": put(file, "video_width", float("inf")),
            "is not JSON": text(file, "{"),
        },
        {"SA-V's split train not found": drop("sav_train"), "masklets must be": with_options(masklets="all")},
    )


def ref_sav():
    file, name = "Ref-SAV.json", "ref_sav"

    def make(root):
        make_sav(root)
        test_sav.write_phrases(root, test_sav.phrase(1, "The cup."), test_sav.phrase(0, "A dog"))
        path = f"{SAV}/sav_000002"
        second = {"video_path": f"{path}.mp4", "anno_path": f"{path}_manual.json"}
        second["objects"] = {"0": test_sav.phrase(0, "It")}
        change(root / file, lambda content: content.update(sav_000002=second))

    def expected(root):
        first = [COMES_LATER, NOT_LOOKED_FOR], said(("The cup.", 0), ("A dog", 1))
        second = [NOT_LOOKED_FOR], said(("It", 0))
        samples = [
            sav_sample(root, "sav_000001", 10, *first, name),
            sav_sample(root, "sav_000002", 12, *second, name),
        ]
        return [replace(one, id=f"ref_sav/{one.id}") for one in samples]

    at = ("sav_000001", "objects", "0")
    return Fixture(
        make,
        expected,
        {
            "obj_id 5 is not among the 2 masklets": put(file, *at, "obj_id", 5),
            "'formated' must be a non-empty text": put(file, *at, "formated", " ."),
            "its masklets not found; looked for": drop(f"{SAV}/sav_000001_manual.json"),
            "'anno_path' must be str, got None": put(file, "sav_000001", "anno_path", None),
        },
        {"is not JSON": text(file, "{"), "the annotation file not found": drop(file)},
    )


# ---------------------------------------------------------------- masks without texts


def vos_folders():
    module, size = test_vos_folders, (test_vos_folders.WIDTH, test_vos_folders.HEIGHT)
    zoo = "train/Annotations/zoo"

    def make(root):
        for video in ("den", "zoo"):
            module.draw_frames(root / "train/JPEGImages" / video)
        module.save(root / "train/Annotations/den/00001.png", module.ids((1, 3)))
        module.save(root / zoo / "00000.png", module.ids((1, 0), (3, 4), (255, 8)))
        module.save(root / zoo / "00002.png", module.ids((3, 5)))

    def expected(root):
        at = [block(size, x, 2, x + 2, 4) for x in range(9)]
        things = [of_clip(at[0], masks.empty(*size[::-1])), of_clip(at[4], at[5])]
        frames = {
            video: [str(root / f"train/JPEGImages/{video}/0000{number}.jpg") for number in range(3)]
            for video in ("den", "zoo")
        }
        den = Sample("den", "referring", *size, frames["den"], source="vos_folders")
        zoo = replace(den, id="zoo", frames=frames["zoo"], annotated=[0, 2], objects=things, ignore=[at[8], None])
        return [replace(den, annotated=[1], objects=[of_clip(at[3])]), zoo]

    return Fixture(
        make,
        expected,
        {
            "is a colour picture (mode RGB)": lambda root: Image.new("RGB", size, (128, 0, 0)).save(
                root / zoo / "00002.png"
            ),
            "00002.png is 5 x 5 (width x height) but its photo is 10 x 6": grey(f"{zoo}/00002.png", 5, 5),
            "there is no frame 2 for the mask": drop("train/JPEGImages/zoo/00002.jpg"),
            "there are no frames in": drop("train/JPEGImages/zoo"),
        },
        {"no folders of frames and of masks for split 'train'": drop("train/Annotations")},
    )


def youtube_vos():
    module, size = test_youtube_vos, (test_youtube_vos.WIDTH, test_youtube_vos.HEIGHT)
    file = "train/meta.json"

    def make(root):
        objects = {"1": module.thing("giant_panda", 0, 1, 2), "2": module.thing("giant_panda", 1, 2)}
        module.write(root, objects | {"3": module.thing("ape", 2)}, module.PICTURES)
        module.write(root, {"1": module.thing("ape", 0)}, [module.ids((1, 4)), None, None], video="den")

    def expected(root):
        at = [block(size, x, 2, x + 2, 4) for x in range(11)]
        frames = {
            video: [str(root / f"train/JPEGImages/{video}/{name}.jpg") for name in module.FRAMES]
            for video in ("den", "zoo")
        }
        zoo = Sample("zoo", "referring", *size, frames["zoo"], source="youtube_vos")
        zoo.objects = [
            Object([at[0], at[1], module.ABSENT], [None] * 3, "giant panda"),
            Object([None, at[5], at[6]], [None] * 3, "giant panda"),
            Object([None, None, at[9]], [None] * 3, "ape"),
        ]
        zoo.expressions = said(("every giant panda", 0, 1), ("ape", 2), kind="category")
        den = replace(zoo, id="den", frames=frames["den"], annotated=[0], objects=[Object([at[4]], [None], "ape")])
        return [zoo, replace(den, expressions=said(("ape", 0), kind="category"))]

    at = ("videos", "zoo", "objects")
    return Fixture(
        make,
        expected,
        {
            "object 2 has no 'frames'": cut(file, *at, "2", "frames"),
            "'category' must be str, got 3": put(file, *at, "2", "category", 3),
            "it has pixels but is not in meta.json": cut(file, *at, "2"),
            "video zoo must be a dict with objects, got list": put(file, "videos", "zoo", []),
        },
        {"meta.json not found; looked for": drop(file), "must have a dict 'videos'": put(file, "videos", {})},
    )


def paired_frames():
    module, size = test_paired_frames, (test_paired_frames.WIDTH, test_paired_frames.HEIGHT)

    def make(root):
        module.write(root, "a/masklet_data_0.npz", **module.pair())
        module.write(root, "b/masklet_data_0.npz", **module.pair(frame2=module.pixels(3)))

    def png(seed):
        buffer = io.BytesIO()
        Image.fromarray(module.pixels(seed)).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def expected(root):
        both = [thing(size, (x, 1, x + 2, 3)) for x in (0, 5)]
        pair = Object([one.masks[0] for one in both], [one.boxes[0] for one in both])
        frames = {"a": [png(1), png(2)], "b": [png(1), png(3)]}
        return [
            Sample(f"{name}/masklet_data_0", "referring", *size, own, objects=[pair], source="paired_frames")
            for name, own in frames.items()
        ]

    def empty(root):
        for name in "ab":
            shutil.rmtree(root / name)

    def damaged(**changes):
        return lambda root: module.write(root, "a/masklet_data_0.npz", **module.pair(**changes)) and None

    return Fixture(
        make,
        expected,
        {
            "mask1 covers no pixel: both frames must show the object": damaged(mask1=module.mask(0, 0)),
            "mask2 is (6, 5) but frame2 is (6, 8) (height, width)": damaged(mask2=module.mask(0)[:, :5]),
            "it cannot be read as npz": text("a/masklet_data_0.npz", ""),
        },
        {
            "there are no files masklet_data_*.npz below": lambda root: (
                [shutil.rmtree(root / name) for name in "ab"] and None
            )
        },
    )


# ---------------------------------------------------------------- relations


def spatial(kind, expressions, objects, texts, message, bad, targets=((0,), (1,))):
    """message, bad: why an expression is refused that stands in place of the first. targets: of each text."""
    module, name = test_spatial_relations, f"spatial_{kind}"
    file, boxes = f"all_vos2_{kind}_step2.json", "mask_to_box/all_vos2_bbox.json"
    size = (module.WIDTH, module.HEIGHT)

    def make(root):
        module.write(root, kind, *expressions)
        shutil.copytree(root / "JPEGImages/zoo", root / "JPEGImages/den")
        second = {"frames": module.FRAMES, "expressions": {"0": expressions[-1]}}
        change(root / file, lambda content: content["videos"].update(den=second))

    def expected(root):
        frames = {
            video: [str(root / f"JPEGImages/{video}/{frame}.jpg") for frame in module.FRAMES]
            for video in ("zoo", "den")
        }
        boxed = [Object([None] * 6, boxes) for boxes in objects]
        zoo = Sample(f"{name}/zoo", "referring", *size, frames["zoo"], objects=boxed, source=name)
        zoo.expressions = said(*((one, *meant) for one, meant in zip(texts, targets, strict=True)), kind=kind)
        den = replace(zoo, id=f"{name}/den", frames=frames["den"], objects=boxed[-1:])
        return [zoo, replace(den, expressions=said((texts[-1], 0), kind=kind))]

    return Fixture(
        make,
        expected,
        {
            message: put(file, "videos", "zoo", "expressions", "0", bad),
            "'start' and 'end' must rise within its 6 frames": put(file, "videos", "zoo", "start", 6),
            "1 of its 7 frames are missing": put(file, "videos", "zoo", "frames", [*module.FRAMES, "00099"]),
            "the folder of its frames was not found": drop("JPEGImages/zoo"),
        },
        {"must have a dict 'videos'": put(file, "videos", []), "is not JSON": text(boxes, "{")},
    )


def spatials():
    module = test_spatial_relations
    left, right = ([module.pixels(box) or (0.0,) * 4 for box in track] for track in (module.LEFT, module.RIGHT))
    second, absent = module.relative("right_3", 1, (9, 9, 28, 28)), (0.0,) * 4
    third = "the third object to the right of the one at [90, 180, 290, 580]"
    absolutes = ["the second object from the left", "the 11th object from the right"]
    switches = [module.switch((0, 0), (4, 1)), module.switch((0, 1), code="rightmost")]
    return {
        "spatial_relative": spatial(
            "relative",
            [module.relative("left_1"), second],
            [left, right],
            ["the first object to the left of the one at [600, 100, 700, 300]", third],
            "'exp' must be left_N or right_N with N from 1, got 'above_1'",
            module.relative("above_1"),
        ),
        "spatial_absolute": spatial(
            "absolute",
            [module.absolute(), module.absolute("right_11", 1)],
            [left, right],
            absolutes,
            "anno_id 7 is not among the 3 tracks of boxes",
            module.absolute(target=7),
        ),
        "spatial_switch": spatial(
            "switch",
            switches,
            [[*left[:4], absent, absent], [*[absent] * 4, *right[4:]], right],
            ["the leftmost object", "the rightmost object"],
            "the start frames of 'switches' must rise, they are frames [4, 1]",
            module.switch((4, 0), (1, 1)),
            targets=((0, 1), (2,)),
        ),
    }


def vos_relations():
    module, size = test_vos_relations, (test_vos_relations.WIDTH, test_vos_relations.HEIGHT)

    def make(root):
        for video in ("den", "zoo"):
            module.write(root, video, (1, 2), (2, 30))

    def expected(root):
        left, right = (
            Object([block(size, *box)] * 2, [tuple(map(float, box))] * 2) for box in ((2, 2, 6, 6), (30, 2, 34, 6))
        )
        phrases = {
            "the first object from the left": left,
            "the second object from the left": right,
            "the first object from the right": right,
            "the second object from the right": left,
        }
        orders = {"den": (3, 1, 2, 0), "zoo": (2, 0, 1, 3)}  # drawn by the id
        samples = []
        for video, order in orders.items():
            texts = [list(phrases)[number] for number in order]
            objects = [left, right] if phrases[texts[0]] is left else [right, left]
            frames = [str(root / f"train/JPEGImages/{video}/0000{number}.jpg") for number in range(2)]
            sample = Sample(video, "referring", *size, frames, objects=objects, source="vos_relations")
            sample.expressions = said(*((one, objects.index(phrases[one])) for one in texts), kind="absolute")
            samples.append(sample)
        return samples

    return Fixture(
        make,
        expected,
        {
            "00001.png is 5 x 5 (width x height)": grey("train/Annotations/zoo/00001.png", 5, 5),
            "there are no frames in": drop("train/JPEGImages/zoo"),
            "has no number at the end of its name": lambda root: (
                (root / "train/JPEGImages/zoo/00000.jpg").rename(root / "train/JPEGImages/zoo/first.jpg") and None
            ),
        },
        {
            "no folders of frames and of masks": drop("train/Annotations"),
            "base must be a source that gives masks": with_options(base="gone"),
        },
        options={"kinds": ["absolute"]},
    )


CLIPS = {
    "mevis": mevis(),
    "revos": revos(),
    "ref_youtube_vos": ref_youtube_vos(),
    "ref_davis17": ref_davis17(),
    "ref_sav": ref_sav(),
    "ref_sav_eval": ref_sav_eval(),
    "vos_folders": vos_folders(),
    "youtube_vos": youtube_vos(),
    "sav": sav(),
    "paired_frames": paired_frames(),
    **spatials(),
    "vos_relations": vos_relations(),
}
