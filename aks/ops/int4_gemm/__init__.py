"""Matrix products of bf16 activations and 4-bit weights in groups, to bf16."""
