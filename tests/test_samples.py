"""What measured rounds are made of."""

import pytest

from dispatch_rl.errors import UserError
from dispatch_rl.replay.measured_texts import MeasuredTexts
from dispatch_rl.replay.samples import NEXT, latency


def test_who_was_never_measured_is_not_free() -> None:
    """Further tokens alone do not tell what a first one takes."""
    texts = MeasuredTexts(((16, 64),), (0, 64), (32,))
    samples = {("small", NEXT): [(40, 0.5)], ("medium", 1): [(40, 0.7)]}
    assert latency(samples, "medium", texts).median_ms == ((0.7,),)
    with pytest.raises(UserError, match=r"^profiling\.rounds: they were too few to measure 'small' at all; give more$"):
        latency(samples, "small", texts)
