"""An exported policy that decodes: text in, text out, the target's own, sooner."""

from collections.abc import Iterable, Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding.arms import ArmTable
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.loop import warm_up
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.runtime.bundle import Bundle
from dispatch_rl.runtime.writer import Generated, Token, Writer

Method = Literal["coupled", "rejection"]


class AdaptiveDecoder:
    """A family and the policy that dispatches in it. Decodes one text at a time; streams and threads take turns by round.

    An adaptive policy takes texts that take turns for one text: if they are of different sorts, give each a decoder of its own, with the
    same ``family``.

    Args:
        family: The models.
        policy: Chooses an arm before every round.
        arms: What it chooses from.
    """

    def __init__(self, family: Family, policy: Policy, arms: ArmTable) -> None:
        self.family = family
        self.policy = policy
        self.arms = arms
        self.last: Generated | None = None
        """The last text that was written to its end."""

    @classmethod
    def from_bundle(cls, path: str | Path, family: Family | FamilyConfig | None = None) -> "AdaptiveDecoder":
        """Return the decoder of an exported policy.

        Args:
            path: Folder that ``dispatch_rl.export`` wrote.
            family: The models, or where they are; None looks where they were when the bundle was exported.

        Raises:
            UserError: The bundle is broken, or the family is not the one it was made for.
        """
        bundle = Bundle.read(Path(path))
        if not isinstance(family, Family | FamilyConfig | None):
            raise UserError(f"family: a {type(family).__name__} is neither a Family nor a FamilyConfig")
        loaded = family if isinstance(family, Family) else load_family(family or bundle.family)
        bundle.check_fits(loaded, Path(path))
        return cls(loaded, bundle.policy, bundle.arms)

    def capture_graphs(self, samplings: Iterable[Sampling] = ()) -> None:
        """Capture CUDA graphs for every arm, if there is a GPU; until then, models run operation by operation.

        Args:
            samplings: How tokens will be chosen, besides greedily and by coupled sampling without top-k and top-p.
        """
        capture_graphs(self.family, self.arms, samplings)

    def warm_up(self) -> None:
        """Capture CUDA graphs and decode a little with every arm, so that the first text pays for no first call."""
        warm_up(self.family, self.arms)

    def generate(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        method: Method = "coupled",
        stop: str | Sequence[str] = (),
    ) -> Generated:
        """Continue ``prompt``; the text is what the target alone would write.

        Args:
            prompt: Text or token ids.
            max_new_tokens: Tokens to emit at most.
            temperature: Divides the logits; 0 means greedy.
            top_k: Keep the k likeliest tokens; None keeps all.
            top_p: Keep the likeliest tokens up to this probability; None keeps all.
            seed: Seed of the noise: the same seed gives the same text.
            method: coupled: the text depends on the target and the seed alone. rejection: it also depends on the drafts.
            stop: A string or several before which the text ends.

        Raises:
            UserError: An argument is out of range, or the prompt fills the context.
        """
        writer = self._writer(prompt, max_new_tokens, Sampling(temperature, top_k, top_p, seed, method), stop)
        if stop:
            for _ in writer.stream():
                pass
        self.last = written = writer.generated() if stop else writer.write()
        return written

    def stream(
        self,
        prompt: str | Sequence[int],
        max_new_tokens: int = 256,
        *,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int = 0,
        method: Method = "coupled",
        stop: str | Sequence[str] = (),
    ) -> Iterator[Token]:
        """Yield the tokens of :meth:`generate`, with its arguments, as rounds complete; :attr:`last` is then the whole text.

        The texts of all tokens joined are the text. Where a text ends within a character, or within what might have become a stop
        string, its last token brings what was held back.
        """
        writer = self._writer(prompt, max_new_tokens, Sampling(temperature, top_k, top_p, seed, method), stop)

        def tokens() -> Iterator[Token]:
            yield from writer.stream()
            self.last = writer.generated()

        return tokens()

    def _writer(self, prompt: str | Sequence[int], max_new_tokens: int, sampling: Sampling, stop: str | Sequence[str]) -> Writer:
        tokens = self.family.encode(prompt) if isinstance(prompt, str) else _token_ids(prompt)
        strings = [stop] if isinstance(stop, str) else list(stop or ()) if isinstance(stop, Iterable | None) else [stop]
        if not all(isinstance(string, str) for string in strings):
            raise UserError(f"stop: {stop!r} is neither a string nor several")
        return Writer(self.family, self.policy, self.arms, tokens, sampling, max_new_tokens, strings)


def _token_ids(prompt: Any) -> list[int]:
    """Return a prompt that is given as token ids.

    Raises:
        UserError: It is something else, as several prompts are.
    """
    values = prompt.tolist() if hasattr(prompt, "tolist") else prompt
    if not isinstance(values, Sequence) or isinstance(values, bytes) or not all(isinstance(value, Integral) for value in values):
        raise UserError(f"prompt: a {type(prompt).__name__} is neither a text nor a list of token ids; one prompt at a time")
    return list(map(int, values))
