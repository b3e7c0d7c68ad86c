"""Prompt lookup: the last few tokens stood here before, so what followed them then may follow now."""

LONGEST_MATCH = 4
"""Longest run of tokens that is compared."""


class LookupIndex:
    """Finds the latest earlier place that ended in the same tokens. One dictionary entry per run and length; O(1) per query."""

    def __init__(self) -> None:
        self._next_position: dict[tuple[int, ...], int] = {}
        self._tokens: list[int] = []

    def extend(self, tokens: list[int]) -> None:
        """Append committed ``tokens``; every run that now has a successor can be found."""
        for token in tokens:
            position = len(self._tokens)
            end = tuple(self._tokens[-LONGEST_MATCH:])
            for start in range(len(end)):
                self._next_position[end[start:]] = position
            self._tokens.append(token)

    def find(self, draft: list[int]) -> tuple[int, int | None]:
        """Return the length of the longest match of the sequence's end and the token that followed it.

        Args:
            draft: Tokens drafted behind the committed ones.

        Returns:
            The length of the match (0 to 4 tokens) and the proposed token; ``(0, None)`` without a match.
        """
        end = tuple(self._tokens[-LONGEST_MATCH:] + draft)[-LONGEST_MATCH:]
        for start in range(len(end)):
            position = self._next_position.get(end[start:])
            if position is not None:
                return len(end) - start, self._tokens[position]
        return 0, None
