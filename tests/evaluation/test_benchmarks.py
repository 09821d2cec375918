"""Benchmarks from raw files to figures, with a predictor that draws what it is told to.

Run: pytest tests/evaluation/test_benchmarks.py
"""

import json
import weakref
import zipfile
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from drawer import CLIPS, PICTURES, SETTINGS, Drawer, given
from PIL import Image
from records import clip, picture, sample

from sa2va_hf import Sa2VAPredictor, masks
from sa2va_hf.data import media
from sa2va_hf.data.schema import Expression, Object, Reject
from sa2va_hf.evaluation import describing, referring, report, runner, video_conventions
from sa2va_hf.evaluation.benchmarks import BENCHMARKS, get_benchmark, load_items
from sa2va_hf.evaluation.following import Following
from sa2va_hf.evaluation.items import Answer, Item, Settings
from sa2va_hf.evaluation.referring import Referring


@pytest.fixture
def mask():
    found = np.zeros((30, 40), bool)
    found[2:9, 3:11] = True  # the object of records.sample
    return found


def evaluate(benchmark, predictor, output, settings=SETTINGS, **options):
    items, rejects = load_items(benchmark, None, settings)
    recipe = {"model": "a drawer"}
    return runner.run(
        "given", benchmark, items, rejects, lambda device: predictor, settings, recipe, output, **options
    )


# ---------------------------------------------------------------- names and files


def test_every_split_is_a_benchmark_of_its_own():
    assert {"refcoco_testA", "refcoco_testB", "refcoco+_val", "refcocog_test", "grefcoco_testB"} <= set(BENCHMARKS)
    with pytest.raises(ValueError, match="unknown benchmark 'refcoco_test'.*refcoco_testA, refcoco_testB"):
        get_benchmark("refcoco_test")
    with pytest.raises(ValueError, match="unknown benchmark 'coco'.*shapes"):
        get_benchmark("coco")


@pytest.mark.parametrize("name", [name for name, found in BENCHMARKS.items() if found.needs_root])
def test_a_root_without_its_files_is_an_error_that_names_them(name, tmp_path):
    with pytest.raises(ValueError, match=str(tmp_path)):
        load_items(BENCHMARKS[name], str(tmp_path), SETTINGS)
    with pytest.raises(ValueError, match="--root"):
        load_items(BENCHMARKS[name], None, SETTINGS)


def test_unknown_options_and_items_with_one_key_are_errors(tmp_path):
    with pytest.raises(ValueError, match="colour"):
        load_items(BENCHMARKS["shapes"], None, SETTINGS, options={"count": 1, "clips": 0, "colour": 1}, limit=1)
    with pytest.raises(ValueError, match="colour"):
        load_items(BENCHMARKS["sav_val"], str(tmp_path), SETTINGS, options={"colour": 1})
    one = sample("one", picture(tmp_path / "a.png"))
    with pytest.raises(ValueError, match="'one/0' occurs twice"):
        load_items(given(PICTURES, one, one), None, SETTINGS)
    items, rejects = load_items(given(PICTURES, one, Reject("two", "broken")), None, SETTINGS)
    assert (len(items), [reject.id for reject in rejects]) == (1, ["two"])


def test_prompts_are_those_released(tmp_path, mask):
    frame = picture(tmp_path / "a.png")
    drawer = Drawer(mask)
    evaluate(given(PICTURES, sample("a", frame)), drawer, tmp_path / "out" / "a.json")
    question = Expression("what runs?", [0])
    evaluate(
        given(CLIPS, sample("b", "", frames=[frame] * 2, num_frames=2, annotated=[0], expressions=[question])),
        drawer,
        tmp_path / "out" / "b.json",
    )
    assert drawer.asked == [
        "<image>\n Please segment it in this image.",
        "<image>\n what runs? Please respond with a segmentation mask.",
    ]
    assert describing.GCG_PROMPT.count("interleaved     segmentation") == 1
    assert json.loads((tmp_path / "out" / "a.json").read_text())["asked"]["prompts"] == [referring.PICTURE_PROMPT]


