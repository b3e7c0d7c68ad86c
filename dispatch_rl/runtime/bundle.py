"""A bundle: an exported policy in a folder, with all that it must be used with. Reading one runs no code.

============================ =============================================================================================
``policy.safetensors``       the policy, as :mod:`dispatch_rl.policies.storage` takes it apart
``dispatcher.json``          what it reads and chooses from, the family it was made for, how it was trained and measured
``policy.onnx``              a network alone, for other runtimes; not read here
``README.md``                a model card; not read here
============================ =============================================================================================
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from dispatch_rl.config import FamilyConfig, ModelSource
from dispatch_rl.decoding.arms import Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.features import Feature, feature_table, position_index
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.policies.adaptive import AdaptivePolicy
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.network import NetworkPolicy
from dispatch_rl.policies.storage import from_tensors, to_tensors
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.runs import write_json

SCHEMA = 1
"""Version of ``dispatcher.json``."""
DISPATCHER, POLICY, CARD, ONNX = "dispatcher.json", "policy.safetensors", "README.md", "policy.onnx"
_DESCRIBED = ("name", "unit", "low", "high", "scale")
"""What must agree about a feature."""
_TYPES = get_args(get_type_hints(FamilyConfig)["dtype"])

T = TypeVar("T")


@dataclass(frozen=True)
class Bundle:
    """An exported policy and all that it must be used with."""

    name: str
    """Name of the run it comes from."""
    policy_name: str
    """Its name in tables."""
    policy: Policy
    arms: ArmTable
    family: FamilyConfig
    """Where the models were found when it was exported."""
    fingerprint: str
    """Of that family."""
    sampling: Sampling
    """What it was trained with."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """How it was made."""
    evaluation: Sequence[Mapping[str, Any]] = ()
    """Rows of the run's evaluation: this policy and what it is compared with."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Versions of what it was made with."""

    @property
    def features(self) -> tuple[Feature, ...]:
        """What the policy reads."""
        return feature_table(tuple(self.family.students))

    def check_fits(self, family: Family, path: Path) -> None:
        """Refuse another family than the one that the policy was made for.

        Raises:
            UserError: Naming the file in ``path`` and its key.
        """
        file = path / DISPATCHER
        try:
            self.arms.check_students(tuple(family.students))
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        if tuple(family.students) != tuple(self.family.students):
            raise UserError(f"{file}: family: its students are {_names(self.family.students)}, not {_names(family.students)}")
        if self.fingerprint != (found := family_fingerprint(family)):
            raise UserError(
                f"{file}: fingerprint: it was made for the family {self.fingerprint}, and this one is {found}; train with this one"
            )

    def write(self, path: Path, *, overwrite: bool, extras: Mapping[str, bytes]) -> None:
        """Write the bundle; the folder appears, or is replaced, only when it is whole.

        Args:
            path: The folder.
            overwrite: Replace a bundle that is there.
            extras: Further files by name.

        Raises:
            UserError: There is something at ``path`` that may not be replaced.
        """
        check_free(path, overwrite=overwrite)
        path = Path(os.path.realpath(path))  # a link stays, and the folder that it leads to is replaced
        path.parent.mkdir(parents=True, exist_ok=True)
        kind, tensors = to_tensors(self.policy)
        unfinished, old = (path.with_name(f".{path.name}.{os.getpid()}.{state}") for state in ("unfinished", "old"))
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            save_file(tensors, unfinished / POLICY)
            write_json(unfinished / DISPATCHER, self._values(kind))
            for name, content in extras.items():
                (unfinished / name).write_bytes(content)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        if path.exists():
            path.rename(old)
        unfinished.rename(path)
        shutil.rmtree(old, ignore_errors=True)

    def _values(self, kind: str) -> dict[str, Any]:
        return {
            "schema": SCHEMA,
            "name": self.name,
            "policy": {"name": self.policy_name, "kind": kind},
            "features": [{**_description(feature), "meaning": feature.meaning} for feature in self.features],
            "arms": [asdict(arm) for arm in self.arms],
            "family": asdict(self.family),
            "fingerprint": self.fingerprint,
            "sampling": asdict(self.sampling),
            "training": dict(self.training),
            "evaluation": [dict(row) for row in self.evaluation],
            "versions": dict(self.versions),
        }

    @classmethod
    def read(cls, path: Path) -> "Bundle":
        """Read and check a bundle.

        Raises:
            UserError: A file is missing or broken, or a key is; the line names it.
        """
        values = _read_json(path)
        file = path / DISPATCHER
        if values.get("schema") != SCHEMA:
            raise UserError(f"{file}: schema: {values.get('schema')!r} is unknown; this version reads {SCHEMA}")
        family = _part(file, values, "family", _family)
        arms = _part(file, values, "arms", lambda entries: ArmTable([_arm(entry) for entry in entries]))
        _part(file, values, "arms", lambda _: arms.check_students(tuple(family.students)))
        features = feature_table(tuple(family.students))
        _part(file, values, "features", lambda entries: _check_features(entries, features))
        name, kind = _part(file, values, "policy", lambda entry: (_text(entry["name"]), _text(entry["kind"])))
        return cls(
            name=_part(file, values, "name", _text),
            policy_name=name,
            policy=_read_policy(path / POLICY, kind, features, len(arms)),
            arms=arms,
            family=family,
            fingerprint=_part(file, values, "fingerprint", _text),
            sampling=_part(file, values, "sampling", lambda entry: Sampling(**entry)),
            training=_part(file, values, "training", dict),
            evaluation=_part(file, values, "evaluation", lambda rows: [dict(row) for row in rows]),
            versions=_part(file, values, "versions", dict),
        )


