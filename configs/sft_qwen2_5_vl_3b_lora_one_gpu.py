"""Chain-of-thought SFT of Qwen2.5-VL-3B with LoRA on one GPU of 24 GB, on your own examples.

    jvlmm run configs/sft_qwen2_5_vl_3b_lora_one_gpu.py sft.model=DIR sft.sources.data.path=FILE.jsonl

DIR is a Hugging Face folder of Qwen2.5-VL-3B-Instruct; FILE.jsonl holds neutral records with a `response`
(see `jvlmm data check`). One row a device step, 32 steps an update: by the arithmetic of `jvlmm plan … --topology l4:1`
it needs 9.1 of 22.4 GiB. With more memory fewer, larger steps are faster; of 80 GB (`--topology h100:1`)

    sft.batch_size=16 sft.accumulation=2 sft.vision.patch_buckets=131072
"""

from jvlmm.recipes.one_gpu_stages import lora_on_one_gpu
from jvlmm.recipes.recipe import Recipe


def recipe() -> Recipe:
    return Recipe(
        name="sft-qwen2.5-vl-3b-lora-one-gpu",
        workdir="runs/sft-qwen2_5-vl-3b-lora-one-gpu",
        stages=(lora_on_one_gpu("Qwen2.5-VL-3B-Instruct"),),
    )
