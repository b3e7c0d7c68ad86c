"""Letting policies decode the same texts: exact in replay; live in random order, in one process, against the clock."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from dispatch_rl.comparison import ORACLE, TARGET_ALONE, Comparison, Floats, Ints, Result, Row
from dispatch_rl.decoding.arms import NONE, Arm, ArmTable
from dispatch_rl.decoding.families import Family
from dispatch_rl.decoding.loop import DecodedText, decode, warm_up
from dispatch_rl.decoding.parting import may_part
from dispatch_rl.decoding.rounds import RoundTable
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.device_use import DeviceUse
from dispatch_rl.errors import UserError
from dispatch_rl.policies.base import Policy
from dispatch_rl.policies.fixed import FixedPolicy
from dispatch_rl.prediction import Prediction, Probe, predict
from dispatch_rl.prompts import Prompt
from dispatch_rl.replay.oracle import cheapest, cheapest_within
from dispatch_rl.replay.running import fixed_latencies_ms, replay
from dispatch_rl.replay.traces import Traces
from dispatch_rl.replay.world import ReplayWorld
from dispatch_rl.utilisation import watch_gpu

_PROBES = ("a probe of the machine's speed", "another probe")


@dataclass(frozen=True)
class Task:
    """One text to be decoded live."""

    kind: str
    """What sort of text it is."""
    tokens: tuple[int, ...]
    """Token ids of the prompt."""
    sampling: Sampling
    """How it is decoded."""
    max_new_tokens: int
    """Tokens to emit at most."""
    text: int | None = None
    """Number of the text in the recording, if it was recorded."""
    COLUMNS: ClassVar = ("prompt", "path", "limit", "seed", "temperature", "top_k", "top_p")
    """What a recording must hold of a text for it to be decoded again."""

    @classmethod
    def of_prompt(cls, prompt: Prompt, sampling: Sampling, max_new_tokens: int) -> "Task":
        """Return the task that a prompt is."""
        return cls(prompt.kind, prompt.tokens, prompt.sampling(sampling), max_new_tokens)

    @classmethod
    def of_recording(cls, traces: Traces, text: int) -> "Task":
        """Return the task that was recorded."""
        prompt = traces.prompt(text)
        return cls(traces.kind(text), prompt, traces.sampling(text), int(traces.limits[text]) - len(prompt), text)


def check_decodable(traces: Traces, family: Family) -> None:
    """Refuse to decode live what a recording does not tell enough about.

    Raises:
        UserError: Naming what is missing, or what the family lacks.
    """
    advice = "so its texts cannot be decoded live; set evaluation.prompts to 0"
    missing = [name for name in Task.COLUMNS if name not in traces.table.column_names]
    if missing := [*missing, *sorted(traces.missing())]:
        raise UserError(f"evaluation.prompts: {traces.source} lacks {', '.join(missing)}, {advice}")
    if traces.first_position != 1:
        raise UserError(
            f"evaluation.prompts: {traces.source} begins at position {traces.first_position}, not behind the token that reading the "
            f"prompt emits, {advice}"
        )
    if traces.students != tuple(family.students):
        theirs, ours = (", ".join(names) or "none" for names in (traces.students, family.students))
        raise UserError(f"evaluation.prompts: the students of {traces.source} are {theirs}, those of the family {ours}, {advice}")


def with_target(arms: Sequence[Arm]) -> ArmTable:
    """Return the arms and, behind them if it is not among them, the target alone, which everything is compared with."""
    return ArmTable([*arms, *([] if Arm(NONE) in arms else [Arm(NONE)])])


def compare_replay(world: ReplayWorld, num_arms: int, policies: Mapping[str, Policy], best_fixed: str, seed: int) -> Comparison:
    """Replay every text with the target alone and with every policy, and find the bounds over the first ``num_arms`` arms."""
    contestants = _with_target(world.arms, policies)
    replayed = {name: replay(world, policy) for name, policy in contestants.items()}
    actions = range(num_arms)
    length, students = cheapest_within(world, "length", actions)
    student, lengths = cheapest_within(world, "student", actions)
    bounds = {
        ORACLE: cheapest(world, actions).latency_ms,
        f"oracle over students (length {length})": students.latency_ms,
        f"oracle over lengths ({student})": lengths.latency_ms,
        "best fixed arm of each prompt": fixed_latencies_ms(world)[:num_arms].min(axis=0),
    }
    tokens = world.traces.lengths[world.texts] - world.traces.first_position
    results = {name: Result(run.rounds, run.latency_ms) for name, run in replayed.items()}
    return Comparison("replay", tokens, results, seed, world.profile.device, bounds, best_fixed)


def compare_live(
    family: Family,
    policies: Mapping[str, Policy],
    arms: ArmTable,
    tasks: Sequence[Task],
    seed: int,
    world: ReplayWorld | None = None,
    progress: Callable[[int], None] = lambda done: None,
) -> Comparison:
    """Decode every text with the target alone and with every policy; with ``world``, see what replay predicts for the same arms.

    In float32 every policy gets the same text. In 16 bits, one token and several are rounded differently, and texts may part where two
    tokens are nearly as likely: then a policy's time counts for as many tokens as the target alone emitted.

    Raises:
        UserError: Two policies got different texts for one prompt in float32.
    """
    contestants = _with_target(arms, policies)
    if world is not None:
        steady = [policy for policy in contestants.values() if not policy.learns]
        contestants |= {name: Probe(steady, seed + 1 + i) for i, name in enumerate(_PROBES)}
    warm_up(family, arms, {task.sampling for task in tasks})
    rng = np.random.default_rng(seed)
    texts: dict[str, list[DecodedText]] = {name: [] for name in contestants}
    parted = 0
    with watch_gpu(family.device) as watch:
        for done, task in enumerate(tasks):
            for name in rng.permutation(list(contestants)):
                with watch.during(name):
                    texts[name].append(decode(family, contestants[name], arms, task.tokens, task.sampling, task.max_new_tokens))
            if task.sampling.greedy or task.sampling.method == "coupled":
                parted += _parted(family, task, {name: decoded[-1] for name, decoded in texts.items()})
            progress(done + 1)
    probed = [texts.pop(name) for name in _PROBES if name in texts]
    prediction = Prediction({}, None) if world is None else predict(world, [task.text for task in tasks], texts, probed)
    device = DeviceUse.of(family, watch, texts)
    tokens = np.array([len(text.tokens) - 1 for text in texts[TARGET_ALONE]])
    results = {name: _result(decoded, tokens, prediction.latency_ms.get(name), device.row(name)) for name, decoded in texts.items()}
    remarks = device.lines
    if parted:
        said = f"{parted} of {len(tasks)} texts parted at near ties, as they may by rounding; times are per token of each policy's own text"
        remarks = (said, *remarks)
    return Comparison("live", tokens, results, seed, family.device_name(), drift=prediction.drift, remarks=remarks)


def _with_target(arms: ArmTable, policies: Mapping[str, Policy]) -> dict[str, Policy]:
    return {TARGET_ALONE: FixedPolicy(list(arms).index(Arm(NONE))), **policies}


def _result(texts: Sequence[DecodedText], tokens: Ints, predicted_ms: Floats | None, device_use: Row) -> Result:
    share = tokens / np.array([max(len(text.tokens) - 1, 1) for text in texts])
    return Result(
        rounds=RoundTable.of([(text.rounds, text.entropies_at_decision) for text in texts]),
        times_ms=np.array([text.decoding_ms for text in texts]) * share,
        prefill_ms=np.array([text.prefill_ms for text in texts]),
        decision_ms=sum(text.decision_ms for text in texts),
        predicted_ms=None if predicted_ms is None else predicted_ms * share,
        device_use=device_use,
    )


def _parted(family: Family, task: Task, texts: Mapping[str, DecodedText]) -> bool:
    """Return whether a policy got another text than the target alone, as may happen at a near tie.

    Raises:
        UserError: It happened elsewhere in float32.
    """
    alone = texts[TARGET_ALONE].tokens
    others = {name: text.tokens for name, text in texts.items() if text.tokens != alone}
    for name, tokens in others.items():
        if not may_part(family, task.tokens, alone, tokens, task.sampling):
            raise UserError(
                f"'{name}' changed the text of a {task.kind} prompt (seed {task.sampling.seed}), and not at a near tie, which must not "
                "happen in float32; see `python -m dispatch_rl.doctor`"
            )
    return bool(others)
