"""The demo's page: upload an image or a video, draw regions, ask, see masks. Every user has a `Talk` of their own."""

from __future__ import annotations

import queue
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import gradio as gr

from sa2va_hf.serving.batching import Batcher, Event
from sa2va_hf.serving.limits import Refused
from sa2va_hf.serving.media import EncodedImage
from sa2va_hf.serving.pen import BOX, BRUSH, JAVASCRIPT, Stroke
from sa2va_hf.serving.session import Answer, Frame, make_question
from sa2va_hf.serving.talk import Talk

CSS = """
.talk { min-height: 16em; max-height: 32em; overflow-y: auto; font-size: 1.05rem; }
.talk .turn { margin: .4em 0; padding: .5em .8em; border-radius: .5em; white-space: pre-wrap; width: fit-content; }
.talk .user { background: var(--background-fill-secondary); margin-left: auto; }
.talk .model { border: 1px solid var(--border-color-primary); }
.talk .object { padding: .05em .4em; margin: 0 .1em; border-radius: .3em; font-weight: 600; }
.talk .past .object { background: none !important; color: inherit !important; outline: 1px dashed currentcolor; }
#view img { max-height: 65vh; object-fit: contain; -webkit-user-select: none; user-select: none; }
.talk .note { color: var(--body-text-color-subdued); font-style: italic; }
"""
HINT = (
    "Upload an image or a video and ask about it: the objects of the answer are drawn on it. "
    "To ask about a part of an image, draw a box or brush over it; a question can then name it *region1*, "
    "the next one *region2*."
)
SHOWN_EVERY = 0.5  # seconds between frames that are shown while a video is answered
SECONDS = 3600  # after which an idle user's conversation and files are deleted


def create_demo(batcher: Batcher, name: str, examples: Sequence[Sequence[str]] = ()) -> gr.Blocks:
    """The page. `examples`: [file, question] pairs, files on this machine."""
    page = Page(batcher)
    with gr.Blocks(title=f"Sa2VA: {name}", analytics_enabled=False, delete_cache=(SECONDS, SECONDS)) as demo:
        talk = gr.State(Talk(), time_to_live=SECONDS)
        gr.Markdown(f"## {name}\n{HINT}")
        with gr.Row():
            with gr.Column():
                file = gr.File(label="Image or video", type="filepath", height=120, elem_id="file")
                view = gr.Image(
                    label="Masks of the last answer", format="png", interactive=False, elem_id="view",
                    buttons=["fullscreen"],
                )  # fmt: skip
                frame = gr.Slider(0, 1, 0, step=1, label="Frame", visible=False, elem_id="frame")
                with gr.Row(visible=False, elem_id="tools") as tools:
                    fixed = {"min_width": 250, "interactive": True}
                    gr.Radio([BOX, BRUSH], value=BOX, label="Draw a region with", elem_id="tool", **fixed)
                    gr.Slider(1, 20, 5, step=1, label="Width of the brush (%)", elem_id="width", **fixed)
                with gr.Row():
                    unmark = gr.Button("Remove regions", visible=False, elem_id="unmark")
                    download = gr.Button("Download the answer", interactive=False, elem_id="download")
                pen = gr.HTML(js_on_load=JAVASCRIPT, visible="hidden")
                archive = gr.DownloadButton(visible="hidden", elem_id="archive")
            with gr.Column():
                conversation = gr.HTML(Talk().html(), elem_id="conversation")
                text = gr.Textbox(label="Question", placeholder="Please segment ...", elem_id="question")
                with gr.Row():
                    ask = gr.Button("Ask", variant="primary", elem_id="ask")
                    again = gr.Button("New conversation", elem_id="again")
        if examples:
            gr.Examples([list(example) for example in examples], [file, text], label="Examples")
        shown = [talk, view, frame, tools, unmark, conversation, download]
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        file.change(page.load, [file], shown, **quiet)
        pen.submit(page.draw, [talk, frame], [talk, view, conversation], **quiet)
        unmark.click(page.unmark, [talk, frame], [talk, view], **quiet)
        again.click(page.load, [file], shown, **quiet)
        download.click(page.archive, [talk], [archive], show_progress="minimal", api_visibility="private").then(
            None, js="() => { setTimeout(() => document.querySelector('#archive').click(), 100) }"
        )
        frame.change(page.scrub, [talk, frame], [view], **quiet)
        for event in (ask.click, text.submit):
            event(page.ask, [talk, text, frame], [*shown, text], concurrency_limit=None, **quiet)
    return demo


