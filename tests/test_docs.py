"""README and docs: their commands resolve, their Python runs, their links and file names lead somewhere.

A block that cannot run offline on a CPU has `<!-- not run: REASON -->` in the line above it and is only parsed.

Run: pytest tests/test_docs.py
"""

import ast
import itertools
import re
import shlex
from dataclasses import dataclass, fields
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = {"sa2va_hf/data/sources/yours.py", "tests/data/sources/test_yours.py", "scripts/NAME.py", "scripts/FILE.py"}
OTHER_PROGRAMS = {"bash", "cp", "done", "for", "hf", "pip", "sbatch", "source"}
ELSEWHERE = re.compile(
    r"\bhf |\bpip install|--push_to_hub|--multi_gpu|--nproc_per_node [48]|--num_processes [48]|sbatch"
)
PLACEHOLDERS = {"NAME", "auto", "list", "yours"}


@dataclass
class Block:
    page: Path
    line: int
    language: str
    text: str
    reason: str  # why it is not run, or nothing

    def __str__(self):
        return f"{self.page.name}:{self.line}"


def blocks(page, language):
    lines, found = page.read_text(encoding="utf-8").splitlines(), []
    for number, line in enumerate(lines):
        if line == f"```{language}":
            end = lines.index("```", number + 1)
            note = re.fullmatch(r"<!-- not run: (.+) -->", lines[number - 1]) if number else None
            found.append(
                Block(page, number + 1, language, "\n".join(lines[number + 1 : end]), note[1] if note else "")
            )
    return found


SHELL = [block for page in PAGES for block in blocks(page, "bash")]
PYTHON = [page for page in PAGES if any(not block.reason for block in blocks(page, "python"))]


def commands(text):
    """The lines of a shell block as lists of words, without comments; continued lines are joined."""
    words = [shlex.split(line, comments=True) for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in words if line]


def program(words):
    """(module of sa2va_hf.commands or script, its arguments), or None for a program of others."""
    from sa2va_hf.commands import COMMANDS

    for i, word in enumerate(words):
        if script := re.fullmatch(r"scripts/(\w+)\.(py|sh|sbatch)", word):
            assert (ROOT / word).is_file(), f"{word} does not exist"
            return {"train.sbatch": "train"}.get(Path(word).name, script[1]), words[i + 1 :]
        if word == "sa2va":
            return COMMANDS[words[i + 1]][0], words[i + 2 :]
        if module := re.fullmatch(r"sa2va_hf\.commands\.(\w+)", word):
            return module[1], words[i + 1 :]
    return None


def known_flags(name):
    """The flags of a command, as its parser or its argument classes declare them."""
    if name in ("train", "train_sam2", "train_dual_loop"):
        from sa2va_hf.arguments import ARGUMENTS
        from sa2va_hf.training.dual_loop.arguments import DUAL_LOOP_ARGUMENTS
        from sa2va_hf.training.sam2.arguments import SAM2_ARGUMENTS

        kinds = {"train_sam2": SAM2_ARGUMENTS, "train_dual_loop": DUAL_LOOP_ARGUMENTS}.get(name, ARGUMENTS)
        return {f"--{field.name}" for kind in kinds for field in fields(kind) if field.init}
    if not (ROOT / f"sa2va_hf/commands/{name}.py").is_file():  # quickstart, test.sh
        text = "".join(path.read_text() for path in (ROOT / "scripts").glob(f"{name}.*"))
        return set(re.findall(r"--[a-z_]+", text))
    parsers, flags = [import_module(f"sa2va_hf.commands.{name}").make_parser()], set()
    while parsers:
        for action in parsers.pop()._actions:
            flags |= set(action.option_strings)
            if isinstance(action.choices, dict):
                parsers += action.choices.values()
    return flags


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_commands_resolve(block):
    from sa2va_hf.data.sources import SOURCES
    from sa2va_hf.evaluation.benchmarks import BENCHMARKS

    for words in commands(block.text):
        while words[0] in ("do", "...") or re.match(r"[A-Z_0-9]+=", words[0]):
            words = words[1:]
        found = program(words)
        if found is None:
            assert words[0] in OTHER_PROGRAMS, f"{block}: unknown program {words[0]}"
            continue
        name, arguments = found
        flags = known_flags(name)
        for word, value in itertools.zip_longest(arguments, arguments[1:]):
            flag = word.split("=")[0]
            assert not flag.startswith("--") or flag in flags, f"{block}: {name} has no {flag}"
            if re.match(r"(configs|ds_configs)/", word):
                assert (ROOT / word).is_file(), f"{block}: {word} does not exist"
            names = {"--source": SOURCES, "--benchmark": BENCHMARKS}.get(flag)
            if names and name in ("prepare_data", "evaluate"):
                assert value in PLACEHOLDERS or value in names, f"{block}: {flag} {value}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_what_cannot_run_here_is_marked(block):
    assert bool(ELSEWHERE.search(block.text)) <= bool(block.reason), f"{block}: mark it with <!-- not run: REASON -->"


