"""Rows of bf16 and fp16 to 8-bit floats or integers, with a scale for each row or for every 128 of it."""
