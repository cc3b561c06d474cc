import math

from experiments._saved import markdown


def test_words_to_the_left_at_both_ends_and_numbers_to_the_right():
    assert markdown.table([["a", "number", "b"], ["long", "1", "word"]]).splitlines() == [
        "| a    | number | b    |",
        "|------|-------:|------|",
        "| long |      1 | word |",
    ]


def test_median_and_range():
    assert markdown.median_and_range([3.0, 1.0, 2.0], markdown.loss) == "2 (1 to 3)"
    assert markdown.median_and_range([2.0001, 2.0002], markdown.loss) == "2"
    assert markdown.median_and_range([1.0, math.inf, 2.0], markdown.loss) == "2 (1 to not finite)"


def test_time_to_a_target_is_that_of_those_that_got_there():
    assert markdown.to_target([1.0, math.nan, 3.0]) == "2 (1 to 3), 2 of 3"
    assert markdown.to_target([math.nan]) == "–, 0 of 1"


def test_amounts():
    assert [markdown.amount(n) for n in (0.12345, 1234.5, math.nan)] == ["0.123", "1234", "–"]
