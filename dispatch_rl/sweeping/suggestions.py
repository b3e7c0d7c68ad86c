"""What was probably meant."""

import difflib
from collections.abc import Iterable


def among(given: object, known: Iterable[str]) -> str:
    """Return the end of an error line: the nearest of ``known``, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"
