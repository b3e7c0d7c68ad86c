"""Evidence about experts: comparisons within texts, pieces by hand, places, and what is forgotten."""

from collections.abc import Sequence
from math import exp, inf, sqrt

import numpy as np
import pytest

from dispatch_rl.policies.evidence import Evidence, Stretch


def evidence(places: Sequence[float] = (0.0,), window: float = inf, half_life: float = inf) -> Evidence:
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
    error = sqrt(variance * (weights @ w**2)) / (weights @ w)
    np.testing.assert_allclose(kept.against(0, 0.0), [(0, 0), (difference, error), (0, inf)], rtol=1e-12)


def test_the_other_way_round_it_is_the_opposite() -> None:
    """Whoever leads: what one takes more, the other takes less."""
    kept = evidence()
    text(kept, (Stretch(1, 30, 90.0), Stretch(0, 60, 60.0)))
    mine, yours = kept.against(0, 0.0)[1], kept.against(1, 0.0)[0]
    assert mine.difference == -yours.difference == 2
    assert mine.error == yours.error > 0


def test_texts_do_not_matter_only_what_happens_in_them() -> None:
    """An expert that takes 1 ms less in texts of 2 and of 20 ms per token does, although it was asked more often in those of 20."""
    kept = evidence()
    for level, tokens in ((2.0, 20), (20.0, 60), (20.0, 60)):
        text(kept, (Stretch(1, tokens, tokens * (level - 1)), Stretch(0, 20, 20 * level)))
    assert kept.against(0, 0.0)[1].difference == pytest.approx(-1)


def test_the_open_text_and_one_comparison_more_count() -> None:
    """What is not filed yet is a piece too, and a stretch that goes on can be counted in without being kept."""
    kept, filed = evidence(), evidence()
    comparison = Stretch(2, 10, 50.0), Stretch(0, 10, 20.0)
    text(filed, comparison)
    kept.add(Stretch(0, 100, 200.0), 0.0)
    looked = kept.with_another(*comparison, 0.0)
    assert looked.difference == filed.against(0, 0.0)[2].difference == 3
    assert kept.against(0, 0.0)[2].error == inf
    kept.compare(*comparison)
    assert kept.against(0, 0.0)[2] == pytest.approx(looked, rel=1e-12)


def test_places_keep_their_own() -> None:
    """Who is fast at one place and slow at another is known to be, and the one counts at the other a little where nothing else is known."""
    kept = evidence((-1.0, 0.0, 1.0, 2.0, 3.0, 4.0))
    for _ in range(20):
        text(kept, (Stretch(1, 10, 10.0), Stretch(0, 10, 30.0)), where=-1.0)
        text(kept, (Stretch(1, 10, 50.0), Stretch(0, 10, 30.0)), where=4.0)
    low, between, high = (kept.against(0, where)[1].difference for where in (-1.0, 1.5, 4.0))
    assert low == pytest.approx(-2, abs=0.1)
    assert high == pytest.approx(2, abs=0.1)
    assert between == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize(("window", "half_life"), [(5.0, inf), (inf, 300.0)])
def test_old_evidence_is_forgotten(window: float, half_life: float) -> None:
    """An expert that becomes fast is found to be, which it is not where everything counts for ever."""
    for kept, forgot in ((evidence(window=window, half_life=half_life), True), (evidence(), False)):
        for ms in (*[50.0] * 20, *[20.0] * 15):
            text(kept, (Stretch(1, 10, ms), Stretch(0, 10, 30.0)))
        assert (kept.against(0, 0.0)[1].difference < -0.7) == forgot


def test_what_a_token_takes() -> None:
    """Unknown at first; then as it was there, and a little as elsewhere."""
    kept = evidence((0.0, 1.0))
    assert kept.level_ms(0.0) == inf
    kept.add(Stretch(0, 1000, 2000.0), 0.0)
    assert kept.level_ms(0.0) == kept.level_ms(1.0) == pytest.approx(2)
    kept.add(Stretch(0, 1000, 4000.0), 1.0)
    near, far, elsewhere = 1.0, exp(-0.75), 0.3 * 50 / 2000
    assert kept.level_ms(0.0) == pytest.approx(((near + elsewhere) * 2 + (far + elsewhere) * 4) / (near + far + 2 * elsewhere))


def test_new_evidence_changes_what_was_found() -> None:
    """An estimate is made once, and anew when a text is filed or a comparison comes in."""
    kept = evidence()
    text(kept, (Stretch(1, 10, 30.0), Stretch(0, 10, 20.0)))
    first = kept.against(0, 0.0)[1]
    kept.compare(Stretch(1, 10, 30.0), Stretch(0, 10, 20.0))
    second = kept.against(0, 0.0)[1]
    text(kept)
    text(kept, (Stretch(1, 10, 30.0), Stretch(0, 10, 20.0)))
    assert first.error > second.error > kept.against(0, 0.0)[1].error
