"""Forms in which other programs take a model in; each needs its program."""
