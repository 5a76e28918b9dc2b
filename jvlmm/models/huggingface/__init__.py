"""Qwen2.5-VL checkpoints of Hugging Face, in and out, without torch."""

from jvlmm.models.huggingface.adapter import save_adapter
from jvlmm.models.huggingface.adapter_file import read_adapter
from jvlmm.models.huggingface.config import load_config
from jvlmm.models.huggingface.load import load_params
from jvlmm.models.huggingface.save import save_checkpoint

__all__ = ["load_config", "load_params", "read_adapter", "save_adapter", "save_checkpoint"]
