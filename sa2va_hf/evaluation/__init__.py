"""How good the answers are: metrics of masks, boxes and text, and the benchmarks that use them."""
