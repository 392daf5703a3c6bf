import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.drafting import LONGEST_ENDING, SHORTEST_ENDING, Drafter, draft_from


def draft(tokens: list[int], most: int) -> list[int]:
    return list(draft_from(np.array(tokens, np.int64), most))


def expected(tokens: list[int], most: int) -> list[int]:
    """What came after the latest earlier place with the longest equal ending, going round."""
    for size in range(LONGEST_ENDING, SHORTEST_ENDING - 1, -1):
        for begin in range(len(tokens) - size - 1, -1, -1):
            if tokens[begin : begin + size] == tokens[len(tokens) - size :]:
                after = tokens[begin + size :]
                return [after[i % len(after)] for i in range(most)]
    return []


@given(st.lists(st.integers(0, 2), max_size=14), st.integers(0, 6))
def test_a_draft_is_what_followed_the_same_ending_the_last_time(tokens: list[int], most: int):
    assert draft(tokens, most) == expected(tokens, most)


def test_what_repeats_itself_is_taken_to_go_on():
    assert draft([9, 1, 2, 1, 2, 1, 2], 5) == [1, 2, 1, 2, 1]


def test_drafts_that_never_come_out_become_rare():
    drafter, tokens = Drafter(4), np.array([1, 2, 3, 1, 2], np.int64)
    made = 0
    for _ in range(1000):
        if drafter.draft(tokens, 10):
            made += 1
            drafter.note(0)
    assert 20 <= made <= 40


def test_after_a_draft_that_came_out_there_is_one_at_every_step():
    drafter, tokens = Drafter(4), np.array([1, 2, 3, 1, 2], np.int64)
    assert drafter.draft(tokens, 10) == (3, 1, 2, 3)
    drafter.note(1)
    assert drafter.draft(tokens, 2) == (3, 1)
