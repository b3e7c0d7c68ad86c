"""Where prompts come from, and what is made of them. Imports nothing heavy."""

from dataclasses import asdict, dataclass, field, replace
from string import Formatter
from typing import Any

from dispatch_rl.errors import UserError

_BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{{}}."
_LATER = ("template", "chat", "system")
"""Keys that came after recordings had been made; while they are unset a recording's settings are told without them."""


@dataclass(frozen=True)
class PromptSet:
    """A well-known set of prompts."""

    template: str
    """What a model that continues text reads."""
    message: str
    """What a model that chats is told."""
    hub: str | None = None
    """Dataset on the hub."""
    subset: str | None = None
    """Its configuration."""
    split: str = "test"
    """Its split; our own train, validation and test parts are made from it."""
    url: str | None = None
    """A JSON lines file, for a set that is not on the hub."""


PROMPT_SETS = {
    "gsm8k": PromptSet("Question: {question}\nAnswer:", "{question}" + _BOXED, "openai/gsm8k", "main"),
    "math-500": PromptSet("Problem: {problem}\nSolution:", "{problem}" + _BOXED, "HuggingFaceH4/MATH-500"),
    "humaneval": PromptSet("{prompt}", "Complete this Python function:\n\n{prompt}", "openai/openai_humaneval"),
    "mt-bench": PromptSet("{prompt}", "{prompt}", "HuggingFaceH4/mt_bench_prompts", split="train"),
    "spec-bench": PromptSet(
        "{turns}",
        "{turns}",
        url="https://raw.githubusercontent.com/hemingkx/Spec-Bench/fd2c1cd7d2201ef71db4c5f4e455008f017967bf/data/spec_bench/question.jsonl",
    ),
}
"""Sets that `prompts.source` knows by name. Of several turns the first is taken."""


@dataclass(frozen=True)
class PromptConfig:
    """What is decoded."""

    source: str = "pocket"
    """pocket (generated problems and library code); gsm8k, math-500, humaneval, mt-bench or spec-bench; a .txt, .jsonl, .json or .parquet
    file with one prompt per line or row; a folder of such files or one that `Dataset.save_to_disk` wrote; or a dataset on the hub, as
    openai/gsm8k."""
    column: str | None = None
    """Column that holds the prompt; null means prompt. Of a list of texts, such as the turns of a conversation, the first is taken. A .txt
    file needs none."""
    subset: str | None = None
    """Configuration of a hub dataset, as main for openai/gsm8k."""
    dataset_split: str | None = None
    """Split of a hub or folder dataset that prompts are drawn from; our own train, validation and test parts are made from it. null means
    train, or what is usual for a set that is known by name."""
    template: str | None = None
    """Text around columns, as "Question: {question}\\nAnswer:", instead of one column; {{ and }} stand for braces. The column of a
    .txt file is text."""
    chat: bool = False
    """Format prompts as a user's message by the target's chat template, with the answer begun."""
    system: str | None = None
    """System message in front of it; null means none, or the chat template's own."""
    kinds: list[str] = field(default_factory=lambda: ["reasoning", "code"])
    """Kinds of pocket prompts, drawn in turn."""
    max_new_tokens: int = 160
    """Tokens to emit per prompt at most."""
    seed: int = 0
    """Seed of the choice of prompts and of the noise of each."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 2:
            raise UserError(f"prompts.max_new_tokens: {self.max_new_tokens} is not at least 2")
        if unknown := set(self.kinds) - {"reasoning", "code"}:
            raise UserError(f"prompts.kinds: unknown {', '.join(sorted(unknown))}; there are reasoning and code")
        if not self.kinds:
            raise UserError("prompts.kinds: the list is empty")
        if self.system is not None and not self.chat:
            raise UserError("prompts.system: a system message needs prompts.chat=true")
        if self.template is not None:
            if self.source == "pocket":
                raise UserError("prompts.template: pocket prompts are generated and have no columns; leave it out")
            if self.column is not None:
                raise UserError("prompts.column: prompts.template names the columns already; give only one of the two")
            if not any(name for _, name in parse_template(self.template)):
                raise UserError("prompts.template: it names no column; write one in braces, as {question}")

    @property
    def known(self) -> PromptSet | None:
        """The set that `source` names, if it names one."""
        return PROMPT_SETS.get(self.source)

    def resolved(self) -> "PromptConfig":
        """Return the same with column, split and template spelled out, those of a set that is known by name included."""
        known = self.known
        if known is None:
            return replace(self, column=self.column or (None if self.template else "prompt"), dataset_split=self.dataset_split or "train")
        template = self.template
        if template is None and self.column is None:
            template = known.message if self.chat else known.template
        return replace(self, subset=self.subset or known.subset, dataset_split=self.dataset_split or known.split, template=template)

    def settings(self) -> dict[str, Any]:
        """Return all that prompts depend on, for the record."""
        values = asdict(self.resolved())
        return {key: value for key, value in values.items() if value or key not in _LATER}


def parse_template(template: str) -> list[tuple[str, str | None]]:
    """Return the pieces of a template: a text, and the name of the column behind it if there is one.

    Raises:
        UserError: A brace stands alone, or something other than the name of a column stands in braces.
    """
    try:
        pieces = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"prompts.template: {error}; {{{{ and }}}} stand for braces themselves") from error
    for _, name, extra, conversion in pieces:
        if name == "" or extra or conversion:
            inside = f"{name}{'!' + conversion if conversion else ''}{':' + extra if extra else ''}"
            raise UserError(f"prompts.template: {{{inside}}} is not the name of a column; {{{{ and }}}} stand for braces themselves")
    return [(text, name) for text, name, _, _ in pieces]
