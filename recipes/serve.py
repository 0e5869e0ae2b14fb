"""Serves an exported model, and completes a prompt with the OpenAI client, as other programs would.

    neutral export runs/french --to transformers --output served
    pip install "transformers[serving]" openai
    python recipes/serve.py served "Il y avait dans"

A folder whose model has its own code contains a `serve.py`; a stock model is served by
`transformers serve`. The answer is compared with the greedy continuation by the same model in this
process, computed without a key-value cache.
"""

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from openai import OpenAI
from transformers import AutoModelForCausalLM, AutoTokenizer

NUM_TOKENS = 16
START_SECONDS = 120


def main(folder: Path, prompt: str) -> None:
    with served(folder) as url:
        client = OpenAI(base_url=f"{url}/v1", api_key="none")
        start = time.perf_counter()
        answer = client.completions.create(
            model=str(folder), prompt=prompt, max_tokens=NUM_TOKENS, temperature=0
        )
        seconds = time.perf_counter() - start
    text, expected = answer.choices[0].text, greedy(folder, prompt)
    print(f"{prompt}{text}\n{NUM_TOKENS} tokens in {seconds:.2f} s; expected {expected!r}")
    if text != expected:
        raise SystemExit("the server answers differently")


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Context in which a server for `folder` runs; gives its address."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    own = folder / "serve.py"
    stock = ["-m", "transformers.cli.transformers", "serve", str(folder)]
    server = subprocess.Popen(
        [sys.executable, *([str(own)] if own.is_file() else stock), "--port", port]
    )
    url = f"http://localhost:{port}"
    try:
        wait_for(f"{url}/health", server)
        yield url
    finally:
        server.terminate()
        server.wait()


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(START_SECONDS):
        if server.poll() is not None:
            raise SystemExit('the server did not start; pip install "transformers[serving]"')
        try:
            with urllib.request.urlopen(address):
                return
        except OSError:
            time.sleep(1)
    raise SystemExit(f"no answer from {address}")


@torch.no_grad()
def greedy(folder: Path, prompt: str) -> str:
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    ids_1T = prompt_1T = tokenizer(prompt, return_tensors="pt")["input_ids"]
    for _ in range(NUM_TOKENS):
        next_11 = model(input_ids=ids_1T, use_cache=False).logits[:, -1:].argmax(dim=-1)
        ids_1T = torch.cat([ids_1T, next_11], dim=1)
    return str(tokenizer.decode(ids_1T[0, prompt_1T.shape[1] :], skip_special_tokens=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve(), sys.argv[2])
