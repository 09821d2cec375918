"""`shapes`, the embedded data source: drawn pictures and clips with exact masks, boxes and text for every task."""

from .source import TASKS, Options, Scene, draw, draw_scene, expressions, render, shapes

__all__ = ["TASKS", "Options", "Scene", "draw", "draw_scene", "expressions", "render", "shapes"]
