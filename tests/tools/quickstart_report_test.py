#!/usr/bin/env python3
"""tools/quickstart_report.py: the shape of report.json, and what it refuses."""

import copy
import fcntl
import pathlib
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "tools"))

import quickstart  # noqa: E402
import quickstart_report  # noqa: E402


def run_of(name, kl, tokens):
    return {"name": f"run/handbook/{name}", "state": "finished", "steps": 40, "seconds": 70.5, "params": 1000,
            "teacher_forward_tokens": tokens,
            "final": {"step": 40, "perplexity": 90.0, "teacher_perplexity": 29.0, "kl_to_teacher": kl, "kl_se": 0.02,
                      "agreement": 0.38, "agreement_se": 0.004}}


RESULT = {
    "jobs": [{"name": "job/handbook", "teacher_forward_tokens": 5000, "capture_seconds": 12.25}],
    "runs": [run_of("half", 1.4, 5000), run_of("large", 1.1, 0), run_of("control", 1.6, 0)],
}
CACHE = {
    "training": {"documents": 10, "rows": 4000, "missing": 0, "record_bytes": 100_000, "index_bytes": 20_000,
                 "bytes": 120_000, "bytes_per_row": 30.0},
    "held_out": {"documents": 1, "rows": 200, "missing": 0, "bytes": 7100},
    "artefact_bytes": 999,
}
MODEL = {"parameters": 134_515_008}


def make(result=None):
    return quickstart_report.make(result or RESULT, CACHE, MODEL, job="job/handbook", control="control",
                                  ranks={"half": 1, "large": 2, "control": 1}, seconds=300.0)


class QuickstartReportTest(unittest.TestCase):
    def test_ranks_are_those_that_wrote_the_last_checkpoint(self):
        with tempfile.TemporaryDirectory() as folder:
            students = pathlib.Path(folder)
            for run, step, ranks in (("half-0a1b2c3d", 40, 1), ("large-11223344", 9, 3), ("large-11223344", 10, 2)):
                checkpoint = students / ".runs" / run / "checkpoints" / f"step-{step}.1.abcd"
                checkpoint.mkdir(parents=True)
                (checkpoint / "MANIFEST.json").write_text(f'{{"world_size": {ranks}}}')
            self.assertEqual(quickstart.ranks_of(students), {"half": 1, "large": 2})

    def test_shape(self):
        report = make()
        row = {"name", "params", "ranks", "steps", "perplexity", "kl_to_teacher", "agreement", "seconds",
               "teacher_forward_tokens", "kl_se", "agreement_se"}
        self.assertEqual(set(report), {"teacher", "capture", "students", "control", "cache", "phases"})
        self.assertEqual([student["name"] for student in report["students"]], ["half", "large"])
        self.assertEqual([student["ranks"] for student in report["students"]], [1, 2])
        for student in report["students"] + [report["control"]]:
            self.assertEqual(set(student), row)
        self.assertEqual(report["teacher"], {"params": 134_515_008, "perplexity": 29.0})
        self.assertEqual(report["capture"], {"teacher_forward_tokens": 5000, "seconds": 12.25})
        self.assertEqual(report["cache"], {"documents": 10, "tokens": 4000, "bytes": 120_000, "bytes_per_token": 30.0,
                                           "artefact_bytes": 999, "held_out_bytes": 7100})
        self.assertEqual(report["phases"]["capture"], 12.25)
        self.assertEqual(report["phases"]["everything"], 300.0)

    def test_unfinished_student_is_no_report(self):
        result = copy.deepcopy(RESULT)
        result["runs"][1]["state"] = "training"
        with self.assertRaisesRegex(SystemExit, "run/handbook/large is training"):
            make(result)

    def test_missing_sections_are_no_report(self):
        cache = copy.deepcopy(CACHE)
        cache["held_out"]["missing"] = 2
        with self.assertRaisesRegex(SystemExit, "lacks sections"):
            quickstart_report.cache_sizes(cache)

    def test_table_has_a_line_for_each(self):
        text = quickstart_report.table(make())
        for words in ("teacher ", "half ", "large ", "control ", "1.400 ± 0.020", "38.0 ± 0.4 %", "30.0 bytes a token"):
            self.assertIn(words, text)


class AtWorkTest(unittest.TestCase):
    def test_a_held_lock_is_seen(self):
        with tempfile.TemporaryDirectory() as folder:
            output = pathlib.Path(folder)
            self.assertFalse(quickstart.at_work(output))
            (output / ".stillhouse").mkdir()
            with (output / ".stillhouse" / "lock").open("wb") as lock:
                self.assertFalse(quickstart.at_work(output))
                fcntl.flock(lock, fcntl.LOCK_EX)
                self.assertTrue(quickstart.at_work(output))
            self.assertFalse(quickstart.at_work(output))


if __name__ == "__main__":
    unittest.main()
