"""Loading a target and its students, and refusing what cannot work together."""

import platform
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import torch
from jinja2 import TemplateError
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dispatch_rl.config import FamilyConfig
from dispatch_rl.decoding.capturing import Capturer, CudaGraphs
from dispatch_rl.decoding.fitness import check_architecture
from dispatch_rl.decoding.loading import Loader, no_progress_bars
from dispatch_rl.decoding.memory import check_memory
from dispatch_rl.decoding.models import CachedModel
from dispatch_rl.decoding.vocabulary import check_sizes, check_tokenizers
from dispatch_rl.errors import UserError, first_line
from dispatch_rl.kernels.operations import operations


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
    remarks: tuple[str, ...] = ()
    """What is worth knowing about how the models go together."""
    capturer: Capturer | None = None
    """Captures passes of the models once it is known which will be needed; None if all run operation by operation."""
    no_tokens: Tensor = field(init=False)
    """An empty draft."""

    def __post_init__(self) -> None:
        self.no_tokens = torch.empty(0, dtype=torch.long, device=self.device)

    @property
    def in_float32(self) -> bool:
        """Whether the target computes in float32: texts then do not depend on how many tokens it reads at a time."""
        return self.target.model.dtype == torch.float32

    def models(self) -> Iterator[CachedModel]:
        """Yield the target, then the students."""
        yield self.target
        yield from self.students.values()

    def by_key(self) -> dict[str, CachedModel]:
        """Return the models by their configuration keys."""
        return {"family.target": self.target, **{f"family.students.{name}": model for name, model in self.students.items()}}

    def synchronise(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def mark(self) -> torch.cuda.Event | None:
        """Return a moment in what the device has been given to do; None where the host does it itself."""
        if self.device.type != "cuda":
            return None
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def device_name(self) -> str:
        """Return what the models run on, for the record."""
        return device_name(self.device)

    def describe(self) -> str:
        """Return the sizes of the models, the vocabulary and the device in a line, and a line for each remark."""
        sizes = {"target": self.target, **self.students}
        millions = (f"{name} {model.model.num_parameters() / 1e6:.4g} M" for name, model in sizes.items())
        return "\n".join([f"{', '.join(millions)}; {self.vocab} tokens; {self.device_name()}", *self.remarks])

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a prompt.

        Raises:
            UserError: It is no text, or holds bytes that are not UTF-8.
        """
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise UserError("prompt: it holds bytes that are not UTF-8")
        ids: list[int] = self.tokenizer(text, verbose=False)["input_ids"]
        return ids

    def encode_message(self, message: str, system: str | None = None) -> list[int]:
        """Return the tokens of a user's message in the target's chat format, with the answer begun.

        Raises:
            UserError: The tokenizer has no chat template, or its template refuses the messages.
        """
        if self.tokenizer.chat_template is None:
            name = self.tokenizer.name_or_path
            raise UserError(f"chat: the tokenizer of {name} has no chat template; leave out --chat, or set prompts.chat=false")
        messages = [{"role": "user", "content": message}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except (TemplateError, ValueError) as error:
            raise UserError(f"chat: the chat template of {self.tokenizer.name_or_path} fails: {first_line(error)}") from error
        # The template has put the special tokens in place.
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def decode(self, tokens: list[int]) -> str:
        """Return the text of ``tokens``."""
        text = self.tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text


def load_family(config: FamilyConfig, target: PreTrainedModel | None = None) -> Family:
    """Load the models of ``config``; what can be known to be wrong is found before a weight is read or downloaded.

    Args:
        config: Where they are.
        target: The target, if it is loaded already: the students go to its device, and the number of threads stays as it is.

    Raises:
        UserError: A folder is missing, a file is corrupt or incomplete, a tokenizer differs, or memory would not do.
    """
    if config.threads is not None and target is None:
        torch.set_num_threads(config.threads)
    device = find_device(config.device) if target is None else target.device
    with no_progress_bars():
        return _load(config, device, target)


def _load(config: FamilyConfig, device: torch.device, loaded: PreTrainedModel | None) -> Family:
    loader, keys = Loader(config, device), list(config.sources)
    tokenizers = {key: loader.tokenizer(key) for key in keys}
    remarks = check_tokenizers({key: source.path for key, source in config.sources.items()}, tokenizers)
    unloaded = keys if loaded is None else keys[1:]
    options = {key: loader.options(key) for key in unloaded}
    model_configs = {key: loader.model_config(key) for key in unloaded}
    known = ({} if loaded is None else {keys[0]: loaded.config}) | model_configs
    for key, model_config in known.items():
        check_architecture(key, model_config)
    check_sizes({key: model_config.get_text_config().vocab_size for key, model_config in known.items()}, tokenizers[keys[0]])
    if config.check_memory:
        check_memory(config, model_configs, device)
    models = ({} if loaded is None else {keys[0]: loaded}) | {key: loader.model(key, options[key]) for key in unloaded}
    return assemble(config, models, tokenizers[keys[0]], device, remarks)


def assemble(
    config: FamilyConfig,
    models: Mapping[str, PreTrainedModel],
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device,
    remarks: Sequence[str],
) -> Family:
    """Return the family of models that are on their devices.

    Args:
        config: Its limit of the context counts, and the names of its students.
        models: By configuration key, the target first.
        tokenizer: The target's.
        device: Where tokens come from and logits go to.
        remarks: What is known about how the models go together.
    """
    if device.type == "cuda":
        # CuDNN, which torch would choose, plans anew for every shape, and a text that grows has another at every pass.
        torch.backends.cuda.enable_cudnn_sdp(False)
    vocab = min(model.config.get_text_config().vocab_size for model in models.values())
    first, *others = models
    target, *students = (CachedModel(model, vocab, device) for model in models.values())
    limit = min(target.context_limit, config.max_context or target.context_limit)
    capturer = find_capturer(config, device)
    eager = [
        f"{key}: it runs without CUDA graphs, through transformers' forward pass or on another device"
        for key, model in zip(models, (target, *students), strict=True)
        if capturer is not None and not model.can_capture
    ]
    shorter = [
        f"{key}: it reads {student.context_limit} tokens, the target {limit}; it drafts no further"
        for key, student in zip(others, students, strict=True)
        if student.context_limit < limit
    ]
    return Family(
        target=target,
        students=dict(zip(config.students, students, strict=True)),
        tokenizer=tokenizer,
        vocab=vocab,
        context_limit=limit,
        eos_token_ids=_eos_token_ids(models[first], tokenizer),
        device=device,
        remarks=(*remarks, *shorter, *eager),
        capturer=capturer,
    )


def find_capturer(config: FamilyConfig, device: torch.device) -> Capturer | None:
    """Return what captures passes on ``device``; None if nothing does, or nothing is to."""
    return CudaGraphs(device) if config.graphs and device.type == "cuda" and operations(device).compiled else None


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
        UserError: It is not available here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=name).device  # with its number, as tensors have it
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"family.device: '{name}' is not available here: {first_line(error)}") from error


def _eos_token_ids(target: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return all tokens that end a text, by the target's generation settings or else its tokenizer."""
    ids = target.generation_config.eos_token_id if target.generation_config else None
    if ids is None:
        ids = tokenizer.eos_token_id
    return frozenset([] if ids is None else [ids] if isinstance(ids, int) else ids)
