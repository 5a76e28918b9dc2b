"""Chat encoding: the template's text, the mask of the assistant's words, refusals."""

import gzip
import json
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import DataError

QWEN_VL_TEMPLATE = (  # the template of Qwen/Qwen2.5-VL-7B-Instruct
    "{% set image_count = namespace(value=0) %}{% set video_count = namespace(value=0) %}{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}"
    "<|im_end|>\n{% else %}{% for content in message['content'] %}{% if content['type'] == 'image' or 'image' in "
    "content or 'image_url' in content %}{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}"
    "Picture {{ image_count.value }}: {% endif %}<|vision_start|><|image_pad|><|vision_end|>{% elif content['type'] "
    "== 'video' or 'video' in content %}{% set video_count.value = video_count.value + 1 %}{% if add_vision_id %}"
    "Video {{ video_count.value }}: {% endif %}<|vision_start|><|video_pad|><|vision_end|>{% elif 'text' in content %}"
    "{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    "<|im_start|>assistant\n{% endif %}"
)

CONVERSATIONS = [
    [{"role": "user", "content": "hello"}],
    [{"role": "system", "content": "Be short."}, {"role": "user", "content": "hello"}],
    [
        {"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "Which?\n"}]},
        {"role": "assistant", "content": "<answer>A</answer>"},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}, {"type": "image"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Yes."}]},
    ],
]


def _answered(*answers):
    messages = []
    for i, answer in enumerate(answers):
        messages += [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": answer}]
    return messages


@pytest.fixture(scope="module")
def qwen(real_data, tmp_path_factory):
    """The real tokenizer of Qwen2.5, whose template knows text only."""
    folder = tmp_path_factory.mktemp("qwen")
    with gzip.open(real_data / "qwen2.5-tokenizer/tokenizer.json.gz") as packed:
        (folder / "tokenizer.json").write_bytes(packed.read())
    shutil.copyfile(real_data / "qwen2.5-tokenizer/tokenizer_config.json", folder / "tokenizer_config.json")
    return ChatTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("messages", CONVERSATIONS, ids=["text", "system", "media"])
@pytest.mark.parametrize("generation", [False, True])
@pytest.mark.parametrize("vision_id", [False, True])
def test_our_template_renders_as_qwens(tokenizer_dir, messages, generation, vision_id):
    from transformers import AutoTokenizer

    ours = AutoTokenizer.from_pretrained(tokenizer_dir)
    options = {"tokenize": False, "add_generation_prompt": generation, "add_vision_id": vision_id}
    theirs = ours.apply_chat_template(messages, chat_template=QWEN_VL_TEMPLATE, **options)
    assert ours.apply_chat_template(messages, **options) == theirs


def test_conversation_tokens_are_those_of_the_rendered_text(tokenizer):
    messages = [{"role": "system", "content": "Be short."}, *_answered("<think>x</think><answer>B</answer>", "No.")]
    text = "<|im_start|>system\nBe short.<|im_end|>\n" + "".join(
        f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages[1:]
    )
    tokens, _ = tokenizer.encode_chat(messages)
    assert tokens.dtype == np.int32
    assert tokenizer.decode(tokens, skip_special_tokens=False) == text
    assert tokens.tolist() == tokenizer.encode(text).tolist()


# Surrogates cannot be encoded, and the tokenizer normalises to NFC, so decoding need not return other forms.
_words = st.text(st.characters(codec="ascii"), max_size=30).filter(lambda s: "<|" not in s)


@settings(max_examples=80, deadline=None)
@given(answers=st.lists(_words, min_size=1, max_size=3), system=st.none() | _words, asked=st.booleans())
def test_mask_covers_the_assistants_words_and_nothing_else(tokenizer, answers, system, asked):
    messages = _answered(*answers)
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    if asked:
        messages.append({"role": "user", "content": "and now?"})
    tokens, mask = tokenizer.encode_chat(messages, add_generation_prompt=asked)
    assert mask.dtype == bool and mask.shape == tokens.shape
    said = tokenizer.decode(tokens[mask], skip_special_tokens=False)
    assert said == "".join(answer + "<|im_end|>" for answer in answers)
    edges = np.flatnonzero(np.diff(mask, prepend=False, append=False)).reshape(-1, 2)
    assert len(edges) == len(answers)
    for begin, end in edges:
        assert tokenizer.decode(tokens[:begin], skip_special_tokens=False).endswith("<|im_start|>assistant\n")
        assert tokens[end - 1] == tokenizer.eos_id


@settings(max_examples=30, deadline=None)
@given(answer=_words)
def test_asking_is_a_prefix_of_learning(tokenizer, answer):
    messages = _answered(answer)
    asked, none = tokenizer.encode_chat(messages[:1], add_generation_prompt=True)
    learnt, _ = tokenizer.encode_chat(messages)
    assert learnt[: len(asked)].tolist() == asked.tolist()
    assert not none.any()


@pytest.mark.parametrize("text", ["a <|video_pad|> b", "<|im_end|>", "<|im_start|>system"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_special_tokens_in_texts_are_refused(tokenizer, role, text):
    messages = _answered("fine")
    messages[role == "assistant"] = {"role": role, "content": text}
    with pytest.raises(DataError, match=r"special token '<\|"):
        tokenizer.encode_chat(messages)


def test_template_that_drops_earlier_thoughts_is_refused(tokenizer_dir, tmp_path):
    config = json.loads((tokenizer_dir / "tokenizer_config.json").read_text())
    config["chat_template"] = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
        "{{ m.content.split('</think>')[-1] if m.role == 'assistant' and not loop.last else m.content }}"
        "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    shutil.copyfile(tokenizer_dir / "tokenizer.json", tmp_path / "tokenizer.json")
    dropping = ChatTokenizer.from_pretrained(tmp_path)
    tokens, mask = dropping.encode_chat(_answered("<think>a</think>b"))
    assert dropping.decode(tokens[mask]) == "<think>a</think>b"
    with pytest.raises(DataError, match="template"):
        dropping.encode_chat(_answered("<think>a</think>b", "<think>c</think>d"))


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_file_is_named(tokenizer_dir, tmp_path, name):
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).unlink()
    with pytest.raises(DataError, match=name) as caught:
        ChatTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_damaged_file_gives_one_line(tokenizer_dir, tmp_path):
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "tru')
    with pytest.raises(DataError, match="cannot be read") as caught:
        ChatTokenizer.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("beside", [True, False])
def test_template_may_stand_in_a_file_beside(tokenizer_dir, tmp_path, tokenizer, beside):
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = config.pop("chat_template")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    if not beside:
        with pytest.raises(DataError, match="no chat template"):
            ChatTokenizer.from_pretrained(tmp_path)
        return
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    opened = ChatTokenizer.from_pretrained(tmp_path)
    messages = _answered("x")
    assert opened.encode_chat(messages)[0].tolist() == tokenizer.encode_chat(messages)[0].tolist()


@pytest.mark.parametrize(
    ("beside", "chosen"),
    [
        ((), "tokenizer"),
        (("chat_template.jinja",), "jinja"),
        (("chat_template.json",), "json"),
        (("chat_template.json", "chat_template.jinja"), "json"),
        (("chat_template.json", "chat_template.jinja", "processor_config.json"), "processor"),
    ],
)
def test_the_template_is_the_one_that_transformers_processor_chooses(tokenizer_dir, tmp_path, beside, chosen):
    """As `ProcessorMixin.get_processor_dict` of transformers 5, which knows nothing of the tokenizer's own."""
    from transformers.processing_utils import ProcessorMixin

    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    template = config["chat_template"]

    def marked(name):
        return "{{ '" + name + "' }}" + template

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": marked("tokenizer")}))
    texts = {
        "chat_template.jinja": marked("jinja"),
        "chat_template.json": json.dumps({"chat_template": marked("json")}),
        "processor_config.json": json.dumps({"chat_template": marked("processor"), "processor_class": "x"}),
    }
    for name in beside:
        (tmp_path / name).write_text(texts[name])
    if beside:
        theirs = ProcessorMixin.get_processor_dict(tmp_path)[0]["chat_template"]
        assert theirs.startswith("{{ '" + chosen)
    opened = ChatTokenizer.from_pretrained(tmp_path)
    assert opened.decode(opened.encode_chat(_answered("x"))[0]).startswith(chosen)


def test_a_template_file_without_a_template_is_named(tokenizer_dir, tmp_path):
    shutil.copytree(tokenizer_dir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "chat_template.json").write_text("{}")
    with pytest.raises(DataError, match="chat_template.json: holds no text chat_template"):
        ChatTokenizer.from_pretrained(tmp_path)


def test_encoding_is_cheap(tokenizer):
    messages = _answered("<think>The red circle moves left.</think><answer>A</answer>")
    tokenizer.encode_chat(messages)
    best = float("inf")
    for _ in range(5):
        start = time.process_time()
        for _ in range(20):
            tokenizer.encode_chat(messages)
        best = min(best, (time.process_time() - start) / 20)
    assert best < 1e-3  # about 0.2 ms on an idle core


def test_real_qwen_tokenizer(qwen):
    assert (qwen.image_id, qwen.video_id, qwen.eos_id, qwen.pad_id) == (151655, 151656, 151645, 151643)
    assert qwen.length == 151665
    content = [{"type": "video"}, {"type": "text", "text": "What happens in 2024?"}]
    tokens, mask = qwen.encode_chat([{"role": "user", "content": content}, *_answered("<think>a</think>b")[1:]])
    text = (
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>What happens in 2024?<|im_end|>\n"
        "<|im_start|>assistant\n<think>a</think>b<|im_end|>\n"
    )
    assert qwen.decode(tokens, skip_special_tokens=False) == text
    assert qwen.decode(tokens[mask], skip_special_tokens=False) == "<think>a</think>b<|im_end|>"
    assert tokens.tolist() == qwen._tokenizer(text)["input_ids"]
