"""What was probably meant."""

import difflib
from collections.abc import Collection, Iterable


def among(given: object, known: Iterable[str]) -> str:
    """Return the end of an error line: the nearest of ``known``, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(str(given), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(names)}"


def option(given: str, known: Collection[str]) -> str:
    """Return the end of an error line: the option nearest to a mistyped one, or those whose last part is."""
    if given.count(".") and (near := difflib.get_close_matches(given, sorted(known), n=1)):
        return f"; did you mean {near[0]}?"
    ends = {name.rpartition(".")[2] for name in known}
    if near := difflib.get_close_matches(given.rpartition(".")[2], sorted(ends), n=1):
        return f"; did you mean {' or '.join(sorted(name for name in known if name.rpartition('.')[2] == near[0]))}?"
    return "; --help lists them"
