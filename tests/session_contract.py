"""What every Session must do; each implementation's tests inherit this class."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest

from edge.errors import InferenceError, InputError
from edge.session import Session
from tests.models import AFFINE_INPUTS, AFFINE_OUTPUTS, affine


class SessionContract:
    """Tests of the four promises, on the affine model."""

    @pytest.fixture
    def open_session(self) -> Callable[[], Session]:
        """Return a function that opens the affine model; subclasses override it."""
        raise NotImplementedError

    @pytest.fixture
    def session(self, open_session: Callable[[], Session]) -> Iterator[Session]:
        opened = open_session()
        yield opened
        opened.close()

    @pytest.fixture
    def feeds(self) -> dict[str, np.ndarray]:
        return {"x": np.linspace(-3, 3, 12, dtype=np.float32).reshape(3, 4)}

    def test_specs_are_those_of_the_model(self, session: Session) -> None:
        assert session.inputs == AFFINE_INPUTS
        assert session.outputs == AFFINE_OUTPUTS

    def test_outputs_equal_the_reference(self, session: Session, feeds: dict) -> None:
        outputs = session.run(feeds)
        expected = affine(feeds["x"])
        assert outputs.keys() == expected.keys()
        for name, array in outputs.items():
            # One multiply-add and a sum of four floats: a few units in the last place.
            np.testing.assert_allclose(array, expected[name], rtol=1e-6, atol=1e-6)
            assert array.dtype == np.float32

    def test_outputs_are_owned_by_the_caller(self, session: Session, feeds: dict) -> None:
        first = session.run(feeds)
        kept = {name: array.copy() for name, array in first.items()}
        session.run({"x": feeds["x"] + 1})
        for name, array in first.items():
            np.testing.assert_array_equal(array, kept[name])
            array[...] = -1  # writable, and writing does not reach the session
        np.testing.assert_array_equal(session.run(feeds)["y"], kept["y"])

    def test_outputs_do_not_alias_the_feeds(self, session: Session, feeds: dict) -> None:
        outputs = session.run(feeds)
        assert not any(np.shares_memory(array, feeds["x"]) for array in outputs.values())

    def test_feeds_are_not_changed(self, session: Session, feeds: dict) -> None:
        before = feeds["x"].copy()
        session.run(feeds)
        np.testing.assert_array_equal(feeds["x"], before)

    def test_a_read_only_unaligned_feed_runs(self, session: Session, feeds: dict) -> None:
        body = b"{" + feeds["x"].tobytes()
        view = np.frombuffer(memoryview(body)[1:], dtype=np.float32).reshape(3, 4)
        np.testing.assert_allclose(session.run({"x": view})["y"], affine(view)["y"], rtol=1e-6)

    def test_a_strided_feed_runs(self, session: Session) -> None:
        x = np.arange(24, dtype=np.float32).reshape(3, 8)[:, ::2]
        np.testing.assert_allclose(session.run({"x": x})["y"], affine(x)["y"], rtol=1e-6)

    @pytest.mark.parametrize(
        ("feeds", "problem"),
        [
            ({}, "missing"),
            ({"x": np.zeros((1, 4), np.float32), "z": np.zeros(1)}, "unknown"),
            ({"x": np.zeros((1, 4), np.float64)}, "FP64"),
            ({"x": np.zeros(4, np.float32)}, "rank 1"),
            ({"x": np.zeros((1, 5), np.float32)}, "axis 1"),
            ({"x": np.zeros((9, 4), np.float32)}, "1..8"),
            ({"x": np.zeros((0, 4), np.float32)}, "1..8"),
        ],
    )
    def test_bad_feeds_are_refused_and_the_session_lives_on(
        self, session: Session, feeds: dict, problem: str
    ) -> None:
        with pytest.raises(InputError, match=problem):
            session.run(feeds)
        good = np.ones((1, 4), np.float32)
        np.testing.assert_allclose(session.run({"x": good})["y"], affine(good)["y"])

    def test_reset_state_is_allowed_at_any_time(self, session: Session, feeds: dict) -> None:
        session.reset_state()
        session.run(feeds)
        session.reset_state()

    def test_a_closed_session_refuses_to_run(self, session: Session, feeds: dict) -> None:
        session.close()
        with pytest.raises(InferenceError, match="closed"):
            session.run(feeds)

    def test_close_is_idempotent(self, session: Session) -> None:
        session.close()
        session.close()
