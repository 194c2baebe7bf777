"""Products of 8-bit matrices with scales: what ``fp8_gemm`` and ``int8_gemm`` have in common. No op itself."""
