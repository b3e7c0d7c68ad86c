"""Under which conditions a study was made."""

from collections.abc import Sequence
from datetime import UTC, datetime

from dispatch_rl import __version__
from dispatch_rl.runs import environment
from dispatch_rl.study.data import PARTS
from dispatch_rl.study.plan import Row, Study
from dispatch_rl.study.tables import markdown


def conditions(study: Study, rows: Sequence[Row]) -> str:
    """Return the conditions as a list and a table of the texts."""
    config, section = study.config, study.config.study
    device = study.base.world("test").profile.device
    versions = environment(device)
    kinds = ", ".join(study.base.kinds_there())
    live = [row["num_texts"] for row in rows if row.get("mode") == "live"]
    models, given = {"target": config.family.target, **config.family.students}, config.replay.traces
    named = ", ".join(f"{name} `{model.path}`" for name, model in models.items())
    source = f"{config.prompts.source} ({kinds}), up to {config.prompts.max_new_tokens} tokens, {config.sampling.method} sampling"
    told = {
        "Made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, dispatch-rl {__version__}",
        "Device": device,
        "Versions": ", ".join(f"{key} {value}" for key, value in versions.items() if key != "device"),
        "Models": named if live or given is None else f"students {', '.join(study.base.load('test').students)}, as recorded",
        "Texts": source if given is None else f"the recording `{given}` ({kinds})",
        "Arms": f"{len(study.base.arms)}: {', '.join(arm.name for arm in study.base.arms)}",
        "Learners": f"{', '.join(section.learners)}, {section.seeds} seeds each; {section.learner} with {section.further_seeds} elsewhere",
        "Training": ", ".join(f"{name} {config.taught_by(name, 0).total_steps:,} rounds or states" for name in section.learners),
        "Replay": "exact; latencies from the profile; all test texts",
        "Live": f"{max(live)} texts, paired, in random order, in one process, the first seed of each learner" if live else "not measured",
        "Intervals": f"95 %, bootstrap over texts (seed {config.evaluation.seed}); ratios are paired by text",
        "Baselines": "the best arms and the tuned thresholds are chosen on validation texts, policies of learners too",
    }
    lines = "\n".join(f"- **{key}**: {value}." for key, value in told.items())
    return f"{lines}\n\n{_texts(study)}"


def _texts(study: Study) -> str:
    lines = []
    for temperature, data in study.data.items():
        read = [data.load(part) for part in PARTS]
        lines.append([f"{temperature:g}", *(f"{traces.num_texts} texts, {traces.num_positions} tokens" for traces in read)])
    return markdown(["temperature", *PARTS], lines)
