"""``python -m dispatch_rl.generate``: the text on standard output and nothing else there, colours only on a terminal."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dispatch_rl import cli, generate
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from dispatch_rl.runtime.terminal import painted
from tests.bundles import pocket_bundle, write

ROOT = Path(__file__).resolve().parents[1]
PROMPT = "Problem: Compute 48 + 29.\n<think>\n"


class Terminal(io.StringIO):
    """Claims to be one."""

    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def bundle(pocket: Family, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a random network, trained at temperature 0.6 as it says."""
    return write(pocket_bundle(pocket), tmp_path_factory.mktemp("bundles") / "random")


@pytest.fixture(scope="module")
def text(bundle: Path, pocket: Family) -> str:
    """What is to be printed."""
    return AdaptiveDecoder.from_bundle(bundle, pocket).generate(PROMPT, 40, temperature=0.6, seed=2).text


def test_the_text_is_printed_and_nothing_else(bundle: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """What it took goes to standard error; ``--show`` without a terminal adds a line there and no colour."""
    options = [f"--bundle={bundle}", f"--prompt={PROMPT}", "--max_new_tokens=40", "--seed=2"]
    generate.main(options)
    printed = capsys.readouterr()
    assert printed.out == f"{text}\n"
    assert "[40 tokens, ended by length;" in printed.err
    assert "tokens/s" in printed.err
    generate.main([*options, "--show"])
    printed = capsys.readouterr()
    assert printed.out == f"{text}\n"
    assert "entropy" in printed.err
    assert "\x1b" not in printed.out + printed.err


def test_json_is_for_machines(bundle: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One object on one line."""
    generate.main([f"--bundle={bundle}", "--json", f"--prompt={PROMPT}", "--max_new_tokens=40", "--seed=2"])
    printed = json.loads(capsys.readouterr().out)
    assert (printed["text"], printed["finish_reason"], len(printed["tokens"])) == (text, "length", 40)
    assert printed["metrics"]["num_emitted_tokens"] == 39


def test_a_message_is_answered_in_the_chat_format(bundle: Path, pocket: Family, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With ``--chat``, from a target whose tokenizer has a template."""
    target = tmp_path / "target"
    shutil.copytree(Path(pocket.tokenizer.name_or_path), target)
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}Answer: {% endif %}"
    (target / "chat_template.jinja").write_text(template)
    options = [f"--bundle={bundle}", "--prompt=1 + 2?", "--max_new_tokens=20", "--seed=2", "--chat", "--system=Be brief."]
    generate.main([*options, f"--family.target.path={target}"])
    begun = "system: Be brief.\nuser: 1 + 2?\nAnswer: "
    assert capsys.readouterr().out == f"{AdaptiveDecoder.from_bundle(bundle, pocket).generate(begun, 20, temperature=0.6, seed=2).text}\n"
    with pytest.raises(UserError, match=r"^chat: the tokenizer of .*target has no chat template; leave out --chat"):
        generate.main(options)
    with pytest.raises(UserError, match=r"^system: a system message needs --chat=true$"):
        generate.main([f"--bundle={bundle}", "--system=Be brief."])


def test_a_terminal_shows_who_drafted(bundle: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Colours, a status below that keeps out of the text, and a terminal that is left as it was."""
    monkeypatch.setattr(sys, "stdout", screen := Terminal())
    monkeypatch.delenv("NO_COLOR", raising=False)
    generate.main([f"--bundle={bundle}", f"--prompt={PROMPT}", "--max_new_tokens=40", "--seed=2", "--show"])
    shown = screen.getvalue()
    assert "drafted by" in shown.splitlines()[0]
    assert "\x1b[38;2;" in shown
    assert "arm " in shown
    height = shown.partition("\x1b[1;")[2].partition("r")[0]
    assert shown.rindex(f"\x1b[1;{int(height) + 1}r") > shown.rindex("arm ")
    monkeypatch.setattr(sys, "stdout", plain := Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    generate.main([f"--bundle={bundle}", f"--prompt={PROMPT}", "--max_new_tokens=40", "--seed=2", "--show"])
    assert plain.getvalue() == f"{text}\n"


def test_paint_stays_within_lines() -> None:
    """A coloured text keeps its line ends bare."""
    assert painted("a\n\nb", (1, 2, 3)) == "\x1b[38;2;1;2;3ma\x1b[0m\n\n\x1b[38;2;1;2;3mb\x1b[0m"
    assert painted("a", None) == "a"


def test_sampling_is_the_trained_one_unless_said(bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """``--temperature`` replaces it; the prompt may come from standard input; stop strings end the text."""

    def printed(*options: str) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(PROMPT))
        generate.main([f"--bundle={bundle}", "--max_new_tokens=40", *options])
        return capsys.readouterr().out

    assert printed() == printed("--temperature=0.6") != printed("--temperature=0")
    assert printed("--temperature=0", '--stop=["numbers"]').rstrip("\n").endswith(" the ")


def test_wrong_requests_are_one_line(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No bundle, no prompt, bytes that are no text, another family, values out of range."""
    with pytest.raises(UserError, match=r"bundle: there is no nowhere.dispatcher\.json"):
        generate.main(["--bundle=nowhere", "--prompt=a"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UserError, match="prompt: give --prompt"):
        generate.main([f"--bundle={bundle}"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9"), encoding="utf-8"))
    with pytest.raises(UserError, match="prompt: standard input is not utf-8: byte 3 is 0xe9"):
        generate.main([f"--bundle={bundle}"])
    with pytest.raises(UserError, match="prompt: it is empty"):
        generate.main([f"--bundle={bundle}", "--prompt="])
    with pytest.raises(UserError, match=r"dispatcher\.json: fingerprint"):
        generate.main([f"--bundle={bundle}", "--prompt=a", "--family.target.path=pocket:large"])
    for option, value in (("top_p", "1.5"), ("top_p", "0.0"), ("top_k", "0")):
        with pytest.raises(UserError, match=rf"sampling\.{option}: {value} is not"):
            generate.main([f"--bundle={bundle}", "--prompt=a", f"--{option}={value}"])


@pytest.mark.parametrize("prompt", ["# Sort", "~", "null", "None", "---", "&a", "-- SQL: a-b", "[1]", "a: b", "'a'"])
def test_a_prompt_is_a_text_whatever_it_looks_like(prompt: str) -> None:
    """Neither YAML nor an option, behind ``=`` and as a word of its own; only a word that begins with dashes needs the former."""
    parser = cli.make_parser(generate.GenerateConfig, "generate", "")
    is_option = prompt.startswith("--") and " " not in prompt
    for argv in ([f"--prompt={prompt}"], *([] if is_option else [["--prompt", prompt]])):
        assert cli.build(generate.GenerateConfig, parser, cli.parse(parser, argv)).prompt == prompt


def test_a_prompt_that_is_too_long_is_one_line(bundle: Path) -> None:
    """Of a data set it would be left out; one that is given by hand is meant."""
    with pytest.raises(UserError, match=r"^prompt: \d+ tokens leave no room in a context of \d+$"):
        generate.main([f"--bundle={bundle}", f"--prompt={'7 ' * 5_000}"])


def test_the_family_may_stand_in_a_file(bundle: Path, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In one of its keys alone or in a whole configuration; null is where the models were."""
    (tmp_path / "other.yaml").write_text("target: {path: 'pocket:large'}\n")
    options = [f"--bundle={bundle}", f"--prompt={PROMPT}", "--max_new_tokens=40", "--seed=2"]
    for family in (["--family", f"{ROOT}/configs/pocket.yaml"], ["--family=null"], ["--family=None"]):
        generate.main([*options, *family])
        assert capsys.readouterr().out == f"{text}\n"
    with pytest.raises(UserError, match=r"dispatcher\.json: fingerprint"):
        generate.main([*options, f"--family={tmp_path}/other.yaml"])


@pytest.mark.parametrize(
    "command",
    ["print('a text', flush=True)", "print('still in the buffer')", "(print('help'), sys.exit())"],
)
def test_a_reader_that_has_seen_enough_is_no_error(command: str) -> None:
    """As ``head`` is when it leaves: the command ends as if by SIGPIPE, and says nothing."""
    reading, writing = os.pipe()
    os.close(reading)
    code = f"import sys; from dispatch_rl import cli; cli.run(lambda argv: {command}, [])"
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}  # with a buffer, the text is still in it when Python exits
    call: Any = {"cwd": ROOT, "env": environment, "stdout": writing, "stderr": subprocess.PIPE, "text": True}
    result = subprocess.run([sys.executable, "-c", code], check=False, **call)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, "")
