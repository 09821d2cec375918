"""The mask-caption dual loop: an object is described in one frame and found again, from those words, in another."""
