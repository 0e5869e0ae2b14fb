"""Importing the package stays light, and whatever the order of imports, PEFT knows the method."""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from peft import get_peft_model, mapping
from transformers import LlamaConfig, LlamaForCausalLM

from neutral_residues.registration import enter_in_peft
from neutral_residues.tuner import model as attach


def run(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a fresh interpreter, where nothing is imported yet."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


def test_importing_the_package_imports_neither_torch_nor_peft() -> None:
    done = run("""
        import sys, neutral_residues
        heavy = sorted({"torch", "peft", "transformers", "datasets", "numpy"} & set(sys.modules))
        assert not heavy, heavy
        """)
    assert done.returncode == 0, done.stderr


NEUTRAL_RESIDUES_FIRST = """
    import neutral_residues
    import importlib.util, sys
    # Transformers asks this before it imports PEFT; the question must not use up the registration.
    assert importlib.util.find_spec("peft") is not None
    assert "peft" not in sys.modules
    import peft
    """
PEFT_FIRST = """
    import sys
    import peft
    import neutral_residues
    """


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports", [NEUTRAL_RESIDUES_FIRST, PEFT_FIRST], ids=["neutral_residues first", "peft first"]
)
def test_an_extension_loads_whichever_is_imported_first(imports: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    backbone = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=64,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
        )
    )
    backbone.save_pretrained(tmp_path / "backbone")
    backbone = LlamaForCausalLM.from_pretrained(tmp_path / "backbone")
    get_peft_model(backbone, attach.NeutralResiduesConfig(width=8)).save_pretrained(
        tmp_path / "extension"
    )
    check = """
    from peft import AutoPeftModelForCausalLM
    model = AutoPeftModelForCausalLM.from_pretrained(sys.argv[1])
    assert type(model.base_model) is neutral_residues.NeutralResiduesModel, type(model.base_model)
    assert model.peft_config["default"].width == 8
    # Nothing of ours is left in the way of later imports.
    loaders = [type(peft.__loader__), type(peft.__spec__.loader)]
    found = [type(finder) for finder in sys.meta_path] + loaders
    assert not [kind for kind in found if "neutral_residues" in kind.__module__], found
    """
    done = run(imports + check, str(tmp_path / "extension"))
    assert done.returncode == 0, done.stderr


def test_another_package_with_the_same_name_is_a_clear_error() -> None:
    with pytest.raises(
        RuntimeError,
        match=r"another package has registered 'neutral_residues' with PEFT, as .*Config",
    ):
        enter_in_peft(attach.PEFT_TYPE, config=int, tuner=int, prefix=attach.PREFIX)
    assert mapping.PEFT_TYPE_TO_TUNER_MAPPING[attach.PEFT_TYPE] is attach.NeutralResiduesModel


def test_registering_again_is_harmless() -> None:
    config, tuner = attach.NeutralResiduesConfig, attach.NeutralResiduesModel
    enter_in_peft(attach.PEFT_TYPE, config=config, tuner=tuner, prefix=attach.PREFIX)
    assert mapping.PEFT_TYPE_TO_CONFIG_MAPPING["NEUTRAL_RESIDUES"] is config


@pytest.mark.slow
@pytest.mark.parametrize(
    "first", ["neutral_residues.tuner.config", "neutral_residues.methods.table"]
)
def test_any_of_our_files_may_be_the_first_to_import_peft(first: str) -> None:
    code = f"import {first}, neutral_residues; neutral_residues.NeutralResiduesConfig(budget=0.1)"
    subprocess.run([sys.executable, "-c", code], check=True)
