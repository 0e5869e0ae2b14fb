"""From a saved extension to a checked folder, in fresh processes; and what is refused, in one line,
leaving nothing."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from neutral_residues.cli import app as cli
from neutral_residues.config.run import make_run
from neutral_residues.errors import UserError
from neutral_residues.export.export import Target, export_model
from neutral_residues.export.formats.table import FORMATS
from neutral_residues.export.reference import look_at
from neutral_residues.export.verify import Difference, check
from neutral_residues.run import extend
from neutral_residues.tuner.config import NeutralResiduesConfig
from tiny_export import SIGMOID, assert_exact, exported, extended
from tiny_llama import extended_llama, perturb, tiny_llama
from tiny_run import method_values


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short finished runs of some methods, side by side."""
    folder = tmp_path_factory.mktemp("runs")
    torch.set_num_threads(1)
    for method in ("neutral", "lora", "finetune"):
        extend(make_run(method_values(folder, method, steps=4, learning_rate=0.01)))
    return folder


@pytest.fixture
def neutral(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str]]:
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
        ("neutral", "transformers", "logits are equal, bit for bit; generation with a cache "),
        ("neutral", "safetensors", "residues up to "),
        ("lora", "dense", "logits up to "),
    ],
)
def test_a_run_becomes_a_folder_that_others_load(
    runs: Path,
    tmp_path: Path,
    neutral: Callable[..., tuple[int, str]],
    method: str,
    to: str,
    said: str,
) -> None:
    output = tmp_path / "exported"
    code, printed = neutral("export", runs / method, "--to", to, "--output", output)
    assert code == 0, printed
    assert said in printed
    card = (output / "README.md").read_text()
    assert f"base_model: {runs / 'backbone'}" in card
    assert card.count("trust_remote_code=True") == 2 * (to == "transformers")
    assert ("licence" in card) == (to != "safetensors") == (output / "tokenizer.json").is_file()
    assert not [
        path for path in tmp_path.iterdir() if path.name not in ("exported", "cache", "modules")
    ]


def test_sixteen_bits_are_compared_with_the_rounded_model(tmp_path: Path) -> None:
    difference = export_model(
        extended(**SIGMOID), Target.of(tmp_path / "out", to="qwen2_moe", dtype="bfloat16")
    )
    assert difference.logits <= 2e-6  # bfloat16 itself moves logits by a thousandth
    assert {
        str(tensor.dtype) for tensor in load_file(tmp_path / "out" / "model.safetensors").values()
    } == {"torch.bfloat16"}


