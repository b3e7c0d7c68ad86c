"""Is everything here to decode with? ``python -m dispatch_rl.doctor``."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from dispatch_rl import __version__, cli
from dispatch_rl.config import DecodingConfig, TrainConfig
from dispatch_rl.errors import UserError
from dispatch_rl.nvml import describe_nvml

PACKAGES = (
    "torch", "transformers", "gymnasium", "stable-baselines3", "triton", "datasets", "wandb", "safetensors", "jsonargparse", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class DoctorConfig(TrainConfig):
    """What to look at; every key of a training run is understood, so that one file serves both."""


def versions() -> list[tuple[str, str]]:
    """Return the versions of this package, of Python and of what it depends on."""
    found = [("dispatch-rl", __version__), ("python", platform.python_version())]
    for package in PACKAGES:
        try:
            found.append((package, version(package)))
        except PackageNotFoundError:
            found.append((package, "missing"))
    return found


def devices() -> list[tuple[str, str]]:
    """Return the processors that torch can use."""
    import torch

    found = [("cpu", f"{platform.machine()}, {torch.get_num_threads()} threads")]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append((f"cuda:{index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"))
    return [*found, ("NVML", describe_nvml())]


def family_check(config: DecodingConfig) -> list[tuple[str, str]]:
    """Load a family and decode a little with every student.

    Raises:
        UserError: It cannot be loaded, computes no numbers, has no chat format though one is asked for, or a student changed the text in
            float32.
    """
    from dispatch_rl.decoding.arms import LOOKUP, NONE, Arm
    from dispatch_rl.decoding.families import load_family
    from dispatch_rl.decoding.fitness import check_numbers
    from dispatch_rl.decoding.graphs import capture_graphs, describe_graphs
    from dispatch_rl.decoding.parting import behind, may_part
    from dispatch_rl.decoding.sampling import Sampling
    from dispatch_rl.decoding.session import DecodingSession

    family = load_family(config.family)
    check_numbers(family.by_key())
    chat = [("chat", repr(family.decode(family.encode_message("...", config.prompts.system))))] if config.prompts.chat else []
    texts = {}
    prompt, sampling = family.encode("def add(a, b):\n    return"), Sampling(temperature=0.6)
    arms = [Arm(NONE), Arm(LOOKUP, 4), *(Arm(student, 4) for student in family.students)]
    capture_graphs(family, arms, tell=lambda line: None)
    for arm in arms:
        session = DecodingSession(family, prompt, sampling, 48)
        while not session.finished:
            session.step(arm)
        texts[arm.student] = session.text_tokens
    wrong = [student for student, text in texts.items() if text != texts[NONE]]
    if broken := [student for student in wrong if not may_part(family, prompt, texts[NONE], texts[student], sampling)]:
        changed = f"family: {', '.join(broken)} changed the text of the target"
        raise UserError(f"{changed}, and not at a near tie, which must not happen in float32")
    same = [student for student in texts if student not in (NONE, *wrong)]
    lossless = [f"same text with {', '.join(same)} and without"] if same else []
    apart = max((behind(family, prompt, texts[NONE], texts[student], sampling) for student in wrong), default=0.0)
    tie = f"parts where two tokens are {apart:.2g} nats apart, as it may by rounding, in {config.family.dtype}"
    lossless += [f"with {', '.join(wrong)} it {tie}"] if wrong else []
    return [
        ("models", family.describe().splitlines()[0]),
        *(("remark", remark) for remark in family.remarks),
        *chat,
        ("graphs", describe_graphs(family)),
        ("context", f"{family.context_limit} tokens"),
        ("lossless", "; ".join(lossless)),
    ]


def main(argv: Sequence[str]) -> None:
    """Print versions, devices and the check of a family."""
    parser = cli.make_parser(DoctorConfig, "doctor", "Print versions and devices, and check that a family decodes losslessly.")
    config = cli.build(DoctorConfig, parser, cli.parse(parser, argv))
    for title, section in (("versions", versions()), ("devices", devices()), ("family", family_check(config))):
        print(title)
        for name, value in section:
            print(f"  {name:<18} {value}")
    print("all is well")


if __name__ == "__main__":
    cli.run(main)
