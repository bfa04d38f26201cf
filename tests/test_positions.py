"""Positions by hashes: a dict's answers."""

from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.positions import HASH_BYTES, Positions

HASHES = st.integers(0, 20).map(lambda number: number.to_bytes(HASH_BYTES))
STEPS = st.lists(st.tuples(HASHES, st.integers(0, 2**63 - 1), st.booleans()), max_size=100)


@given(STEPS)
def test_it_answers_as_a_dict_does(steps: list[tuple[bytes, int, bool]]) -> None:
    positions, known = Positions(), dict[bytes, int]()
    for hashed, position, add in steps:
        if add:
            positions.add(hashed, position)
            known.setdefault(hashed, position)
        else:
            positions.discard(hashed)
            known.pop(hashed, None)
        assert len(positions) == len(known)
    for hashed, _, _ in steps:
        assert (positions.get(hashed), hashed in positions) == (known.get(hashed), hashed in known)
