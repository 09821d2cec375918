"""A mixture says how much each dataset counts, by repeats, by samples or by weights, and says what it does not know.

Run: pytest tests/test_mixtures.py
"""

import re
from pathlib import Path

import pytest

from sa2va_hf.data.sources import SOURCES
from sa2va_hf.mixtures import MixtureEntry, mixture

MIXTURES = sorted((Path(__file__).parents[1] / "configs" / "mixtures").glob("*.yaml"))


@pytest.fixture
def write(tmp_path):
    def write(text, name="mix.yaml"):
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_a_mixture_may_be_a_file_a_folder_or_a_list(write):
    path = write("- {path: a, repeats: 2.5}\n- b\n")
    expected = [MixtureEntry("a", 2.5), MixtureEntry("b", 1.0)]
    assert mixture(path, "train_data") == expected
    assert mixture([{"path": "a", "repeats": 2.5}, {"path": "b"}], "train_data") == expected
    assert mixture('[{"path": "a", "repeats": 2.5}, "b"]', "train_data") == expected
    assert mixture("folder", "train_data") == [MixtureEntry("folder", 1.0)]
    assert mixture(None, "eval_data") == []


def test_weights_share_out_an_epoch_level_by_level(write):
    path = write(
        "samples_per_epoch: 1600\nparts:\n"
        "  - {weight: 9, parts: [a, {path: b, weight: 2}]}\n"
        "  - {path: c, weight: 6, split: val}\n"
        "  - d\n"
    )
    assert mixture(path, "train_data") == [
        MixtureEntry("a", samples=300),
        MixtureEntry("b", samples=600),
        MixtureEntry("c", samples=600, split="val"),
        MixtureEntry("d", samples=100),
    ]


@pytest.mark.parametrize(("sampling", "replacement"), [("rates", True), ("interleave", False)])
def test_sampling_by_rates_changes_how_rows_are_chosen_and_no_share(write, sampling, replacement):
    text = "samples_per_epoch: 40\nparts: [{weight: 3, parts: [a, b]}, c]\n"
    path = write(f"sampling: {sampling}\n{text}")
    found = mixture(path, "train_data")
    assert [entry.samples for entry in found] == [15, 15, 10]
    assert [entry.replacement for entry in found] == [replacement] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- {path: x, sample: 3}", r"mix.yaml entry 1: unknown key `sample` \(did you mean `samples`\?\)"),
        ("- {path: x, samples: 3, repeats: 2}", "x: `samples` and `repeats` exclude each other"),
        ("- {path: x, samples: 0}", "`samples` of x: expected a number above 0"),
        ("parts: [a]", "mix.yaml: expected `samples_per_epoch` and `parts`, got parts"),
        ("samples_per_epoch: many\nparts: [a]", "`samples_per_epoch` expected a number, got 'many'"),
        ("samples_per_epoch: 0\nparts: [a]", "`samples_per_epoch` expected a number above 0"),
        ("samples_per_epoch: 5\nparts: []", "`parts` expected a non-empty list"),
        ("samples_per_epoch: 5\nparts: [{path: a, weight: -1}]", "entry 1: `weight` expected a number above 0"),
        (
            "samples_per_epoch: 5\nparts: [{path: a, repeats: 2}]",
            "entry 1: unknown key `repeats`; known: weight, path",
        ),
        ("samples_per_epoch: 5\nparts: [b, {path: a, parts: [c]}]", "entry 2: expected {path: DIR, weight: 1} or"),
        ("samples_per_epoch: 5\nparts: [b, {parts: [c, {x: 1}]}]", "entry 2 entry 2: expected {path: DIR"),
        ("samples_per_epoch: 5\nparts: [b]\nsampling: dice", "`sampling` expected interleave or rates, got 'dice'"),
        ("- {path: x, replacement: true}", "unknown key `replacement`"),
        ("samples_per_epoch: 5\nparts: [b]\nfamilies: 3", "unknown key `families`"),
        ("just words", "expected a list or a mapping"),
    ],
)
def test_what_is_wrong_is_named_with_file_and_entry(write, text, message):
    with pytest.raises(ValueError, match=message):
        mixture(write(text), "train_data")


@pytest.mark.parametrize("path", MIXTURES, ids=lambda path: path.stem)
def test_every_shipped_mixture_is_read_and_names_no_folder_twice(path):
    paths = [part.path for part in mixture(str(path), "train_data")]
    assert paths and len(paths) == len(set(paths))
    # A source that is prepared in several forms has each of them behind the split.
    names = [
        re.sub("_train(_phrases|_explained|_told|_crops)?$", "", one.removeprefix("data/prepared/")) for one in paths
    ]
    assert {re.sub(r"^llava_\d+k$", "llava", name) for name in names} <= set(SOURCES)


def test_the_published_shares():
    lisa = mixture(str(MIXTURES[0].parent / "lisa.yaml"), "train_data")
    assert sum(part.samples for part in lisa) == pytest.approx(500 * 160)
    assert [round(part.samples * 16 / 80000, 6) for part in lisa] == [1.8] * 5 + [0.75] * 4 + [3, 0.45, 0.45, 0.1]
    assert all(part.replacement for part in lisa), "LISA samples with replacement"
    vstar = {part.path.rsplit("/")[-1]: part.samples for part in mixture(str(MIXTURES[0].parent / "vstar.yaml"), "x")}
    assert sum(vstar.values()) == pytest.approx(2500 * 64)
    assert vstar["objects365_train"] == pytest.approx(160000 * 15 / 38 / 2)
    assert vstar["llava_80k_train"] == pytest.approx(160000 * 15 / 38 / 3)
    crops = {
        part.path.rsplit("/")[-1]: part.samples for part in mixture(str(MIXTURES[0].parent / "vstar_crops.yaml"), "x")
    }
    halves = {name.replace("_crops", ""): count for name, count in crops.items() if "_crops" in name}
    assert len(halves) == 3 and all(2 * count == pytest.approx(vstar[name]) for name, count in halves.items())
    assert sum(crops.values()) == pytest.approx(sum(vstar.values()))
