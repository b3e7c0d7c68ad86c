"""Where the models of a family come from, and how they are loaded. Imports nothing heavy."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from dispatch_rl.decoding.arms import RESERVED_NAMES
from dispatch_rl.errors import UserError

DType = Literal["float32", "bfloat16", "float16"]
Quantization = Literal["bitsandbytes-int4", "torchao-int8", "torchao-fp8", "finegrained-fp8"]


@dataclass(frozen=True)
class ModelSource:
    """Where a model comes from, and how it is loaded."""

    path: str
    """Folder, hub id, or `pocket:NAME` for a model that ships with the package."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: DType | None = None
    """Type of its weights in memory; null means family.dtype."""
    quantization: Quantization | None = None
    """Make the weights smaller while they are loaded; a quantised student is as lossless as any other. null takes them as they are stored,
    quantised checkpoints included. bitsandbytes and torchao are packages; finegrained-fp8 needs a GPU of the Ada generation or later."""
    device_map: str | dict[str, Any] | None = None
    """Spread the model over devices, as auto, balanced, or a device by name of module; a single device such as cuda:1 puts all of it there.
    null means family.device. Needs the package accelerate."""

    def __post_init__(self) -> None:
        # A bundle is read without the command line's checks.
        _check_choice("dtype", self.dtype, get_args(DType))
        _check_choice("quantization", self.quantization, get_args(Quantization))
        if not isinstance(self.device_map, str | dict | None) or self.device_map in ("", {}):
            raise UserError(f"device_map: {self.device_map!r} is neither a name such as auto or cuda:1 nor devices by name of module")


def _check_choice(key: str, value: Any, choices: Collection[str]) -> None:
    if value is not None and value not in choices:
        raise UserError(f"{key}: {value!r} is none of {', '.join(choices)}")


def _pocket(name: str) -> ModelSource:
    return ModelSource(f"pocket:{name}")


@dataclass(frozen=True)
class FamilyConfig:
    """One target and its students, which must share its tokenizer."""

    target: ModelSource = _pocket("target")
    """The model whose text is produced."""
    students: dict[str, ModelSource] = field(default_factory=lambda: {n: _pocket(n) for n in ("small", "medium", "large")})
    """Draft models by name, from cheap to expensive."""
    dtype: DType = "float32"
    """Type of the weights in memory."""
    device: str = "auto"
    """Where the models run: cpu, cuda, cuda:1 or auto."""
    threads: int | None = 1
    """CPU threads; null leaves the choice to torch. Models as small as the pocket family are fastest with one."""
    max_context: int | None = None
    """Longest text, prompt included (tokens); null means as long as the target can read."""
    check_memory: bool = True
    """Refuse models that, by their sizes, do not fit into the free memory of their devices, before they are loaded. Counted are weights and
    caches for one text of max_context tokens (4,096 where that is null)."""
    graphs: bool = True
    """On a GPU, capture the passes that the arms need as CUDA graphs when decoding is warmed up, with caches for texts of max_context
    tokens (4,096 where that is null, and more once a text needs it); each is checked against the pass without a graph. Models that do not
    run through our own forward pass, and everything on a CPU, run without."""

    def __post_init__(self) -> None:
        if reserved := set(self.students).intersection(RESERVED_NAMES):
            raise UserError(f"family.students: the name '{reserved.pop()}' is reserved; choose another")
        # A bundle is read without the command line's checks.
        for key, least in (("threads", 1), ("max_context", 2)):
            count = getattr(self, key)
            if count is not None and (not isinstance(count, int) or count < least):
                raise UserError(f"family.{key}: {count!r} is not a whole number of at least {least}")
        for key in ("check_memory", "graphs"):
            if not isinstance(getattr(self, key), bool):
                raise UserError(f"family.{key}: {getattr(self, key)!r} is neither true nor false")

    @property
    def sources(self) -> dict[str, ModelSource]:
        """All models by configuration key, the target first."""
        return {"family.target": self.target, **{f"family.students.{name}": source for name, source in self.students.items()}}

    def dtype_of(self, source: ModelSource) -> DType:
        """Return the type of a model's weights."""
        return source.dtype or self.dtype
