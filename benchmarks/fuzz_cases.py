"""The cases of `fuzz.py`: for each kind of input, valid files, damage to them, and the command that
reads them.

A kind consists of two functions: `prepare` writes valid files into a folder, the working folder of
the command, and `damage` changes some of them.
"""

import gzip
import io
import json
import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from mutations import (
    as_json,
    damaged_bytes,
    damaged_gzip,
    damaged_safetensors,
    damaged_value,
    other_text,
    pickled_call,
    strange_json,
    strange_yaml,
)
from neutral_residues.composition.compose import compose
from neutral_residues.config.base import to_yaml
from neutral_residues.config.run import make_run
from neutral_residues.demo.run import DEMO_DATA as DATA
from neutral_residues.digest import DIGESTS, write_digests
from neutral_residues.results.calibration import Calibration, write_calibration
from neutral_residues.results.composition import FILE as COMPOSITION
from neutral_residues.results.promise import CalibratedSet, Promise
from neutral_residues.results.run_folder import RunFolder
from neutral_residues.run import save_extension
from neutral_residues.training.models import model_to_train
from neutral_residues.training.setup import Setup
from neutral_residues.tuner.gates import extension_digest, gates, set_thresholds
from neutral_residues.tuner.thresholds import Thresholds
from neutral_residues.vocabulary.vocabulary import FILE as VOCABULARY

ROOT = Path(__file__).resolve().parents[1]
ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
EXTENSIONS: dict[str, dict[str, Any]] = {
    "neutral": {},
    "neutral-paper": {"method": "neutral-paper"},
    "lora": {"method": "lora"},
    "vocabulary": {"vocabulary": {"size": 8, "keep": "unseen"}, "budget": 0.25},
}
TOGETHER = ("one", "other")
PROMPT = "Il y avait"


@dataclass(frozen=True)
class Case:
    """One command, on valid or damaged input."""

    arguments: tuple[str, ...]  # arguments of `neutral`
    writes: tuple[str, ...] = ()  # folders that it may write into, besides the cache
    original: Path | None = None  # the undamaged extension, whose logits a damaged one must give


