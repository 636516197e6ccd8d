#!/usr/bin/env python3
"""The quickstart in a fresh folder, twice: what its reports say must hold.

usage: quickstart_test.py SOURCE_FOLDER BUILD_FOLDER DEPS_FOLDER
"""

import json
import math
import pathlib
import shutil
import subprocess
import sys
import unittest

SOURCE, BUILD, DEPS = (pathlib.Path(word) for word in sys.argv[1:4])
FOLDER = BUILD / "quickstart-test"


def beats_beyond_errors(better, worse, error, other_error):
    return better - worse > math.hypot(error, other_error)


class QuickstartTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        shutil.rmtree(FOLDER, ignore_errors=True)
        cls.report = cls.run_quickstart()
        cls.again = cls.run_quickstart()

    @staticmethod
    def run_quickstart():
        subprocess.run([sys.executable, str(SOURCE / "tools" / "quickstart.py"), "--build", str(BUILD), "--deps",
                        str(DEPS), "--folder", str(FOLDER)], check=True, stdin=subprocess.DEVNULL)
        return json.loads((FOLDER / "report.json").read_text())

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(FOLDER, ignore_errors=True)

    def test_teacher_is_paid_for_once(self):
        students = self.report["students"] + [self.report["control"]]
        tokens = [student["teacher_forward_tokens"] for student in students]
        self.assertGreater(tokens[0], 60_000)
        self.assertEqual(tokens[1:], [0, 0])
        self.assertEqual(sum(tokens), self.report["capture"]["teacher_forward_tokens"])

    def test_run_again_it_pays_nothing_and_says_the_same(self):
        self.assertEqual(self.again["capture"]["teacher_forward_tokens"], 0)
        for before, after in zip(self.report["students"] + [self.report["control"]],
                                 self.again["students"] + [self.again["control"]], strict=True):
            self.assertEqual(after["teacher_forward_tokens"], 0)
            for figure in ("perplexity", "kl_to_teacher", "agreement"):
                self.assertEqual(after[figure], before[figure], (after["name"], figure))

    def test_distillation_beats_the_control(self):
        half, control = self.report["students"][0], self.report["control"]
        self.assertEqual(half["params"], control["params"])
        self.assertTrue(beats_beyond_errors(control["kl_to_teacher"], half["kl_to_teacher"], half["kl_se"],
                                            control["kl_se"]), self.report)
        self.assertTrue(beats_beyond_errors(half["agreement"], control["agreement"], half["agreement_se"],
                                            control["agreement_se"]), self.report)

    def test_students_differ_and_learn(self):
        half, large = self.report["students"]
        self.assertEqual((half["ranks"], large["ranks"]), (1, 2))
        self.assertLess(half["params"], large["params"])
        self.assertLess(large["params"], self.report["teacher"]["params"])
        for student in (half, large):
            self.assertLess(self.report["teacher"]["perplexity"], student["perplexity"])
            self.assertLess(student["perplexity"], 300)  # untrained, 15 layers stand at 2,000

    def test_exports_are_hugging_face_folders(self):
        for name in ("half", "large", "control"):
            folder = FOLDER / "students" / name
            for file in ("config.json", "model.safetensors", "tokenizer.json"):
                self.assertTrue((folder / file).is_file(), folder / file)

    def test_cache_is_small(self):
        cache = self.report["cache"]
        self.assertGreater(cache["tokens"], 60_000)
        self.assertLess(cache["bytes_per_token"], 60)


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1], verbosity=2)
