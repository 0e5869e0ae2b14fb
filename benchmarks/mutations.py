"""Random damage to valid files, from a seeded generator: values of JSON and YAML, bytes, gzip and
safetensors. Most results are nearly valid."""

import copy
import gzip
import json
import math
import os
import pickle
import random
import struct
from collections.abc import Callable
from typing import Any

HOSTILE_HTML = "<script>alert('fuzz')</script>"
LONG_NUMBER = "9" * 5000
STRANGE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 0.5, 1.5, -0.0, 1e-320, 1e308, -1e308, math.inf, -math.inf,
    math.nan, 2**31, 2**63, 10**30, 10**400, "", " ", "\0", "a\0b", "\ud800", "\x1b[31mred",
    "a\nb\nc", "x" * 100_000, "é\u202e\u2028", "../../../etc/passwd", "/", ".", "/dev/zero",
    "/dev/null", "fifo", "folder", "/proc/self/mem", "~", "nan", "1e999", "null", "os:system",
    "canary:ROW", HOSTILE_HTML, "{{ 7 * 7 }}", "%s%n", [], {}, [[]], [None], {"": ""}, {"a": {}},
)  # fmt: skip
"""Values that replace valid ones."""

Place = tuple[Any, Any]
"""A container, and a key or index in it."""


def places(value: Any) -> list[Place]:
    """All places in nested lists and dictionaries."""
    found: list[Place] = []
    waiting = [value]
    while waiting:
        item = waiting.pop()
        keys: Any = item if isinstance(item, dict) else range(len(item))
        for key in keys:
            found.append((item, key))
            if isinstance(item[key], dict | list):
                waiting.append(item[key])
    return found


def damaged_value(value: Any, rng: random.Random) -> Any:
    """A copy of `value` with changes at one to three places."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if there := places(value):
            container, key = rng.choice(there)
            rng.choice(_VALUE_CHANGES)(container, key, rng)
    return value


def _replace(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = copy.deepcopy(rng.choice(STRANGE))


def _remove(container: Any, key: Any, rng: random.Random) -> None:
    del container[key]


def _rename(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, dict):
        strange = (f"{key}x", str(key).upper(), "", "\0", 7, "__class__", "x" * 5000, str(key)[1:])
        container[rng.choice(strange)] = container.pop(key)


def _repeat(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container, list):
        container += [copy.deepcopy(container[key])] * rng.choice((1, 3, 100))
    else:
        container[f"{key}_again"] = copy.deepcopy(container[key])


def _wrap(container: Any, key: Any, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 2, 50))):
        container[key] = [container[key]] if rng.random() < 0.5 else {"a": container[key]}


def _as_text(container: Any, key: Any, rng: random.Random) -> None:
    container[key] = str(container[key])


def _scale(container: Any, key: Any, rng: random.Random) -> None:
    if isinstance(container[key], int | float) and not isinstance(container[key], bool):
        container[key] *= rng.choice((-1, 0, 10**9, 1e-300, 1e300, 1.0000001))


def _exchange(container: Any, key: Any, rng: random.Random) -> None:
    other = rng.choice(list(container) if isinstance(container, dict) else range(len(container)))
    container[key], container[other] = container[other], container[key]


_VALUE_CHANGES: tuple[Callable[[Any, Any, random.Random], None], ...] = (
    _replace, _replace, _replace, _remove, _rename, _repeat, _wrap, _as_text, _scale, _exchange
)  # fmt: skip


# ---- bytes ----


def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with some of its bytes changed, removed, repeated or replaced."""
    return rng.choice(_BYTE_CHANGES)(data, rng)


