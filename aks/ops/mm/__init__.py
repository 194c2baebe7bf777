"""``x @ w.T`` in bf16, fp16 and TF32, tiled as PyTorch Inductor's template tiles it."""