def test_the_fresh_process_notices_a_wrong_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tensor changed behind the writer's back: nothing is left, and the line says by how much it
    differs."""
    from neutral_residues.export import export as module

    def measure_damaged(folder: Path, *args: object, **kwargs: object) -> Difference:
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.1.mlp.shared_expert_gate.weight"].neg_()
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return measure(folder, *args, **kwargs)  # type: ignore[arg-type]

    measure = module.measure
    monkeypatch.setattr(module, "measure", measure_damaged)
    with pytest.raises(
        UserError, match=r"the export is not the live model; got logits that differ by up to 0\.\d+"
    ):
        export_model(extended(**SIGMOID), Target.of(tmp_path / "out", to="qwen2_moe"))
    assert not list(tmp_path.glob("*out*"))


def test_a_folder_that_needs_this_package_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neutral_residues.export import export as module

    def measure_dependent(folder: Path, *args: object, **kwargs: object) -> Difference:
        code = folder / "reference.py"
        code.write_text(f"import neutral_residues\n{code.read_text()}")
        return measure(folder, *args, **kwargs)  # type: ignore[arg-type]

    measure = module.measure
    monkeypatch.setattr(module, "measure", measure_dependent)
    with pytest.raises(UserError, match=r"cannot be loaded in a fresh process.*neutral_residues"):
        export_model(extended_llama(), Target.of(tmp_path / "out", to="safetensors"))


@pytest.mark.parametrize(
    ("share", "rounded", "fine"), [(9e-5, False, True), (2e-4, False, False), (2e-4, True, True)]
)
def test_the_tolerance(share: float, rounded: bool, fine: bool) -> None:
    difference = Difference(logits=0.0, cache=20 * share, largest=20.0, num_silent=0)
    if fine:
        check(difference, rounded=rounded)
    else:
        with pytest.raises(UserError, match="the export is not the live model"):
            check(difference, rounded=rounded)


def test_a_comparison_that_saw_only_zeros_proves_nothing() -> None:
    with pytest.raises(UserError, match="not the live model"):
        check(Difference(logits=0.0, cache=0.0, largest=0.0, num_silent=2), rounded=False)


def test_the_probe_looks_for_tokens_on_which_the_adapters_speak() -> None:
    model = extended_llama(adapter_name="speaker")
    gate = model.base_model.model.model.layers[1].mlp.neutral_residues["speaker"].block_gate
    with torch.no_grad():
        gate.bias.fill_(-4.8)  # about one row of forty
    seen = look_at(model)
    assert seen.num_silent == 0
    assert 2 <= len(seen.token_ids_BT) <= 4
    with torch.no_grad():
        gate.bias.fill_(-1e6)
    assert look_at(model).num_silent == 1


@torch.no_grad()
def test_where_random_tokens_open_no_gate_a_text_does(tmp_path: Path) -> None:
    """A gate that opens after two tokens in turn, over and over, and nowhere else."""
    model = extended_llama(layers_to_transform=[0])
    text_ids = [42, 7] * 20
    x_D = look_at(model, text_ids).inputs["model.layers.0.mlp"][0, -1]
    gate = model.base_model.model.model.layers[0].mlp.neutral_residues["default"].block_gate
    gate.weight.copy_(x_D[None])
    gate.bias.fill_(-0.9999 * x_D.square().sum())
    with pytest.raises(
        UserError,
        match=r"every gate stayed shut .*; give some text of the target, 32 tokens or more",
    ):
        export_model(model, Target.of(tmp_path / "out", to="transformers"))
    seen = look_at(model, text_ids)
    assert seen.num_silent == 0
    assert (seen.token_ids_BT == torch.tensor(text_ids[:32])).all(dim=1).any()


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        (
            "finetune",
            ["--to", "dense"],
            "already a stock model in {runs}/finetune/extension; got method finetune",
        ),
        ("lora", ["--to", "qwen2_moe"], "nothing stands beside a block; formats that can: dense"),
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
    runs: Path,
    tmp_path: Path,
    neutral: Callable[..., tuple[int, str]],
    method: str,
    options: list[str],
    line: str,
) -> None:
    code, printed = neutral("export", runs / method, *options, "--output", tmp_path / "out")
    assert code == 2
    assert line.format(runs=runs) in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_folder_that_exists_is_left_alone(
    runs: Path, tmp_path: Path, neutral: Callable[..., tuple[int, str]]
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, printed = neutral(
        "export", runs / "neutral", "--to", "transformers", "--output", tmp_path
    )
    assert (code, (tmp_path / "mine.txt").read_text()) == (2, "mine")
    assert f"output folder {tmp_path} is not empty" in printed


def test_help_lists_every_format(neutral: Callable[..., tuple[int, str]]) -> None:
    code, printed = neutral("export", "--help")
    assert code == 0
    assert all(f" {row.name} " in printed for row in FORMATS)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_trained_head_comes_along(tmp_path: Path) -> None:
    model = extended(backbone={"tie_word_embeddings": True}, modules_to_save=["lm_head"], **SIGMOID)
    with torch.no_grad():
        model.base_model.model.lm_head.modules_to_save["default"].weight.mul_(-1.0)
    assert_exact(exported(model, "qwen2_moe", tmp_path))
    assert not json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"]


def test_a_method_of_pefts_that_cannot_be_merged_is_refused(tmp_path: Path) -> None:
    model = get_peft_model(
        tiny_llama(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).eval()
    with pytest.raises(UserError, match="PEFT cannot merge PROMPT_TUNING"):
        export_model(model, Target.of(tmp_path / "out", to="dense"))


def test_only_what_is_active_is_exported(tmp_path: Path) -> None:
    """The other adapter also runs beside a layer that has no active one."""
    model = extended()
    model.add_adapter("other", NeutralResiduesConfig(width=4, first_layer=0))
    perturb(model)
    answer = exported(model, "transformers", tmp_path)
    assert answer["difference"] == 0.0
    residues = json.loads((tmp_path / "config.json").read_text())["residues"]
    assert [adapter["name"] for adapter in residues] == ["default"]