# ---------------------------------------------------------------- pictures and clips


def test_pictures(tmp_path, mask):
    frame = picture(tmp_path / "a.png")
    records = [sample("right", frame), sample("nothing", frame, expressions=[Expression("a ghost", [], "ghost")])]
    result = evaluate(given(PICTURES, *records), Drawer(mask, "[SEG] and [SEG]"), tmp_path / "m.json")
    figures = result["metrics"]
    assert figures["cIoU"] == pytest.approx(50, abs=1e-3)
    assert figures["gIoU"] == pytest.approx(50, abs=1e-3)
    assert (figures["emission"], figures["silence"], figures["expressions"]) == (100, 0, 2)
    assert set(figures["by_kind"]) == {"k", "ghost"}
    silent = evaluate(given(PICTURES, *records), Drawer(mask, "No."), tmp_path / "s.json")["metrics"]
    assert (silent["emission"], silent["silence"]) == (0, 100)
    taught = evaluate(given(PICTURES, *records), Drawer(mask), tmp_path / "t.json", Settings(mode="teacher"))
    assert taught["asked"]["answer"] == "Sure, [SEG]."


def test_a_target_without_pixels_is_still_a_target(tmp_path, mask):
    """Nothing true: that an expression means nothing (gRefCOCO), not that its mask is empty."""
    record = sample("a", picture(tmp_path / "a.png"))
    record.objects[0].masks[0] = masks.empty(30, 40)
    task = Referring(referring.picture_prompt, (), no_target=True)
    figures = evaluate(given(task, record), Drawer(mask, "No."), tmp_path / "m.json")["metrics"]
    assert (figures["T_acc"], figures["gIoU"]) == (0.0, 0.0)


def test_expressions_of_clips_that_mean_nothing_have_figures_of_their_own(tmp_path, mask):
    """MeViS's second version: all expressions count, and an empty answer to one that means nothing is right."""
    records = [clip(name, [picture(tmp_path / "a.png")] * 2) for name in "ab"]
    records[1].expressions = [Expression("a ghost", [])]
    task = BENCHMARKS["mevis_v2_val_u"].task
    drawn = evaluate(given(task, *records), Drawer(mask), tmp_path / "m.json")["metrics"]
    assert {name: drawn[name] for name in ("J&F", "N_acc", "T_acc", "total")} == {
        "J&F": 50,
        "N_acc": 0,
        "T_acc": 100,
        "total": 50,
    }
    assert (drawn["any with a target"]["J&F"], drawn["any with a target"]["expressions"]) == (100, 1)
    silent = evaluate(given(task, *records), Drawer(mask, "No."), tmp_path / "s.json")["metrics"]
    assert (silent["J&F"], silent["N_acc"], silent["T_acc"], silent["any with a target"]["J&F"]) == (50, 100, 0, 0)


def test_pictures_and_clips_of_one_benchmark_are_told_apart(tmp_path, mask):
    frame = picture(tmp_path / "a.png")
    ghost = Expression("a ghost", [], "ghost")
    records = [sample("a", frame), sample("b", frame, expressions=[ghost]), clip("c", [frame] * 2)]
    records[2].expressions.append(ghost)
    task = Referring(referring.shapes_prompt, (), no_target=True)
    figures = evaluate(given(task, *records), Drawer(mask), tmp_path / "m.json")["metrics"]
    kinds = figures["by_kind"]
    places = {"any with a target", "k", "ghost"}
    assert set(kinds) == {f"{medium}, {place}" for medium in ("pictures", "clips") for place in places}
    assert (kinds["pictures, any with a target"]["cIoU"], kinds["pictures, any with a target"]["emission"]) == (
        100,
        100,
    )
    assert (kinds["clips, any with a target"]["J&F"], kinds["clips, ghost"]["silence"]) == (100, 0)
    assert (figures["expressions"], figures["cIoU"], figures["J&F"]) == (4, 50, 50)
    table = (tmp_path / "m.md").read_text()
    assert "| cIoU | 50.00 |" in table and "| pictures, ghost | 1 |" in table


