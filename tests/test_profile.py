"""Latency profiles: interpolated as documented, measured in real rounds, and tied to a family and a device."""

import json
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dispatch_rl.config import DecodingConfig, ProfilingConfig
from dispatch_rl.decoding import graphs
from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
from dispatch_rl.decoding.drafting import Draft
from dispatch_rl.decoding.families import Family, load_family
from dispatch_rl.decoding.graphs import capture_graphs
from dispatch_rl.decoding.sampling import Sampling
from dispatch_rl.errors import UserError
from dispatch_rl.kernels.operations import REFERENCES
from dispatch_rl.replay import measuring
from dispatch_rl.replay.fingerprint import family_fingerprint
from dispatch_rl.replay.measuring import _noise_ms_per_token, measure
from dispatch_rl.replay.profile import TARGET, ForwardLatency, Profile, interpolated
from dispatch_rl.replay.samples import part_wholes
from tests.families import family_config
from tests.statics import CAPTURABLE, again, on_device
from tests.tape import Tapes
from tests.traces import constant, latencies_ms, made_up_profile, made_up_world

BY_HAND = {
    "schema": 1,
    "device": "A100",
    "dtype": "bfloat16",
    "overhead_ms": 0.5,
    "models": {
        "target": {"queries": [1, 3], "contexts": [4, 8], "median_ms": [[20.0, 24.0], [22.0, 28.0]]},
        "small": {"queries": [1, 5], "contexts": [4, 8], "median_ms": [[2.0, 4.0], [4.0, 8.0]], "next_ms": [1.0, 3.0]},
        "large": {"queries": [1, 2, 5], "contexts": [4, 8], "median_ms": [[6.0, 10.0], [7.0, 11.0], [9.0, 19.0]]},
    },
}


def written(folder: Path, content: Any) -> Path:
    """Write a profile by hand."""
    path = folder / "profile.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_interpolation_by_hand(tmp_path: Path) -> None:
    """A prompt of 4 tokens, then six more, of which 'small' would have chosen the second to the fourth.

    Round by round, target + overhead 0.5 ms first:

    - none, text of 4: one token at 4 is 20.
    - small-3, text of 5: the target reads 4 up to 8, its last slope goes on by (28 - 24) / 2 from 28 to 30. The student reads all 5 at
      5: 4 + 1/4 * 4 = 5, then one token each at 6 and 7, next_ms 2 and 2.5. All three stand, and 4 tokens are emitted.
    - small-1, text of 9: beyond 8 tokens nothing grows with the text, so the target's 2 tokens at 10 are 24 + 1/2 * 4 = 26. The student
      has read 7 and reads 2: 4 + 1/4 * 4 = 5.
    """
    rows = [{"match_small": [False, True, True, True, False, False], "prompt": [1, 2, 3, 4]}]
    profile = Profile.read(written(tmp_path, BY_HAND))
    world = made_up_world(tmp_path / "mine", rows, [Arm(NONE), Arm("small", 3), Arm("small", 1)], profile)
    assert latencies_ms(world, 0, [0, 1, 2]) == pytest.approx([0.5 + 20, 0.5 + 30 + 5 + 2 + 2.5, 0.5 + 26 + 5])


def test_further_draft_tokens_cost_a_query_of_one(tmp_path: Path) -> None:
    """Without next_ms; before the first context nothing falls.

    large-3 behind a text of 1: the student reads one at 1, then 2 and 3, always 6. The target reads 4 up to 4: 22 + 1/2 * 2 = 23.
    """
    rows = [{"match_large": [True, True, True, True], "prompt": [1]}]
    world = made_up_world(tmp_path / "mine", rows, [Arm("large", 3)], Profile.read(written(tmp_path, BY_HAND)))
    assert latencies_ms(world, 0, [0]) == pytest.approx([0.5 + 23 + 3 * 6])


def test_falling_slopes_end_at_zero(tmp_path: Path) -> None:
    """A latency that was measured to fall with the query length does not become negative beyond it."""
    steep = ForwardLatency((1, 2), (1,), ((3.0,), (1.0,)))
    rows = [{"match_a": [True] * 9}]
    world = made_up_world(tmp_path / "mine", rows, [Arm("a", 8)], Profile("made up", "float32", {TARGET: steep, "a": constant(1.0)}))
    assert latencies_ms(world, 0, [0]) == pytest.approx([8.0])


