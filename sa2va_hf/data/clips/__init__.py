"""Clips for SAM 2: what it is trained on, and whole videos to score it on."""
