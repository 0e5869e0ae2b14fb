"""`neutral export`: from a saved extension to a verified folder; what is refused is one line."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, dynamic_module_utils

from neutral_residues.cli import app as cli
from neutral_residues.config.run import make_run
from neutral_residues.export.formats.table import FORMATS
from neutral_residues.run import extend
from tiny_run import NUM_NEW_TOKENS, method_values, vocabulary_values

BACKBONE_TOKENS = 260
Neutral = Callable[..., tuple[int, str]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short finished runs of some methods, in one folder."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    for method in ("neutral", "lora", "finetune"):
        extend(make_run(method_values(folder, method, steps=4, learning_rate=0.01)))
    return folder


@pytest.fixture
def neutral(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Neutral:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))

    def run(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["neutral", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        printed = capsys.readouterr()
        return code, " ".join((printed.out + printed.err).split())

    return run


@pytest.mark.parametrize(
    ("method", "to", "said"),
    [
        pytest.param(
            "neutral",
            "transformers",
            "logits are equal, bit for bit; generation with a cache ",
            marks=pytest.mark.slow,
        ),
        ("neutral", "safetensors", "residues up to "),
        pytest.param("lora", "dense", "logits up to ", marks=pytest.mark.slow),
    ],
)
def test_a_run_becomes_a_folder_that_others_load(
    runs: Path, tmp_path: Path, neutral: Neutral, method: str, to: str, said: str
) -> None:
    output = tmp_path / "exported"
    code, printed = neutral("export", runs / method, "--to", to, "--output", output)
    assert code == 0, printed
    assert said in printed
    card = (output / "README.md").read_text()
    assert f"base_model: {runs / 'backbone'}" in card
    assert card.count("trust_remote_code=True") == 2 * (to == "transformers")
    assert ("licence" in card) == (to != "safetensors") == (output / "tokenizer.json").is_file()
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"exported", "cache", "modules"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "to", "said"),
    [
        ("neutral", "transformers", "new tokens are impossible after the same "),
        ("neutral", "safetensors", "residues up to "),
        ("lora", "dense", "logits up to "),
    ],
)
def test_a_run_with_a_vocabulary_takes_its_tokenizer_along(
    tmp_path: Path, neutral: Neutral, method: str, to: str, said: str
) -> None:
    extend(**vocabulary_values(tmp_path, method=method))
    output, text = tmp_path / "exported", "кіт сидів the cat"
    code, printed = neutral(
        "export", tmp_path / "run", "--to", to, "--output", output, "--text", "кіт сидів " * 30
    )
    assert code == 0, printed
    assert said in printed
    tokenizers = [
        AutoTokenizer.from_pretrained(folder, trust_remote_code=to == "transformers")
        for folder in (output, tmp_path / "run" / "extension")
    ]
    ids, expected = (tokenizer(text).input_ids for tokenizer in tokenizers)
    assert ids == expected
    assert max(ids) >= BACKBONE_TOKENS
    if to == "dense":
        model = AutoModelForCausalLM.from_pretrained(output)
        assert (
            model.config.vocab_size == len(model.lm_head.weight) == BACKBONE_TOKENS + NUM_NEW_TOKENS
        )


def test_a_run_that_is_a_stock_model_with_a_vocabulary_says_so(
    tmp_path: Path, neutral: Neutral
) -> None:
    extend(**vocabulary_values(tmp_path, method="finetune"))
    code, printed = neutral(
        "export", tmp_path / "run", "--to", "dense", "--output", tmp_path / "out"
    )
    assert (code, "already a stock model in" in printed) == (2, True)
    folder = tmp_path / "run" / "extension"
    ids = AutoTokenizer.from_pretrained(folder)("кіт", return_tensors="pt").input_ids
    logits = AutoModelForCausalLM.from_pretrained(folder)(ids).logits
    assert ids.max() >= BACKBONE_TOKENS
    assert logits.shape[-1] == BACKBONE_TOKENS + NUM_NEW_TOKENS


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        (
            "finetune",
            ["--to", "dense"],
            "already a stock model in {runs}/finetune/extension; got method finetune",
        ),
        ("lora", ["--to", "qwen2_moe"], "so there is no adapter; formats that can: dense"),
        (
            "neutral",
            ["--to", "dense"],
            "its relu gate depends on the token, so no matrix equals it; formats that can:",
        ),
        ("neutral", ["--to", "gguf"], "unknown format gguf; known: dense, "),
        (
            "neutral",
            ["--to", "transformer"],
            "unknown format transformer; did you mean 'transformers'?",
        ),
        (
            "neutral",
            ["--to", "dense", "--dtype", "int8"],
            "dtype; got int8; allowed: float32, bfloat16, float16",
        ),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    runs: Path, tmp_path: Path, neutral: Neutral, method: str, options: list[str], line: str
) -> None:
    code, printed = neutral("export", runs / method, *options, "--output", tmp_path / "out")
    assert code == 2
    assert line.format(runs=runs) in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(runs: Path, tmp_path: Path, neutral: Neutral) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, printed = neutral(
        "export", runs / "neutral", "--to", "transformers", "--output", tmp_path
    )
    assert (code, (tmp_path / "mine.txt").read_text()) == (2, "mine")
    assert f"output folder {tmp_path} is not empty" in printed


def test_help_lists_every_format(neutral: Neutral) -> None:
    code, printed = neutral("export", "--help")
    assert code == 0
    assert all(f" {row.name} " in printed for row in FORMATS)
