"""Which corpus a row is from: each has what is due to it in every prefix, to within one row."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from neutral_residues.data.allotment import allotment

PARTS = st.integers(1, 6).flatmap(
    lambda number: st.tuples(*[st.lists(st.integers(0, 40), min_size=number, max_size=number)] * 2)
)


def shares_of(parts: list[int]) -> list[Fraction]:
    """In hundredths, as a user writes them; the last is what is left."""
    total = max(1, sum(parts))
    found = [Fraction(100 * part // total, 100) for part in parts[:-1]]
    return [*found, 1 - sum(found, start=Fraction(0))]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(parts=PARTS, num_rows=st.integers(1, 150))
def test_no_prefix_has_a_row_too_many_or_too_few(
    parts: tuple[list[int], list[int]], num_rows: int
) -> None:
    firsts, lasts = map(shares_of, parts)
    shares = tuple((float(a), float(b)) for a, b in zip(firsts, lasts, strict=True))
    rows = allotment(shares, num_rows)
    found, due = [0] * len(shares), [Fraction(0)] * len(shares)
    for row in range(num_rows):
        corpus, before = rows.find(row)
        assert before == found[corpus]
        found[corpus] += 1
        middle = Fraction(2 * row + 1, 2 * num_rows)
        for c, (first, last) in enumerate(zip(firsts, lasts, strict=True)):
            due[c] += first + middle * (last - first)
            assert abs(found[c] - due[c]) < 1, f"corpus {c}, first {row + 1} rows"
    # In all it is the mean of both ends.
    assert due == [(a + b) / 2 * num_rows for a, b in zip(firsts, lasts, strict=True)]


def test_shares_that_stay_do_not_depend_on_the_length_of_the_run() -> None:
    shares = ((0.125, 0.125), (0.6, 0.6), (0.275, 0.275))
    short, long = allotment(shares, 7), allotment(shares, 10**9)
    assert len(long.corpora) == 40
    assert [short.find(row) for row in range(7)] == [long.find(row) for row in range(7)]
    counts = [0, 0, 0]
    for row in range(200):
        corpus, before = long.find(row)
        assert before == counts[corpus]
        counts[corpus] += 1
    assert counts == [25, 120, 55]


def test_shares_of_many_digits() -> None:
    shares = tuple((it, it) for it in (0.00012345678901234567, 0.00087654321098765433, 0.999))
    rows = allotment(shares, 2000)
    assert [sum(rows.find(row)[0] == c for row in range(2000)) for c in range(3)] == [0, 2, 1998]
