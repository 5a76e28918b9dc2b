"""The trained tokenizer is one transformers opens as Qwen2.5's."""

import json

import pytest
from tokenizers import Tokenizer

from jvlmm.data.bpe import REASONING_TAGS, SPECIAL_TOKENS, train_tokenizer
from jvlmm.errors import ConfigError

TEXT = "<think>The <obj>red circle</obj> is at <t>12.5</t>s — déjà vu 円</think>\n\n<answer>A</answer>  end"


def test_any_text_survives_a_round_trip(tokenizer):
    tokens = tokenizer.encode(TEXT)
    assert tokenizer.decode(tokens) == TEXT
    assert tokens.max() < tokenizer.length


def test_digits_stand_alone_and_tags_are_one_token(tokenizer):
    assert len(tokenizer.encode("2024")) == 4
    for tag in (*SPECIAL_TOKENS, *REASONING_TAGS):
        assert len(tokenizer.encode(tag)) == 1, tag
    assert tokenizer.decode(tokenizer.encode("<|im_start|><think>x")) == "<think>x"


def test_common_words_are_one_token(tokenizer):
    assert len(tokenizer.encode(" circle")) == 1


def test_files_agree_with_each_other(tokenizer_dir):
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    raw = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    for token_id, entry in config["added_tokens_decoder"].items():
        assert raw.token_to_id(entry["content"]) == int(token_id)
    preprocessor = json.loads((tokenizer_dir / "preprocessor_config.json").read_text())
    assert (preprocessor["patch_size"], preprocessor["merge_size"], preprocessor["min_pixels"]) == (14, 2, 784)


def test_transformers_tokenizer_equals_the_file(tokenizer, tokenizer_dir):
    """AutoTokenizer rebuilds its own pipeline from the vocabulary; it must cut text as the trained file does."""
    raw = Tokenizer.from_file(str(tokenizer_dir / "tokenizer.json"))
    assert tokenizer.encode(TEXT).tolist() == raw.encode(TEXT, add_special_tokens=False).ids


def test_image_processor_opens_from_the_folder(tokenizer_dir):
    module = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    processor = module.Qwen2VLImageProcessorPil.from_pretrained(tokenizer_dir)
    assert processor.size["shortest_edge"] == 784


def test_same_texts_give_the_same_files(tmp_path, tokenizer_dir):
    texts = ["the red circle moves left", "the blue square moves right"] * 10
    for name in ("a", "b"):
        train_tokenizer(texts, 320, tmp_path / name)
    assert (tmp_path / "a/tokenizer.json").read_bytes() == (tmp_path / "b/tokenizer.json").read_bytes()


def test_vocabulary_that_cannot_hold_the_bytes_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size=200"):
        train_tokenizer(["x"], 200, tmp_path)
