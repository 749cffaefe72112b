"""Published shapes of models, to update `student` with.

Source: The Llama 3 herd of models, arXiv:2407.21783, table 3, and the
config.json of the released weights.
"""

_LLAMA_3 = dict(V=128_256, G=8, rope_theta=5e5, rms_norm_eps=1e-5)
LLAMA_3_8B = _LLAMA_3 | dict(
  D=4096, Y=32, N=32, H=128, F=14_336, tie_embeddings=False
)
# Without the scaled context (rope_scaling) of the release.
LLAMA_3_2_1B = _LLAMA_3 | dict(
  D=2048, Y=16, N=32, H=64, F=8192, tie_embeddings=True
)
