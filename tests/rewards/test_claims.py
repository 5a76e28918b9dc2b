"""What responses claim of when and where, and the rewards and verdicts made of it."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jvlmm.data.example import Example
from jvlmm.errors import DataError
from jvlmm.rewards.claims import Claim, claims, key_frames, same_name, thought, times
from jvlmm.rewards.completion import Completion
from jvlmm.rewards.grounded import grounded_format, thought_box, thought_moments, thought_objects, thought_window
from jvlmm.rewards.registry import REWARDS
from jvlmm.rewards.rewarder import make_rewarder
from jvlmm.rewards.terms import RewardOptions

EVIDENCE = [
    {"time": 2.0, "objects": {"red circle": [[0, 0, 10, 10]], "blue square": [[20, 20, 30, 30]]}},
    {"time": 0.5, "objects": {"red circle": [[5, 5, 15, 15]]}},
]
EXAMPLE = Example("e", "Where?", "red", "text", question_type="spatio-temporal", meta={"evidence": EVIDENCE})
SPAN = Example("s", "When?", "1.0 to 3.0", "span")
BOX = Example("b", "Where?", "[0, 0, 10, 10]", "boxes", question_type="visual")
BOTH = Example(
    "m", "Which?", "B", "mcq", options=("left", "right"), question_type="temporal", meta={"window": [1.0, 3.0]}
)
CLAIM = "<obj>dot</obj><box>[1,2,3,4]</box>"


def said(thought, answer="red", **options):
    return Completion(f"<think>{thought}</think><answer>{answer}</answer>", 9, **options)


def test_claims_are_read_in_order_with_their_boxes_and_times():
    text = (
        "<think>The <obj>red circle</obj><box>[0,0,10,10]</box> <box>[1,1,2,2]</box> at <t>1.5</t>s moves; "
        "<obj>blue square</obj><box>[3,3,9,9]</box>, later <t> 2 </t>s; <obj>dot</obj><box>none</box></think><t>7</t>"
    )
    assert times(thought(text)) == (1.5, 2.0)
    assert claims(text) == (
        Claim("red circle", ((0, 0, 10, 10), (1, 1, 2, 2)), 1.5),
        Claim("blue square", ((3, 3, 9, 9),), None),
        Claim("dot", (), None),
    )


@given(st.text(alphabet="<>/thinkobjboxt[]0123456789., ", max_size=80))
def test_anything_can_be_read(text):
    for claim in claims(text):
        assert claim.time is None or math.isfinite(claim.time)
    assert all(map(math.isfinite, times(thought(text))))


def test_key_frames_come_in_order_of_time_and_only_in_their_form():
    assert [frame.time for frame in key_frames(EXAMPLE)] == [0.5, 2.0]
    assert key_frames(replace(EXAMPLE, meta={})) == ()
    for evidence in (3, [{"time": "soon", "objects": {}}], [{"time": 1}], [{"time": 1, "objects": {"a": [[1, 2]]}}]):
        with pytest.raises(DataError, match="'e'.*evidence cannot be read"):
            key_frames(replace(EXAMPLE, meta={"evidence": evidence}))


def test_names_are_alike_when_equal_inside_one_another_or_with_a_common_word():
    assert same_name("The red circle", "red circle") and same_name("circle", "big circles circle")
    assert same_name("red circle", "red square") and not same_name("red circle", "blue square")
    assert not same_name("", "red")


def test_moments_are_judged_by_a_bell_that_narrows():
    late, early = said("at <t>1.5</t>s"), said("at <t>1.5</t>s", progress=0.5)
    assert thought_moments(late, EXAMPLE) == pytest.approx(math.exp(-(0.5**2) / 2))
    assert thought_moments(early, EXAMPLE) == pytest.approx(math.exp(-(0.5**2) / (2 * 2.0**2)))
    assert thought_moments(said("at <t>0.5</t>s and <t>1.5</t>s", progress=0.75), EXAMPLE) == pytest.approx(
        (1 + math.exp(-0.125)) / 2
    )
    assert thought_moments(said("never"), EXAMPLE) == 0
    with pytest.raises(DataError, match="evidence"):
        thought_moments(late, replace(EXAMPLE, meta={}))


def test_the_share_of_times_inside_the_window():
    assert thought_window(said("<t>1.0</t> <t>2.5</t> <t>9</t> <t>0.9</t>"), SPAN) == 0.5
    assert thought_window(said("no time"), SPAN) == 0


def test_objects_are_judged_at_the_next_key_frame():
    right = "<obj>red circle</obj><box>[0,0,10,10]</box> at <t>2.0</t>s"
    half = "<obj>red circle</obj><box>[0,0,10,5]</box> at <t>2.4</t>s"
    wrong = "<obj>green star</obj><box>[0,0,10,10]</box> at <t>2.0</t>s"
    late = "<obj>red circle</obj><box>[0,0,10,10]</box> at <t>3.5</t>s"
    assert thought_objects(said(right), EXAMPLE) == 1
    assert thought_objects(said(right + half), EXAMPLE) == pytest.approx(0.75)
    assert thought_objects(said(right + wrong + late), EXAMPLE) == 1, "the release lets wrong claims cost nothing"
    assert thought_objects(said(right + wrong + late), EXAMPLE, divide_by="claims") == pytest.approx(1 / 3)
    assert thought_objects(said("nothing"), EXAMPLE) == 0
    boxes = Example("b", "Where?", "[0,0,10,10]", "boxes")
    assert thought_box(said("<box>[0,0,10,5]</box> or <box>[90,90,99,99]</box>"), boxes) == 0.5


@pytest.mark.parametrize(
    ("text", "example", "value"),
    [
        ("<think>at <t>1</t>s and <t>2</t>s</think><answer>1 to 3</answer>", SPAN, 1.0),
        ("<think>at <t>1</t>s</think><answer>1 to 3</answer>", SPAN, 0.5),
        ("<think>at 1 s</think><answer><t>1</t>s to <t>3</t>s</answer>", SPAN, 0.5),
        ("<think>at <t>1</t>s and <t>2</t>s</think> so <answer>1 to 3</answer>", SPAN, 1.0),
        ("<think>at <t>1</t>s and <t>2</t>s</think><answer>1 to <t>3</answer>", SPAN, 1.0),
        ("<think>at 1 s</think><answer>1 to 3</answer>", SPAN, 0.5),
        ("<think>at <t>1s</think><answer>1 to 3</answer>", SPAN, 0.0),
        ("at <t>1</t>s <answer>1 to 3</answer>", SPAN, 0.0),
        (f"<think>{CLAIM}at<t>1</t>s</think><answer>red</answer>", EXAMPLE, 1.0),
        (f"<think>{CLAIM}at<t>1</t>s</think><answer>red</answer><answer>", EXAMPLE, 0.0),
        (f"<think>{CLAIM}<box>at<t>1</t>s</think><answer>red</answer>", EXAMPLE, 0.0),
        ("<think>the <obj>dot</obj> at <t>1</t>s</think><answer>red</answer>", EXAMPLE, 0.5),
        (f"<think>{CLAIM}</think><answer>red</answer>", EXAMPLE, 0.5),
        (f"<think>so</think><answer>{CLAIM}</answer>", BOX, 1.0),
        ("<think>so</think><answer><obj>red dot</obj><box>[1,2,3,4]</box></answer>", BOX, 0.5),
        ("<think>so</think><answer><box>[1,2,3,4]</box></answer>", BOX, 0.5),
        ("<think>so</think><answer>Correct Option: B</answer>", BOTH, 0.5),
        ("<think><t>1</t>s to <t>2</t>s</think><answer>Correct Option: B</answer>", BOTH, 1.0),
        ("<think>so</think><answer>B</answer>", replace(BOTH, question_type="general"), 1.0),
        ("<think>the dot</think><answer>red</answer>", EXAMPLE, 0.5),
        ("<think>the dot</think><answer>red</answer>", replace(EXAMPLE, question_type="attribute"), 1.0),
    ],
)
def test_the_form_of_grounded_answers(text, example, value):
    assert grounded_format(Completion(text, 9), example) == value


@pytest.mark.parametrize(
    ("answer", "value"), [("B", 1), ("B.", 1), ("(B)", 1), ("[B]", 1), ("B is right", 0), ("A", 0)]
)
def test_the_letter_stands_alone(answer, value):
    choice = Example("m", "Which?", "B", "mcq", options=("left", "right"))
    assert REWARDS["strict_or_free_form"](said("so", answer), choice) == value


def test_the_preset_scores_every_kind_of_question():
    rewarder = make_rewarder(RewardOptions(preset="visd"))
    choice = Example("m", "Which?", "B", "mcq", options=("left", "right"))
    span = said("at <t>1.5</t>s or <t>9</t>s", "From <t>1.0</t>s to <t>2.0</t>s")
    both = said("<t>1</t>s to <t>2</t>s", "From <t>1.0</t>s to <t>2.0</t>s.\nCorrect Option: (B)")
    table = rewarder([span, said("so", "B"), both], [SPAN, choice, BOTH])
    assert table.total.tolist() == pytest.approx([0.5 + 0.5 + 1, 2.0, 1 + 0.5 + 1 + 1]) and not table.failures
    assert table.accuracy.tolist() == pytest.approx([0.5, 1, 1])
    rewarder.check(BOTH)
    with pytest.raises(DataError, match="window is 'soon'"):
        rewarder.check(replace(BOTH, meta={"window": "soon"}))
    without = replace(BOTH, meta={"window": None})  # as tables of rows fill a column that others need
    rewarder.check(without)
    assert rewarder([said("so", "B")], [without]).total.tolist() == pytest.approx([2.0])
    rewarder.check(EXAMPLE)
    with pytest.raises(DataError, match="evidence"):
        rewarder.check(replace(EXAMPLE, meta={}))


@pytest.mark.parametrize(
    ("answer", "letter", "span"),
    [
        ("From <t>1</t>s to <t>3</t>s.\nCorrect Option: B", 1, 1),
        ("From <t>2</t>s to <t>3.0</t>s.\nCorrect Option: [B]", 1, 0.5),
        ("Correct Option: B", 1, 0),
        ("Correct Option: B. From <t>1</t>s to <t>3</t>s", 0, 1),
        ("B", 0, 0),
        ("From <t>3</t>s to <t>1</t>s.\nCorrect Option: A", 0, 0),
        ("From 1 s to 3 s.\nCorrect Option: B.", 1, 0),
        ("From <t>5</t>s to <t>5</t>s.\nCorrect Option: B.", 1, 0),
    ],
)
def test_a_temporal_choice_is_a_letter_and_a_span(answer, letter, span):
    for text in (answer, f"{answer}</answer><answer>C"):  # the first answer tag counts
        assert REWARDS["strict_or_free_form"](said("so", text), BOTH) == letter
        assert REWARDS["tagged_span"](said("so", text), BOTH) == pytest.approx(span)


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("<box>[0, 0, 10, 5]</box>", 0.5),
        ("<obj>dot</obj><box>[0,0,10,10]</box> or <box>[0,0,1,1]</box>", 1),
        ("[0,0,10,10]", 0),
        ("<box>[here]</box>", 0),
        ("", 0),
    ],
)
def test_the_first_tagged_box_of_the_answer_counts(answer, value):
    assert REWARDS["tagged_box"](said("so", answer), BOX) == value


def test_grounding_without_an_answer_is_worth_nothing():
    claim = "<obj>red circle</obj><box>[0,0,10,10]</box> at <t>2.0</t>s"
    for reward, example in ((thought_objects, EXAMPLE), (thought_box, BOX)):
        assert reward(said(claim), example) == 1
        assert reward(Completion(f"<think>{claim}</think>", 9), example) == 0
