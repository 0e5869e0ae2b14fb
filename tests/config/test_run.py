"""The run file: what it refuses and how it says so, and that it reads back what it wrote."""

import math
import re
from pathlib import Path

import pytest
import yaml

from neutral_residues.config.base import to_yaml
from neutral_residues.config.run import load_run, make_run
from neutral_residues.errors import UserError, nearest
from tiny_run import run_values, write_run


def test_a_written_run_reads_back_the_same(tmp_path: Path) -> None:
    config = make_run(run_values(tmp_path))
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    assert load_run(tmp_path / "again.yaml") == config


def test_overrides_reach_into_sections(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(make_run(run_values(tmp_path))), encoding="utf-8")
    config = load_run(
        tmp_path / "run.yaml", ("training.steps=7", "method=lora", "evaluation.prompts=[a, b]")
    )
    assert (config.training.steps, config.method, config.evaluation.prompts) == (
        7,
        "lora",
        ("a", "b"),
    )


@pytest.mark.parametrize("override", ["training.steps", "=3", "method=[1", "model.x=1"])
def test_an_override_that_cannot_be_read_is_one_line(tmp_path: Path, override: str) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(make_run(run_values(tmp_path))), encoding="utf-8")
    with pytest.raises(UserError, match="override"):
        load_run(tmp_path / "run.yaml", (override,))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"residues": {"local_loss": "cross_entropy"}}, "cross_entropy needs block_gate: sigmoid"),
        (
            {"evaluation": {"context_tokens": 8, "stride_tokens": 9}},
            "stride_tokens must not be larger",
        ),
        ({"data": {"train": []}}, "data.train"),
        ({"vocabulary": {"keep": "unseen"}}, "keep has no effect with size 0; set size"),
        ({"vocabulary": {"start": "random"}}, "start has no effect with size 0"),
        (
            {"vocabulary": {"size": 9, "start": "distilled"}, "start_from": "there"},
            "vocabulary.start: distilled has no effect with start_from",
        ),
        ({"residues": {"per_target": True}}, "per_target needs two target corpora or more"),
        (
            {"beside": {"one": "there"}, "start_from": "there"},
            "beside does not go with start_from; remove one of them",
        ),
        (
            {"beside": {"one": "there"}, "vocabulary": {"size": 9}},
            "beside does not go with vocabulary.size",
        ),
        ({"beside": "there"}, "beside: give a name for each folder: {french: there}"),
        ({"beside": {"run": "there"}}, "the new one is called run too; choose another label"),
        ({"training": {"adam_betas": [0.9]}}, "training.adam_betas"),
        (
            {"residues": {"locl_loss": 1}},
            "unknown key residues.locl_loss; did you mean 'local_loss'?",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_run(run_values(tmp_path) | changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("corpora", "message"),
    [
        ([("fr", "target")], "no corpus with role: source"),
        ([("en", "source")], "nothing to learn"),
        ([("fr", "target"), ("fr", "source")], "corpus names must differ"),
    ],
)
def test_corpora_must_fit_the_share(corpora: list[tuple[str, str]], message: str) -> None:
    train = [{"name": name, "role": role, "path": f"{name}.txt"} for name, role in corpora]
    with pytest.raises(UserError, match=message):
        make_run({"model": "m", "output": "o", "data": {"train": train}})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"source_share": 0.6}, "spliced_share needs a target row for each source row"),
        ({"source_share": 0}, r"spliced_share: 0$"),
        ({"block_tokens": 15}, r"block_tokens of 16 or more, two segments \(got 15\)"),
    ],
)
def test_splicing_needs_rows_of_both_roles_that_hold_two_segments(
    tmp_path: Path, data: dict, message: str
) -> None:
    values = run_values(tmp_path)
    values["data"] |= {"spliced_share": 0.5}
    make_run(values)
    values["data"] |= data
    with pytest.raises(UserError, match=message):
        make_run(values)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"fr": 0.5, "de": 0.4}, r"the target corpora of train must sum to 1 \(got 0.9\)"),
        ({"fr": [0.5, 0.2], "de": 0.5}, r"must sum to 1 \(got 0.7\)"),
        ({"fr": 1}, "corpus de of train has no share, and another target corpus has"),
        ({"fr": 1.5, "de": -0.5}, "share is from 0 to 1, or two such numbers"),
        ({"fr": 1, "de": 0}, "not always 0"),
        ({"fr": "half", "de": 0.5}, "data.train.0.share"),
        ({"fr": [1, 0, 1], "de": 0.5}, "data.train.0.share"),
        ({"held": 1}, "share has no effect outside train"),
    ],
)
def test_shares_of_corpora_are_a_whole(tmp_path: Path, shares: dict, message: str) -> None:
    values = run_values(tmp_path)
    french, data = values["data"]["train"][0], values["data"]
    german = french | {"name": "de", "path": "de.jsonl"}
    data["train"].append(german)
    data["evaluate"] = [french | {"name": "held"}]
    french["share"], german["share"] = 0.1, [0.9, 0.9]
    assert make_run(values).data.shares == {"fr": (0.1, 0.1), "de": (0.9, 0.9)}
    for corpus in (*data["train"], *data["evaluate"]):
        corpus.pop("share", None)
        corpus |= {"share": shares[corpus["name"]]} if corpus["name"] in shares else {}
    with pytest.raises(UserError, match=message) as caught:
        make_run(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"template": "{prompt}{completion}"}, "template has no effect without prompt"),
        ({"completion_only_loss": False}, "completion_only_loss has no effect without prompt"),
        ({"prompt": "en", "prompt_path": "a.en"}, "give either prompt or prompt_path"),
        ({"prompt": "en", "chat": True}, "chat and prompt do not go together"),
        ({"prompt": "text"}, "prompt and field are the same"),
        ({"prompt": 1, "field": 1}, "prompt and field are the same"),
        ({"prompt_path": "a.en", "field": 2}, "field has no effect with prompt_path"),
        ({"prompt_path": "a.en", "path": None, "dataset": "a"}, "prompt_path goes with path"),
        ({"prompt": 1, "template": "{completion}{prompt}"}, "{completion} once after it"),
        ({"prompt": 1, "template": "{prompt}"}, "template needs {prompt} once, and"),
        ({"prompt": 1, "template": "{prompt}{prompt}{completion}"}, "template needs {prompt} once"),
        ({"prompt": True}, "data.train.0.prompt"),
    ],
)
def test_pairs_have_two_sides(tmp_path: Path, changes: dict, message: str) -> None:
    values = run_values(tmp_path)
    values["data"]["train"][0] |= changes
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        make_run(values)
    assert "\n" not in str(caught.value)


