"""Options are named in the forms in which people and models name them, whatever their letters and their order."""

import itertools
import string

import pytest

from jvlmm.rewards import parsing

MOVES = ("left", "right", "up", "down")
COUNTS = ("1", "2", "3", "4")
LETTERED = ("A. red", "B. blue")
SENTENCES = ("Sentence A: a cat sits", "Sentence B: a dog runs")
CROSSED = ("B", "A", "D", "C")
PEOPLE = ("a man", "a woman")
YES_NO = ("Yes", "No")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>x</think><answer>B</answer>", "B"),
        *((text, "B") for text in ("答案：B", "答案是B", "选B", "选项B", "B、right", "（B）", "Ｂ", "答案：【B】")),
        *((text, "B") for text in (r"\boxed{B}", r"<answer>\boxed{B}</answer>", r"$\boxed{\text{B}}$", r"\(B\)")),
        *((text, "B") for text in ("**B**", "**Answer: B**", "**B. right**", "Answer: **B**", "__B__", "`B`")),
        ("The correct answer is (B) right.", "B"),
        ("The answer is B. Note that A is a common distractor.", "B"),
        ("B. right\nBecause the arrow moves right not left", "B"),
        ("A. left", "A"),
        ("A left", "A"),
        ("B right", "B"),
        ("Option B", "B"),
        ("option (b)", "B"),
        ("answer is b", "B"),
        ("The answer is: right", "B"),
        ("Correct Option: B", "B"),
        ("I think it is B.", "B"),
        ("Option A is wrong. The answer is B.", "B"),
        ("B is the correct answer", "B"),
        ("It is D because I computed it", "D"),
        ("None of the above", None),
        ("I don't know", None),
        ("Don't know", None),
        ("A car moves right", "B"),
        ("A", "A"),
        ("A and B", None),
        ("A or B", None),
        ("A, B", None),
        ("(A) and (B)", None),
        ("The answer is A or B.", None),
        ("A. left, C. up", None),
        ("not A, so B", None),
        ("It is not left", None),
        ("It does not go left.", None),
        ("It isn't option B", None),
        ("The car does not stop at all before it turns right", "B"),
        ("B left", None),  # the letter, or the text?
        ("The answer is A left turn", "A"),
        ("The answer is B left", None),
        ("E", None),
        (r"\boxed{A} or \boxed{B}", None),
        (r"\boxed{B}, again \boxed{B}", "B"),
        ("<answer>B</answer> then <answer>", "B"),
        ("<answer>B", "B"),
        *((text, "B") for text in ("B) right", "B: right", "B - right", "b", "[B]", "'B'", '"B"', "(B", "B>", "<B>")),
        ("{B}", "B"),
        ("<answer>Right</answer>", "B"),
        ("<answer>RIGHT.</answer>", "B"),
        ("e.g. nothing", None),
    ],
)
def test_options_are_read_in_all_forms(text, expected):
    assert parsing.parse_choice(parsing.extract_answer(text).text, MOVES) == expected


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        *((LETTERED, text, "A") for text in ("A", "A. red", "red", "A. A. red", "(A) red")),
        (LETTERED, "blue", "B"),
        (("(A) red", "(B) blue"), "blue", "B"),
        (("A: red", "a) blue"), "A", "A"),  # letters that are no letters of these options stay
        *((options, "Sentence B: a dog runs", "B") for options in (SENTENCES, ("a cat sits", "a dog runs"))),
        *((SENTENCES, text, "A") for text in ("Sentence A", "A", "sentence a.", "a cat sits", "Caption A", "Option 1")),
        (("Caption A: up", "Caption B: down"), "Caption B", "B"),
        (("Option 1: up", "Option 2: down"), "Option 2", "B"),
        (("Option 1: up", "Option 2: down"), "Option 2: down", "B"),
        (("1. up", "2. down"), "2", "B"),
        (("1. up", "2. down"), "2. down", "B"),
        (("1. up", "2. down"), "3", None),
        (("1.5 m", "2.5 m"), "2.5 m", "B"),
        (MOVES, "Option 2", "B"),
        (("Option 2", "Option 1"), "Option 1", "B"),
        (("A dog runs first, then a cat.", "A cat runs first, then a dog."), "A cat runs first, then a dog", "B"),
        (MOVES, "Option 9", None),
        (CROSSED, "A", "A"),
        (CROSSED, "B", "B"),
        (CROSSED, "A. B", "A"),
        (YES_NO, "Yes", "A"),
        (YES_NO, "No, it does not", "B"),
        (COUNTS, "3", "C"),
        (COUNTS, "There are 3", "C"),
        (COUNTS, "C. 3", "C"),
        (COUNTS, "12", None),
        (PEOPLE, "A man", "A"),
        (PEOPLE, "A woman", "B"),
        (PEOPLE, "woman", "B"),
        (PEOPLE, "a", "A"),
        (PEOPLE, "Answer: A woman", "B"),
        (("左", "右"), "它向右移动", "B"),
        (("左", "右"), "不是右", None),
        (("C#", "C++", "C"), "C++", "B"),
        (("C#", "C++", "C"), "the language C#", "A"),
        (("+1", "-1"), "−1", "B"),
        (("1/2", "2"), "1/2", "A"),
        (("1/2", "2"), "2", "B"),
        (("3.5", "35"), "It is 35", "B"),
    ],
)
def test_the_texts_of_options_are_read(options, text, expected):
    assert parsing.parse_choice(text, options) == expected


_FORMS = (
    *(
        "{}",
        "{}.",
        "({})",
        "[{}]",
        "**{}**",
        r"\boxed{{{}}}",
        "{}. because",
        "{}) so",
        "Answer: {}",
        "答案：{}",
        "选{}",
    ),
    *("The answer is {}.", "the answer is ({})", "Option {}", "It is {} because I computed it", "{} is correct"),
    *("I would choose {}.", "The answer is {} because we saw it", "{}\nAs we saw", "<{}>"),
)
_WORDS = tuple(f"{first}{second}o" for first, second in itertools.product("bdfgklmnprst", "aeu"))[:26]


@pytest.mark.parametrize("form", _FORMS)
def test_no_letter_is_preferred(form):
    """Every form is read alike for every letter, whatever the number of options."""
    for count in (2, 5, 26):
        for letter in string.ascii_uppercase[:count]:
            assert parsing.parse_choice(form.format(letter), _WORDS[:count]) == letter
    beyond = [parsing.parse_choice(form.format(letter), _WORDS[:4]) for letter in string.ascii_uppercase[4:]]
    assert beyond == [None] * 22


_SAYINGS = (
    "bao",
    "It is bao.",
    "bao, not dao",
    "neither bao nor dao",
    "bao or dao",
    "A bao is seen",
    "nothing of these",
)


@pytest.mark.parametrize("text", _SAYINGS)
def test_permuted_options_permute_what_is_read(text):
    options = ("bao", "dao", "fao", "gao")
    read = parsing.parse_choice(text, options)
    meant = None if read is None else options["ABCD".index(read)]
    for order in itertools.permutations(options):
        letter = parsing.parse_choice(text, order)
        assert (None if letter is None else order["ABCD".index(letter)]) == meant


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A、C", "AC"),
        ("A和C", "AC"),
        (r"\boxed{A, C}", "AC"),
        ("The answers are A and C", "AC"),
        ("**A**, **C**", "AC"),
    ],
)
def test_several_letters_in_all_forms(text, expected):
    assert parsing.parse_choices(text, MOVES) == frozenset(expected)
