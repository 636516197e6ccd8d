"""The quickstart's report: from the JSON of coordinatorctl and modelctl to report.json and a table."""


def find(entries, name, what):
    for entry in entries:
        if entry["name"] == name:
            return entry
    raise SystemExit(f"quickstart: coordinatorctl knows no {what} {name}")


def number(entry, key):
    """A count; JSON of protocol buffers has 64-bit integers as strings and leaves zeros out."""
    return int(entry.get(key, 0))


def student_row(run):
    """One student: what it is, what it reached on the held-out documents, and what it cost."""
    final = run.get("final") or {}
    last = run.get("last") or {}
    if run.get("state") != "finished" or not final:
        raise SystemExit(f"quickstart: {run['name']} is {run.get('state')}, not finished")
    return {
        "name": run["name"].rsplit("/", 1)[-1],
        "params": number(last, "parameters"),
        "ranks": 1,
        "steps": number(final, "step"),
        "perplexity": final["perplexity"],
        "kl_to_teacher": final["kl"],
        "agreement": final["agreement"],
        "seconds": float(last.get("seconds", 0)),
        "teacher_forward_tokens": number(run, "teacher_rows_charged"),
        "kl_se": final.get("kl_se", 0.0),
        "agreement_se": final.get("agreement_se", 0.0),
    }


def make(state, cache, model, job, control, seconds):
    """report.json as a dict. `state` is `coordinatorctl get`, `cache` is `cache du`, `model` is `inspect`."""
    status = find(state["jobs"], job, "job")
    runs = [run for run in state["runs"] if run["name"].split("/")[1] == job.split("/")[1]]
    rows = [student_row(run) for run in runs]
    capture_seconds = float(status.get("capture_seconds", 0))
    phases = {"capture": capture_seconds}
    phases.update({f"student {row['name']}": row["seconds"] for row in rows})
    phases["everything"] = seconds
    return {
        "teacher": {
            "params": int(model["parameters"]),
            "perplexity": runs[0]["final"]["teacher_perplexity"],
        },
        "capture": {"teacher_forward_tokens": number(status, "rows_computed"), "seconds": capture_seconds},
        "students": [row for row in rows if row["name"] != control],
        "control": find(rows, control, "run"),
        "cache": cache_sizes(cache),
        "phases": {name: round(value, 3) for name, value in phases.items()},
    }


def cache_sizes(du):
    """Bytes of the training sections with their records and index, and what is kept beside them."""
    stored = number(du, "training_bytes") + number(du, "index_bytes")
    tokens = number(du, "training_rows")
    return {
        "documents": number(du, "documents"),
        "tokens": tokens,
        "bytes": stored,
        "bytes_per_token": stored / tokens if tokens else 0.0,
        "artefact_bytes": number(du, "artefact_bytes"),
        "held_out_bytes": number(du, "held_out_bytes"),
    }


def table(report):
    """The report for people."""
    teacher, capture, cache = report["teacher"], report["capture"], report["cache"]
    header = ("", "parameters", "steps", "perplexity", "KL to teacher", "agreement", "seconds", "teacher tokens")
    lines = [header, ("teacher", f"{teacher['params'] / 1e6:.1f} M", "", f"{teacher['perplexity']:.1f}", "0", "100 %",
                      f"{capture['seconds']:.0f}", f"{capture['teacher_forward_tokens']:,}")]
    for row in report["students"] + [report["control"]]:
        lines.append((
            row["name"], f"{row['params'] / 1e6:.1f} M", str(row["steps"]), f"{row['perplexity']:.1f}",
            f"{row['kl_to_teacher']:.3f} ± {row['kl_se']:.3f}",
            f"{100 * row['agreement']:.1f} ± {100 * row['agreement_se']:.1f} %", f"{row['seconds']:.0f}",
            f"{row['teacher_forward_tokens']:,}"))
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    text = []
    for line in lines:
        cells = [line[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        text.append("  ".join(cells).rstrip())
    text.append("")
    text.append(f"cache: {cache['documents']:,} documents, {cache['tokens']:,} tokens, "
                f"{cache['bytes'] / 1e6:.1f} MB ({cache['bytes_per_token']:.1f} bytes a token); besides, "
                f"{cache['artefact_bytes'] / 1e6:.1f} MB of the teacher's head and tokenizer, "
                f"{cache['held_out_bytes'] / 1e6:.1f} MB of held-out states")
    text.append("time: " + ", ".join(f"{name} {value:.0f} s" for name, value in report["phases"].items()))
    text.append("KL in nats at T = 1 over the whole vocabulary, on held-out documents; ± is one standard error.")
    return "\n".join(text)
