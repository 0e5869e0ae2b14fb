"""Combines several extensions of one backbone in one folder.

    compose({"french": Path("runs/french"), "german": Path("runs/german")}, output, over=32)
    average({"one": Path("runs/one"), "other": Path("runs/other")}, output)

`compose` writes a folder with all adapters and a file that says how they are used together
(`results/composition.py`); `average` writes a single extension. Folders are complete, or not
written at all.
"""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from neutral_residues.backbone import load_tokenizer
from neutral_residues.digest import write_digests
from neutral_residues.errors import UserError
from neutral_residues.files import read_json, whole_folder, write_json, write_text
from neutral_residues.methods.saved_extension import Extension
from neutral_residues.results.composition import Composition, write_composition
from neutral_residues.results.model_card import average_card, composition_card
from neutral_residues.results.run_folder import check_free
from neutral_residues.tuner.gates import cannot_compete
from neutral_residues.tuner.saved_adapter import CONFIG, WEIGHTS, comparable, read_weights

SAME = "train them on the same backbone"


def compose(extensions: Mapping[str, Path], output: Path, *, over: int | None = None) -> None:
    """Write a folder with several extensions, which `load_saved` loads as adapters of one model.

    Args:
        extensions: adapter name -> output folder of a run, or extension folder.
        output: folder to write; must be empty or absent.
        over: number of last tokens over which gates are compared (`tuner/strongest.py`): of the
            extensions whose gates are open at a token, only the one with the largest gates is
            active. None: all are active, and their residues are summed.

    Raises:
        UserError: for fewer than two extensions, different backbones, extensions with new tokens,
            damaged folders, or, with `over`, gates that do not read tokens.
    """
    found = _checked(extensions, output)
    if over is not None and over < 1:
        raise UserError("over", got=over, allowed="a number of tokens, 1 or more")
    for it in found if over is not None else []:
        if not it.config.has_reader or it.config.block_gate != "relu":
            raise cannot_compete(it.name)
    with whole_folder(output) as partial:
        for it in found:
            (partial / it.name).mkdir()
            for file in (CONFIG, WEIGHTS):
                shutil.copyfile(it.weights / file, partial / it.name / file)
        names = [it.name for it in found]
        write_composition(partial, Composition(names=names, over=over))
        _finish(partial, found, composition_card(names, found[0].backbone_name, over))


def average(extensions: Mapping[str, Path], output: Path) -> None:
    """Write an extension whose weights are the mean of those of several.

    Args:
        extensions: name -> output folder of a run, or extension folder; all must have started from
            the same weights.
        output: folder to write; must be empty or absent.

    Raises:
        UserError: as `compose`, and for extensions with other shapes, settings or initial weights.
    """
    found = _checked(extensions, output)
    _check_alike(found)
    weights = _mean([read_weights(it.weights) for it in found], found)
    settings = read_json(found[0].weights / CONFIG, "adapter configuration")
    with whole_folder(output) as partial:
        write_json(partial / CONFIG, settings | {"thresholds": None})
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        card = average_card([it.name for it in found], found[0].backbone_name)
        _finish(partial, found, card)


def _checked(extensions: Mapping[str, Path], output: Path) -> list[Extension]:
    if len(extensions) < 2:
        got = ", ".join(extensions) or "none"
        raise UserError("compose: too few extensions", got=got, allowed="two or more")
    check_free(output)
    found = [Extension.of(name, folder) for name, folder in extensions.items()]
    for it in found[1:]:
        for key, value in it.backbone.items():
            if value != (expected := found[0].backbone.get(key)):
                what = f"{it.given} extends another backbone than {found[0].given}: {key}"
                raise UserError(what, got=str(value), allowed=str(expected), do=SAME)
    return found


def _check_alike(found: Sequence[Extension]) -> None:
    first, *others = found
    expected = comparable(first.config)
    for it in others:
        for key, value in comparable(it.config).items():
            if value != expected.get(key) and key != "thresholds":
                what = f"an average needs extensions of one shape: {key} of {it.given}"
                raise UserError(what, got=str(value), allowed=str(expected.get(key)))
        if None not in (it.start, first.start) and it.start != first.start:
            what = f"an average needs the same start: {it.given} began with other weights"
            do = "train both with one seed, or from one extension (start_from)"
            raise UserError(what, got=it.start, allowed=first.start, do=do)


def _mean(weights: list[dict[str, Tensor]], found: Sequence[Extension]) -> dict[str, Tensor]:
    first = weights[0]
    for tensors, it in zip(weights, found, strict=True):
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if shapes != {key: tuple(tensor.shape) for key, tensor in first.items()}:
            raise UserError(f"an average needs tensors of one shape; {it.given} has others")
    return {
        key: torch.stack([it[key].float() for it in weights]).mean(0).to(tensor.dtype)
        for key, tensor in first.items()
    }


def _finish(folder: Path, found: Sequence[Extension], card: str) -> None:
    """Write tokenizer, model card and digests."""
    weights = found[0].weights
    if (weights / "tokenizer_config.json").is_file():
        load_tokenizer(str(weights)).save_pretrained(folder)
    write_text(folder / "README.md", card)
    write_digests(folder)
