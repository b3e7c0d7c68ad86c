"""The state of a training in one file, without pickle."""

import os
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM

Models = dict[str, Qwen2ForCausalLM]


class Checkpoint:
    """One safetensors file with all parameters and the optimisers' state; written atomically."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "checkpoint.safetensors"

    def save(self, step: int, models: Models, optimisers: list[torch.optim.Optimizer]) -> None:
        """Write the state reached after ``step`` steps."""
        tensors = {f"model.{key}": p.detach() for key, p in _named_parameters(models)}
        for i, optimiser in enumerate(optimisers):
            for j, state in optimiser.state_dict()["state"].items():
                tensors |= {f"optimiser.{i}.{j}.{key}": torch.as_tensor(value) for key, value in state.items()}
        temporary = self.path.with_suffix(".tmp")
        save_file({key: t.contiguous().clone() for key, t in tensors.items()}, temporary, {"step": str(step)})
        os.replace(temporary, self.path)

    def restore(self, models: Models, optimisers: list[torch.optim.Optimizer]) -> int:
        """Load the state, if there is one, and return the number of steps done."""
        if not self.path.exists():
            return 0
        with safe_open(self.path, "pt") as file:
            for key, p in _named_parameters(models):
                p.data.copy_(file.get_tensor(f"model.{key}"))
            states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimisers]
            for key in file.keys():  # noqa: SIM118  (a safetensors handle is no mapping)
                if key.startswith("optimiser."):
                    _, i, j, name = key.split(".", 3)
                    states[int(i)].setdefault(int(j), {})[name] = file.get_tensor(key)
            for optimiser, state in zip(optimisers, states, strict=True):
                optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
            return int(file.metadata()["step"])


def _named_parameters(models: Models) -> Iterator[tuple[str, nn.Parameter]]:
    for name, model in models.items():
        for key, p in model.named_parameters():
            yield f"{name}.{key}", p
