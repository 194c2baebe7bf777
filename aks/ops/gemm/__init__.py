"""``y = x @ w.T`` in bf16 and fp16, accumulated in float32."""