def test_ignored_pixels_do_not_count(tmp_path, mask):
    record = sample("a", picture(tmp_path / "a.png"), ignore=[masks.encode(~mask)])
    figures = evaluate(given(PICTURES, record), Drawer(np.ones_like(mask)), tmp_path / "m.json")["metrics"]
    assert figures["gIoU"] == pytest.approx(100, abs=1e-3)


def test_only_annotated_frames_of_a_clip_are_scored(tmp_path, mask):
    frame = picture(tmp_path / "a.png")
    figures = evaluate(given(CLIPS, clip("a", [frame] * 3)), Drawer(mask), tmp_path / "m.json")["metrics"]
    assert figures["J&F"] == figures["J"] == figures["F"] == 100.0


def test_a_long_clip_is_not_held_in_memory(tmp_path, monkeypatch, tiny_model, tiny_processor):
    """However long it is, only the frames that the LLM reads are open together, and one beside them."""
    frames = [picture(tmp_path / f"{number}.png") for number in range(24)]
    alive, most, load = set(), [0], media.load_image

    def counted(source):
        image = load(source)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most[0] = max(most[0], len(alive))
        return image

    monkeypatch.setattr(media, "load_image", counted)
    settings = Settings(mode="teacher", num_frames=3)
    items, _ = load_items(given(CLIPS, clip("c", frames)), None, settings)
    (answer,) = CLIPS.ask(Sa2VAPredictor(tiny_model, tiny_processor), items, settings)
    assert len(answer.masks[0]) == 24
    assert most[0] <= 5
    lazy = media.Frames(items[0].sample)
    assert len(lazy) == len(list(lazy)) == 24
    with pytest.raises(IndexError, match="frame 24 of 24"):
        lazy[24]


def test_revos_has_robustness_against_all_that_is_annotated(tmp_path, mask):
    frame = picture(tmp_path / "a.png")
    other = Object([masks.encode(~mask)], [None])
    record = clip("a", [frame] * 2)
    record.objects.append(other)
    record.expressions = [Expression("it", [0], "referring"), Expression("the rest?", [1], "reasoning")]
    task = Referring(referring.clip_prompt, (), robustness=True, summary=video_conventions.summarize_revos)
    figures = evaluate(given(task, record), Drawer(mask), tmp_path / "m.json")["metrics"]
    assert (figures["referring"]["J"], figures["referring"]["R"]) == (100.0, 100.0)
    share = 100 * mask.mean()  # drawn, and none of it right
    assert figures["reasoning"]["R"] == pytest.approx(100 - share, abs=0.01)
    assert figures["overall"]["J"] == 50.0


# ---------------------------------------------------------------- what people look at


def test_a_sheet_shows_the_frame_that_went_worst(tmp_path, mask):
    """The last annotated frame is not scored, and an object that comes later is scored from there on."""
    record = clip("v", [picture(tmp_path / "a.png")] * 5)
    record.annotated = [0, 1, 2, 3, 4]
    item = Item("v", record, "")
    late = {"1": [[0.9, 0.5, 0.9], [1.0] * 3], "2": [[0.3, 0.6], [1.0] * 2]}
    assert report._worst_frame(item, Answer("", figures={"objects": late})) == 2  # 0.9, 0.4, 0.75 on frames 1 to 3
    assert report._worst_frame(item, Answer("", figures={"objects": {}})) == 0
    assert report._worst_frame(item, Answer("", figures={"frames": {"J": [1, 1, 0, 1, 1]}})) == 2


