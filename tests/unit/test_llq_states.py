"""The transition table: closed, and drawn in docs/llq.md as it is."""

from pathlib import Path

from server.push.limits import Counters
from server.push.llq_states import TRANSITIONS, Input, diagram
from server.push.subscriptions import State

PAGE = Path(__file__).parents[2] / "docs" / "llq.md"


def test_the_drawing_in_the_docs_is_the_table() -> None:
    page = PAGE.read_text("utf-8")
    assert page.split("```mermaid\n")[1].split("```")[0] == diagram()


def test_every_state_can_be_reached_and_left_but_gone() -> None:
    assert set(TRANSITIONS.values()) == set(State)
    assert {state for state, _ in TRANSITIONS} == set(State) - {State.GONE}
    assert {happening for _, happening in TRANSITIONS} == set(Input)


def test_every_end_is_counted_under_its_own_name() -> None:
    ends = {happening.name.lower() for (_, happening), end in TRANSITIONS.items() if end is State.GONE}
    assert ends <= set(Counters.__slots__)
    assert len(ends) == 6
