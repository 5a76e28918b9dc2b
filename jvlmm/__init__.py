"""jvlmm: post-training of video large multimodal models in JAX."""

__version__ = "0.1.0"