def check_free(path: Path, *, overwrite: bool) -> None:
    """Refuse to write where something stands that is not to be replaced.

    Raises:
        UserError: It exists and ``overwrite`` is not set, or it exists and is no bundle.
    """
    if Path(os.path.realpath(path)) == Path.cwd():
        raise UserError(f"output: {path} is where you are, and the folder is replaced; give --output the name of a folder in it")
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists() and not (path / DISPATCHER).is_file():
        raise UserError(f"output: {path} exists and is not a bundle; choose another --output")
    if path.exists() and not overwrite:
        raise UserError(f"output: {path} exists; choose another --output or give --overwrite=true")


def _names(students: Mapping[str, Any]) -> str:
    return ", ".join(students)


def _description(feature: Feature) -> dict[str, Any]:
    return {key: getattr(feature, key) for key in _DESCRIBED}


def _read_json(path: Path) -> dict[str, Any]:
    file = path / DISPATCHER
    if not file.is_file():
        raise UserError(f"bundle: there is no {file}; python -m dispatch_rl.export RUN --output {path} writes a bundle")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file}: it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file}: it holds no object")
    return values


def _part(file: Path, values: Mapping[str, Any], key: str, read: Callable[[Any], T]) -> T:
    """Return what ``read`` makes of one key; whatever is wrong with it becomes one line that names it."""
    if key not in values:
        raise UserError(f"{file}: {key}: it is missing")
    try:
        return read(values[key])
    except (UserError, TypeError, ValueError, KeyError, AttributeError) as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        raise UserError(f"{file}: {key}: {what}") from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise UserError(f"{value!r} is not a text")
    return value


def _arm(entry: Any) -> Arm:
    arm = Arm(**entry)
    if not isinstance(arm.student, str) or type(arm.length) is not int:
        raise UserError(f"{entry} is not a student and a length")
    return arm


def _source(entry: Any) -> ModelSource:
    source = ModelSource(**entry)
    _text(source.path)
    return source


def _family(entry: Any) -> FamilyConfig:
    students = {name: _source(source) for name, source in entry["students"].items()}
    family = FamilyConfig(**{**entry, "target": _source(entry["target"]), "students": students})
    if family.dtype not in _TYPES:
        raise UserError(f"dtype {family.dtype!r} is none of {', '.join(_TYPES)}")
    return family


def _check_features(entries: Any, features: Sequence[Feature]) -> None:
    """Refuse a policy that reads other features, or in another order, than this version computes."""
    found = [{key: entry[key] for key in _DESCRIBED} for entry in entries]
    wanted = [_description(feature) for feature in features]
    for i, (one, other) in enumerate(zip(found, wanted, strict=False)):
        if one != other:
            differing = next(key for key in _DESCRIBED if one[key] != other[key])
            raise UserError(f"number {i} has {differing} {one[differing]!r}; this version computes {other[differing]!r}")
    if len(found) != len(wanted):
        raise UserError(f"there are {len(found)}; this version computes {len(wanted)}")


def _read_policy(file: Path, kind: str, features: Sequence[Feature], num_actions: int) -> Policy:
    if not file.is_file():
        raise UserError(f"bundle: there is no {file}")
    try:
        policy = from_tensors(kind, load_file(file), len(features), num_actions, position_index(features, "entropy"))
        scale = np.array([feature.scale for feature in features], dtype=np.float32)
        network = policy.learned if isinstance(policy, AdaptivePolicy) else policy
        if isinstance(network, NetworkPolicy) and not np.array_equal(network.tensors()["scale"], scale):
            raise UserError("scale: it is not that of the features")
    except (OSError, SafetensorError, UserError, TypeError, AttributeError) as error:  # the last two: types that numpy lacks
        raise UserError(f"{file}: {error}") from error
    return policy
