"""Loading a target and its students, and refusing what cannot work together."""

import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.errors import UserError, first_line

PROBE = "def f(x):\n    return x + 12345  # naïve…\n\nProblem: 7 * 8 = 56.\n\tДа, 你好!"
"""Text whose tokens must agree between tokenizers, and which must survive encoding and decoding."""

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")

T = TypeVar("T")


@dataclass
class Family:
    """One target and its students on one device, ready to decode one text at a time."""

    target: CachedModel
    students: dict[str, CachedModel]
    tokenizer: PreTrainedTokenizerBase
    vocab: int
    """Size of the common vocabulary; all logits are cut to it."""
    context_limit: int
    """Longest text, prompt included (tokens)."""
    eos_token_ids: frozenset[int]
    device: torch.device
    no_tokens: Tensor = field(init=False)
    """An empty draft."""

    def __post_init__(self) -> None:
        self.no_tokens = torch.empty(0, dtype=torch.long, device=self.device)

    def models(self) -> Iterator[CachedModel]:
        """Yield the target, then the students."""
        yield self.target
        yield from self.students.values()

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def device_name(self) -> str:
        """Return what the models run on, for the record."""
        return device_name(self.device)

    def describe(self) -> str:
        """Return the sizes of the models, the vocabulary and the device in a line."""
        sizes = {"target": self.target, **self.students}
        millions = (f"{name} {sum(p.numel() for p in model.model.parameters()) / 1e6:.4g} M" for name, model in sizes.items())
        return f"{', '.join(millions)}; {self.vocab} tokens; {self.device_name()}"

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt."""
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of ``tokens``."""
        text = self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load_family(config: FamilyConfig, target: PreTrainedModel | None = None) -> Family:
    """Load the models of ``config``.

    Args:
        config: Where they are.
        target: The target, if it is loaded already: the students go to its device, and the number of threads stays as it is.

    Raises:
        UserError: A folder is missing, a file is corrupt or incomplete, or a tokenizer differs.
    """
    if config.threads is not None and target is None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device) if target is None else target.device
    with _no_progress_bars():
        return _load(config, device, target)


def _load(config: FamilyConfig, device: torch.device, loaded: PreTrainedModel | None) -> Family:
    tokenizer = _load_tokenizer("family.target", config.target)
    if tokenizer.decode(tokenizer(PROBE, add_special_tokens=False)["input_ids"], clean_up_tokenization_spaces=False) != PROBE:
        raise UserError(f"family.target: the tokenizer of {config.target.path} does not give a text back as it was")
    sources = {f"family.students.{name}": source for name, source in config.students.items()}
    for key, source in sources.items():
        _check_tokenizer(key, tokenizer, _load_tokenizer(key, source))
    models = {"family.target": _load_model("family.target", config.target, config, device) if loaded is None else loaded}
    models |= {key: _load_model(key, source, config, device) for key, source in sources.items()}
    vocab = min(model.config.vocab_size for model in models.values())
    target, *students = (CachedModel(model, vocab) for model in models.values())
    return Family(
        target=target,
        students=dict(zip(config.students, students, strict=True)),
        tokenizer=tokenizer,
        vocab=vocab,
        context_limit=target.context_limit,
        eos_token_ids=_eos_token_ids(models["family.target"], tokenizer),
        device=device,
    )


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Hide transformers' bars about weights that are read from disk; the hub's own bars for downloads stay."""
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.enable_progress_bar()


def resolve(source: ModelSource) -> str:
    """Return the folder or hub id that ``source`` names."""
    if not source.path.startswith("pocket:"):
        return source.path
    return str(files("dispatch_rl.pocket") / "family" / source.path.removeprefix("pocket:"))


def device_name(device: torch.device) -> str:
    """Return the name of a GPU, or of the processor with the number of threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{_processor()} CPU, {threads} thread{'s' if threads > 1 else ''}"


@cache
def _processor() -> str:
    """Return the model of the processor where Linux tells, else the architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return next(filter(None, models), platform.processor() or platform.machine())


def find_device(name: str) -> torch.device:
    """Return the device of a configuration; ``auto`` is the GPU if there is one.

    Raises:
        UserError: It is not to be had here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"family.device: '{name}' is not to be had here: {first_line(error)}") from error
    return device


def _loading(key: str, source: ModelSource, load: Callable[..., T], **options: Any) -> T:
    """Call ``load`` on what ``source`` names; whatever goes wrong becomes one line that names ``key``."""
    path = resolve(source)
    if not Path(path).is_dir() and not _HUB_ID.fullmatch(path):
        raise UserError(f"{key}.path: there is no folder {path}")
    try:
        return load(path, revision=source.revision or "main", **options)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{key}.path: {path} cannot be loaded: {first_line(error)}") from error


def _load_tokenizer(key: str, source: ModelSource) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = _loading(key, source, AutoTokenizer.from_pretrained)
    return tokenizer


def _load_model(key: str, source: ModelSource, config: FamilyConfig, device: torch.device) -> PreTrainedModel:
    dtype = getattr(torch, config.dtype)
    load: Callable[..., Any] = AutoModelForCausalLM.from_pretrained
    model, report = _loading(key, source, load, dtype=dtype, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{key}.path: {resolve(source)} lacks {len(missing)} tensors, {missing[0]} among them")
    loaded: PreTrainedModel = model.to(device).eval().requires_grad_(False)
    return loaded


def _check_tokenizer(key: str, target: PreTrainedTokenizerBase, student: PreTrainedTokenizerBase) -> None:
    """Refuse a student that gives other tokens to the same text, or other text to the same token."""
    if target.get_vocab() == student.get_vocab() and target(PROBE)["input_ids"] == student(PROBE)["input_ids"]:
        return
    raise UserError(f"{key}: its tokenizer differs from the target's; a student must share it")


def _eos_token_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens that end a text, by the target's generation settings or else its tokenizer."""
    ids = target.generation_config.eos_token_id if target.generation_config else None
    if ids is None:
        ids = tokenizer.eos_token_id
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
