"""The description of a recording, ``traces.json``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispatch_rl.decoding.arms import RESERVED_NAMES
from dispatch_rl.errors import UserError
from dispatch_rl.replay.profile import TARGET
from dispatch_rl.replay.schema import LONGEST_DRAFT, VERSION

_NO_NAMES = ("", TARGET, *RESERVED_NAMES)
"""What no student can be called."""


@dataclass(frozen=True)
class TraceMetadata:
    """What ``traces.json`` holds; the defaults are for recordings made elsewhere."""

    students: tuple[str, ...]
    first_position: int = 0
    max_draft_length: int | None = None
    context_limits: dict[str, int] | None = None
    fingerprint: str | None = None
    family: str | None = None
    num_prompts: int | None = None
    shard_size: int | None = None

    @classmethod
    def read(cls, path: Path) -> "TraceMetadata":
        """Read ``traces.json``.

        Raises:
            UserError: It is broken, or of another version.
        """
        try:
            values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            version = values.pop("schema")
            students = values.pop("students")
            metadata = cls(tuple(students), **{key: values[key] for key in cls.__dataclass_fields__ if key in values})
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(f"{path}: not the description of a recording: {error!r}") from error
        if version != VERSION:
            raise UserError(f"{path}: written with schema {version}; this version reads schema {VERSION}")
        if wrong := ["students"] if isinstance(students, str) else metadata._wrong_keys():
            raise UserError(f"{path}: not the description of a recording: {wrong[0]} is {values.get(wrong[0], students)!r}")
        return metadata

    def _wrong_keys(self) -> list[str]:
        """Return the keys whose values are none that a recording can have."""
        limits = self.context_limits
        fits = {
            "students": len(self.students) > 0 and all(isinstance(name, str) and name not in _NO_NAMES for name in self.students),
            "first_position": isinstance(self.first_position, int) and self.first_position >= 0,
            "context_limits": limits is None or (isinstance(limits, dict) and all(isinstance(v, int) for v in limits.values())),
        }
        for key in ("max_draft_length", "num_prompts", "shard_size"):
            value = getattr(self, key)
            fits[key] = value is None or (isinstance(value, int) and value > 0)
        fits["max_draft_length"] = fits["max_draft_length"] and (self.max_draft_length or 1) <= LONGEST_DRAFT
        return [key for key, right in fits.items() if not right]
