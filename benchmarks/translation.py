"""Measures runs on held-out pairs: translations, and how much prompts help. Prints JSON.

    python benchmarks/translation.py runs/translation/pairs runs/translation/text

Arguments are output folders of finished runs. For each of them, and each corpus of pairs in its
`data.evaluate`:

    bits                 bits per byte of the completions, given their prompts
    bits, other prompt   the same, given the prompt of the next pair: how well the model does if it
                         knows only the form and the language
    chrf                 chrF (sacrebleu) of greedy continuations of the prompts, up to the end of
                         their first line, against the completions
    chrf, prompt         chrF of the prompts themselves, because of equal names and numbers

Bits and chrF are those of the extended model, and of the backbone where the name says so.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sacrebleu import CHRF

from neutral_residues.config.data import Corpus
from neutral_residues.config.run import RunConfig, load_run
from neutral_residues.data.documents import Pair, iter_pairs
from neutral_residues.data.tokenise import tokenise
from neutral_residues.evaluation.evaluate import evaluate
from neutral_residues.evaluation.saved import Saved, load_saved
from neutral_residues.evaluation.windows import Windows
from neutral_residues.results.run_folder import RunFolder

BATCH = 32


@dataclass(frozen=True)
class Measured:
    """A finished run, and a set of pairs to measure it on."""

    saved: Saved
    config: RunConfig
    corpus: Corpus
    pairs: Sequence[Pair]

    def bits(self, pairs: Sequence[Pair]) -> tuple[float, float]:
        """Bits per byte of the completions under (backbone, extended model)."""
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "pairs.tsv")
            lines = (f"{pair.prompt}\t{pair.completion}\n" for pair in pairs)
            file.write_text("".join(lines), encoding="utf-8")
            columns = {"prompt": "1", "field": "2", "prompt_path": None}
            corpus = self.corpus.model_copy(update={"path": file, "dataset": None, **columns})
            end = self.saved.end_of_text_token
            stream, _ = tokenise(
                corpus, self.saved.tokenizer, cache_dir=Path(folder), end_of_text=end
            )
            windows = Windows(
                self.saved.end_of_text,
                self.config.context_tokens,
                self.config.stride_tokens,
                self.saved.evaluation.batch_rows,
            )
            found = evaluate(self.saved.model, [stream], windows, reference=self.saved.reference)[
                corpus.name
            ]
        return found.backbone_bits_per_byte, found.extended_bits_per_byte

    def translations(self, max_new_tokens: int) -> list[list[str]]:
        """Translations of all pairs by [backbone, extended model]."""
        found: list[list[str]] = [[], []]
        for first in range(0, len(self.pairs), BATCH):
            batch = self.pairs[first : first + BATCH]
            before, _, _ = self.corpus.template.partition("{completion}")
            prompts = [before.rstrip(" ").replace("{prompt}", pair.prompt) for pair in batch]
            for sample in self.saved.completions(prompts, max_new_tokens=max_new_tokens):
                for side, text in zip(found, (sample.backbone, sample.extended), strict=True):
                    side.append(text.strip().partition("\n")[0])
        return found


def measure(run: Measured, max_new_tokens: int) -> dict[str, object]:
    """Name -> result, of one run on one set of pairs; see the module docstring."""
    other = [*run.pairs[1:], run.pairs[0]]
    shifted = [Pair(b.prompt, a.completion) for a, b in zip(run.pairs, other, strict=True)]
    backbone, bits = run.bits(run.pairs)
    backbone_other, bits_other = run.bits(shifted)
    by_backbone, by_extended = run.translations(max_new_tokens)
    right = [[pair.completion for pair in run.pairs]]
    score = CHRF().corpus_score
    texts = {
        "backbone chrf": by_backbone,
        "chrf": by_extended,
        "chrf, prompt": [pair.prompt for pair in run.pairs],
    }
    each = zip(run.pairs, by_extended, strict=True)
    return {
        "pairs": len(run.pairs),
        "backbone bits": round(backbone, 4),
        "bits": round(bits, 4),
        "backbone bits, other prompt": round(backbone_other, 4),
        "bits, other prompt": round(bits_other, 4),
        **{name: round(score(list(it), right).score, 2) for name, it in texts.items()},
        "examples": [[*pair, text] for pair, text in each][:5],
    }


def main() -> None:
    """Print the results of all runs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--limit", type=int, help="pairs of each set (default: all)")
    parser.add_argument("--max-new-tokens", type=int, default=96)
    arguments = parser.parse_args()
    results: dict[str, dict[str, object]] = {}
    for folder in arguments.runs:
        saved, config = load_saved(folder), load_run(RunFolder(folder).config)
        sets = [corpus for corpus in config.data.evaluate if corpus.kind == "pairs"]
        results[str(folder)] = {
            corpus.name: measure(
                Measured(saved, config, corpus, list(iter_pairs(corpus))[: arguments.limit]),
                arguments.max_new_tokens,
            )
            for corpus in sets
        }
    print(json.dumps(results, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