@pytest.mark.parametrize("size", [(1600, 90), (90, 1600), (40, 30)])
def test_a_sheet_stays_small_whatever_is_shown_and_said(tmp_path, size):
    record = sample("a", picture(tmp_path / "a.png", size), size)
    item = Item("a/0", record, "<image>\n What is it?", targets=(0,), right="a dog")
    answer = Answer("word " * 2000 + "\n" * 500, figures={"score": 0.5})
    both, single = (report.contact_sheet_of([one], [answer]) for one in (item, replace(item, draws=False)))
    assert single.width <= both.width <= 2 * report.WIDTH + 20
    assert both.height <= report.HEIGHT + 300
    assert report._caption(item, Answer("It is\n a cat.", figures={"score": 0.5})) == (
        "0.500 a/0: What is it? - It is a cat. (right: a dog)"
    )
    assert report._caption(Item("v", record, ""), Answer("", figures={"score": 1})) == "1.000 v"


# ---------------------------------------------------------------- other tasks


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def test_vstar_bench(tmp_path, monkeypatch):
    for kind, options in (("direct_attributes", ["red", "blue"]), ("relative_position", ["left", "right"])):
        picture(tmp_path / kind / "sa_1.jpg")
        write(
            tmp_path / kind / "sa_1.json", {"question": "Which?", "options": options, "bbox": [], "target_object": []}
        )
    losses = {"red": 1.0, "blue": 2.0, "left": 3.0, "right": 3.0}  # equally likely ones are no right answer
    monkeypatch.setattr(describing, "answer_loss", lambda predictor, picture, question, answer: losses[answer])
    benchmark = BENCHMARKS["vstar_bench"]
    items, _ = load_items(benchmark, str(tmp_path), SETTINGS)
    run = (benchmark, items, [], lambda device: Drawer(None), SETTINGS, {}, tmp_path / "m.json")
    figures = runner.run("vstar_bench", *run)["metrics"]
    assert figures == {"questions": 2, "direct_attributes": 100.0, "relative_position": 0.0, "overall": 50.0}
    write(tmp_path / "direct_attributes" / "sa_2.json", {"question": "Which?", "options": ["one"]})
    assert "at least two texts" in load_items(benchmark, str(tmp_path), SETTINGS)[1][0].reason


def test_the_loss_of_an_answer(tiny_model, tiny_processor):
    """That of the model's own loss over the answer, and lower for what it would say."""
    predictor = SimpleNamespace(model=tiny_model, processor=tiny_processor)
    image = Image.new("RGB", (60, 50), "red")
    chat = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": "What?"}]}]
    chat.append({"role": "assistant", "content": [{"type": "text", "text": "a dog"}]})
    inputs = tiny_processor.apply_chat_template(chat, add_generation_prompt=False, return_labels=True)
    expected = tiny_model(**inputs).lm_loss.detach()
    assert describing.answer_loss(predictor, image, "What?", "a dog") == pytest.approx(float(expected), rel=1e-5)


def test_grounded_captions(tmp_path, mask, monkeypatch):
    picture(tmp_path / "GranDf_HA_images/val_test/img_1.jpg")
    parts = [{"id": 1, "image_id": "img_1", "segmentation": masks.encode(mask), "category_id": 1}]
    write(tmp_path / "val_gcg_coco_mask_gt.json", {"annotations": parts})
    captions = [{"id": 1, "image_id": "img_1", "caption": "a cat sits", "labels": ["a cat"]}]
    write(tmp_path / "val_gcg_coco_caption_gt.json", {"annotations": captions})
    benchmark = BENCHMARKS["gcg_val"]
    items, rejects = load_items(benchmark, str(tmp_path), SETTINGS)
    assert not rejects and items[0].sample.objects[0].category == "a cat"
    monkeypatch.setattr(
        describing, "caption_scores", lambda true, said: {"said": float(said == {"grand_f/img_1": "a cat sits"})}
    )
    monkeypatch.setattr(describing, "text_encoder", lambda folder: lambda texts: [[len(t), 1.0] for t in texts])
    drawer = Drawer(mask, "<p> a cat </p> [SEG] sits")
    for encoder, expected in ((None, None), ("bert", 100.0)):
        settings = Settings(text_encoder=encoder)
        run = (benchmark, items, [], lambda device: drawer, settings, {}, tmp_path / f"{encoder}.json")
        figures = runner.run("gcg_val", *run)["metrics"]
        assert (figures["AP50"], figures["mIoU"], figures["said"]) == (100.0, 100.0, 100.0)
        assert figures.get("recall") == expected
        assert ("recall_missing" in figures) == (expected is None)
    write(tmp_path / "val_gcg_coco_caption_gt.json", {"annotations": [captions[0] | {"labels": ["a", "b"]}]})
    assert "got 1 masks, 2 labels" in load_items(benchmark, str(tmp_path), SETTINGS)[1][0].reason


