"""How questions are asked: media in their places, lettered options, the form of the answer, refusals."""

import pytest

from jvlmm.data.example import Example, Media
from jvlmm.data.prompts import lettered, media_in_order, render
from jvlmm.errors import DataError

VIDEO, IMAGE, OTHER = Media("video", "a.mp4"), Media("image", "a.png"), Media("image", "b.png")


def _example(**fields):
    return Example(**{"id": "row-7", "question": "What moves?", "answer": "x", "answer_type": "text", **fields})


def _content(example, style="direct"):
    (message,) = render(example, style)
    assert message["role"] == "user"
    return [item["type"] if item["type"] != "text" else item["text"] for item in message["content"]]


def test_media_without_tags_come_first():
    content = _content(_example(media=(VIDEO, IMAGE)), "describe")
    assert content == ["video", "image", "What moves?"]


def test_media_take_the_places_of_their_tags():
    example = _example(question="Compare <image> and <image>: <video> what moves?", media=(IMAGE, VIDEO, IMAGE))
    assert _content(example, "describe") == ["Compare ", "image", " and ", "image", ": ", "video", " what moves?"]


def test_a_type_without_tags_comes_before_placed_ones():
    example = _example(question="In <image>, what moves?", media=(IMAGE, VIDEO))
    assert _content(example, "describe") == ["video", "In ", "image", ", what moves?"]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("direct", "Which?\nA. red\nB. blue\nAnswer with the letter."),
        (
            "think",
            "Which?\nA. red\nB. blue\nThink in <think></think>, then answer in <answer></answer>. "
            "Answer with the letter.",
        ),
        ("describe", "Which?\nA. red\nB. blue"),
    ],
)
def test_multiple_choice_in_each_style(style, text):
    example = _example(question=" Which? ", answer="A", answer_type="mcq", options=("red", "blue"), response="A")
    assert _content(example, style) == [text]


@pytest.mark.parametrize("style", ["direct", "think"])
def test_a_caption_is_asked_for_without_instruction(style):
    assert _content(_example(answer="", response="A circle moves."), style) == ["What moves?"]
    assert _content(_example(question_type="caption_motion"), style) == ["What moves?"]


def test_every_answer_type_asks_for_its_form():
    forms = {
        kind: _content(_example(answer_type=kind, options=("a", "b") if kind == "mcq" else ()))[0]
        for kind in ("mcq", "yesno", "number", "text", "span", "boxes")
    }
    assert len(set(forms.values())) == 6


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"question": "<video> <video> what?", "media": (VIDEO,)}, r"2 <video>.*1 video"),
        ({"question": "<image> what?", "media": (VIDEO,)}, r"1 <image>.*0 image"),
        ({"question": "<video> what?", "media": (VIDEO, VIDEO)}, r"1 <video>.*2 video"),
        ({"question": ""}, "question is empty"),
        ({"question": " <video>\n", "media": (VIDEO,)}, "question is empty"),
        ({"answer_type": "mcq"}, "mcq without options"),
        ({"answer_type": "essay"}, "essay"),
        ({"options": ("x",) * 27}, "27 options"),
    ],
)
def test_refusals_name_the_example_and_the_reason(fields, reason):
    with pytest.raises(DataError, match=reason) as caught:
        render(_example(**fields))
    assert str(caught.value).startswith("row-7: ")
    assert "\n" not in str(caught.value)


def test_unknown_style_is_refused():
    with pytest.raises(DataError, match="direct, think, describe"):
        render(_example(), "rhyme")


def _turn(question, media=(), **fields):
    return _example(id="earlier", question=question, media=media, response="red", **fields)


@pytest.mark.parametrize(
    ("earlier", "last", "contents"),
    [
        ({"media": (IMAGE,)}, {}, (["image", "First?"], ["Then?"])),
        ({"media": (IMAGE,)}, {"media": (OTHER,)}, (["image", "First?"], ["image", "Then?"])),
        (
            {"question": "<image>First?", "media": (IMAGE,)},
            {"question": "And <image> then?", "media": (OTHER,)},
            (["image", "First?"], ["And ", "image", " then?"]),
        ),
        ({}, {"media": (VIDEO,)}, (["First?"], ["video", "Then?"])),
        ({"media": (VIDEO,)}, {"media": (VIDEO,)}, (["video", "First?"], ["Then?"])),
        (
            {"question": "<image>First?"},
            {"question": "<image>Then?", "media": (IMAGE, OTHER, VIDEO)},
            (["image", "First?"], ["video", "image", "Then?"]),
        ),
    ],
    ids=["earlier only", "both", "tags in both", "last only", "the same again", "one list for all turns"],
)
def test_every_turn_shows_its_own_media(earlier, last, contents):
    earlier = _turn(**{"question": "First?", **earlier})
    example = _example(**{"question": "Then?", "earlier": (earlier,), **last})
    first, _, second = render(example, "describe")
    shown = [[item.get("text", item["type"]) for item in message["content"]] for message in (first, second)]
    assert shown == list(contents)
    kinds = [item["type"] for message in (first, second) for item in message["content"] if item["type"] != "text"]
    placed = media_in_order(example, [first, second])
    assert [media.type for media in placed] == kinds
    images = [media for media in (*earlier.media, *last.get("media", ())) if media.type == "image"]
    assert [media for media in placed if media.type == "image"] == images, "in the order of the turns"


def test_a_system_text_begins_the_conversation():
    first, second = render(_example(system="Answer in one word."))
    assert first == {"role": "system", "content": "Answer in one word."} and second["role"] == "user"


@pytest.mark.parametrize("options", [("A. red", "B. blue"), ("(A) red", "(B) blue"), ("A) red", "B) blue"), ("Ａ", "")])
def test_letters_that_options_bring_are_not_said_twice(options):
    lines = lettered(_example(answer_type="mcq", options=options))
    assert lines == (["A. Ａ", "B. "] if options[0] == "Ａ" else ["A. red", "B. blue"])


@pytest.mark.parametrize("options", [("A. Smith", "Jones"), ("E. coli", "B. subtilis")])
def test_what_only_looks_like_letters_stays(options):
    assert lettered(_example(answer_type="mcq", options=options)) == [f"A. {options[0]}", f"B. {options[1]}"]
