"""The example of docs/serving.md with several extensions runs."""

import re

from paths import DEMO_BACKBONE, ROOT


def test_each_request_of_a_batch_gets_its_own_extension() -> None:
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from neutral_residues import NeutralResiduesConfig

    tokenizer = AutoTokenizer.from_pretrained(DEMO_BACKBONE)
    backbone = AutoModelForCausalLM.from_pretrained(DEMO_BACKBONE)
    model = get_peft_model(backbone, NeutralResiduesConfig(width=8), adapter_name="french")
    model.add_adapter("german", NeutralResiduesConfig(width=8))
    model.base_model.set_adapter(["french", "german"])
    prompts = tokenizer(["The cat", "The dog", "The man"], return_tensors="pt")
    prompts = {name: prompts[name] for name in ("input_ids", "attention_mask")}
    page = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
    _, example = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    exec(
        compile(example, "serving.md", "exec"),
        {"model": model.eval(), "prompts": prompts | {"max_new_tokens": 2}},
    )
