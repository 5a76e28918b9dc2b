"""Chat templates are rendered as transformers does, and a hostile one costs a line within seconds."""

import gc
import json
import shutil
import time

import pytest

from jvlmm.data import chat_template
from jvlmm.data.bpe import train_tokenizer
from jvlmm.data.chat_template import ChatTemplate, ChatTemplateError
from jvlmm.data.tokenizer import ChatTokenizer
from jvlmm.errors import DataError

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What ü \ud83d?"}]},
    {"role": "assistant", "content": "A ball."},
]
TEMPLATES = {
    "trimming": "  {% for m in messages %}\n    {% if loop.first %}x{% endif %}\n{{ m.role }}\n{% endfor %}\n",
    "loop controls": "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}{{ m.role }}{% endfor %}",
    "namespace": "{% set n = namespace(c=0) %}{% for m in messages %}{% set n.c = n.c + 1 %}{% endfor %}{{ n.c }}",
    "json": "{{ messages[1] | tojson }}{{ messages[1] | tojson(indent=2) }}{{ tools }}{{ documents is none }}",
    "variables": "{{ eos_token }}{{ bos_token }}{{ pad_token }}{{ add_generation_prompt }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.role }}{% endgeneration %}{% endfor %}",
    "dates": "{{ strftime_now('%Y') }}",
    "macros": "{% macro f(x) -%} [{{ x }}] {%- endmacro %}{{ f(messages[0].content) }}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("t") / "tokenizer"
    train_tokenizer(["What colour is it? It is red."] * 3, 300, path)
    return path


def renders_alike(tokenizer, template, messages=MESSAGES):
    variables = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
    ours = ChatTemplate(template, variables, "the template")
    for prompted in (False, True):
        expected = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=prompted
        )
        assert ours.render(messages, prompted) == expected and expected


def test_templates_render_as_transformers_renders_them(folder):
    tokenizer = ChatTokenizer.from_pretrained(folder)._tokenizer
    for template in (*TEMPLATES.values(), tokenizer.chat_template):
        renders_alike(tokenizer, template)


def test_the_released_template_of_text_renders_as_transformers_renders_it(folder, real_data):
    path = real_data / "qwen2.5-tokenizer/tokenizer_config.json"
    template = json.loads(path.read_text())["chat_template"]
    said = [{**message, "content": f"text {number}"} for number, message in enumerate(MESSAGES)]
    renders_alike(ChatTokenizer.from_pretrained(folder)._tokenizer, template, said)


LOOPS = "{% for i in range(90000) %}" * 3 + "{% endfor %}" * 3
HOSTILE = {
    "nested loops": (LOOPS, "takes more than"),
    "a long text": ("{{ 'a' * 3000000000 }}", "MemoryError|fails"),
    "a wide number": ("{{ '{:>2000000000}'.format(1) }}", "MemoryError|fails"),
    "a huge power": ("{{ (10 ** (10 ** 9)) | string | length }}", "takes more than|fails"),
    "much output": ("{{ 'a' * 30000000 }}", "over 16777216 characters|takes more than"),
    "recursion": ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|takes more than"),
    "sandbox": ("{{ messages.__class__.__mro__ }}", "SecurityError"),
    "sandbox in a call": ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
    "syntax": ("{% for %}", "TemplateSyntaxError"),
    "its own": ("{{ raise_exception('no system text') }}", "no system text"),
    "of 2 MB": ("a" * 2_000_000, "over 1048576 characters"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_template_is_one_line_that_names_file_and_key(folder, tmp_path, monkeypatch, case):
    template, words = HOSTILE[case]
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 0.3)
    hostile = shutil.copytree(folder, tmp_path / "tokenizer")
    (hostile / "chat_template.jinja").unlink(missing_ok=True)
    path = hostile / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    begun = time.process_time()
    with pytest.raises(DataError, match=words) as raised:
        ChatTokenizer.from_pretrained(hostile).encode_chat([{"role": "user", "content": "x"}], True)
    message = str(raised.value)
    assert f"{path}: chat_template" in message and "\n" not in message and len(message) < 600
    assert time.process_time() - begun < 5


def test_the_file_of_a_template_of_its_own_is_named(folder, tmp_path):
    hostile = shutil.copytree(folder, tmp_path / "tokenizer")
    (hostile / "chat_template.jinja").write_text("{{ messages.__class__ }}{{ raise_exception('x') }}")
    with pytest.raises(DataError, match="chat_template.jinja: the chat template fails: SecurityError|fails: Template"):
        ChatTokenizer.from_pretrained(hostile).encode_chat([{"role": "user", "content": "x"}], True)


def test_after_a_failure_the_next_conversation_is_rendered(monkeypatch):
    monkeypatch.setattr(chat_template, "CPU_SECONDS", 0.3)
    slow = "{% if messages[0].content == 'slow' %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(slow, {}, "the template")
    for _ in range(2):
        with pytest.raises(DataError, match="takes more than 0.3 s"):
            template.render([{"content": "slow"}], True)
        assert template.render([{"content": "fine"}], True) == "fine"
    with pytest.raises(ChatTemplateError, match="the template fails: UndefinedError"):
        template.render([], True)
    process = template._process
    del template
    gc.collect()
    assert process.poll() is not None
