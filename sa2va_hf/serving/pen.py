"""Regions that a person draws on the shown image: the browser's part (JavaScript), what it sends, and its drawing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from sa2va_hf.drawing import outline
from sa2va_hf.masks import decode, encode
from sa2va_hf.serving.limits import Refused
from sa2va_hf.serving.media import Region

BOX, BRUSH = "Box", "Brush"
MAX_POINTS = 4000  # of a stroke; the browser sends one per few pixels
MAX_WIDTH = 0.5  # of a stroke, as a share of the image's longer side

# Listeners of the whole document: the page replaces the image with every answer. Points are shares of its sides.
JAVASCRIPT = """
const one = (selector) => document.querySelector(selector);
const shown = () => one('#view img');
const tool = () => one('#tool input:checked')?.value;
const width = () => Number(one('#width input')?.value ?? 5) / 100;
let stroke = null, canvas = null;

function rectangle(image) {
  const frame = image.getBoundingClientRect(), [w, h] = [image.naturalWidth, image.naturalHeight];
  let scale = Math.min(frame.width / w, frame.height / h);
  if (getComputedStyle(image).objectFit === 'scale-down') scale = Math.min(scale, 1);
  const left = frame.left + (frame.width - w * scale) / 2, top = frame.top + (frame.height - h * scale) / 2;
  return {left, top, width: w * scale, height: h * scale};
}
function clear() { canvas?.remove(); canvas = null; }
function place() {  // over the image, wherever the page has been scrolled to
  stroke.frame = rectangle(shown());
  Object.assign(canvas.style, {left: `${stroke.frame.left}px`, top: `${stroke.frame.top}px`});
}
function point(event) {
  const {left, top, width, height} = stroke.frame, share = (value) => Math.min(1, Math.max(0, value));
  return [share((event.clientX - left) / width), share((event.clientY - top) / height)];
}
function draw() {
  const {frame, tool, points} = stroke, pen = canvas.getContext('2d');
  const at = points.map(([x, y]) => [x * frame.width, y * frame.height]), [x0, y0] = at[0], [x1, y1] = at.at(-1);
  pen.clearRect(0, 0, canvas.width, canvas.height);
  const path = new Path2D();
  if (tool === 'Box') path.rect(x0, y0, x1 - x0, y1 - y0);
  else { path.moveTo(x0, y0); at.forEach(([x, y]) => path.lineTo(x, y)); path.lineTo(x1 + 0.01, y1); }
  pen.lineCap = pen.lineJoin = 'round';
  const brush = stroke.width * Math.max(frame.width, frame.height);
  const lines = tool === 'Box' ? [[5, 'white'], [2, 'black']] : [[brush + 2, '#0008'], [brush, '#fffa']];
  for (const [size, colour] of lines) { pen.lineWidth = size; pen.strokeStyle = colour; pen.stroke(path); }
}
document.addEventListener('pointerover', (event) => {
  const image = shown();
  if (image && event.target.contains(image))
    Object.assign(image.style, {cursor: tool() ? 'crosshair' : '', touchAction: tool() ? 'none' : ''});
});
document.addEventListener('dragstart', (event) => { if (event.target === shown()) event.preventDefault(); });
document.addEventListener('pointerdown', (event) => {
  const image = shown();
  if (!image || !tool() || event.button || !event.target.contains(image)) return;
  event.preventDefault();
  clear();
  stroke = {frame: rectangle(image), tool: tool(), width: width(), points: []};
  canvas = document.createElement('canvas');
  Object.assign(canvas, {id: 'stroke', width: stroke.frame.width, height: stroke.frame.height});
  canvas.style.cssText = 'position:fixed;pointer-events:none;z-index:9999';
  document.body.append(canvas);
  place();
  stroke.points.push(point(event));
  draw();
});
document.addEventListener('pointermove', (event) => {
  if (!stroke) return;
  stroke.points.push(point(event));
  if (stroke.points.length > 3000) stroke.points = stroke.points.filter((_, index) => index % 2 === 0);
  draw();
});
document.addEventListener('pointerup', () => {
  if (!stroke) return;
  const {tool, width, points} = stroke;
  stroke = null;
  trigger('submit', {tool, width, points});
  const drawn = canvas;
  setTimeout(() => drawn.remove(), 3000);
});
document.addEventListener('pointercancel', () => { stroke = null; clear(); });
document.addEventListener('scroll', () => { if (stroke) place(); else clear(); }, true);
document.addEventListener('load', (event) => { if (event.target === shown() && !stroke) clear(); }, true);
"""


@dataclass(frozen=True)
class Stroke:
    """What was drawn between press and release.

    Args:
        tool: `BOX` (corners: the first and the last point) or `BRUSH`.
        points: (x, y) as shares of the image's width and height, 0 to 1.
        width: of the brush, as a share of the image's longer side.
    """

    tool: str
    points: tuple[tuple[float, float], ...]
    width: float = 0.05

    @classmethod
    def read(cls, data: Any) -> Stroke:
        """What a browser sent. `Refused` (400) for anything else."""
        tool, points, width = (
            (data.get(name) for name in ("tool", "points", "width")) if isinstance(data, dict) else 3 * [0]
        )
        fits = tool in (BOX, BRUSH) and isinstance(points, list) and 0 < len(points) <= MAX_POINTS
        fits = fits and _share(width) and all(isinstance(point, list) and len(point) == 2 for point in points)
        if not fits or not all(_share(value) for point in points for value in point):
            raise Refused(400, "invalid_region", "the drawn region cannot be read: reload the page and draw it again")
        return cls(tool, tuple(map(tuple, points)), min(width, MAX_WIDTH))

    def add(self, regions: tuple[Region, ...], size: tuple[int, int]) -> tuple[Region, ...]:
        """The regions of an image of `size` (width, height) with this one. A brush stroke that touches the last
        brushed region becomes a part of it; a box without area changes nothing."""
        if self.tool == BOX:
            region = self._box(size)
            return (*regions, region) if region.mask(size).any() else regions
        mask = self._brushed(size)
        if regions and regions[-1].rle is not None and (mask & (last := decode(regions[-1].rle))).any():
            return (*regions[:-1], Region(rle=encode(mask | last)))
        return (*regions, Region(rle=encode(mask)))

    def _box(self, size: tuple[int, int]) -> Region:
        (x0, y0), (x1, y1) = [(x * size[0], y * size[1]) for x, y in (self.points[0], self.points[-1])]
        return Region(box=(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)))

    def _brushed(self, size: tuple[int, int]) -> np.ndarray:
        """bool (H, W), one pixel at least."""
        at = [(x * (size[0] - 1), y * (size[1] - 1)) for x, y in self.points]
        radius = self.width * max(size) / 2
        image = Image.new("1", size)
        pen = ImageDraw.Draw(image)
        pen.line(at, 1, max(1, round(2 * radius)), joint="curve")
        for x, y in (at[0], at[-1]):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=1)
        return np.asarray(image)


def draw_regions(image: Image.Image, regions: tuple[Region, ...], size: tuple[int, int], scale: int) -> None:
    """Outline and name the regions of an image of `size` on its enlargement by `scale`, in place."""
    for number, region in enumerate(regions, start=1):
        mask = region.mask(size).repeat(scale, 0).repeat(scale, 1)
        outline(image, mask, f"region{number}")


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value) and 0 <= value <= 1
