"""Boxes as answers: which frames of a clip a box stands for, and how each family of LLMs is asked for one."""