def scene(size=(128, 128), shift=0):
    image = Image.new("RGB", size, "gray")
    ImageDraw.Draw(image).ellipse((30 + shift, 30, 70 + shift, 70), fill="red")
    ImageDraw.Draw(image).rectangle((80, 80, 110, 110), fill="blue")
    return image


def write_video(path, frames):
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


@pytest.mark.parametrize("page", PYTHON, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """One after another, in one namespace, in a folder with an image and a video."""
    monkeypatch.chdir(tmp_path)
    a, b = scene(), scene(shift=20)
    a.save("photo.png")
    write_video("clip.mp4", [scene(shift=shift) for shift in (0, 5, 10)])
    namespace = {"a": a, "b": b, "mask": np.asarray(a)[..., 0] > 200, "np": np}
    for block in blocks(page, "python"):
        code = compile("\n" * block.line + block.text, str(page), "exec")
        if not block.reason:
            exec(code, namespace)


def test_every_file_that_a_page_names_exists():
    missing = []
    for page in PAGES:
        named = re.findall(
            r"(?<![\w/])(?:scripts|configs|ds_configs|tests|sa2va_hf|docs)/[\w/.+-]*\w", page.read_text()
        )
        missing += [f"{page.name}: {name}" for name in named if name not in EXAMPLES and not (ROOT / name).exists()]
    assert not missing


def anchors(page):
    headings = re.findall(r"^#+ (.*)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere():
    broken = []
    for page in PAGES:
        for target, _, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(#([^)]*))?\)", page.read_text()):
            other = (page.parent / target) if target else page
            if not other.exists() or (anchor and anchor not in anchors(other)):
                broken.append(f"{page.name}: {target}#{anchor}")
    assert not broken


def test_readme_is_a_front_page():
    text = (ROOT / "README.md").read_text()
    assert text.count("\n") <= 150
    linked = set(re.findall(r"\(docs/([\w.]+)", text))
    assert {page.name for page in PAGES[1:]} <= linked, "README links every page"


def test_error_messages_of_the_troubleshooting_page_are_printed_by_the_package():
    page = (ROOT / "docs/troubleshooting.md").read_text()
    files = [*(ROOT / "sa2va_hf").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    texts = [
        node.value
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    said = "\n".join([*texts, (ROOT / "scripts/setup_env.sh").read_text()])
    foreign = {"[SEG]", "No such file or directory: 'ninja'", "Connection closed by peer", "Unrecognized model in",
               "model type", "the NVIDIA driver on your system is too old"}  # fmt: skip
    first = [row.split(" | ")[0] for row in re.findall(r"^\| (.*) \|$", page, flags=re.MULTILINE)]
    pieces = [piece for cell in first for piece in re.findall(r"`([^`]+)`", cell)]
    assert len(pieces) > 20
    assert not [piece for piece in pieces if piece not in said and piece not in foreign]


def test_every_command_is_listed():
    from sa2va_hf.commands import COMMANDS

    rows = re.findall(r"^\| `([\w-]+)` \| `(\w+)\.py` \|", (ROOT / "docs/commands.md").read_text(), flags=re.MULTILINE)
    assert dict(rows) == {name: file for name, (file, _) in COMMANDS.items()}


def test_sources_that_are_named_exist():
    from sa2va_hf.data.sources import SOURCES

    own = (ROOT / "docs/own_masks.md").read_text()
    assert set(re.findall(r"^\| `(\w+)` \|", own, flags=re.MULTILINE)) <= set(SOURCES)
    table = re.search(r"\| what \| `--source` \|\n(.*?)\n\n", (ROOT / "docs/data.md").read_text(), flags=re.S)[1]
    missing = [name for name in SOURCES if not re.search(rf"(?<![\w+]){re.escape(name)}(?![\w+])", table)]
    assert not missing, "docs/data.md names every source"


def test_the_map_names_every_module():
    """Each by its whole path; the sources and the scenes by one line each."""
    text = (ROOT / "docs/map.md").read_text()
    named = set(re.findall(r"^- `([\w/]+\.py)`", text, flags=re.MULTILINE))
    modules = {str(path.relative_to(ROOT / "sa2va_hf")) for path in (ROOT / "sa2va_hf").rglob("*.py")}
    modules = {name for name in modules if not name.endswith("__init__.py") and not name.startswith("data/sources/")}
    assert sorted(modules - named) == [] and sorted(named - modules) == []