def test_below_the_grid_nothing_is_free(tmp_path: Path) -> None:
    """A grid that rises from eight tokens on tells the least that fewer may take, not that they take nothing."""
    latency = ForwardLatency((8, 16), (1,), ((20.0,), (60.0,)))
    points = zip(*latency.between(np.array([1, 8, 12, 24])), strict=True)
    assert [float(interpolated(latency.at_contexts(1), *at)[1]) for at in points] == [20, 20, 40, 100]
    profile = Profile("made up", "float32", {TARGET: latency, "a": constant(1.0)})
    world = made_up_world(tmp_path / "x", [{"match_a": [True] * 2}], [Arm("a", 2), Arm(NONE)], profile)
    assert latencies_ms(world, 0, [1, 1]) == [20, 20]


def test_noise_and_overhead_are_paid_by_token_and_by_round(tmp_path: Path) -> None:
    """Two rounds that emit 3 and 1: 0.5 a round and 0.25 a token; prompt lookup is free unless it is given."""
    row = {
        "match_a": [True, True, False, False],
        "lookup_match": [1, 0, 0, 1],
        "lookup_drafted": [0, 0, 0, 1],
        "lookup_accepted": [0, 0, 0, 0],
    }
    arms = [Arm("a", 2), Arm(LOOKUP, 3)]
    world = made_up_world(tmp_path / "mine", [row], arms, made_up_profile(10, overhead_ms=0.5, token_ms=0.25, a=1))
    assert latencies_ms(world, 0, [0, 1]) == pytest.approx([10 + 2 * 1 + 0.5 + 3 * 0.25, 10 + 0.5 + 0.25])
    world = made_up_world(tmp_path / "mine", [row], arms, made_up_profile(10, a=1, lookup=0.1))
    assert latencies_ms(world, 0, [0, 1]) == pytest.approx([12, 10.1])


def test_a_profile_survives_its_file(tmp_path: Path) -> None:
    """What was written is read, quartiles and versions included."""
    grid = ((1.0, 2.0),)
    models = {TARGET: ForwardLatency((1,), (3, 9), ((4.0, 5.0),), (1.5, 2.5), grid, ((6.0, 7.0),)), "a": constant(1.0)}
    rest: dict[str, Any] = {"overhead_ms": 0.1, "token_ms": 0.2, "watch_ms": 0.3, "family": "abc", "versions": {"torch": "2"}}
    profile = Profile("a device", "float16", models, after={"a": constant(3.0)}, **rest)
    profile.write(tmp_path / "profile.json")
    assert Profile.read(tmp_path / "profile.json") == profile