def test_captions_are_cleaned_as_released():
    assert describing.clean_caption("<p> A cat </p>  [SEG] sits\n.") == "A cat sits."
    assert describing.phrases_of("<p> A cat </p> [SEG] on <p>a mat</p> [SEG]") == ["A cat", "a mat"]
    assert describing.clean_region_caption("The region marked by region1 shows: a dog.") == "a dog."


def test_region_captions(tmp_path, mask, monkeypatch):
    seen = {}
    monkeypatch.setattr(describing, "caption_scores", lambda true, said: seen.update(true=true, said=said) or {})
    record = sample("a", picture(tmp_path / "a.png"))
    record.expressions = [Expression("a dog", [0]), Expression("the brown dog", [0]), Expression("nobody", [])]
    evaluate(given(describing.RegionCaption(), record), Drawer(mask, "a dog"), tmp_path / "m.json")
    assert seen["true"] == {"a/0/0": ["a dog"], "a/0/1": ["the brown dog"]}  # a sentence at a time
    assert seen["said"] == {"a/0/0": "a dog", "a/0/1": "a dog"}
    assert describing.clean_region_caption("region1 shows a cat") == "a cat"
    with pytest.raises(ValueError, match="do not apply"):
        describing.RegionCaption().record(Settings(mode="teacher"))


def test_a_region_too_small_for_the_model_counts_without_a_caption(tmp_path, mask, monkeypatch):
    def check_region(region):
        if region.sum() < 10:
            raise ValueError("the region mask covers no cell")

    predictor = Drawer(mask, "a dog")
    predictor.processor.check_region = check_region
    seen = {}
    monkeypatch.setattr(describing, "caption_scores", lambda true, said: seen.update(said) or {})
    small = np.zeros_like(mask)
    small[0, 0] = True
    records = [sample(name, picture(tmp_path / "a.png")) for name in "ab"]
    records[1].objects[0].masks[0] = masks.encode(small)
    task = describing.RegionCaption()
    result = evaluate(given(task, *records), predictor, tmp_path / "m.json", batch_size=2)
    assert seen == {"a/0/0": "a dog", "b/0/0": ""}
    assert (result["metrics"]["regions"], result["metrics"]["unanswered"]) == (2, 1)


def test_a_submission_is_a_zip_of_every_frame(tmp_path, mask):
    for number in range(2):
        picture(tmp_path / f"valid/JPEGImages/v/{number:05d}.jpg")
    video = {"frames": ["00000", "00001"], "expressions": {"0": {"exp": "it"}, "10": {"exp": "what?"}}}
    write(tmp_path / "meta_expressions/valid/meta_expressions.json", {"videos": {"v": video}})
    benchmark = BENCHMARKS["ref_youtube_vos"]
    items, _ = load_items(benchmark, str(tmp_path), SETTINGS)
    contents = []
    for name in ("a", "b"):
        run = (benchmark, items, [], lambda device: Drawer(mask), SETTINGS, {}, tmp_path / f"{name}.json")
        assert runner.run("ref_youtube_vos", *run)["metrics"] == {"expressions": 2, "emission": 100.0}
        contents.append((tmp_path / f"{name}.zip").read_bytes())
    assert contents[0] == contents[1]
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        names = archive.namelist()
        drawn = np.asarray(Image.open(archive.open("Annotations/v/10/00001.png")))
    assert names == [f"Annotations/v/{key}/{frame}.png" for key in ("0", "10") for frame in ("00000", "00001")]
    np.testing.assert_array_equal(drawn, mask * 255)


