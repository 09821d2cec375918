"""The only door: what a conversation becomes, token by token, and what it must not be.

Run: pytest tests/model/test_processing.py
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import tiny_processor, tiny_tokenizer
from tokenizers import Tokenizer
from transformers import AutoProcessor, PreTrainedTokenizerFast

from sa2va_hf import Sa2VAProcessor
from sa2va_hf.model.pictures import choose_grid, to_tiles
from sa2va_hf.model.processing_sa2va import TEMPLATES


@pytest.fixture(scope="module")
def processor() -> Sa2VAProcessor:
    return tiny_processor()


def picture(size: tuple[int, int] = (100, 60), seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size)


def user(text: str, image=None, video=None, regions=()) -> dict:
    content = [{"type": "image", "image": image}] if image is not None else []
    content += [{"type": "video", "video": video}] if video is not None else []
    content += [{"type": "region", "mask": mask} for mask in regions]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def said(text: str) -> dict:
    return {"role": "assistant", "content": [{"type": "text", "text": text}]}


def region(size: tuple[int, int] = (100, 60)) -> np.ndarray:
    mask = np.zeros(size[::-1], bool)
    mask[: size[1] // 2] = True
    return mask


def train(processor, *chats, **options):
    return processor.apply_chat_template(
        list(chats), add_generation_prompt=False, padding=True, return_labels=True, **options
    )


# ---------------------------------------------------------------- text


@pytest.mark.parametrize(
    ("template", "before", "after", "end"),
    [
        ("qwen_chat", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("internlm2_chat", "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        ("phi3_chat", "<|user|>\n", "<|end|>\n<|assistant|>\n", "<|end|>"),
    ],
)
def test_a_conversation_is_written_as_the_released_models_read_it(template, before, after, end):
    processor = tiny_processor(template=template)
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    asked = [user("What is it?", image=picture((50, 50)))]
    assert processor.apply_chat_template(asked, tokenize=False) == f"{before}{block}\nWhat is it?{after}"
    told = [*asked, said(" A dog. "), user("Where?"), said("It is [SEG].")]
    written = processor.apply_chat_template(told, tokenize=False, add_generation_prompt=False)
    turns = (f"{block}\nWhat is it?", "A dog."), ("Where?", "It is [SEG].")
    assert written == "".join(f"{before}{q}{after}{a}{end}\n" for q, a in turns)


def test_there_is_no_system_prompt_and_no_bos_unless_asked(processor):
    ids = processor.apply_chat_template([user("Hi")])["input_ids"][0].tolist()
    assert processor.decode(ids) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    tokenizer = tiny_tokenizer()
    tokenizer.bos_token = "<|endoftext|>"
    with_bos = Sa2VAProcessor(tokenizer, add_bos=True, tile_size=56)
    assert with_bos.apply_chat_template([user("Hi")])["input_ids"][0].tolist() == [tokenizer.bos_token_id, *ids]


def test_labels_cover_the_answers_and_their_suffix_and_nothing_else(processor):
    turns = [("What is it?", "A dog."), ("Segment it.", "Sure, [SEG]."), ("Thanks", "Bye")]
    messages = [m for q, a in turns for m in (user(q), said(a))]
    messages[0] = user("What is it?", image=picture())
    inputs = train(processor, messages)
    labels, ids = inputs["labels"][0], inputs["input_ids"][0]
    learned = labels != -100
    assert (labels[learned] == ids[learned]).all()
    assert processor.decode(labels[learned]) == "".join(f"{answer}<|im_end|>" for _, answer in turns)


def test_the_prompt_of_training_is_that_of_inference(processor):
    asked = [user("Please segment the dog.", image=picture())]
    prompt = processor.apply_chat_template(asked)["input_ids"][0]
    forced = [*asked, said("It is [SEG].")]
    for inputs in (
        train(processor, forced),
        processor.apply_chat_template(forced, add_generation_prompt=False),
    ):
        torch.testing.assert_close(inputs["input_ids"][0][: len(prompt)], prompt)


def test_a_placeholder_says_where_the_picture_goes(processor):
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    image = picture((50, 50))

    def written(*messages):
        return processor.apply_chat_template(list(messages), tokenize=False)

    assert f"user\nLook: {block} there.<" in written(user("Look: <image> there.", image=image))
    assert f"user\n{block}\nHi.<" in written(user("<image>\nHi.", image=image))
    later = written(user("Hi.", image=image), said("Yes?"), user("See <image>."))
    assert f"See {block}." in later and later.count("<IMG_CONTEXT>") == 4
    with pytest.raises(ValueError, match="'<image>' is in the text"):
        written(user("<image>\nHi."))
    with pytest.raises(ValueError, match="'<image>' is in the text"):
        written(user("<image> and <image>", image=image))


def test_a_text_with_braces_is_taken_as_it_is(processor):
    assert "{input} {0} {}" in processor.apply_chat_template([user("{input} {0} {}")], tokenize=False)


def test_frames_and_regions_are_named_in_the_text(processor):
    video = processor.apply_chat_template([user("Hi", video=[picture()] * 3)], tokenize=False)
    block = "<img>" + "<IMG_CONTEXT>" * 4 + "</img>"
    assert f"user\n{block}\n{block}\n{block}\nHi<" in video
    masks = [region((50, 50)), ~region((50, 50))]
    text = processor.apply_chat_template([user("Hi", image=picture((50, 50)), regions=masks)], tokenize=False)
    vp = "<vp><IMG_CONTEXT><IMG_CONTEXT></vp>"
    assert f"{block}\nThere are 2 part regions in the picture: region1{vp}, region2{vp}.\nHi<" in text


def test_an_unknown_template_lists_those_there_are():
    with pytest.raises(ValueError, match="internlm2_chat.*'llama'"):
        tiny_processor(template="llama")
    assert set(TEMPLATES) == {"qwen_chat", "internlm2_chat", "phi3_chat", "vicuna"}
    assert tiny_processor(template="phi3-chat").stop_strings == ["<|end|>"]  # released configs write "-"


def test_special_tokens_that_are_not_single_are_refused():
    description = json.loads(tiny_tokenizer().backend_tokenizer.to_str())
    description["added_tokens"] = []
    plain = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(json.dumps(description)))
    with pytest.raises(ValueError, match=r"\[SEG\].*single tokens"):
        Sa2VAProcessor(plain)


# ---------------------------------------------------------------- lengths


CONVERSATIONS = {
    "text": dict(turns=[("What is a dog?", "An animal.")]),
    "one tile": dict(turns=[("Segment the dog.", "It is [SEG].")], size=(50, 50)),
    "tiles and thumbnail": dict(turns=[("Segment the dog.", "[SEG].")], size=(200, 100)),
    "many turns": dict(turns=[("a?", "b [SEG]"), ("c", " d "), ("the left one?", "[SEG][SEG]")], size=(90, 300)),
    "placeholder": dict(turns=[("Look: <image> Is it red?", "No.")], size=(100, 100)),
    "late placeholder": dict(turns=[("Hello", "Hi"), ("And <image>?", "Red.")], size=(100, 100)),
    "one frame": dict(turns=[("What moves?", "It is [SEG].")], size=(70, 50), frames=1),
    "video": dict(turns=[("What moves?", "It is [SEG]."), ("?", "!")], size=(70, 50), frames=6),
    "region": dict(turns=[("What is region1?", "A dog.")], size=(100, 60), regions=[region()]),
    "regions": dict(turns=[("region1 or region2?", "[SEG]")], size=(100, 60), regions=[region(), ~region()]),
    "accents": dict(turns=[("Où est l’élève — 学生?", "Ça, c’est [SEG] 🙂.")], size=(100, 60)),
}


@pytest.mark.parametrize("name", CONVERSATIONS)
@pytest.mark.parametrize("template", ["qwen_chat", "phi3_chat"])
def test_the_length_is_known_without_pixels(name, template):
    case, processor = CONVERSATIONS[name], tiny_processor(template=template)
    turns, size, frames, regions = (case.get(key) for key in ("turns", "size", "frames", "regions"))
    expected = processor.num_tokens(
        turns, image_size=size, num_frames=frames or 1, video=bool(frames), region_masks=regions
    )
    messages = [m for q, a in turns for m in (user(q), said(a))]
    visual = {"video": [picture(size)] * frames} if frames else {"image": picture(size)} if size else {}
    messages[0] = user(turns[0][0], **visual, regions=regions or ())
    assert train(processor, messages)["input_ids"].shape == (1, expected)


def test_a_batch_is_its_conversations_padded_on_the_right(processor):
    chats = [
        [user("Segment the dog.", image=picture((200, 100))), said("[SEG].")],
        [user("What is a dog? Say it at length, in many words."), said("An animal.")],
        [user("What moves?", video=[picture((70, 50), seed) for seed in range(3)]), said("[SEG]")],
        [user("region1?", image=picture(seed=5), regions=[region()]), said("A cat.")],
    ]
    batch, alone = train(processor, *chats), [train(processor, chat) for chat in chats]
    for i, one in enumerate(alone):
        length = one["input_ids"].shape[1]
        for key, padding in (("input_ids", 0), ("attention_mask", 0), ("labels", -100)):
            torch.testing.assert_close(batch[key][i, :length], one[key][0])
            assert (batch[key][i, length:] == padding).all()
    pictures = [one for one in alone if "pixel_values" in one]
    for key in ("pixel_values", "grounding_pixel_values"):
        torch.testing.assert_close(batch[key], torch.cat([one[key] for one in pictures]))
    assert batch["num_frames"].tolist() == [1, 0, 3, 1]
    tiles = [len(one["pixel_values"]) for one in pictures]
    assert batch["region_tiles"].tolist() == [sum(tiles) - 1]  # the last tile of the last picture
    with pytest.raises(ValueError, match="padding=True"):
        processor.apply_chat_template(chats, add_generation_prompt=False)


# ---------------------------------------------------------------- pixels


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (1, 1)),
        ((640, 640), (2, 2)),  # of equal aspect the larger grid, if it is at least half filled
        ((1000, 1000), (3, 3)),
        ((800, 600), (4, 3)),
        ((640, 480), (4, 3)),
        ((1800, 1200), (3, 2)),
        ((448, 896), (1, 2)),
        ((4480, 300), (12, 1)),
        ((300, 4480), (1, 12)),
    ],
)
def test_the_grid_nearest_in_aspect_is_chosen(size, grid):
    assert choose_grid(*size, min_tiles=1, max_tiles=12, tile_size=448) == grid


def test_tiles_are_row_major_and_the_thumbnail_comes_last():
    image = picture((112, 168))
    tiles = to_tiles(image, (2, 3), 56, thumbnail=True)
    assert len(tiles) == 7 and {tile.size for tile in tiles} == {(56, 56)}
    rows = [np.hstack([np.asarray(tile) for tile in tiles[2 * r : 2 * r + 2]]) for r in range(3)]
    np.testing.assert_array_equal(np.vstack(rows), np.asarray(image))
    np.testing.assert_array_equal(np.asarray(tiles[-1]), np.asarray(image.resize((56, 56))))
    assert len(to_tiles(image, (1, 1), 56, thumbnail=True)) == 1


def test_pixels_of_both_halves(processor):
    image = picture((50, 50))
    inputs = processor.apply_chat_template([user("Hi", image=image)])
    small = torch.from_numpy(np.array(image.resize((56, 56)))).permute(2, 0, 1).double() / 255
    mean, std = (
        torch.tensor(v, dtype=torch.float64).view(3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    assert inputs["pixel_values"].dtype == torch.float32
    torch.testing.assert_close(inputs["pixel_values"][0].double(), (small - mean) / std, rtol=1e-5, atol=1e-5)
    assert inputs["grounding_pixel_values"].dtype == torch.uint8
    square = np.array(image.resize((128, 128))).transpose(2, 0, 1)
    np.testing.assert_array_equal(inputs["grounding_pixel_values"][0].numpy(), square)


@pytest.mark.parametrize("size", [(100, 60), (61, 333), (17, 16), (5, 9)])
def test_region_cells_are_torchs_nearest(size):
    processor = tiny_processor(tile_size=448)  # the released grid of 16
    mask = np.random.default_rng(0).random(size[::-1]) < 0.5
    resized = F.interpolate(torch.from_numpy(mask)[None, None].float(), size=(16, 16), mode="nearest")[0, 0]
    np.testing.assert_array_equal(processor.region_cells(mask), resized.numpy() > 0)


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGBA", "CMYK", "1"])
def test_pictures_of_other_modes_go_in(processor, mode):
    image = picture().convert("L").convert(mode) if mode in ("LA", "P", "1") else picture().convert(mode)
    inputs = processor.apply_chat_template([user("Hi", image=image)])
    expected = processor.apply_chat_template([user("Hi", image=image.convert("RGB"))])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])


def test_a_rotated_photo_goes_in_upright(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    picture((100, 60)).rotate(90, expand=True).save(tmp_path / "phone.png", exif=exif)
    inputs = processor.apply_chat_template([user("Hi", image=str(tmp_path / "phone.png"))])
    expected = processor.apply_chat_template([user("Hi", image=picture((100, 60)))])
    torch.testing.assert_close(inputs["pixel_values"], expected["pixel_values"])


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one user turn"),
        ([said("Hi")], "must follow a user turn"),
        ([user("a"), said("b"), said("c")], "must follow a user turn"),
        ([user("a"), user("b")], "user turn 0 has no answer"),
        ([{"role": "tool", "content": "You are"}, user("a")], "expected 'system', 'user' or 'assistant', got 'tool'"),
        ([user("a", image=picture(), video=[picture()])], "got a second video"),
        ([user("a", image=picture()), said("b"), user("c", image=picture())], "got a second image"),
        ([{"role": "user", "content": [{"type": "sound", "sound": 1}]}], "got 'sound'"),
        ([user("a", video=[])], "at least one frame"),
        ([user("a", video=[picture(), picture((9, 9))])], "one size"),
        ([user("a", image="absent.png")], "absent.png"),
        ([user("a", regions=[region()])], "a region needs one image before it"),
        ([user("a", video=[picture()], regions=[region()])], "a region needs one image before it"),
        ([user("a", image=picture(), regions=[region().T])], r"\(100, 60\), its image is \(60, 100\)"),
        ([user("a", image=picture(), regions=[np.zeros((60, 100), bool)])], "covers no cell of the 2 grid"),
    ],
)
def test_a_conversation_that_cannot_be_is_refused(processor, messages, message):
    with pytest.raises(ValueError, match=message):
        processor.apply_chat_template(messages)


def test_answered_and_unanswered_do_not_mix_up(processor):
    with pytest.raises(ValueError, match="is answered, but add_generation_prompt=True"):
        processor.apply_chat_template([user("a"), said("b")])
    with pytest.raises(ValueError, match="not answered, but add_generation_prompt=False"):
        processor.apply_chat_template([user("a")], add_generation_prompt=False)
    with pytest.raises(TypeError, match="truncation"):
        processor.apply_chat_template([user("a")], truncation=True)


# ---------------------------------------------------------------- files


def test_a_saved_processor_comes_back(tmp_path):
    processor = tiny_processor(template="phi3_chat", max_tiles=3, add_bos=False)
    processor.save_pretrained(tmp_path)
    messages = [user("Segment the dog.", image=picture((200, 90)), regions=[region((200, 90))]), said("[SEG].")]
    for again in (Sa2VAProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(again, Sa2VAProcessor)
        a, b = train(processor, messages), train(again, messages)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key])
    assert Sa2VAProcessor.from_pretrained(tmp_path).template == "phi3_chat"
    assert Sa2VAProcessor.from_pretrained(tmp_path, template="qwen_chat").template == "qwen_chat"
    with pytest.raises(ValueError, match="'llama'"):
        Sa2VAProcessor.from_pretrained(tmp_path, template="llama")
