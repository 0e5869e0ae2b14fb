"""recipes/self_replay.py: as many texts as asked, the same for the same seed."""

import torch

from neutral_residues.backbone import load_backbone, load_tokenizer
from paths import DEMO_BACKBONE, ROOT, load_script


def test_documents() -> None:
    recipe = load_script(ROOT / "recipes" / "self_replay.py")
    model = load_backbone(str(DEMO_BACKBONE), dtype=torch.float32).eval()
    tokenizer = load_tokenizer(str(DEMO_BACKBONE))

    def texts(seed: int) -> list[str]:
        return list(
            recipe.documents(model, tokenizer, count=5, max_tokens=12, batch_rows=4, seed=seed)
        )

    written = texts(0)
    assert len(written) == len(set(written)) == 5
    assert all(0 < len(tokenizer(text)["input_ids"]) <= 20 for text in written)
    assert texts(0) == written != texts(1)
