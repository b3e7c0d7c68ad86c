"""Whether the tokenizers of a family agree: a drafted token is a number, and must mean the same text to both sides."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from dispatch_rl.errors import UserError

PROBE = "def f(x):\n    return x + 12345  # naïve…\n\nProblem: 7 * 8 = 56.\n\tДа, 你好!"
"""Text whose tokens must agree between tokenizers, and which must survive encoding and decoding."""


@dataclass(frozen=True)
class _Known:
    """A tokenizer that many models share, told by the number of its tokens that are not special."""

    name: str
    words: int
    models: tuple[str, ...]
    """Small models that have it."""


_KNOWN = (
    _Known(
        "Llama 3's",
        128_000,
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", "meta-llama/Llama-3.1-8B-Instruct", "meta-llama/Llama-3.2-1B-Instruct"),
    ),
    _Known("Qwen's", 151_643, ("deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen3-0.6B")),
)


def check_tokenizers(paths: Mapping[str, str], tokenizers: Mapping[str, PreTrainedTokenizerBase]) -> list[str]:
    """Refuse students that give other tokens to the same text, or other text to the same token.

    Special tokens may differ: a student never writes a text of its own, so what it calls the beginning or the end of one does not matter.

    Args:
        paths: Where the models are, by configuration key, the target first.
        tokenizers: Their tokenizers.

    Returns:
        What is worth knowing and no reason to refuse.

    Raises:
        UserError: The target's tokenizer does not give a text back, or a student's differs from it.
    """
    keys = list(paths)
    target, students = keys[0], keys[1:]
    if not _gives_back(tokenizers[target]):
        raise UserError(f"{target}: the tokenizer of {paths[target]} does not give a text back as it was")
    words = {key: _words(tokenizers[key]) for key in keys}
    flaws = {key: _difference(words[target], words[key], tokenizers[target], tokenizers[key]) for key in students}
    wrong = [key for key in students if flaws[key]]
    if wrong:
        raise UserError(
            f"{_joined(wrong)}: its tokenizer differs from the target's: {flaws[wrong[0]]}; "
            f"a student must share it{_advice(len(words[target]), paths[target])}"
        )
    added = tokenizers[target].get_added_vocab()
    return [f"{key}: its special tokens are not the target's" for key in students if tokenizers[key].get_added_vocab() != added]


def check_sizes(sizes: Mapping[str, int], tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse students that end before the target's tokens do: those that all models have are all that a text is written with.

    Args:
        sizes: Tokens that the models know, by configuration key, the target first.
        tokenizer: The target's.

    Raises:
        UserError: Naming the student's key.
    """
    target, *students = sizes
    used = min(1 + max(tokenizer.get_vocab().values()), sizes[target])
    if short := [key for key in students if sizes[key] < used]:
        raise UserError(
            f"{short[0]}: it knows {sizes[short[0]]} tokens, and the target's tokenizer has {used}, the last of which could never be "
            "written; enlarge it (resize_token_embeddings), or take another"
        )


def _gives_back(tokenizer: PreTrainedTokenizerBase) -> bool:
    return tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False) == PROBE


def _words(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Return the tokens that are parts of plain text, with their numbers."""
    added = tokenizer.get_added_vocab()
    return {token: number for token, number in tokenizer.get_vocab().items() if token not in added}


def _difference(
    words: Mapping[str, int], others: Mapping[str, int], target: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase
) -> str | None:
    """Return what a student's tokenizer does otherwise."""
    if len(words) != len(others):
        return f"it has {_size(len(others))}, the target's {_size(len(words))}"
    if words != others:
        number, token = min((number, token) for token, number in words.items() if others.get(token) != number)
        there = f"number {others[token]}" if token in others else "none of its"
        return f"{token!r} is number {number} of the target's tokens and {there}"
    if target(PROBE, add_special_tokens=False)["input_ids"] != student(PROBE, add_special_tokens=False)["input_ids"]:
        return "it cuts the same text into other tokens"
    return None


def _size(words: int) -> str:
    known = next((known.name for known in _KNOWN if known.words == words), None)
    return f"{words} tokens" + (f", like {known}" if known else "")


def _advice(words: int, target: str) -> str:
    """Return which models have the target's tokenizer, if that is a known one."""
    for known in _KNOWN:
        if known.words == words:
            fitting = [model for model in known.models if model != target]
            return f"; {', '.join(fitting)} and other models with {known.name} tokenizer would fit"
    return ""


def _joined(keys: Iterable[str]) -> str:
    """Return several configuration keys in short, as family.students.small, medium."""
    first, *rest = keys
    return ", ".join([first, *(key.removeprefix("family.students.") for key in rest)])
