"""Training of Sa2VA: trainer, trained weights, scores and speed."""
