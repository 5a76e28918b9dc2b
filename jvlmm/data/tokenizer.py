"""Messages → tokens and the mask of what the assistant says."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jvlmm.data.chat_template import ChatTemplate, ChatTemplateError
from jvlmm.errors import DataError
from jvlmm.models.config import SpecialTokens
from jvlmm.models.huggingface.json_file import optional_json
from jvlmm.models.huggingface.processors import BOTH

IMAGE_PLACEHOLDER = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_PLACEHOLDER = "<|vision_start|><|video_pad|><|vision_end|>"
END_OF_TURN = "<|im_end|>"

Message = Mapping[str, Any]  # {"role": str, "content": str | [{"type": "text"|"image"|"video", …}]}


class ChatTokenizer:
    """A checkpoint's tokenizer and chat template, as transformers reads them."""

    def __init__(self, tokenizer, template_source: str = "the tokenizer's chat template"):
        """`tokenizer`: a fast transformers tokenizer with a chat template and Qwen's special tokens.

        `template_source` names the template's file in errors. Raises DataError for a template that cannot be rendered
        within the limits of `ChatTemplate`.
        """
        self._tokenizer = tokenizer
        self._encode = tokenizer.backend_tokenizer.encode
        self.image_id = self.token_id("<|image_pad|>")
        self.video_id = self.token_id("<|video_pad|>")
        self.vision_start_id = self.token_id("<|vision_start|>")
        self.vision_end_id = self.token_id("<|vision_end|>")
        self.eos_id = self.token_id(END_OF_TURN)
        self.pad_id = self.token_id("<|endoftext|>")
        special = sorted(t.content for t in tokenizer.added_tokens_decoder.values() if t.special)
        self._special = re.compile("|".join(re.escape(text) for text in special))
        variables = {name: value for name, value in tokenizer.special_tokens_map.items() if isinstance(value, str)}
        self._template = ChatTemplate(tokenizer.get_chat_template(), variables, template_source)
        self._template_has_vision = self._renders_vision()

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> "ChatTokenizer":
        """Read tokenizer.json, tokenizer_config.json and the chat template of a checkpoint folder.

        A template of the processor, beside the tokenizer's files, wins over the one in tokenizer_config.json.
        Raises DataError naming the file that is missing or cannot be read.
        """
        directory = Path(directory)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            if not (directory / name).is_file():
                raise DataError(f"{directory / name}: no such file; copy the tokenizer files of the checkpoint there")
        from transformers import AutoTokenizer

        try:
            tokenizer = AutoTokenizer.from_pretrained(str(directory), use_fast=True)
        except Exception as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DataError(f"{directory}: the tokenizer files cannot be read ({reason}); copy them again") from error
        template, source = _processor_template(directory)
        if template is not None:
            tokenizer.chat_template = template
        if not isinstance(tokenizer.chat_template, str):
            raise DataError(
                f"{directory}: no chat template in chat_template.json, chat_template.jinja or tokenizer_config.json; "
                "copy the template of the checkpoint there"
            )
        return cls(tokenizer, source)

    @property
    def length(self) -> int:
        """Number of entries, added tokens included."""
        return len(self._tokenizer)

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids a model of this vocabulary must use."""
        return SpecialTokens(
            image=self.image_id,
            video=self.video_id,
            vision_start=self.vision_start_id,
            vision_end=self.vision_end_id,
            eos=(self.eos_id, self.pad_id),
            pad=self.pad_id,
        )

    def token_id(self, token: str) -> int:
        """Id of one token of the vocabulary. Raises DataError where the tokenizer has no such token."""
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        if not isinstance(token_id, int) or self._tokenizer.convert_ids_to_tokens(token_id) != token:
            raise DataError(f"the tokenizer has no token {token!r}; use the tokenizer of a Qwen2.5-VL checkpoint")
        return token_id

    def encode(self, text: str) -> np.ndarray:
        """int32 [n]: tokens of a plain text, special tokens in it recognised, nothing added."""
        return np.array(self._encode(text, add_special_tokens=False).ids, np.int32)

    def decode(self, tokens: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Text of tokens; `<think>` and its like are no special tokens and stay."""
        ids = np.asarray(tokens, np.int64).tolist()
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, clean_up_tokenization_spaces=False)

    def encode_chat(
        self, messages: Sequence[Message], add_generation_prompt: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens int32 [L] of a conversation, and bool [L]: True on what the assistant says.

        The mask covers each assistant turn's content and its `<|im_end|>`, never the header before it
        or the line break after it. Each image or video item is one placeholder token between
        `<|vision_start|>` and `<|vision_end|>`. Turns are tokenized apart, so the tokens asked with
        `add_generation_prompt` are a prefix of the tokens learnt with the answer.

        Raises DataError when a text holds a special token, or the template rewrites earlier turns so
        that the assistant's words cannot be located.
        """
        messages = [self._checked(message) for message in messages]
        pieces = self._pieces(messages, add_generation_prompt)
        encoded = [self._encode(text, add_special_tokens=False).ids for text, _ in pieces]
        tokens = np.array([token for ids in encoded for token in ids], np.int32)
        mask = np.repeat([said for _, said in pieces], [len(ids) for ids in encoded])
        return tokens, mask.astype(bool)

    def _pieces(self, messages: list[Message], add_generation_prompt: bool) -> list[tuple[str, bool]]:
        """The rendered conversation cut into (text, said by the assistant)."""
        pieces, done, turn = [], "", None
        for i, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            header = self._render(messages[:i], True) if i else None
            turn = self._render(messages[: i + 1], False)
            if header is None or not header.startswith(done) or not turn.startswith(header):
                raise DataError(
                    f"message {i}: the chat template does not append this assistant turn to the turns before it, "
                    "so the loss mask cannot be placed; start with a user turn, or use the template of Qwen2.5-VL"
                )
            end = turn.rfind(END_OF_TURN, len(header))
            if end < 0:
                raise DataError(f"message {i}: the chat template does not close the turn with {END_OF_TURN}")
            end += len(END_OF_TURN)
            pieces += [(header[len(done) :], False), (turn[len(header) : end], True)]
            done = turn[:end]
        ends_here = bool(messages) and messages[-1]["role"] == "assistant" and not add_generation_prompt
        whole = turn if ends_here else self._render(messages, add_generation_prompt)
        for message in messages:
            if message["role"] == "system" and message["content"].strip() not in whole:
                raise DataError("the chat template leaves the system text out; use Qwen2.5-VL's, or take the text away")
        if not whole.startswith(done):
            raise DataError("the chat template rewrites assistant turns once others follow; use Qwen2.5-VL's template")
        return pieces + [(whole[len(done) :], False)]

    def _render(self, messages: list[Message], add_generation_prompt: bool) -> str:
        return self._template.render(messages, add_generation_prompt)

    def _checked(self, message: Message) -> Message:
        """The message as the template wants it; texts that hold special tokens are refused."""
        content = message["content"]
        texts = [content] if isinstance(content, str) else [item.get("text", "") for item in content]
        for text in texts:
            found = self._special.search(text)
            if found:
                raise DataError(f"the {message['role']} text holds the special token {found[0]!r}; remove it")
        if isinstance(content, str) or self._template_has_vision:
            return message
        return {**message, "content": "".join(_as_text(item) for item in content)}

    def _renders_vision(self) -> bool:
        """Whether the template knows image and video items; text-only templates get placeholders as text."""
        probe = [{"role": "user", "content": [{"type": "image"}, {"type": "video"}, {"type": "text", "text": "x"}]}]
        try:
            return IMAGE_PLACEHOLDER + VIDEO_PLACEHOLDER + "x" in self._render(probe, False)
        except ChatTemplateError:  # a template for plain strings fails in its own way when handed a list
            return False


def _as_text(item: Mapping[str, Any]) -> str:
    return {"image": IMAGE_PLACEHOLDER, "video": VIDEO_PLACEHOLDER}.get(item["type"]) or item["text"]


def _processor_template(directory: Path) -> tuple[str | None, str]:
    """(the template that transformers' processor of this folder takes, its file and key for errors).

    As `ProcessorMixin.get_processor_dict` of transformers 5 chooses: one stated in processor_config.json, that of
    chat_template.json, that of chat_template.jinja; None where only the tokenizer brings one. Raises DataError for a
    file without a template.
    """
    both, older, newer = (directory / name for name in (BOTH, "chat_template.json", "chat_template.jinja"))
    stated = optional_json(both).get("chat_template")
    if isinstance(stated, str):
        return stated, f"{both}: chat_template"
    if older.is_file():
        template = optional_json(older).get("chat_template")
        if not isinstance(template, str):
            raise DataError(f"{older}: holds no text chat_template; copy the template of the checkpoint there")
        return template, f"{older}: chat_template"
    if newer.is_file():
        return newer.read_text(encoding="utf-8"), f"{newer}: the chat template"
    return None, f"{directory / 'tokenizer_config.json'}: chat_template"
