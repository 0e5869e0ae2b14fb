"""`neutral vocabulary`: prints how many tokens a larger vocabulary saves, and what it changes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from neutral_residues.backbone import first_new_id, load_config, load_tokenizer
from neutral_residues.cli.tables import new_table
from neutral_residues.config.run import RunConfig
from neutral_residues.evaluation.self_replay import SelfReplay
from neutral_residues.training.progress import RunProgress, announce
from neutral_residues.units import human_bytes
from neutral_residues.vocabulary.explore import ChangedDocuments, Exploration, explore
from neutral_residues.vocabulary.learn import FLAT_SHARE, FLAT_STEP, NewTokens
from neutral_residues.vocabulary.texts import SOURCE_BYTES, TARGET_BYTES

SIZES = (0, 250, 500, 1_000, 2_000, 4_000, 8_000, 16_000)
BAR_WIDTH = 20
NUM_EXAMPLES = 16
PROMISES = {
    "script": "By construction no text changes that has no letter of the target's script.",
    "unseen": "Nothing changes in the source text of data.train that was read, at most"
    f" {human_bytes(SOURCE_BYTES)} a corpus; other source text changes where such a token occurs.",
}


def print_vocabulary(config: RunConfig, *, console: Console | None = None) -> Exploration:
    """Learn new tokens from the run's target text; print how many tokens the text has with each
    number of them, examples, and the number of source documents that change. No model is trained.

    Raises:
        UserError: as `learned_vocabulary`.
    """
    console, stderr = console or Console(), Console(stderr=True)
    stderr.print(f"loading the tokenizer of {config.model} ...", highlight=False)
    model_config = load_config(config.model, **config.hub_options)
    first_id = first_new_id(model_config)
    tokenizer = load_tokenizer(config.model, **config.hub_options)
    if replay := SelfReplay.of(config, tokenizer, model_config):
        replay.write(RunProgress(stderr).tokenising)
        config = replay.as_file()
    found = explore(config, tokenizer, first_id=first_id, working=partial(_working, stderr))
    console.print(_curve_table(found, size_is_set=config.vocabulary.size > 0))
    console.print(_recommendation(found.new_tokens), highlight=False)
    examples = Text(", ".join(_examples(found.new_tokens, found.size)))
    console.print(Text("some of the tokens: ", style="bold") + examples)
    for corpus in found.changed:
        console.print(_change(corpus), highlight=False, markup=False)
    console.print(PROMISES[config.vocabulary.keep], highlight=False)
    return found


@contextmanager
def _working(console: Console, what: str, total: int) -> Iterator[Callable[[int], object]]:
    """Context that shows a progress bar, or prints a line if there is no terminal; gives a function
    to call with the amount of work done."""
    announce(console, what)
    columns = ("{task.description}", BarColumn(), TimeElapsedColumn())
    disable = not console.is_terminal
    with Progress(*columns, console=console, transient=True, disable=disable) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.advance(task, done)


def _curve_table(found: Exploration, *, size_is_set: bool) -> Table:
    new_tokens = found.new_tokens
    most, recommended = len(new_tokens.tokens), new_tokens.recommended_size
    notes = {recommended: "recommended"} | ({found.size: "run file"} if size_is_set else {})
    read = f"{human_bytes(new_tokens.num_bytes)} read, at most {human_bytes(TARGET_BYTES)} a corpus"
    numbers = ["new tokens", "tokens/word", "tokens/byte"]
    table = new_table(f"Target text ({read})", [], numbers)
    table.add_column("", no_wrap=True)
    table.add_column("", no_wrap=True)
    for size in sorted({*(size for size in SIZES if size <= most), most, *notes}):
        tokens = new_tokens.num_tokens_after[size]
        table.add_row(
            f"{size:,}",
            f"{tokens / new_tokens.num_words:.2f}",
            f"{tokens / new_tokens.num_bytes:.3f}",
            "█" * round(BAR_WIDTH * tokens / new_tokens.num_tokens),
            notes.get(size, ""),
        )
    return table


def _recommendation(new_tokens: NewTokens) -> str:
    size, most = new_tokens.recommended_size, len(new_tokens.tokens)
    if size == most:
        return f"recommended: all {most:,}; the curve is not flat yet"
    share = f"less than {100 * FLAT_SHARE:.0f} %"
    return f"recommended: {size:,}, after which {FLAT_STEP:,} more save {share} of the tokens"


def _examples(new_tokens: NewTokens, size: int) -> list[str]:
    """Some of the first `size` tokens, evenly spaced, without those that contain incomplete
    characters; ▁ stands for a space."""
    texts = [token.text for token in new_tokens.tokens[:size]]
    whole = [text.replace(" ", "▁") for text in texts if "\N{REPLACEMENT CHARACTER}" not in text]
    return whole[:: max(1, len(whole) // NUM_EXAMPLES)][:NUM_EXAMPLES]


def _change(found: ChangedDocuments) -> str:
    return (
        f"{found.name} ({found.use}): {found.num_changed:,} of {found.num_documents:,} source"
        " documents change"
    )