def _slice(data: bytes, rng: random.Random) -> slice:
    start = rng.randrange(len(data) + 1)
    return slice(start, start + rng.choice((1, 2, 8, 64, 4096)))


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flipped(data: bytes, rng: random.Random) -> bytes:
    """`data` with one to eight bits flipped."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _without(data: bytes, rng: random.Random) -> bytes:
    part = _slice(data, rng)
    return data[: part.start] + data[part.stop :]


def _with(data: bytes, rng: random.Random) -> bytes:
    strange = (
        b"\0",
        b"\xff\xfe",
        b"\r",
        b"\n",
        b"\xef\xbb\xbf",
        b"\xed\xa0\x80",
        b"'",
        b"{",
        b"\t",
    )
    part = rng.choice((rng.choice(strange), rng.randbytes(8), data[_slice(data, rng)]))
    start = rng.randrange(len(data) + 1)
    return data[:start] + part + data[start:]


def _zeroed(data: bytes, rng: random.Random) -> bytes:
    part = _slice(data, rng)
    return data[: part.start] + bytes(len(data[part])) + data[part.stop :]


_BYTE_CHANGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    _cut, flipped, flipped, _without, _with, _zeroed,
    lambda data, rng: b"",
    lambda data, rng: rng.randbytes(rng.choice((1, 8, 1000))),
    lambda data, rng: data + rng.randbytes(8),
)  # fmt: skip


def other_text(text: str, rng: random.Random) -> bytes:
    """`text` in another encoding, or with other line ends."""
    windows = text.replace("\n", "\r\n")
    return rng.choice(
        (
            b"\xef\xbb\xbf" + text.encode("utf-8", "replace"),
            windows.encode("utf-8", "replace"),
            text.replace("\n", "\r").encode("utf-8", "replace"),
            text.encode("utf-16", "replace"),
            text.encode("latin-1", "replace") + b"\n\xe9",
            text.encode("utf-32", "replace"),
        )
    )


# ---- YAML and JSON as text ----


def strange_yaml(text: str, rng: random.Random) -> str:
    """`text` with special features of YAML: tags, aliases, merge keys, its numbers and times."""
    levels = "\n".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 9))
    bomb = f'a0: &a0 ["lol"]\n{levels}\n'
    parts = (
        '!!python/object/apply:os.system ["touch canary"]',
        "!!python/name:os.system", "!!python/module:canary", "!!python/object/new:canary.C {}",
        "!!binary '%%%'", "!!int 'x'", "!!float 'x'", "!!timestamp 'x'", "2001-99-99", "2001-01-01",
        "2001-01-01 25:61:61", LONG_NUMBER, "0x" + "f" * 5000, "0b2", "0o9", "1:99:99", "1e999",
        "!!set {a}", "!!omap [a: 1]", "!!pairs [a: 1]", "!<tag:evil> 1", "*nothing", "&a [*a]",
        "[" * 3000 + "]" * 3000, "{a: " * 3000 + "}" * 3000, "{[1]: 2}", "{{a: 1}: 2}", "? [a]",
        "\"\\ud800\"", "\"\\0\"", "\"\\x1b[2J\"", "\t", "%YAML 9.9\n---", "---\n---", "|", "@", "`",
        "{<<: *nothing}", "{<<: 1}", "{<<: [1]}", "~", "", "&a", "- - -", "'", '"', "!!null 1",
    )  # fmt: skip
    lines = text.splitlines()
    number = rng.randrange(len(lines))
    key = lines[number].partition(":")[0]
    change = rng.randrange(5)
    if change == 0:
        return bomb + text + rng.choice(("output: *a8\n", "set: *a8\n", "data: *a8\n", ""))
    if change == 1:
        return text + "\n".join(lines[number : number + 3])  # duplicate keys
    if change == 2:
        return rng.choice((bomb, rng.choice(parts), f"- {rng.choice(parts)}", "a\nb: c\n d: e"))
    lines[number] = f"{key}: {rng.choice(parts)}"
    return "\n".join(lines) + "\n"


def as_json(value: Any) -> str:
    """`value` as JSON, including what damage may have put into it: NaN, halves of surrogate pairs,
    long numbers."""
    try:
        return json.dumps(value)
    except (TypeError, ValueError):
        return json.dumps(value, default=str, skipkeys=True)


def strange_json(text: str, rng: random.Random) -> str:
    """`text` changed to JSON that is deeply nested, very long or repeated."""
    return rng.choice(
        (
            "[" * 100_000,
            '{"a":' * 100_000,
            "[" * 50_000 + "]" * 50_000,
            text + text,
            text.replace(":", f': {LONG_NUMBER}, "x":', 1),
            text.replace("{", '{"format": 1, ', 1),
            rng.choice(("null", "3", "[]", "{}", '""', "NaN", "true", "", " ")),
        )
    )


# ---- packed files ----


def damaged_gzip(packed: bytes, rng: random.Random) -> bytes:
    """A gzip file that is broken, has data appended, or decompresses to far more than expected."""
    change = rng.randrange(5)
    if change == 0:
        return packed + rng.choice((rng.randbytes(20), packed, bytes(100)))
    if change == 1:
        return gzip.compress(bytes(rng.choice((10**6, 2 * 10**8))))
    if change == 2:
        return gzip.compress(gzip.decompress(packed) + gzip.compress(bytes(10**7)))
    return damaged_bytes(packed, rng)


# ---- safetensors ----


def damaged_safetensors(data: bytes, rng: random.Random) -> bytes:
    """A safetensors file with other names, dtypes, shapes, offsets or numbers."""
    change = rng.randrange(6)
    if change == 0:
        return damaged_bytes(data, rng)
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    if change == 1:
        sizes = (0, 1, size - 1, size + 1, 2**31, 2**40, 2**63 - 1, 2**64 - 1, 100_000_000)
        return struct.pack("<Q", rng.choice(sizes)) + data[8:]
    if change == 2:
        return _safetensors(header, flipped(body, rng))
    if change == 3:
        return _safetensors(damaged_value(header, rng), body)
    names = [name for name in header if name != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    if change == 4:
        tensor = header[one]
        _tensor_changes(tensor, rng)
        return _safetensors(header, body)
    header[one], header[other] = header[other], header[one]
    return _safetensors(header, body)


def _tensor_changes(tensor: dict[str, Any], rng: random.Random) -> None:
    key = rng.choice(("dtype", "shape", "data_offsets"))
    if key == "dtype":
        tensor[key] = rng.choice(("F16", "I32", "BF16", "F64", "BOOL", "U8", "X", "F8_E4M3"))
    elif key == "shape":
        shape = list(tensor[key])
        strange: tuple[Any, ...] = (
            [],
            shape[::-1],
            [math.prod(shape)],
            [*shape, 1],
            [2**62, 4],
            [-1],
            [0],
        )
        tensor[key] = rng.choice(strange)
    else:
        first, last = tensor[key]
        tensor[key] = rng.choice(
            (
                [last, first],
                [first, last + 4],
                [-4, last],
                [first, 2**63],
                [0, 0],
                [first],
                [0, "4"],
            )
        )


def _safetensors(header: Any, body: bytes) -> bytes:
    text = as_json(header).encode("utf-8", "replace")
    return struct.pack("<Q", len(text)) + text + body


class _MakesFolder:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def pickled_call(path: str) -> bytes:
    """A pickle that creates the folder `path` when it is loaded."""
    return pickle.dumps(_MakesFolder(path))
