"""Evidence about experts: comparisons within texts, pieces by hand, places, and what is forgotten."""

from math import inf, sqrt

import numpy as np
import pytest

from dispatch_rl.policies.evidence import Evidence, Stretch

ONE = np.zeros(1)


def evidence(places: np.ndarray = ONE, window: float = inf, half_life: float = inf) -> Evidence:
    """Return evidence about three experts that forgets nothing, unless told to."""
    return Evidence(3, places, 0.5, window, half_life)


def text(kept: Evidence, *comparisons: tuple[Stretch, Stretch], where: float = 0.0) -> None:
    """File a text of 100 tokens in which these were compared."""
    kept.add(Stretch(0, 100, 200.0), where)
    for one, others in comparisons:
        kept.compare(one, others)
    kept.file()


def test_pieces_by_hand() -> None:
    """Two texts, in the second of which there are two comparisons; all of it counts by 0.3 pieces more."""
    kept = evidence()
    text(kept, (Stretch(1, 30, 90.0), Stretch(0, 60, 60.0)))
    text(kept, (Stretch(1, 10, 10.0), Stretch(0, 10, 30.0)), (Stretch(1, 20, 50.0), Stretch(0, 20, 40.0)))
    w = np.array([20.0, 5.0 + 10.0])
    d = np.array([20.0 * (3 - 1), 5.0 * (1 - 3) + 10.0 * (2.5 - 2)])
    weights = np.full(2, 1 + 0.3 / 2)
    difference = (weights @ d) / (weights @ w)
    around = weights @ (d - difference * w) ** 2 / (weights @ w**2) * weights.sum()
    variance = (around + 2 * (0.5 * (2 + abs(difference))) ** 2) / (weights.sum() + 2)
    found, error = kept.against(0, 0.0, 2.0)
    np.testing.assert_allclose(found, [0, difference, 0], rtol=1e-12)
    np.testing.assert_allclose(error, [0, sqrt(variance * (weights @ w**2)) / (weights @ w), np.inf], rtol=1e-12)


def test_the_other_way_round_it_is_the_opposite() -> None:
    """Whoever leads: what one takes more, the other takes less."""
    kept = evidence()
    text(kept, (Stretch(1, 30, 90.0), Stretch(0, 60, 60.0)))
    (mine, my_error), (yours, your_error) = kept.against(0, 0.0, 2.0), kept.against(1, 0.0, 2.0)
    assert mine[1] == -yours[0] == 2
    assert my_error[1] == your_error[0] > 0


def test_texts_do_not_matter_only_what_happens_in_them() -> None:
    """An expert that takes 1 ms less in texts of 2 and of 20 ms per token does, although it was asked more often in those of 20."""
    kept = evidence()
    for level, tokens in ((2.0, 20), (20.0, 60), (20.0, 60)):
        text(kept, (Stretch(1, tokens, tokens * (level - 1)), Stretch(0, 20, 20 * level)))
    assert kept.against(0, 0.0, 14.0)[0][1] == pytest.approx(-1)


def test_the_open_text_and_one_comparison_more_count() -> None:
    """What is not filed yet is a piece too, and a stretch that goes on can be counted in without being kept."""
    kept, filed = evidence(), evidence()
    comparison = Stretch(2, 10, 50.0), Stretch(0, 10, 20.0)
    text(filed, comparison)
    looked = kept.against(0, 0.0, 2.0, more=comparison)
    assert looked[0][2] == filed.against(0, 0.0, 2.0)[0][2] == 3
    assert np.isinf(kept.against(0, 0.0, 2.0)[1][2])
    kept.compare(*comparison)
    np.testing.assert_array_equal(kept.against(0, 0.0, 2.0), looked)


def test_places_keep_their_own() -> None:
    """Who is fast at one place and slow at another is known to be, and the one counts at the other a little where nothing else is known."""
    kept = evidence(np.array([-1.0, 0.0, 1.0, 2.0, 3.0, 4.0]))
    for _ in range(20):
        text(kept, (Stretch(1, 10, 10.0), Stretch(0, 10, 30.0)), where=-1.0)
        text(kept, (Stretch(1, 10, 50.0), Stretch(0, 10, 30.0)), where=4.0)
    low, high = kept.against(0, -1.0, 3.0)[0][1], kept.against(0, 4.0, 3.0)[0][1]
    assert low == pytest.approx(-2, abs=0.1)
    assert high == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(("window", "half_life"), [(5.0, inf), (inf, 300.0)])
def test_old_evidence_is_forgotten(window: float, half_life: float) -> None:
    """An expert that becomes fast is found to be, which it is not where everything counts for ever."""
    for kept, forgot in ((evidence(window=window, half_life=half_life), True), (evidence(), False)):
        for ms in (*[50.0] * 20, *[20.0] * 15):
            text(kept, (Stretch(1, 10, ms), Stretch(0, 10, 30.0)))
        assert (kept.against(0, 0.0, 3.0)[0][1] < -0.7) == forgot


def test_what_a_token_takes() -> None:
    """Unknown at first; then of this place, elsewhere and the stretch that goes on."""
    kept = evidence(np.array([0.0, 1.0]))
    nothing = Stretch(0, 0, 0.0)
    assert kept.level_ms(0.0, nothing) == np.inf
    assert kept.level_ms(0.0, Stretch(0, 10, 30.0)) == 3
    kept.add(Stretch(0, 1000, 2000.0), 0.0)
    assert kept.level_ms(0.0, nothing) == pytest.approx(2)
    assert kept.level_ms(0.0, Stretch(0, 1015, 3 * 1015.0)) == pytest.approx(2.5)
