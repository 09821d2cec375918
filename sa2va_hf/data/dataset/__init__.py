"""Arrow rows as training examples."""

from .dataset import Sa2VADataset

__all__ = ["Sa2VADataset"]
