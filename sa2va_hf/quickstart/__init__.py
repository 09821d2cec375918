"""What `scripts/quickstart.py` is made of: questions about images, scores, sheets, and training on a few photos."""