def change(path: str, value: Any) -> dict[str, Any]:
    """Return the profile with another value at ``path``, or without it if the value is None."""
    changed: dict[str, Any] = json.loads(json.dumps(BY_HAND))
    *parents, key = path.split(".")
    entry = changed
    for parent in parents:
        entry = entry[parent]
    if value is None:
        del entry[key]
    else:
        entry[key] = value
    return changed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"schema": 1, "dev', "it is no JSON: Unterminated string"),
        ("[]", "it has no 'schema': 1"),
        (change("schema", 2), "it has no 'schema': 1"),
        (change("schema", None), "it has no 'schema': 1"),
        (change("device", None), "'device' is missing"),
        (change("device", 7), "device is 7; it must be a text"),
        (change("overhaed_ms", 3), "unknown key 'overhaed_ms'; did you mean overhead_ms?"),
        (change("after", {"huge": {"queries": [1], "contexts": [1], "median_ms": [[1.0]]}}), "after.huge: models has no 'huge'"),
        (change("models.target", None), "models has no 'target'"),
        (change("models.small.median_ms", [[2.0, 4.0], [4.0]]), "models.small: median_ms has not one row per query length and one column"),
        (change("models.small.median_ms", [[2.0, 4.0]]), "models.small: median_ms has not one row per query length and one column"),
        (change("models.small.median_ms", [[2.0, 4.0], [4.0, -1.0]]), "models.small: median_ms must hold times of 0 to 1e+09 ms"),
        (change("models.small.median_ms", [[2.0, 4.0], [4.0, float("nan")]]), "models.small: median_ms must hold times of 0 to 1e+09 ms"),
        (change("models.small.median_ms", [[2.0, 4.0], [4.0, True]]), "models.small: median_ms must hold times of 0 to 1e+09 ms"),
        (change("models.target.median_ms", [[0.0, 0.0], [0.0, 0.0]]), "models.target: median_ms is 0 everywhere"),
        (change("models.small.median_ms", [[2.0, 4.0], [4.0, "fast"]]), "models.small: median_ms must hold times of 0 to 1e+09 ms"),
        (change("models.small.next_ms", [1.0]), "models.small: next_ms has not one entry per context"),
        (change("models.small.next_ms", [1.0, float("inf")]), "models.small: next_ms must hold times of 0 to 1e+09 ms"),
        (change("models.small.queries", [5, 1]), "models.small: queries must be whole numbers of at least 1 that rise"),
        (change("models.small.queries", [5, 5]), "models.small: queries must be whole numbers of at least 1 that rise"),
        (change("models.small.queries", [0, 5]), "models.small: queries must be whole numbers of at least 1 that rise"),
        (change("models.small.queries", [1.5, 5]), "models.small: queries must be whole numbers of at least 1 that rise"),
        (change("models.small.contexts", [8, 4]), "models.small: contexts must be whole numbers of at least 1 that rise"),
        (change("models.small.contexts", None), "models.small: 'contexts' is missing"),
        (change("models.small", 2.0), "models.small: it is 2.0, not queries, contexts and median_ms"),
        (change("overhead_ms", "little"), "overhead_ms is 'little'; it must be a time of 0 to 1e+09 ms"),
        (change("token_ms", -1.0), "token_ms is -1.0; it must be a time of 0 to 1e+09 ms"),
    ],
)
def test_broken_profiles_are_refused(tmp_path: Path, content: Any, message: str) -> None:
    """One line that names the file and the entry."""
    path = written(tmp_path, content)
    with pytest.raises(UserError) as caught:
        Profile.read(path)
    assert str(caught.value).startswith(f"{path}: not a profile: {message}")
    assert len(str(caught.value).splitlines()) == 1


def test_a_profile_of_something_else_is_refused(tmp_path: Path) -> None:
    """Missing, or of another family, device or type; a table by hand that names no family fits every one."""
    with pytest.raises(UserError, match=r"profile: there is no file .*none\.json"):
        Profile.read(tmp_path / "none.json")
    path = tmp_path / "mine.json"
    profile = replace(made_up_profile(), family="abc")
    profile.check_fits(path, "abc", "made up", "float32")
    profile.check_fits(path, None, None, None)
    made_up_profile().check_fits(path, "xyz", "made up", "float32")
    for other, what in (("xyz", "family"), ("H100", "device"), ("bfloat16", "type")):
        wanted = {"family": "abc", "device": "made up", "dtype": "float32"} | {"dtype" if what == "type" else what: other}
        with pytest.raises(UserError) as caught:
            profile.check_fits(path, **wanted)
        assert str(caught.value).startswith(f"{path}: the profile is of another {what}, '")
        assert f"instead of '{other}'; run dispatch_rl.profile here" in str(caught.value)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(0.8)], ids=["greedy", "coupled"])
def test_a_measured_profile_is_whole(other: Family, sampling: Sampling) -> None:
    """Positive finite latencies of every model on rising grids, of this family on this device; texts go on where one has ended."""
    told: list[int] = []
    config = DecodingConfig(arms=[Arm("tiny", 7), Arm(NONE)], sampling=sampling)
    profile = measure(other, config, ProfilingConfig(rounds=1_500, draft_lengths=[2, 4], longest_context=64), told.append)
    assert told == sorted(set(told))
    assert told[-1] >= 1_500
    assert (profile.device, profile.dtype, profile.family) == (other.device_name(), "float32", family_fingerprint(other))
    assert list(profile.models) == ["target", "tiny", "twin", "lookup"]
    for model in profile.models.values():
        low, median, high = (np.array(grid) for grid in (model.quartile_low_ms, model.median_ms, model.quartile_high_ms))
        assert median.shape == (len(model.queries), len(model.contexts))
        assert list(model.queries) == sorted(set(model.queries))
        assert np.isfinite(high).all()
        assert (low > 0).all()
        assert (low <= median).all()
        assert (median <= high).all()
        assert max(model.contexts) <= 96
    # Draft lengths are 1, those of the arms, and those that are asked for; the target reads a token more.
    assert set(profile.models["target"].queries) <= {1, 2, 3, 5, 8}
    assert {1, 5, 8} <= set(profile.models["target"].queries)
    assert {1, 2} < set(profile.models["tiny"].queries)
    assert min(profile.models["twin"].next_ms or [0]) > 0
    assert profile.overhead_ms > 0
    assert (profile.token_ms > 0) == (not sampling.greedy)


