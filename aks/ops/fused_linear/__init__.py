"""A linear layer with what follows it: bias, activation, gate and residual, in bf16 and fp16."""
