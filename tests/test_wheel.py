"""The wheel holds everything that the package needs, and works where there is no checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from paths import ROOT

pytestmark = pytest.mark.slow

USE = """
import sys
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

import neutral_residues
from neutral_residues.demo.run import DEMO_DATA

home = Path(neutral_residues.__file__)
assert Path(sys.prefix) in home.parents, home
backbone = AutoModelForCausalLM.from_pretrained(DEMO_DATA / "backbone")
ids = torch.arange(10)[None]
before = backbone(ids).logits
model = get_peft_model(backbone, neutral_residues.NeutralResiduesConfig(width=8))
assert torch.equal(model(ids).logits, before)
model.save_pretrained("extension")
again = AutoModelForCausalLM.from_pretrained(DEMO_DATA / "backbone")
assert torch.equal(PeftModel.from_pretrained(again, "extension")(ids).logits, before)
checkout = Path(sys.argv[1])
inside = [m.__name__ for m in sys.modules.values() if checkout / "src" in
          Path(getattr(m, "__file__", None) or "/").parents]
assert not inside, inside
print("works")
"""


def run(*command: str | Path, cwd: Path) -> str:
    arguments = [str(part) for part in command]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(arguments, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ("--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder)
    run(sys.executable, "-m", "pip", "wheel", *options, ROOT, cwd=folder)
    (path,) = folder.glob("neutral_residues-*.whl")
    return path


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel; its other packages are those of this one, which are
    gigabytes, but not this one's editable install."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    venv.create(folder, with_pip=False)
    (here,) = folder.glob("lib/python*/site-packages")
    # sys.path only: lines of .pth files are not followed in it, so the editable install is not.
    (here / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ("--no-deps", "--no-index", "--quiet")
    run(sys.executable, "-m", "pip", "--python", folder, "install", *options, wheel, cwd=folder)
    return folder / "bin"


def test_package_data_is_inside(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "neutral_residues"
    files = {path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert {path.relative_to(package.parent).as_posix() for path in files} <= inside


def test_the_commands_start(fresh: Path, tmp_path: Path) -> None:
    assert "extend" in run(fresh / "neutral", "--help", cwd=tmp_path)
    assert "neutral-sigmoid" in run(fresh / "neutral", "methods", cwd=tmp_path)


def test_an_extension_is_made_saved_and_loaded(fresh: Path, tmp_path: Path) -> None:
    assert "works" in run(fresh / "python", "-c", USE, ROOT, cwd=tmp_path)
