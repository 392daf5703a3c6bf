import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge.chat.prefix import MIN_COPIED, common_length, longest_prefix, place
from edge.chat.sequence import Lane, Sequence

TOKENS = st.lists(st.integers(0, 1), max_size=8)
LONG = 4 * MIN_COPIED


def ids(*tokens: int) -> np.ndarray:
    return np.array(tokens, np.int64)


def lane(index: int, tokens: np.ndarray, *, used: int = 0, busy: bool = False) -> Lane[Sequence]:
    sequence = Sequence(ids(*tokens, 9), limit=len(tokens) + 2) if busy else None
    return Lane(index=index, tokens=tokens, used=used, sequence=sequence)


CONVERSATION = np.arange(LONG)
OTHER = np.arange(LONG) + 1000


@given(TOKENS, TOKENS)
def test_common_length_counts_equal_tokens_from_the_beginning(one: list[int], two: list[int]):
    expected = 0
    while expected < min(len(one), len(two)) and one[expected] == two[expected]:
        expected += 1
    assert common_length(ids(*one), ids(*two)) == expected


def test_a_conversation_goes_on_in_its_lane():
    lanes = [lane(0, ids()), lane(1, CONVERSATION, used=3), lane(2, OTHER, used=1)]
    found = place(np.append(CONVERSATION, [1, 2, 3]), lanes)
    assert (found.lane.index, found.reused, found.source) == (1, LONG, None)


def test_a_conversation_whose_end_has_changed_goes_on_in_its_lane():
    lanes = [lane(0, ids()), lane(1, CONVERSATION)]
    found = place(np.append(CONVERSATION[: LONG - 9], [1, 2, 3]), lanes)
    assert (found.lane.index, found.reused, found.source) == (1, LONG - 9, None)


def test_the_last_token_of_a_prompt_is_always_left_to_run():
    found = place(CONVERSATION, [lane(0, CONVERSATION)])
    assert found.reused == LONG - 1


def test_a_long_conversation_is_not_lost_to_another_with_the_same_beginning():
    lanes = [lane(0, CONVERSATION, used=2), lane(1, OTHER, used=1)]
    found = place(np.append(CONVERSATION[:MIN_COPIED], [1, 2, 3]), lanes)
    assert (found.lane.index, found.reused, found.source) == (1, MIN_COPIED, lanes[0])


def test_a_short_common_beginning_is_not_copied():
    lanes = [lane(0, CONVERSATION, used=2), lane(1, OTHER, used=1)]
    found = place(np.append(CONVERSATION[: MIN_COPIED - 1], [1, 2, 3]), lanes)
    assert (found.lane.index, found.reused, found.source) == (1, 0, None)


def test_the_beginning_of_a_busy_lane_is_copied():
    lanes = [lane(0, CONVERSATION, busy=True), lane(1, OTHER)]
    found = place(np.append(CONVERSATION, [1]), lanes)
    assert (found.lane.index, found.reused, found.source) == (1, LONG, lanes[0])


def test_empty_lanes_are_taken_first_then_the_one_used_longest_ago():
    lanes = [lane(0, CONVERSATION, used=2), lane(1, OTHER, used=1), lane(2, ids(), used=3)]
    assert place(ids(5, 6), lanes).lane.index == 2
    assert place(ids(5, 6), lanes[:2]).lane.index == 1


def test_without_a_free_lane_there_is_no_place():
    assert place(ids(1, 2), [lane(0, CONVERSATION, busy=True)]) is None


def test_of_equal_prefixes_that_of_a_free_lane_with_the_fewest_tokens_is_taken():
    lanes = [
        lane(0, CONVERSATION[:20], busy=True),
        lane(1, CONVERSATION),
        lane(2, CONVERSATION[:30]),
        lane(3, CONVERSATION[:40]),
    ]
    best, common = longest_prefix(np.append(CONVERSATION[:20], [7, 7]), lanes)
    assert (best.index, common) == (2, 20)
