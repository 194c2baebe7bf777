"""RMSNorm, with the residual added before it, in bf16 and fp16."""
