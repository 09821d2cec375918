"""What the documentation claims about speed and memory: a module per command of scripts/benchmark.py."""
