"""Training a small byte-level BPE in the file format of Qwen2.5's tokenizer."""

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from jvlmm.errors import ConfigError

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
"""Qwen2.5's special tokens in the order of their ids; they follow the learnt vocabulary."""

REASONING_TAGS = ("<think>", "</think>", "<answer>", "</answer>", "<t>", "</t>", "<obj>", "</obj>", "<box>", "</box>")
"""Ordinary added tokens: one id each, kept when special tokens are skipped in decoding."""

PRETOKENIZE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""Qwen2.5's pre-tokenizer: digits stand alone, words carry the space before them."""

CHAT_TEMPLATE = """\
{%- if messages[0]['role'] != 'system' %}
    {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif %}
{%- set seen = namespace(images=0, videos=0) %}
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for item in message['content'] %}
            {%- if item['type'] == 'image' or 'image' in item or 'image_url' in item %}
                {%- set seen.images = seen.images + 1 %}
                {%- if add_vision_id %}{{- 'Picture ' ~ seen.images ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif item['type'] == 'video' or 'video' in item %}
                {%- set seen.videos = seen.videos + 1 %}
                {%- if add_vision_id %}{{- 'Video ' ~ seen.videos ~ ': ' }}{%- endif %}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}
                {{- item['text'] }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
"""Renders system, user and assistant messages as Qwen2.5-VL's template does."""


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int,
    out_dir: str | Path,
    min_pixels: int = 28 * 28,
    max_pixels: int = 28 * 28 * 1280,
) -> int:
    """Learn a vocabulary from `texts` and write a tokenizer transformers opens as Qwen2.5's.

    Writes tokenizer.json, tokenizer_config.json and the settings of Qwen2.5-VL's image and video processors
    (pixel limits per image or frame) into `out_dir`. `vocab_size` counts the special tokens
    and tags too. Returns the number of entries, which is smaller where the texts hold too few pairs.
    Raises ConfigError when `vocab_size` cannot hold the 256 bytes and the added tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    learnt = vocab_size - len(SPECIAL_TOKENS) - len(REASONING_TAGS)
    if learnt < 256:
        raise ConfigError(f"vocab_size={vocab_size} is too small; allowed: at least {vocab_size - learnt + 256}")
    tokenizer = Tokenizer(models.BPE(continuing_subword_prefix="", end_of_word_suffix="", fuse_unk=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False)
    trainer = BpeTrainer(
        vocab_size=learnt,
        min_frequency=2,
        show_progress=False,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    tokenizer.train_from_iterator(_between_added_tokens(texts), trainer)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in REASONING_TAGS])
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(out_dir / "tokenizer.json"))
    _write_json(out_dir / "tokenizer_config.json", _tokenizer_config(tokenizer))
    processor = _preprocessor_config(min_pixels, max_pixels)
    _write_json(out_dir / "preprocessor_config.json", {**processor, "image_processor_type": "Qwen2VLImageProcessor"})
    video = {**processor, "video_processor_type": "Qwen2VLVideoProcessor"}
    _write_json(out_dir / "video_preprocessor_config.json", video)
    return tokenizer.get_vocab_size(with_added_tokens=True)


def _between_added_tokens(texts: Iterable[str]) -> Iterator[str]:
    """The pieces of each text between added tokens, so that no merge is spent on the letters of a tag."""
    added = re.compile("|".join(re.escape(token) for token in SPECIAL_TOKENS + REASONING_TAGS))
    for text in texts:
        yield from (piece for piece in added.split(text) if piece)


def _tokenizer_config(tokenizer) -> dict:
    added = {
        str(tokenizer.token_to_id(text)): {
            "content": text,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": text in SPECIAL_TOKENS,
        }
        for text in SPECIAL_TOKENS + REASONING_TAGS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def _preprocessor_config(min_pixels: int, max_pixels: int) -> dict:
    return {
        "min_pixels": min_pixels,
        "max_pixels": max_pixels,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "merge_size": 2,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2_5_VLProcessor",
    }


def _write_json(path: Path, value: dict) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
