"""Positions by hashes: a dict's answers, whatever the hashes."""

from hypothesis import given
from hypothesis import strategies as st

from nothing_gpt.positions import HASH_BYTES, Positions

# Few values of the half that picks the slot, so that hashes meet.
HASHES = st.builds(lambda low, high: bytes([low, *[0] * 7, high, *[0] * 7]), st.integers(0, 3), st.integers(0, 255))
STEPS = st.lists(st.tuples(HASHES, st.integers(0, 2**62), st.booleans()), max_size=200)


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
    assert {hashed: positions.get(hashed) for hashed, _, _ in steps} == {
        hashed: known.get(hashed) for hashed, _, _ in steps
    }


def test_it_grows_and_forgets_what_it_was_told_to() -> None:
    hashes = [number.to_bytes(HASH_BYTES, "little") for number in range(5000)]
    positions = Positions()
    for position, hashed in enumerate(hashes):
        positions.add(hashed, position)
    for hashed in hashes[::2]:
        positions.discard(hashed)
    for position, hashed in enumerate(hashes[:100]):
        positions.add(hashed, position + 1_000_000)
    assert len(positions) == 2550
    assert [positions.get(hashed) for hashed in hashes[:4]] == [1_000_000, 1, 1_000_002, 3]
    assert (hashes[4998] in positions, hashes[4999] in positions) == (False, True)
