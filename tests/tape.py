"""What a CUDA graph does, on a CPU: the operations of a body are recorded once and replayed on the same tensors.

Doing a body again would read the host's variables again; a graph does not, and neither does a tape. What would end a capture on a GPU, such
as a read of a tensor by the host, ends a recording too.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dispatch_rl.decoding.capturing import Program

_FORBIDDEN = ("_local_scalar_dense", "item", "nonzero", "is_nonzero", "masked_select")
"""Operations that wait for the device."""


class CaptureError(RuntimeError):
    """Something that cannot be captured."""


class Tapes:
    """Captures tapes."""

    def __init__(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("there are real graphs here")
        self.replays = 0
        """How often any tape was replayed."""

    def capture(self, body: Callable[[], None]) -> "Tape":
        body()
        with _Recorder() as recorder:
            body()
        return Tape(recorder.steps, self)


class Reruns:
    """Captures nothing and does the body again, for operations that a tape cannot record."""

    def capture(self, body: Callable[[], None]) -> Program:
        body()
        return _Rerun(body)


class _Rerun:
    def __init__(self, body: Callable[[], None]) -> None:
        self.replay = body


class Tape:
    """Recorded operations with their arguments and results."""

    def __init__(self, steps: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]], owner: Tapes) -> None:
        self.steps, self._owner = steps, owner

    def replay(self) -> None:
        """Do them again; what was made anew is put where it was."""
        self._owner.replays += 1
        for function, args, kwargs, made in self.steps:
            leaves = tree_leaves(function(*args, **kwargs))
            for place, tensor in made:
                tensor.copy_(leaves[place])


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.steps: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        # A single number that is assigned is made on the device; a list would be brought from the host.
        brought = func is torch.ops.aten.lift_fresh.default and args[0].ndim > 0
        if brought or func.overloadpacket.__name__ in _FORBIDDEN:
            raise CaptureError(f"{func} cannot be captured")
        result = func(*args, **kwargs)
        given = {_storage(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        made = [(i, leaf) for i, leaf in enumerate(tree_leaves(result)) if isinstance(leaf, Tensor) and _storage(leaf) not in given]
        if made or func._schema.is_mutable:
            self.steps.append((func, args, kwargs, made))
        return result


def _storage(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