def test_a_resolved_run_with_pairs_is_read_back(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    values["data"]["train"][0] |= {"prompt_path": "a.en", "share": 1}
    config = make_run(values)
    assert make_run(yaml.safe_load(to_yaml(config))) == config
    assert config.data.train[0].kind == "pairs"


OWN = {"name": "own", "role": "source", "path": "self"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"train": [OWN | {"role": "target"}]}, "path: self is for role: source"),
        ({"train": [OWN | {"max_documents": 9}]}, "max_documents has no effect with path: self"),
        ({"train": [OWN, OWN | {"name": "own2"}]}, "more than one corpus with path: self"),
        ({"evaluate": [OWN]}, "path: self goes in train"),
        ({"train": [OWN], "source_share": 0}, "path: self has no effect with source_share: 0"),
        (
            {"self_replay": {"seed": 1}},
            "self_replay has no effect without a corpus with path: self",
        ),
        ({"train": [OWN], "self_replay": {"temperature": 0}}, "data.self_replay.temperature"),
    ],
)
def test_what_the_backbone_writes_is_one_source_for_training(
    tmp_path: Path, data: dict, message: str
) -> None:
    values = run_values(tmp_path)
    target = values["data"]["train"][0]
    make_run(values | {"data": values["data"] | {"train": [target, OWN]}})
    if "train" in data:
        data = data | {"train": [target, *data["train"]]}
    with pytest.raises(UserError, match=message):
        make_run(values | {"data": values["data"] | data})


@pytest.mark.parametrize(
    ("data", "tokens"),
    [
        ({"evaluate": [OWN | {"path": "en.txt"}]}, 512),  # a quarter of 8 steps of 8 rows of 32
        ({}, 640),  # and a fifth of it held out
        ({"self_replay": {"tokens": 9}}, 9),
        ({"block_tokens": 10**6}, 1_000_000),
    ],
)
def test_the_backbone_writes_what_training_reads(tmp_path: Path, data: dict, tokens: int) -> None:
    values = run_values(tmp_path)
    values["data"]["train"][1] = OWN
    assert make_run(values | {"data": values["data"] | data}).self_tokens == tokens


def test_of_several_source_corpora_the_backbone_writes_its_share(tmp_path: Path) -> None:
    values = run_values(tmp_path)
    target, source = values["data"]["train"]
    train = [target, source | {"share": [0.5, 0.7]}, OWN | {"share": [0.5, 0.3]}]
    data = values["data"] | {"evaluate": [OWN | {"path": "en.txt"}], "train": train}
    assert make_run(values | {"data": data}).self_tokens == math.ceil(0.4 * 512)


def test_a_name_far_from_all_known_gets_the_list() -> None:
    assert nearest("zzz", ["steps", "seed"]) == "known: seed, steps"
    assert nearest("sted", ["steps", "seed"]) == "did you mean 'seed'?"


BAD_YAML = {
    "a 13th month": b"output: 2001-13-01",
    "an int that is none": b"output: !!int x",
    "a time that is none": b"output: !!timestamp x",
    "more digits than Python reads": b"budget: " + b"9" * 5000,
    "deeper than Python reads": b"data: " + b"[" * 5000 + b"]" * 5000,
    "NUL": b'output: "a\\0b"',
    "half a character": b'output: "\\ud800"',
    "code": b"output: !!python/object/apply:os.mkdir [made]",
    "a module": b"output: !!python/module:this",
    "aliases of aliases": b"".join(
        b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 9 if i else [b"x"]))
        for i in range(9)
    ),
    "not UTF-8": "output: é".encode("latin-1"),
    "UTF-16": "output: out".encode("utf-16"),
    "infinity": b"budget: .inf",
    "a list": b"- a",
    "nothing": b"",
}


@pytest.mark.parametrize("case", BAD_YAML)
def test_what_yaml_can_hold_and_a_run_file_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.yaml").write_bytes(BAD_YAML[case])
    with pytest.raises(UserError) as caught:
        load_run(tmp_path / "run.yaml")
    assert str(caught.value).isprintable()
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


def test_a_byte_order_mark_and_windows_line_ends_are_nothing(tmp_path: Path) -> None:
    file = write_run(tmp_path, run_values(tmp_path))
    config = load_run(file)
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes().replace(b"\n", b"\r\n"))
    assert load_run(file) == config
