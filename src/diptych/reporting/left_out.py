"""The report's lines about files of the source that training did not use."""

from diptych.reporting.record import Record, clip, read_valid_lines

MOST_REASONS = 12


def left_out_rows(run: Record) -> list[str]:
    """One line for each reason in bad_files.jsonl, the most frequent first, with its count and a first file; [] for none."""
    keys: dict[str, list[str]] = {}
    for line in read_valid_lines(run, "bad_files.jsonl"):
        keys.setdefault(clip(line.get("reason", "no reason given")), []).append(clip(line.get("key", "?")))
    if not keys:
        return []
    reasons = sorted(keys, key=lambda reason: -len(keys[reason]))
    total, rest = sum(map(len, keys.values())), reasons[MOST_REASONS:]
    rows = [f"{total:,} files of the source are not used."]
    rows += [f"{len(keys[reason]):,}: {reason} (first: {keys[reason][0]})" for reason in reasons[:MOST_REASONS]]
    return rows + ([f"{sum(len(keys[reason]) for reason in rest):,}: other reasons"] if rest else [])