class Materials:
    """Valid files: the demo's backbone, and texts, runs and extensions, which are made when they
    are first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.backbone = DATA / "backbone"

    @cached_property
    def documents(self) -> dict[str, list[str]]:
        """Language -> beginnings of some documents."""
        return {name: _beginnings(DATA / f"{name}.train.jsonl.gz") for name in ("fr", "en")}

    @cached_property
    def texts(self) -> dict[str, Path]:
        """Language -> file with these documents."""
        return {name: write_lines(self.folder, name, it) for name, it in self.documents.items()}

    @property
    def run(self) -> dict[str, Any]:
        """The values of a run file with all keys."""
        return yaml.safe_load(to_yaml(make_run(self.settings())))

    def settings(self, **changes: Any) -> dict[str, Any]:
        """The values of a short run file."""
        train = [
            {"name": name, "role": role, "path": str(self.texts[name])}
            for name, role in (("fr", "target"), ("en", "source"))
        ]
        return {
            "model": str(self.backbone),
            "output": "out",
            "data": {"train": train, "block_tokens": 32, "cache": "cache", "held_out_share": 0.2},
            "training": {"steps": 4, "batch_rows": 2},
            "evaluation": {"prompts": [PROMPT]},
        } | changes

    @cached_property
    def extensions(self) -> dict[str, Path]:
        """Method -> extension folder, as written by a run."""
        return {name: self._extension(name, it) for name, it in EXTENSIONS.items()}

    def make(self) -> None:
        """Make all files now, so that copies of this object in forked processes find them."""
        _ = self.texts, self.extensions, self.calibrated, self.composition

    def _extension(self, name: str, changes: dict[str, Any]) -> Path:
        folder = self.folder / name
        if folder.is_dir():
            return folder
        settings = self.settings(**changes)
        settings["data"]["cache"] = str(self.folder / "cache")
        setup = Setup.of(make_run(settings))
        model = model_to_train(setup).eval()
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for parameter in (it for it in model.parameters() if it.requires_grad):
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        save_extension(model, folder)
        if setup.vocabulary:
            setup.vocabulary.save(folder)
        else:
            setup.tokenizer.save_pretrained(folder)
        write_digests(folder)
        return folder

    @cached_property
    def composition(self) -> Path:
        """A folder with two extensions."""
        folder = self.folder / "composition"
        if not folder.is_dir():
            compose(dict.fromkeys(TOGETHER, self.extensions["neutral"]), folder, over=4)
        return folder

    @cached_property
    def calibrated(self) -> Path:
        """A calibrated extension."""
        from neutral_residues.evaluation.saved import load_saved

        if (self.folder / "calibrated").is_dir():
            return self.folder / "calibrated"
        folder = Path(shutil.copytree(self.extensions["neutral"], self.folder / "calibrated"))
        saved = load_saved(folder)
        weights, values = extension_digest(saved.model), dict.fromkeys(gates(saved.model), 0.5)
        set_thresholds(saved.model, Thresholds("cut", values, weights, over=4))
        save_extension(saved.model, folder)
        saved.tokenizer.save_pretrained(folder)
        share: dict[str, Any] = dict.fromkeys(("loss", "trained_loss", "exact_share"), 0.01)
        text = CalibratedSet(
            name="en", key="k", group_by=None, num_documents=40, num_tuning_units=10, num_units=30,
            trained_exact_share=0.9, **share,
        )  # fmt: skip
        promise = Promise(
            kind="tokens", at_most=0.01, confidence=0.95, form="cut", over=4, dial=0.01,
            sets=[text], training_text_checked=True,
        )  # fmt: skip
        scores = {"en": {16: [0.1, 0.2, 0.5], 64: [0.2, 0.3]}}
        write_calibration(folder, Calibration(weights=weights, promise=promise, scores=scores))
        write_digests(folder)
        return folder


def _beginnings(file: Path) -> list[str]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"][:400] for line, _ in zip(lines, range(40), strict=False)]


def write_lines(folder: Path, name: str, texts: list[str]) -> Path:
    """Write documents as JSON lines; returns the file."""
    file = folder / f"{name}.jsonl"
    lines = [json.dumps({"text": text, "book": "a"}, ensure_ascii=False) for text in texts]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def _strange_places(folder: Path) -> None:
    """Make files that paths in damaged files may point to, besides those that every machine has."""
    (folder / "folder").mkdir()
    os.mkfifo(folder / "fifo")
    (folder / "canary.py").write_text("open('canary', 'w')\nROW = C = None\n")


# ---- run files and comparisons ----


def _prepare_run(rng: random.Random, folder: Path, materials: Materials) -> Case:
    _strange_places(folder)
    (folder / "run.yaml").write_text(yaml.safe_dump(materials.run, sort_keys=False))
    return Case(("describe", "run.yaml"), ("out", "cache"))


def _damage_run(rng: random.Random, folder: Path, case: Case) -> Case:
    file = folder / "run.yaml"
    if rng.random() < 0.9:
        return _damage_yaml(file, rng, case)
    lines = strange_yaml(file.read_text(), rng).replace("\0", "").splitlines() or ["="]
    override = rng.choice(lines).strip().replace(": ", "=", 1).encode("utf-8", "replace").decode()
    return replace(case, arguments=(*case.arguments, override.lstrip("-")))


def _prepare_comparison(rng: random.Random, folder: Path, materials: Materials) -> Case:
    _strange_places(folder)
    values = {
        "runs": ["run.yaml"],
        "output": "out",
        "methods": ["finetune", {"method": "lora", "label": "L", "set": {"budget": 0.1}}],
        "budgets": [0.2], "learning_rate_factors": [0.5, 1], "source_shares": [0.1],
        "seeds": [0, 1], "set": {"training.steps": 2}, "jobs": 1, "keep_weights": False,
    }  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump(materials.settings()))
    (folder / "compare.yaml").write_text(yaml.safe_dump(values))
    return Case(("compare", "compare.yaml", "--plan"), ("out", "cache"))


def _damage_comparison(rng: random.Random, folder: Path, case: Case) -> Case:
    return _damage_yaml(folder / rng.choice(("run.yaml", *["compare.yaml"] * 4)), rng, case)


def _damage_yaml(file: Path, rng: random.Random, case: Case) -> Case:
    text = file.read_text(encoding="utf-8")
    values, change = yaml.safe_load(text), rng.randrange(8)
    if change < 4:
        data = yaml.dump(damaged_value(values, rng), sort_keys=False).encode("utf-8", "replace")
    elif change < 6:
        data = strange_yaml(text, rng).encode("utf-8", "replace")
    else:
        data = other_text(text, rng) if change == 6 else damaged_bytes(text.encode(), rng)
    file.write_bytes(data)
    return replace(case, writes=(*case.writes, *_named_folders(data)))


def _named_folders(data: bytes) -> list[str]:
    """The folders into which a run file says to write."""
    try:
        values = yaml.safe_load(data)
        found = [values.get("output"), values["data"].get("cache")]
    except Exception:  # damage has made it unreadable
        return []
    return [it for it in found if isinstance(it, str)]


# ---- extensions ----

GENERATE = ("generate", "extension", PROMPT, "--max-new-tokens", "4")


def _prepare_adapter(rng: random.Random, folder: Path, materials: Materials) -> Case:
    original = materials.extensions[rng.choice(tuple(EXTENSIONS))]
    return _copied(original, folder, materials, rng)


def _prepare_vocabulary(rng: random.Random, folder: Path, materials: Materials) -> Case:
    return _copied(materials.extensions["vocabulary"], folder, materials, rng)


def _copied(original: Path, folder: Path, materials: Materials, rng: random.Random) -> Case:
    shutil.copytree(original, folder / "extension")
    arguments: tuple[str, ...] = GENERATE
    if rng.random() < 0.2:
        text = f"target:fr={materials.texts['fr']}"
        arguments = ("evaluate", "extension", "--set", text, "--context", "32")
    return Case(arguments, original=original)


def _damage_adapter(rng: random.Random, folder: Path, case: Case) -> Case:
    extension = folder / "extension"
    if rng.random() < 0.5:
        case = _without_digests(extension, case)
    change, weights = rng.randrange(10), extension / ADAPTER
    if change < 5:
        weights.write_bytes(damaged_safetensors(weights.read_bytes(), rng))
    elif change < 8:
        _damage_json(extension / CONFIG, rng)
    elif change == 8:
        files = [it for it in extension.iterdir() if it.suffix == ".json" and it.name != CONFIG]
        _damage_json(rng.choice(sorted(files)), rng)
    else:
        _exchange_files(extension, weights, rng)
    return case


def _without_digests(extension: Path, case: Case) -> Case:
    """Remove the digests, as if another program had saved the extension: damage to its numbers then
    cannot be noticed."""
    (extension / DIGESTS).unlink()
    return replace(case, original=None)


def _drop_digest(file: Path) -> None:
    """Remove the digest of a file, as somebody does who edits it on purpose."""
    values = json.loads(file.read_text(encoding="utf-8"))
    values.pop("digest", None)
    file.write_text(json.dumps(values), encoding="utf-8")


def _damage_json(file: Path, rng: random.Random) -> None:
    text = file.read_text(encoding="utf-8")
    change = rng.randrange(10)
    if change < 7:
        data = as_json(damaged_value(json.loads(text), rng)).encode("utf-8", "replace")
    elif change == 7:
        data = strange_json(text, rng).encode()
    else:
        data = damaged_bytes(text.encode(), rng) if change == 8 else other_text(text, rng)
    file.write_bytes(data)


def _exchange_files(extension: Path, weights: Path, rng: random.Random) -> None:
    """Remove a file, or replace it by a folder, a pipe, a device, another file, or a pickle."""
    file = rng.choice(sorted(extension.iterdir()))
    change, content = rng.randrange(6), weights.read_bytes()
    if change == 5:
        weights.unlink()
        (extension / "adapter_model.bin").write_bytes(pickled_call("canary"))
        return
    file.unlink()
    if change == 1:
        file.mkdir()
    elif change == 2:
        os.mkfifo(file)
    elif change == 3:
        file.symlink_to(rng.choice(("/dev/zero", "/dev/null", file.name, "/")))
    elif change == 4:
        file.write_bytes(content)


def _damage_vocabulary(rng: random.Random, folder: Path, case: Case) -> Case:
    file = folder / "extension" / VOCABULARY
    _drop_digest(file)
    _damage_json(file, rng)
    return _without_digests(folder / "extension", case)


def _prepare_calibration(rng: random.Random, folder: Path, materials: Materials) -> Case:
    shutil.copytree(materials.calibrated, folder / "extension")
    return Case(("monitor", "extension", str(materials.texts["en"])))


def _damage_calibration(rng: random.Random, folder: Path, case: Case) -> Case:
    extension = folder / "extension"
    case = _without_digests(extension, case)
    if rng.random() < 0.7:
        _drop_digest(extension / "calibration.json")
        _damage_json(extension / "calibration.json", rng)
        return case
    values = json.loads((extension / CONFIG).read_text())
    damaged = damaged_value({"thresholds": values["thresholds"]}, rng)
    (extension / CONFIG).write_bytes(as_json(values | damaged).encode("utf-8", "replace"))
    return case


def _prepare_composition(rng: random.Random, folder: Path, materials: Materials) -> Case:
    return _copied(materials.composition, folder, materials, rng)


def _damage_composition(rng: random.Random, folder: Path, case: Case) -> Case:
    extension = folder / "extension"
    file, one = extension / COMPOSITION, extension / rng.choice(TOGETHER)
    case, change = _without_digests(extension, case), rng.randrange(8)
    if change < 4:
        if rng.random() < 0.8:
            _drop_digest(file)
        _damage_json(file, rng)
    elif change == 4:
        shutil.rmtree(one)
    elif change == 5:
        _exchange_files(one, one / ADAPTER, rng)
    elif change == 6:
        _damage_json(one / CONFIG, rng)
    else:
        _for_another_backbone(one / CONFIG, rng)
    return case


def _for_another_backbone(file: Path, rng: random.Random) -> None:
    values = json.loads(file.read_text())
    if rng.random() < 0.5:
        values["base_model_name_or_path"] = rng.choice(("folder", "somebody/else", "/"))
    else:
        values["backbone"][rng.choice(sorted(values["backbone"]))] *= 2
    file.write_text(json.dumps(values))


# ---- records ----

PACK = "pack.jsonl.gz"


def _prepare_record(rng: random.Random, folder: Path, materials: Materials) -> Case:
    docs, name = ROOT / "docs", "record.json"
    change = rng.randrange(5)
    if change == 0:
        name = PACK
        whole = gzip.decompress((docs / "comparisons" / "languages.jsonl.gz").read_bytes())
        (folder / name).write_bytes(gzip.compress(b"".join(whole.splitlines(True)[:3]), mtime=0))
    else:
        sources = sorted(docs.glob("benchmarks/*.json" if change == 1 else "records/*.json"))
        shutil.copy(rng.choice(sources), folder / name)
    return Case(("report", name, "--output", "out"), ("out",))


def _damage_record(rng: random.Random, folder: Path, case: Case) -> Case:
    if not (pack := folder / PACK).is_file():
        if rng.random() < 0.8:
            _drop_digest(folder / "record.json")
        _damage_json(folder / "record.json", rng)
    elif rng.random() < 0.5:
        pack.write_bytes(damaged_gzip(pack.read_bytes(), rng))
    else:
        lines = gzip.decompress(pack.read_bytes()).splitlines()
        number = rng.randrange(len(lines))
        entry = json.loads(lines[number])
        entry["content"].pop("digest", None)
        damaged = damaged_value({"": entry}, rng).get("", [])
        lines[number] = as_json(damaged).encode("utf-8", "replace")
        pack.write_bytes(gzip.compress(b"\n".join(lines), mtime=0))
    return case


# ---- texts ----


def _prepare_corpus(rng: random.Random, folder: Path, materials: Materials) -> Case:
    suffix = rng.choice((".txt", ".jsonl", ".jsonl.gz", ".txt.gz", ".jsonl.zst", ".parquet"))
    rows = [{"text": text, "book": n} for n, text in enumerate(materials.documents["fr"])]
    file = folder / f"fr{suffix}"
    file.write_bytes(_corpus_bytes(suffix, rows))
    values = materials.settings()
    values["data"]["train"][0]["path"] = file.name
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return Case(("describe", "run.yaml"), ("cache",))


def _corpus_bytes(suffix: str, rows: list[Any]) -> bytes:
    if suffix == ".parquet":
        return _parquet_bytes([row["text"] for row in rows])
    if suffix.startswith(".txt"):
        text = "\n\n".join(str(row["text"]) for row in rows)
    else:
        text = "\n".join(map(as_json, rows))
    return _packed(suffix, text.encode("utf-8", "surrogatepass"))


def _parquet_bytes(column: list[Any], name: str = "text") -> bytes:
    import pyarrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(pyarrow.table({name: column}), file)
    return file.getvalue()


def _packed(suffix: str, data: bytes) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.compress(data, mtime=0)
    if suffix.endswith(".zst"):
        import zstandard

        return zstandard.compress(data)
    return data


def _unpacked(suffix: str, data: bytes) -> bytes:
    if suffix.endswith(".gz"):
        return gzip.decompress(data)
    if suffix.endswith(".zst"):
        import zstandard

        return zstandard.decompress(data)
    return data


def _damage_corpus(rng: random.Random, folder: Path, case: Case) -> Case:
    (file,) = folder.glob("fr.*")
    suffix, data = file.name.removeprefix("fr"), file.read_bytes()
    if suffix == ".parquet":
        file.write_bytes(_damaged_parquet(data, rng))
        return case
    text, change = _unpacked(suffix, data), rng.randrange(4)
    if change == 0:
        lines = text.splitlines()
        number = rng.randrange(len(lines))
        if "json" in suffix:
            damaged = damaged_value({"": json.loads(lines[number])}, rng).get("", [])
            lines[number] = as_json(damaged).encode("utf-8", "replace")
        else:
            lines[number] *= 10_000
        data = _packed(suffix, b"\n".join(lines))
    elif change == 1:
        data = _packed(suffix, other_text(text.decode(), rng))
    elif change == 2:
        data = _packed(suffix, damaged_bytes(text, rng))
    else:
        data = damaged_gzip(data, rng) if suffix.endswith(".gz") else damaged_bytes(data, rng)
    file.write_bytes(data)
    return case


def _damaged_parquet(data: bytes, rng: random.Random) -> bytes:
    columns: tuple[list[Any], ...] = (
        [["a list"]] * 10,
        [b"\xff not UTF-8"] * 10,
        [None] * 10,
        [1.5] * 10,
        [{"a": 1}],
        [],
        ["x" * 2**20] * 2000,  # stored once in the file
        ["y" * 2**25],
    )
    if rng.random() < 0.7:
        return damaged_bytes(data, rng)
    return _parquet_bytes(rng.choice(columns), rng.choice(("text", "text", "t")))


def _prepare_pairs(rng: random.Random, folder: Path, materials: Materials) -> Case:
    sides = [[" ".join(it.split()) for it in materials.documents[name]] for name in ("en", "fr")]
    pairs = list(zip(*sides, strict=True))
    suffix = rng.choice((".tsv", ".tsv.gz", ".jsonl", ".fr", ".fr.gz", ".fr.zst"))
    file = folder / f"pairs{suffix}"
    pair: dict[str, Any] = {"prompt": 1, "field": 2}
    if suffix == ".jsonl":
        lines = [as_json({"prompt": a, "completion": b}) for a, b in pairs]
        pair = {"prompt": "prompt", "field": "completion"}
    elif suffix.startswith(".tsv"):
        lines = [f"{a}\t{b}" for a, b in pairs]
    else:
        lines = sides[1]
        (folder / "pairs.en").write_text("\n".join(sides[0]), encoding="utf-8")
        pair = {"prompt_path": "pairs.en"}
    file.write_bytes(_packed(file.suffix, "\n".join(lines).encode()))
    values = materials.settings()
    values["data"]["train"][0] |= {"path": file.name, **pair}
    (folder / "run.yaml").write_text(yaml.safe_dump(values))
    return Case(("describe", "run.yaml"), ("cache",))


def _damage_pairs(rng: random.Random, folder: Path, case: Case) -> Case:
    file = rng.choice(sorted(folder.glob("pairs*")))
    data = file.read_bytes()
    text, change = _unpacked(file.suffix, data), rng.randrange(5)
    if change < 2:
        text = _damaged_lines(text.split(b"\n"), rng)
    elif change == 2:
        text = other_text(text.decode(), rng)
    elif change == 3:
        text = damaged_bytes(text, rng)
    data = _packed(file.suffix, text)
    file.write_bytes(damaged_bytes(data, rng) if change == 4 else data)
    return case


def _damaged_lines(lines: list[bytes], rng: random.Random) -> bytes:
    """Lines of pairs with one too many, too few or empty, or with empty, invalid or exchanged
    columns."""
    number, change = rng.randrange(len(lines)), rng.randrange(6)
    line = lines[number]
    if change < 3:
        lines[number : number + 1] = ([], [line, line], [b""])[change]
    else:
        side, tab, other = line.partition(b"\t")
        lines[number] = (tab + other, side + tab + b"\0" * 9, line + b"\t" + side)[change - 3]
    return b"\n".join(lines)


FORMS: tuple[dict[str, Any], ...] = (
    {"query": "The cat sat on", "choices": ["the mat", "a cloud"], "gold": 0},
    {"query": "", "choices": ["A cat sat.", "Sat a cat."], "gold": 0},
    {"letter_query": "A. a\nB. b\nAnswer:", "query": "q", "choices": ["a", "b"], "gold": 1},
    {"context_options": ["He", "She"], "continuation": "was there", "gold": 0},
    {"context": "The cat sat on the", "continuation": "mat"},
    {"good": "The cats sit.", "bad": "The cats sits.", "uid": "number"},
)


def _prepare_tasks(rng: random.Random, folder: Path, materials: Materials) -> Case:
    shutil.copytree(materials.extensions["neutral"], folder / "extension")
    file = folder / rng.choice(("mine_fr.jsonl", "mine_fr.jsonl.gz"))
    form = rng.choice(FORMS)
    file.write_bytes(_packed(file.suffix, "\n".join([as_json(form)] * 4).encode()))
    where = f"{'letters-' if 'letter_query' in form else ''}file:{file.name}"
    arguments = ("evaluate", "extension", "--tasks", where, "--limit", "2")
    return Case(arguments, (str(RunFolder(Path("extension")).tasks),))


def _damage_tasks(rng: random.Random, folder: Path, case: Case) -> Case:
    (file,) = folder.glob("mine_fr.*")
    data = file.read_bytes()
    text, change = _unpacked(file.suffix, data).decode(), rng.randrange(6)
    if change < 3:
        lines = text.splitlines()
        damaged = damaged_value({"": json.loads(lines[-1])}, rng).get("", [])
        text = "\n".join([*lines[:-1], as_json(damaged)])
        data = _packed(file.suffix, text.encode("utf-8", "replace"))
    elif change == 3:
        data = _packed(file.suffix, damaged_bytes(text.encode(), rng))
    elif change == 4:
        other = rng.choice((other_text(text, rng), strange_json(text, rng).encode()))
        data = _packed(file.suffix, other)
    else:
        data = damaged_gzip(data, rng) if file.suffix == ".gz" else damaged_bytes(data, rng)
    file.write_bytes(data)
    return case


class Kind(NamedTuple):
    """One kind of input."""

    prepare: Callable[[random.Random, Path, Materials], Case]
    damage: Callable[[random.Random, Path, Case], Case]


KINDS = {
    "run-files": Kind(_prepare_run, _damage_run),
    "comparisons": Kind(_prepare_comparison, _damage_comparison),
    "adapters": Kind(_prepare_adapter, _damage_adapter),
    "vocabularies": Kind(_prepare_vocabulary, _damage_vocabulary),
    "compositions": Kind(_prepare_composition, _damage_composition),
    "calibrations": Kind(_prepare_calibration, _damage_calibration),
    "records": Kind(_prepare_record, _damage_record),
    "corpora": Kind(_prepare_corpus, _damage_corpus),
    "pairs": Kind(_prepare_pairs, _damage_pairs),
    "tasks": Kind(_prepare_tasks, _damage_tasks),
}