def test_whole_drafts_are_measured_where_they_are_one_graph(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """As rounds of an arm are decoded: no student is asked token by token, and further tokens take what is beyond a single one."""
    asked: set[str] = set()
    add = Draft.add

    def counted(self: Draft, student: str, *rest: Any) -> Any:
        asked.add(student)
        return add(self, student, *rest)

    monkeypatch.setattr(Draft, "add", counted)
    monkeypatch.setattr(graphs, "operations", lambda device: CAPTURABLE)
    family = again(other, Tapes())
    config = DecodingConfig(arms=[Arm("tiny", 4), Arm("twin", 2), Arm(NONE)])
    with on_device():
        capture_graphs(family, config.arm_list(), tell=lambda line: None)
        profile = measure(family, config, ProfilingConfig(rounds=1_500, draft_lengths=[2], longest_context=64))
    assert asked == {LOOKUP}
    for name in ("tiny", "twin"):
        assert min(profile.models[name].queries) <= 2
        assert {2, 4, 8, 16} <= {*profile.models[name].queries}  # caught up on where a stretch begins
        assert min(profile.models[name].next_ms or [-1]) >= 0


def test_time_of_a_whole_draft_is_parted_by_hand() -> None:
    """Beyond the median of single tokens with as much to catch up on; where there is none, a draft tells nothing."""
    samples = {("a", 2): [(10, 1.0), (20, 3.0), (30, 2.0)], ("b", 2): [(10, 50.0)]}
    part_wholes({"a": [(2, 40, 5, 10.0), (7, 40, 3, 9.0), (2, 50, 2, 1.5)]}, defaults := defaultdict(list, samples))
    assert defaults["a", 0] == [(42, 2.0), (51, 0.0)]


def test_kernels_make_noise_where_they_use_it(other: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU it is part of what they take, so nothing is charged for it besides."""
    config = DecodingConfig(sampling=Sampling(0.8))
    assert _noise_ms_per_token(other, config) > 0
    monkeypatch.setattr(measuring, "operations", lambda device: replace(REFERENCES, compiled=True))
    assert _noise_ms_per_token(other, config) == 0


def one_weight(family: Family) -> None:
    """Change the first entry of one small tensor by a little."""
    with torch.no_grad():
        next(weights for name, weights in family.students["twin"].model.named_parameters() if "norm" in name)[0] += 1e-3


def one_entry(family: Family) -> None:
    """Change how positions are encoded."""
    family.students["tiny"].model.config.rope_parameters["rope_theta"] += 1


def another_type(family: Family) -> None:
    """Round the target's weights."""
    family.target.model.bfloat16()


def fewer_tokens(family: Family) -> None:
    """Cut the common vocabulary."""
    family.vocab -= 1


def another_order(family: Family) -> None:
    """Name the students from expensive to cheap."""
    family.students = dict(reversed(family.students.items()))


@pytest.mark.parametrize("made_other", [one_weight, one_entry, another_type, fewer_tokens, another_order])
def test_the_fingerprint_tells_families_apart(
    other_folder: Path, other: Family, tmp_path: Path, made_other: Callable[[Family], None]
) -> None:
    """One weight, one entry of an architecture, the type, the vocabulary or the order of the students; but not the folder."""
    family = load_family(family_config(shutil.copytree(other_folder, tmp_path / "moved")))
    assert family_fingerprint(family) == family_fingerprint(other)
    made_other(family)
    assert family_fingerprint(family) != family_fingerprint(other)
    if made_other is another_type:
        rounded = family_fingerprint(family)
        family.target.model.float()
        assert rounded != family_fingerprint(family) != family_fingerprint(other)
