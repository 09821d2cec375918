"""The training of `shapes-tiny`, the model that ships with the package: lessons, probes, and the recipe."""
