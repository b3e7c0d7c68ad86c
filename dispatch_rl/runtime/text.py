"""From tokens to text piece by piece: never half a character, and never the beginning of a stop string."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from dispatch_rl.errors import UserError

_CONTEXT = 6
"""Tokens before the first one that are decoded with it, since a tokenizer may drop a space at the very beginning."""
_INCOMPLETE = "�"
"""What bytes that make no character decode to."""


class Detokenizer:
    """Turns the tokens behind a prompt into text as they come; special tokens are left out.

    A character may be made of several tokens. It is given out with the last of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._tokens = self._context(list(prompt))
        self._given = self._decode(self._tokens).rstrip(_INCOMPLETE)
        """Text of the tokens that are kept and were given out."""
        self._kept_from = len(self._tokens)

    def push(self, tokens: Sequence[int]) -> str:
        """Return the text that is complete with ``tokens``."""
        self._tokens += tokens
        text = self._decode(self._tokens)
        if text.endswith(_INCOMPLETE):
            return ""
        return self._give(text)

    def finish(self) -> str:
        """Return what is left: bytes that never made a character."""
        return self._give(self._decode(self._tokens))

    def _context(self, prompt: list[int]) -> list[int]:
        """Return so much of the end of a prompt that something is decoded from it, or all of it."""
        count = _CONTEXT
        while count < len(prompt) and not self._decode(prompt[-count:]).rstrip(_INCOMPLETE):
            count *= 2
        return prompt[-count:]

    def _give(self, text: str) -> str:
        new = text[len(self._given) :]
        # The tokens of the last piece stay as context for the next one. If nothing is decoded from them, as from special tokens, those
        # before stay too: behind nothing, the next word would be the first, and lose its space.
        if last := self._decode(self._tokens[self._kept_from :]):
            self._tokens = self._tokens[self._kept_from :]
        self._given = last or text
        self._kept_from = len(self._tokens)
        return new

    def _decode(self, tokens: list[int]) -> str:
        text = self._tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


class StopStrings:
    """Cuts a text, as it comes, before the first of some strings.

    Raises:
        UserError: One of them is empty.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        if "" in stop:
            raise UserError("stop: an empty string would end every text before it begins")
        self._stop = list(stop)
        self._pending = ""
        self.found = False
        """Whether the text has ended at a stop string."""

    def push(self, text: str) -> str:
        """Return what of the text so far surely stands before any stop string."""
        if not self._stop:
            return text
        self._pending += text
        places = [place for place in map(self._pending.find, self._stop) if place >= 0]
        if places:
            self.found = True
            return self._take(min(places))
        return self._take(len(self._pending) - self._open())

    def finish(self) -> str:
        """Return what was held back and turned out to be no stop string."""
        return "" if self.found else self._take(len(self._pending))

    def _take(self, count: int) -> str:
        taken, self._pending = self._pending[:count], self._pending[count:]
        return taken

    def _open(self) -> int:
        """Return how many characters at the end may be the beginning of a stop string."""
        longest = min(len(self._pending), max(map(len, self._stop)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(self._pending[-n:]) for s in self._stop)), 0)
