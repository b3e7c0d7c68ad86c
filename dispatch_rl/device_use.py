"""What a comparison says about the use of a GPU: how busy it was for whom, what it drew, and how near each model came to its floor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dispatch_rl.bandwidth import achieved, bandwidth_if_room
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import DecodedText
from dispatch_rl.utilisation import GpuWatch, describe, gpu_uuid


@dataclass(frozen=True)
class DeviceUse:
    """Empty where the models run on no GPU."""

    rows: Mapping[str, Mapping[str, Any]]
    """Columns of a policy's row, by policy."""
    lines: tuple[str, ...] = ()
    """What there is to say of all."""

    @classmethod
    def of(cls, family: Family, watch: GpuWatch, texts: Mapping[str, Sequence[DecodedText]]) -> "DeviceUse":
        """Put together what was watched, and what the rounds of every policy tell; the bandwidth is measured now."""
        if gpu_uuid(family.device) is None:
            return cls({})
        rows: dict[str, dict[str, Any]] = {}
        bandwidth, lines = bandwidth_if_room(family.device), []
        for name, decoded in texts.items():
            usage, tokens = watch.usage(name), sum(len(text.tokens) for text in decoded)
            rows[name] = {} if usage is None else usage.row(tokens)
            if bandwidth is not None:
                rows[name] |= achieved(family, [record for text in decoded for record in text.rounds], bandwidth)
        if (whole := watch.usage()) is not None:
            lines.append(f"GPU, all the while: {describe(whole.row())}")
        if bandwidth is not None:
            everything = [record for decoded in texts.values() for text in decoded for record in text.rounds]
            found = achieved(family, everything, bandwidth)
            models = [f"{name} {ratio:.2f} ({found['gb_per_s'][name]:.4g} GB/s)" for name, ratio in found["over_floor"].items()]
            lines.append(f"a pass over the time that reading its weights takes at {bandwidth / 1e9:.4g} GB/s: {', '.join(models)}")
        return cls(rows, tuple(lines))

    def row(self, name: str) -> dict[str, Any]:
        """Return what belongs into a policy's row."""
        return dict(self.rows.get(name, {}))
