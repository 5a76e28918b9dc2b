"""Boxes from one coordinate system to another: values by hand, round trips, and texts that keep all else."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.data.coordinates import COORDINATES, Shown, as_answered, convert, note
from jvlmm.data.example import Example, Media
from jvlmm.errors import DataError

HD = Shown("image", "/a.jpg", (0,), (0.0,), file_size=(1280, 720), shown_size=(420, 224))
SAME = replace(HD, file_size=(84, 84), shown_size=(84, 84))
PICTURE = (Media("image", "/a.jpg"),)
# One corner of a 1280x720 picture shown at 420x224: a quarter from the left, a third from the top; to three quarters.
BY_HAND = {
    "file": (320, 240, 960, 540),
    "shown": (105, 74.6667, 315, 168),
    "per-mille": (250, 333.3333, 750, 750),
    "shares": (0.25, 0.333333, 0.75, 0.75),
}


@pytest.mark.parametrize("given_in", COORDINATES)
@pytest.mark.parametrize("wanted", COORDINATES)
def test_values_by_hand(given_in, wanted):
    assert convert(BY_HAND[given_in], given_in, wanted, HD) == pytest.approx(BY_HAND[wanted], rel=1e-5)


SIDES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))


@given(
    st.tuples(*[st.floats(-1e6, 1e6)] * 4),
    SIDES,
    SIDES,
    st.sampled_from(COORDINATES),
    st.sampled_from(COORDINATES),
)
def test_there_and_back_again(box, file_size, shown_size, one, other):
    shown = replace(HD, file_size=file_size, shown_size=shown_size)
    assert convert(convert(box, one, other, shown), other, one, shown) == pytest.approx(box, rel=1e-9, abs=1e-9)


def asked(answer="[320,240,960,540]", **fields):
    fields = {"question": "Where?", "answer": answer, "answer_type": "boxes", "media": PICTURE, **fields}
    return Example("e", **fields)


def test_everything_of_a_row_is_brought_into_the_coordinates_of_answers():
    row = asked(
        question="What is in <box>[320, 240, 960, 540]</box> of [1,2,3,4]?",
        hint=" Verified answer: (320,240),(960,540)",
        response="<think>at <box>[320,240,960,540]</box></think><answer>[320, 240, 960, 540]</answer>",
        meta={"evidence": [{"time": 1, "objects": {"dog": [[320, 240, 960, 540]]}}], "kept": 1},
        earlier=(asked(response="[320,240,960,540]"),),
    )
    found = as_answered(row, "shown", [HD])
    assert found.coordinates == found.earlier[0].coordinates == "shown"
    assert json.loads(found.answer) == pytest.approx([105, 74.666667, 315, 168])
    assert found.question == "What is in <box>[105, 75, 315, 168]</box> of [1,2,3,4]?"
    assert found.hint == " Verified answer: (105,75),(315,168)"
    assert found.response == "<think>at <box>[105,75,315,168]</box></think><answer>[105, 75, 315, 168]</answer>"
    assert found.meta["evidence"][0]["objects"]["dog"][0] == pytest.approx((105, 74.66667, 315, 168))
    assert found.meta["kept"] == 1 and found.earlier[0].response == "[105,75,315,168]"
    assert as_answered(found, "shown", [HD]) == found, "what is converted is not converted again"
    assert as_answered(replace(row, coordinates="shares"), "shares", [HD]).answer == row.answer


def test_shares_and_thousandths():
    row = asked("[0.25,0.5,0.75,1.0]", coordinates="shares", response="<answer>[0.25,0.5,0.75,1.0]</answer>")
    assert as_answered(row, "shown", [HD]).response == "<answer>[105,112,315,224]</answer>"
    assert as_answered(row, "per-mille", [HD]).response == "<answer>[250,500,750,1000]</answer>"
    assert as_answered(asked(response="[320,240,960,540]"), "shares", [HD]).response == "[0.25,0.333,0.75,0.75]"


def test_not_a_letter_changes_where_the_file_is_shown_in_its_own_size():
    row = asked("[1.50, 2,30 ,4e1]", response="see [1.50, 2,30 ,4e1]", meta={"evidence": [{"time": 0, "objects": {}}]})
    assert as_answered(row, "shown", [SAME]) == replace(row, coordinates="shown")
    assert as_answered(row, "shown", []) == replace(row, coordinates="shown")


def test_which_of_several_pictures_a_box_is_of_must_be_known():
    two = asked(media=(*PICTURE, Media("image", "/b.jpg")))
    other = replace(HD, path="/b.jpg", file_size=(84, 84), shown_size=(84, 84))
    with pytest.raises(DataError, match=r"^e: its boxes .* 2 media .* box_medium=0, 1"):
        as_answered(two, "shown", [HD, other])
    assert as_answered(replace(two, box_medium=1), "shown", [HD, other]).answer == two.answer
    assert as_answered(replace(two, box_medium=0), "shown", [HD, other]).answer != two.answer
    # Tags may show the media in another order, or one of them again in a later turn: the number counts the row's list.
    for order in ([other, HD], [HD, HD, other], [other, other, HD]):
        assert as_answered(replace(two, box_medium=1), "shown", order).answer == two.answer
        assert as_answered(replace(two, box_medium=0), "shown", order).answer != two.answer
    like = replace(HD, path="/b.jpg")
    assert as_answered(two, "shown", [HD, like]) == as_answered(asked(), "shown", [HD]).__class__(
        **{**as_answered(asked(), "shown", [HD]).__dict__, "media": two.media}
    )
    words = replace(two, answer_type="text", answer="a dog")
    assert as_answered(words, "shown", [HD, other]).answer == "a dog", "a row without boxes is not asked"


def test_the_prompt_tells_which_pixels_are_meant_where_there_is_a_doubt():
    assert note("shown", [HD]) == "Coordinates are pixels of a 420x224 picture."
    assert note("file", [HD]) == "Coordinates are pixels of a 1280x720 picture."
    assert note("shown", [SAME]) == note("shown", []) == ""
    assert "0 to 1000" in note("per-mille", [SAME]) and "0 to 1 " in note("shares", [SAME])


@given(st.text(max_size=60), st.text(alphabet="[](),.0123456789 -eE<box>/", max_size=80))
def test_any_text_can_be_read(text, digits):
    row = asked(text + digits, question="?" + digits, response=digits + text, hint=digits)
    found = as_answered(row, "shown", [HD])
    assert isinstance(found.answer, str) and found.meta == {}
