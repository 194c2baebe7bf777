"""Matrix products of 8-bit floats with scales, to bf16."""
