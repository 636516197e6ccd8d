"""The table of docs/benchmarks.md."""

# name -> (what `row` has to reach, which of its numbers, as people read it); None: no aim
AIMS = {
    "codec_sampled_bytes_per_token": ("ratio", "<=", 0.5),
    "cache_bytes_per_token": ("value", "<=", 32),
    "cache_bytes_per_token_with_stats": ("value", "<=", 38),
    "codec_topk64_bytes_per_token": ("ratio", "<=", 0.45),
    "codec_topk64_kl_nats": ("value", "<=", 1e-4),
    "codec_sampled_decode_tokens_per_s": ("value", ">=", 1e6),
    "codec_topk64_decode_tokens_per_s": ("value", ">=", 0.3e6),
    "codec_sampled_encode_tokens_per_s": ("value", ">=", 0.5e6),
    "codec_topk64_encode_tokens_per_s": ("value", ">=", 0.15e6),
    "small_ingest_mb_per_s": ("ratio", ">=", 0.35),
    "ingest_mb_per_s": ("ratio", ">=", 0.9),
    "read_shuffled_warm_mb_per_s": ("ratio", ">=", 0.6),
    "warm_vs_lmdb_mb_per_s": ("ratio", ">=", 0.45),
    "read_shuffled_cold_mb_per_s": ("ratio", ">=", 6),
    "cold_vs_lmdb_norda_mb_per_s": ("ratio", ">=", 3),
    "open_100k_chunks_s": ("value", "<", 2),
    "client_read_mb_per_s": ("ratio", ">=", 0.5),
    "tokenize_mb_per_s": ("ratio", ">=", 5),
    "forward_tokens_per_s": ("ratio", ">=", 1.15),
    "generate_tokens_per_s": ("ratio", ">=", 2),
    "load_gb_per_s": ("ratio", ">=", 1),
    "train_tokens_per_s_vs_default": ("ratio", ">=", 2),
    "train_tokens_per_s_vs_best": ("ratio", ">=", 1.3),
    "train_share_of_peak": ("ratio", ">=", 0.7),
    "distill_sampled_over_ce_step": ("ratio", "<=", 1.03),
    "distill_topk64_over_ce_step": ("ratio", "<=", 1.03),
    "distill_hidden_last_over_ce_step": ("ratio", "<=", 1.05),
    "loss_tokens_per_s": ("ratio", ">=", 2),
    "loss_peak_bytes": ("ratio", "<=", 1),
    "adamw_gb_per_s": ("ratio", ">=", 0.7),
    "adamw_vs_torch": ("ratio", ">=", 1.5),
    "reduce_scatter_gb_per_s": ("ratio", ">=", 1.5),
    "shm_floor_reduce_scatter_gb_per_s": ("ratio", ">=", 0.6),
    "two_ranks_over_one": ("ratio", "<=", 1.05),
}


def _number(value):
    if value is None:
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def missed(row):
    """Whether the row has an aim and misses it."""
    if row["name"] not in AIMS:
        return False
    which, relation, aim = AIMS[row["name"]]
    value = row[which]
    return not {"<=": value <= aim, ">=": value >= aim, "<": value < aim}[relation]


def merge(old, new):
    """`old` with the rows of the names in `new` replaced."""
    names = {row["name"] for row in new}
    rows = [row for row in old if row["name"] not in names] + new
    order = list(AIMS)
    return sorted(rows, key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))


def table(rows, machine):
    """Markdown."""
    lines = [f"Machine: {machine}.", "", "| name | value | unit | against | ratio | aim | |",
             "|---|---|---|---|---|---|---|"]
    for row in rows:
        aim = "–"
        if row["name"] in AIMS:
            which, relation, limit = AIMS[row["name"]]
            sign = {"<=": "≤", ">=": "≥", "<": "<"}[relation]
            aim = f"{sign} {_number(limit)}" + ("×" if which == "ratio" else "")
        lines.append(f"| `{row['name']}` | {_number(row['value'])} | {row['unit']} | {row['against'] or '–'} | "
                     f"{_number(row['ratio'])} | {aim} | {'**missed**' if missed(row) else 'met'} |")
    lines += ["", "Commands:", ""]
    for command in dict.fromkeys(row["command"] for row in rows):
        lines.append(f"- `{command}`")
    return "\n".join(lines) + "\n"
