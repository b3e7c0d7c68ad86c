"""The whole state of a training, kept in safetensors and JSON, so that it goes on bit for bit where it was killed.

No pickle: tensors and arrays go to ``state.safetensors``; counters and the states of the random number generators to ``state.json``.
"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dispatch_rl.envs.replay_vector import ReplayVecEnv
from dispatch_rl.errors import UserError
from dispatch_rl.learning import Learner
from dispatch_rl.runs import write_json

_COUNTERS = ("num_timesteps", "_n_updates", "_n_calls", "_episode_num", "_current_progress_remaining", "exploration_rate")
_BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")

Arrays = dict[str, np.ndarray]


def save(model: Learner, extra: dict[str, Any], folder: Path) -> None:
    """Write the state of ``model``, of its environment and of all random numbers to ``folder``; an older state is replaced.

    Args:
        model: A learner between two rollouts.
        extra: What else is to be kept, as JSON.
        folder: Appears under this name only when it is whole.
    """
    arrays = {f"policy.{key}": tensor.numpy() for key, tensor in model.policy.state_dict().items()}
    arrays |= _optimizer_arrays(model)
    arrays |= {"last_obs": model._last_obs, "last_episode_starts": model._last_episode_starts}
    arrays["random.torch"] = torch.get_rng_state().numpy()
    buffer = getattr(model, "replay_buffer", None)
    scalars: dict[str, Any] = {key: getattr(model, key) for key in _COUNTERS if hasattr(model, key)}
    if buffer is not None:
        filled = buffer.buffer_size if buffer.full else buffer.pos
        arrays |= {f"buffer.{key}": getattr(buffer, key)[:filled] for key in _BUFFER}
        scalars |= {"buffer_pos": buffer.pos, "buffer_full": buffer.full}
    scalars["random"] = _random_states(model)
    env = _replay_env(model)
    if env is not None:
        arrays |= {f"env.{key}": value for key, value in env.state().items()}
    write_state(folder, arrays, {**scalars, "extra": extra})


def write_state(folder: Path, arrays: Arrays, scalars: dict[str, Any]) -> None:
    """Write arrays and JSON values to ``folder``, which appears only when it is whole; an older state is replaced."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    save_file({key: np.ascontiguousarray(value) for key, value in arrays.items()}, unfinished / "state.safetensors")
    write_json(unfinished / "state.json", scalars)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    unfinished.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def find(folder: Path) -> Path | None:
    """Return where the last whole state is, if there is one; the kill may have struck between two renames."""
    return next((path for path in (folder, folder.with_name(folder.name + ".old")) if (path / "state.json").is_file()), None)


def load(model: Learner, folder: Path) -> dict[str, Any]:
    """Put ``model`` into the state in ``folder`` and return what else was kept.

    Raises:
        UserError: The state is broken, or of another configuration.
    """
    return read_state(folder, lambda scalars, arrays: _restore(model, scalars, arrays))


def read_state(folder: Path, restore: Callable[[dict[str, Any], Arrays], None]) -> dict[str, Any]:
    """Give what :func:`write_state` wrote to ``restore``, and return what else was kept.

    Raises:
        UserError: The state is broken, or of another configuration.
    """
    try:
        scalars = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        restore(scalars, load_file(folder / "state.safetensors"))
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{folder}: the state of the training cannot be read: {error!r}") from error
    extra: dict[str, Any] = scalars["extra"]
    return extra


def _restore(model: Learner, scalars: dict[str, Any], arrays: Arrays) -> None:
    model.policy.load_state_dict({key[7:]: torch.from_numpy(value) for key, value in arrays.items() if key.startswith("policy.")})
    _restore_optimizer(model, arrays)
    for key in _COUNTERS:
        if key in scalars:
            setattr(model, key, scalars[key])
    buffer = getattr(model, "replay_buffer", None)
    if buffer is not None:
        for key in _BUFFER:
            values = arrays[f"buffer.{key}"]
            getattr(buffer, key)[: len(values)] = values
        buffer.pos, buffer.full = scalars["buffer_pos"], scalars["buffer_full"]
    env = _replay_env(model)
    if env is not None:
        env.restore({key[4:]: value for key, value in arrays.items() if key.startswith("env.")})
        model._last_obs = arrays["last_obs"]
        model._last_episode_starts = arrays["last_episode_starts"]
    torch.set_rng_state(torch.from_numpy(arrays["random.torch"]))
    _restore_random(model, scalars["random"])


def _replay_env(model: Learner) -> ReplayVecEnv | None:
    """Return the replay environment of ``model``; real decoding has no state that could be kept."""
    return model.env if isinstance(model.env, ReplayVecEnv) else None


def _optimizer_arrays(model: Learner) -> Arrays:
    state = model.policy.optimizer.state_dict()["state"]
    return {f"optimizer.{index}.{key}": value.numpy() for index, entry in state.items() for key, value in entry.items()}


def _restore_optimizer(model: Learner, arrays: Arrays) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, value in arrays.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = torch.from_numpy(value)
    groups = model.policy.optimizer.state_dict()["param_groups"]
    model.policy.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _random_states(model: Learner) -> dict[str, Any]:
    generator: Any = np.random.get_state()
    name, keys, *rest = generator
    version, words, gauss_next = random.getstate()
    env = _replay_env(model)
    return {
        "numpy": [name, keys.tolist(), *rest],
        "python": [version, list(words), gauss_next],
        "actions": model.action_space.np_random.bit_generator.state,
        "env": None if env is None else env.env.np_random.bit_generator.state,
    }


def _restore_random(model: Learner, states: dict[str, Any]) -> None:
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))
    version, words, gauss_next = states["python"]
    random.setstate((version, tuple(words), gauss_next))
    model.action_space.np_random.bit_generator.state = states["actions"]
    env = _replay_env(model)
    if env is not None:
        env.env.np_random.bit_generator.state = states["env"]
