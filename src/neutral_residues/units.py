"""Sizes, times and decimal numbers as text for users."""


def human_bytes(num_bytes: float) -> str:
    """1536 -> "1.5 KiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(num_bytes) < 1024 or unit == "GiB":
            return f"{num_bytes:.0f} B" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1024
    raise AssertionError("unreachable")


def human_seconds(seconds: float) -> str:
    """3725 -> "1 h 02 min"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return (
        f"{hours} h {minutes:02d} min"
        if hours
        else f"{minutes} min {rest:02d} s"
        if minutes
        else f"{rest} s"
    )


def decimal(value: float, digits: int, *, signed: bool = False) -> str:
    """-0.314 -> "−0.31" with 2 digits: with a minus sign (not a hyphen), a plus sign if `signed`,
    and never "−0.00"."""
    text = f"{round(value, digits) or 0.0:{'+' if signed else ''},.{digits}f}"
    return text.replace("-", "−")
