"""Learned dispatch for speculative decoding."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gymnasium.envs.registration import register

__version__ = "0.1.0"

# A checkout keeps the sub-packages beside this folder; the wheel puts them inside it.
_here = Path(__file__).resolve().parent
if not (_here / "envs").is_dir():
    __path__.append(str(_here.parent))

# Its reward is measured time, so two runs never agree to the last digit.
register(id="dispatch_rl/LiveDecoding-v0", entry_point="dispatch_rl.envs.live:LiveDecodingEnv", nondeterministic=True)
register(id="dispatch_rl/TokenDispatch-v0", entry_point="dispatch_rl.envs.live_tokens:LiveTokenEnv", nondeterministic=True)
register(
    id="dispatch_rl/ReplayDecoding-v0",
    entry_point="dispatch_rl.envs.replay:ReplayDecodingEnv",
    vector_entry_point="dispatch_rl.envs.replay_vector:ReplayVectorEnv",
)
register(id="dispatch_rl/ReplayTokenDispatch-v0", entry_point="dispatch_rl.envs.replay_tokens:ReplayTokenEnv")

if TYPE_CHECKING:
    from dispatch_rl.runtime.custom_generate import dispatched
    from dispatch_rl.runtime.decoder import AdaptiveDecoder

__all__ = ["AdaptiveDecoder", "dispatched"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name == "AdaptiveDecoder":
        from dispatch_rl.runtime.decoder import AdaptiveDecoder

        return AdaptiveDecoder
    if name == "dispatched":
        from dispatch_rl.runtime.custom_generate import dispatched

        return dispatched
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
