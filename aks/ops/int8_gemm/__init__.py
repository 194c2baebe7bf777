"""Matrix products of 8-bit integers with scales, to bf16."""
