"""The quickstart's report: from the JSON of coordinatorctl and modelctl to report.json and a table."""


def find(entries, name, what):
    for entry in entries:
        if entry["name"] == name:
            return entry
    raise SystemExit(f"quickstart: coordinatorctl knows no {what} {name}")


def student_row(run, ranks):
    """One student: what it is, what it reached on the held-out documents, and what it cost."""
    final = run["final"]
    if run["state"] != "finished" or final is None:
        raise SystemExit(f"quickstart: {run['name']} is {run['state']}, not finished")
    name = run["name"].rsplit("/", 1)[-1]
    return {
        "name": name,
        "params": run["params"],
        "ranks": ranks[name],
        "steps": run["steps"],
        "perplexity": final["perplexity"],
        "kl_to_teacher": final["kl_to_teacher"],
        "agreement": final["agreement"],
        "seconds": run["seconds"],
        "teacher_forward_tokens": run["teacher_forward_tokens"],
        "kl_se": final["kl_se"],
        "agreement_se": final["agreement_se"],
    }


def make(result, cache, model, job, control, ranks, seconds):
    """report.json as a dict, from the JSON of `coordinatorctl local`, `cache du` and `modelctl inspect`.

    `ranks`: of each student.
    """
    status = find(result["jobs"], job, "job")
    runs = [run for run in result["runs"] if run["name"].split("/")[1] == job.split("/")[1]]
    rows = [student_row(run, ranks) for run in runs]
    phases = {"capture": status["capture_seconds"]}
    phases.update({f"student {row['name']}": row["seconds"] for row in rows})
    phases["everything"] = seconds
    return {
        "teacher": {"params": model["parameters"], "perplexity": runs[0]["final"]["teacher_perplexity"]},
        "capture": {
            "teacher_forward_tokens": status["teacher_forward_tokens"],
            "seconds": status["capture_seconds"],
        },
        "students": [row for row in rows if row["name"] != control],
        "control": find(rows, control, "run"),
        "cache": cache_sizes(cache),
        "phases": {name: round(value, 3) for name, value in phases.items()},
    }


def cache_sizes(du):
    """Bytes of the training sections with their records and index, and what is kept beside them."""
    training = du["training"]
    if training["missing"] or du["held_out"]["missing"]:
        raise SystemExit("quickstart: the cache lacks sections that the job captured")
    return {
        "documents": training["documents"],
        "tokens": training["rows"],
        "bytes": training["bytes"],
        "bytes_per_token": training["bytes_per_row"],
        "artefact_bytes": du["artefact_bytes"],
        "held_out_bytes": du["held_out"]["bytes"],
    }


def table(report):
    """The report for people."""
    teacher, capture, cache = report["teacher"], report["capture"], report["cache"]
    header = ("", "parameters", "ranks", "steps", "perplexity", "KL to teacher", "agreement", "seconds",
              "teacher tokens")
    lines = [header, ("teacher", f"{teacher['params'] / 1e6:.1f} M", "", "", f"{teacher['perplexity']:.1f}", "0",
                      "100 %", f"{capture['seconds']:.0f}", f"{capture['teacher_forward_tokens']:,}")]
    for row in report["students"] + [report["control"]]:
        lines.append((
            row["name"], f"{row['params'] / 1e6:.1f} M", str(row["ranks"]), str(row["steps"]),
            f"{row['perplexity']:.1f}",
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