class Page:
    """What happens on the page. It knows no user: a `Talk` comes in and goes out with every event."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._archives = tempfile.TemporaryDirectory(prefix="sa2va-demo-")

    def load(self, path: str | None) -> tuple[Any, ...]:
        """A new file, or the same one for a new conversation."""
        try:
            talk = Talk() if path is None else Talk.about(self._read(path), self._batcher.limits)
            return self._shown(talk)
        except Refused as refused:
            return self._shown(Talk(), note=refused.message)

    def draw(self, talk: Talk, frame: int, event: gr.EventData) -> tuple[Any, ...]:
        """A region was drawn: the image with it, or why it is none."""
        sent = {name: getattr(event, name, None) for name in ("tool", "points", "width")}
        try:
            drawn = talk.draw(Stroke.read(sent))
            if drawn.regions != talk.regions:
                self._check_region(drawn)
        except Refused as refused:
            return talk, talk.show(frame), talk.html(note=refused.message)
        return drawn, drawn.show(frame), drawn.html()

    def _check_region(self, talk: Talk) -> None:
        """`Refused` (422) when the model's grid has no cell in the last region."""
        try:
            self._batcher.predictor.processor.check_region(talk.regions[-1].mask(talk.visual.size))
        except ValueError as error:
            message = "The region is too small for this model: draw a larger box, or use a wider brush."
            raise Refused(422, "invalid_region", message) from error

    def unmark(self, talk: Talk, frame: int) -> tuple[Any, ...]:
        talk = replace(talk, regions=())
        return talk, talk.show(frame)

    def archive(self, talk: Talk) -> str:
        """Path of a zip for one download; those of an hour ago are deleted."""
        folder = Path(self._archives.name)
        for old in folder.glob("*.zip"):
            if old.stat().st_mtime < time.time() - SECONDS:
                old.unlink(missing_ok=True)
        return talk.archive(folder)

    def scrub(self, talk: Talk, frame: int) -> Any:
        return talk.show(frame)

    def ask(self, talk: Talk, text: str, frame: int) -> Iterator[tuple[Any, ...]]:
        """Yields the page while the answer is written; of a video its frames follow, as their masks are predicted."""
        same, said, before = (gr.skip(),) * 5, "", talk
        frames: list[Frame] = []
        video, shown = None, 0.0
        if not text.strip():
            yield (*same, talk.html(note="Write a question first."), gr.skip(), gr.skip())
            return
        try:
            for event in self._events(talk, text):
                if isinstance(event, Answer):
                    talk = before.answered(text, event.text, event.masks(frames))
                    note = "The answer was cut at its limit." if event.finish_reason == "length" else ""
                    yield (*self._shown(talk, frame, note), "")
                elif isinstance(event, Frame):
                    frames.append(event)
                    if time.monotonic() < shown + SHOWN_EVERY:
                        continue
                    talk = before.answered(text, said, [entry for one in frames for entry in one.masks])
                    video = video or talk.visual.open()
                    note = f"Frame {event.index + 1} of {talk.frames} ..."
                    view = talk.show(event.index, video)
                    yield (talk, view, *same[2:], talk.html(note=note), gr.skip(), gr.skip())
                    shown = time.monotonic()
                elif isinstance(event, str):
                    said += event
                    yield (*same, talk.html(text, said, "Answering ..."), gr.skip(), gr.skip())
                else:
                    yield (*same, talk.html(text, said, f"Waiting; {event} before you ..."), gr.skip(), gr.skip())
        except Refused as refused:
            yield (*same, talk.html(note=refused.message), gr.skip(), gr.skip())

    def _events(self, talk: Talk, text: str) -> Iterator[Event | int]:
        """The queue's events of one question; while no text has come, how many wait."""
        batcher, events = self._batcher, queue.SimpleQueue()
        limits = batcher.limits
        fields = {"text": text, "turns": talk.turns, "max_new_tokens": limits.max_new_tokens}
        question = make_question(limits, batcher.cells, talk.visual, talk.regions, **fields)
        yield batcher.waiting
        job = batcher.submit(question, events.put)
        try:
            while True:
                try:
                    event = events.get(timeout=1.0)
                except queue.Empty:
                    if not job.said:
                        yield batcher.waiting
                    continue
                if isinstance(event, Refused):
                    raise event
                yield event
                if isinstance(event, Answer):
                    return
        finally:
            job.cancel()  # the user has left, or it is answered

    def _read(self, path: str) -> bytes:
        self._batcher.limits.check_bytes(Path(path).stat().st_size, "the file")
        return Path(path).read_bytes()

    def _shown(self, talk: Talk, frame: int = 0, note: str = "") -> tuple[Any, ...]:
        slider = gr.Slider(maximum=max(1, talk.frames - 1), value=frame, visible=talk.frames > 1)
        download = gr.Button(interactive=bool(talk.turns))
        takes = isinstance(talk.visual, EncodedImage) and self._batcher.predictor.processor.takes_regions
        regions = gr.Row(visible=takes), gr.Button(visible=takes)
        return talk, talk.show(frame), slider, *regions, talk.html(note=note), download


def launch(demo: gr.Blocks, host: str, port: int | None, max_file_size: int, **options: Any) -> Any:
    """Serve the page, with fonts of the user's machine and no link to other hosts."""
    theme = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
    demo.queue(default_concurrency_limit=8, max_size=256, api_open=False)
    return demo.launch(
        server_name=host,
        server_port=port,
        share=False,
        max_file_size=max_file_size,
        state_session_capacity=200,  # conversations that are kept, an upload each
        theme=theme,
        css=CSS,
        footer_links=[],
        quiet=True,
        ssr_mode=False,
        **options,
    )
