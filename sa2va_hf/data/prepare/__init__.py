"""A source's samples, checked once and written as Arrow: what training reads is known to be good."""

from .run import PrepareError, check, prepare

__all__ = ["PrepareError", "check", "prepare"]