def following(tmp_path, mask):
    late = np.roll(mask, 15, axis=1)
    frame = picture(tmp_path / "a.png")
    record = sample("v", "", frames=[frame] * 4, num_frames=4, annotated=[0, 1, 2, 3], expressions=[])
    empty = masks.encode(np.zeros_like(mask))
    record.objects = [
        Object([masks.encode(mask)] * 4, [None] * 4),
        Object([empty, *[masks.encode(late)] * 3], [None] * 4),
    ]
    return record


def test_a_pixel_is_of_one_object_unless_objects_may_overlap(tmp_path, mask, tiny_model, tiny_processor):
    record = sample("v", "", frames=[picture(tmp_path / "a.png")] * 3, num_frames=3, annotated=[0], expressions=[])
    record.objects = [Object([masks.encode(mask)], [None]), Object([masks.encode(~mask)], [None])]
    predictor = SimpleNamespace(model=tiny_model, processor=tiny_processor)
    drawn = {}
    for overlap in (False, True):
        benchmark = given(Following("sa_v", overlap), record)
        items, _ = load_items(benchmark, None, SETTINGS)
        (answer,) = benchmark.task.ask(predictor, items, SETTINGS)
        drawn[overlap] = np.array([[masks.decode(rle) for rle in track] for track in answer.masks])
    assert not drawn[False].all(0).any()
    assert drawn[True].all(0).any()  # the tiny SAM 2 draws both nearly everywhere
    assert (drawn[False].any(0) == drawn[True].any(0)).all()


def test_a_clip_without_an_object_where_it_is_scored_has_no_part_in_the_figures(tmp_path, mask):
    record = following(tmp_path, mask)
    empty = masks.empty(30, 40)
    record.objects = [Object([masks.encode(mask), empty, empty, empty], [None] * 4)]  # the first frame is not scored
    records = [record, replace(following(tmp_path, mask), id="w")]
    benchmark = given(Following("sa_v"), *records)
    items, _ = load_items(benchmark, None, SETTINGS)
    answers = [Answer("", [thing.masks for thing in one.objects]) for one in records]
    for item, answer in zip(items, answers, strict=True):
        answer.figures = benchmark.task.score(item, answer)
    assert answers[0].figures == {"score": 1.0, "objects": {}}
    assert benchmark.task.summarize(items, answers)["objects"] == 2


@pytest.mark.parametrize(("convention", "objects"), [("sa_v", 2), ("davis", 1)])
def test_objects_are_followed_from_their_first_mask(
    tmp_path, mask, convention, objects, monkeypatch, tiny_model, tiny_processor
):
    """The tiny SAM 2 draws noise: that every frame is there, in size and form, is what can be seen of it."""
    record = following(tmp_path, mask)
    predictor = SimpleNamespace(model=tiny_model, processor=tiny_processor)
    benchmark = given(Following(convention), record)
    items, _ = load_items(benchmark, None, SETTINGS)
    (answer,) = benchmark.task.ask(predictor, items, SETTINGS)
    assert [len(track) for track in answer.masks] == [4, 4]
    assert masks.area(answer.masks[1][0]) == 0  # before it was shown
    answer.masks = [[*thing.masks] for thing in record.objects]  # as if it were right
    if convention == "davis":
        answer.masks[1] = [masks.empty(30, 40)] * 4  # only the objects of the first frame exist
    answer.figures = benchmark.task.score(items[0], answer)
    figures = benchmark.task.summarize(items, [answer])
    assert (figures["J&F"], figures["objects"]) == (100.0, objects)
    with pytest.raises(ValueError, match="^expected masks of 2 objects, got 0"):
        benchmark.task.score(items[0], Answer(""))
