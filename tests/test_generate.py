"""``python -m dispatch_rl.generate``: the text on standard output and nothing else there, colours only on a terminal."""

import io
import json
import sys
from pathlib import Path

import pytest

from dispatch_rl import generate
from dispatch_rl.decoding.families import Family
from dispatch_rl.errors import UserError
from dispatch_rl.runtime.decoder import AdaptiveDecoder
from dispatch_rl.runtime.terminal import painted
from tests.bundles import pocket_bundle, write

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
    """No bundle, no prompt, another family, a value out of range."""
    with pytest.raises(UserError, match=r"bundle: there is no nowhere.dispatcher\.json"):
        generate.main(["--bundle=nowhere", "--prompt=a"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(UserError, match="prompt: give --prompt"):
        generate.main([f"--bundle={bundle}"])
    with pytest.raises(UserError, match=r"dispatcher\.json: fingerprint"):
        generate.main([f"--bundle={bundle}", "--prompt=a", "--family.target.path=pocket:large"])
    with pytest.raises(UserError, match=r"sampling\.top_p: 1\.5"):
        generate.main([f"--bundle={bundle}", "--prompt=a", "--top_p=1.5"])
