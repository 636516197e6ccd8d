#!/usr/bin/env python3
"""The quickstart: one teacher, one cache, two students that read it, and one trained without a teacher.

Writes build/quickstart/recipe.yaml, runs `coordinatorctl local` on it, and makes report.json and a table
from what coordinatorctl says afterwards. Everything stays in build/quickstart/. Run again, it clears
students/ and trains again from the cache, for which the teacher need not run at all.
"""

import argparse
import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys
import time

import quickstart_report

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEACHER = "SmolLM2-135M-Instruct.Q4_1.gguf"
NAME = "handbook"
GIGABYTES = 3.7  # nearly all of it checkpoints

RECIPE = """\
# Written by `make quickstart`: SmolLM2-135M-Instruct reads a part of the Debian handbook once; three
# students of different kinds then train from what it said. A quarter is held out: enough to tell the
# students apart.
name: {name}
teacher: {{model: {teacher}, dtype: bf16}}
dataset:
  sources: [{{path: "{corpus}/sect.[a-f]*.txt", domain: docs}}]
  max_tokens: 256
  when_longer: split
  held_out: 0.25
  shuffle_window: 8
capture:
  logits: {{method: sampled, draws: 50}}
cache: {{directory: cache}}
output: students
students:
  - name: half                      # 15 of the teacher's 30 layers
    init: {{from: teacher, layers: {{keep: 15, by: block_influence}}}}
    dtype: bf16
    batch: {{tokens: 1024, micro_batch: 1024, packing: true}}
    losses:
      - {{kl: {{targets: sampled, temperature: 1.0}}, weight: 0.9}}
      - {{cross_entropy: {{}}, weight: 0.1}}
    optimizer: {{name: adamw, lr: 1e-3, betas: [0.9, 0.95], weight_decay: 0.01,
                warmup: 0.1, schedule: cosine, clip: 1.0}}
    steps: 40
    seed: 7
  - name: large                     # other size, batch and packing, two processes; the same cache
    init: {{from: teacher, layers: {{keep: 20, by: block_influence}}}}
    ranks: 2
    dtype: bf16
    batch: {{tokens: 1024, micro_batch: 512, packing: false}}
    losses:
      - {{kl: {{targets: sampled, temperature: 1.0}}, weight: 0.9}}
      - {{cross_entropy: {{}}, weight: 0.1}}
    optimizer: {{name: adamw, lr: 3e-4, betas: [0.9, 0.95], weight_decay: 0.01,
                warmup: 0.1, schedule: cosine, clip: 1.0}}
    steps: 10
    seed: 7
  - name: control                   # half without distillation: everything else is the same
    init: {{from: teacher, layers: {{keep: 15, by: block_influence}}}}
    dtype: bf16
    batch: {{tokens: 1024, micro_batch: 1024, packing: true}}
    losses:
      - {{cross_entropy: {{}}, weight: 1.0}}
    optimizer: {{name: adamw, lr: 1e-3, betas: [0.9, 0.95], weight_decay: 0.01,
                warmup: 0.1, schedule: cosine, clip: 1.0}}
    steps: 40
    seed: 7
"""


class Quickstart:
    """One run of the quickstart in one folder."""

    def __init__(self, build, deps, folder):
        self.ctl = build / "bin" / "coordinatorctl"
        self.modelctl = build / "bin" / "modelctl"
        self.deps = deps
        self.folder = folder
        self.recipe = folder / "recipe.yaml"

    def check_parts(self):
        for part in (self.ctl, self.modelctl, self.deps / "teacher" / TEACHER, self.deps / "corpus"):
            if not part.exists():
                sys.exit(f"quickstart: {part} is missing: run `make quickstart`, which builds and fetches it")

    def write_recipe(self):
        self.folder.mkdir(parents=True, exist_ok=True)

        def relative(path):
            return os.path.relpath(path, self.folder)

        text = RECIPE.format(name=NAME, teacher=json.dumps(relative(self.deps / "teacher" / TEACHER)),
                             corpus=relative(self.deps / "corpus"))
        self.recipe.write_text(text, encoding="utf-8")

    def json_of(self, *words):
        """What a program prints as JSON; its progress and its errors go to the terminal."""
        done = subprocess.run([str(word) for word in words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              text=True, check=False)
        if done.returncode != 0:
            print(f"quickstart: {pathlib.Path(words[0]).name} {words[1]} did not finish. Run it again: what was "
                  "captured stays in the cache, the students begin anew", file=sys.stderr)
            sys.exit(done.returncode if done.returncode > 0 else 1)
        return json.loads(done.stdout)

    def run(self):
        """Runs everything; returns the report."""
        self.check_parts()
        self.write_recipe()
        students = self.folder / "students"
        if at_work(students):
            print(f"quickstart: another one is at work in {shown(self.folder)}", file=sys.stderr)
            sys.exit(4)
        if students.exists():
            print("quickstart: students/ of the last run is cleared; the cache stays", flush=True)
            shutil.rmtree(students)
        print("quickstart: this takes 3 to 15 minutes on 2 cores (less when the teacher was captured "
              f"before), and {GIGABYTES} GB in {shown(self.folder)}", flush=True)
        print(f"quickstart: coordinatorctl local {shown(self.recipe)}", flush=True)
        started = time.monotonic()
        result = self.json_of(self.ctl, "local", self.recipe, "-o", "json")
        seconds = time.monotonic() - started
        cache = self.json_of(self.ctl, "cache", "du", f"job/{NAME}", "--dir", self.folder / "cache", "-o", "json")
        model = self.json_of(self.modelctl, "inspect", self.deps / "teacher" / TEACHER, "-o", "json")
        return quickstart_report.make(result, cache, model, job=f"job/{NAME}", control="control",
                                      ranks=ranks_of(students), seconds=seconds)


def ranks_of(students):
    """How many ranks wrote the last checkpoint of each run in the folder `students`, by the student's name."""
    ranks = {}
    for run in sorted((students / ".runs").iterdir()):
        manifests = (run / "checkpoints").glob("step-*/MANIFEST.json")
        newest = max(manifests, key=lambda path: int(path.parent.name.split(".")[0].removeprefix("step-")))
        name = run.name.rsplit("-", 1)[0]
        ranks[name] = json.loads(newest.read_text(encoding="utf-8"))["world_size"]
    return ranks


def at_work(output):
    """Whether a `coordinatorctl local` holds the lock of its output folder."""
    try:
        with (output / ".stillhouse" / "lock").open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def shown(path):
    """`path` as a word to paste, below the current folder where it is."""
    text = os.path.relpath(path, ROOT)
    return f'"{text}"' if " " in text else text


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build", help="the build folder")
    parser.add_argument("--deps", type=pathlib.Path, default=ROOT / ".deps")
    parser.add_argument("--folder", type=pathlib.Path, help="where everything goes; default: BUILD/quickstart")
    options = parser.parse_args()
    folder = options.folder or options.build / "quickstart"
    quickstart = Quickstart(options.build, options.deps, folder)
    report = quickstart.run()
    temporary = folder / "report.json.tmp"
    temporary.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "report.json")
    print()
    print(quickstart_report.table(report))
    student = os.path.relpath(folder / "students" / "half", ROOT)
    teacher = shown(options.deps / "teacher" / TEACHER)
    print(f"""
The whole report: {shown(folder / "report.json")}. To paste next:
  python3 -c 'from transformers import AutoModelForCausalLM as M; print(M.from_pretrained("{student}"))'
  build/bin/coordinatorctl init {teacher} {shown(options.deps / "corpus")} -o ~/my.yaml
  build/bin/coordinatorctl local ~/my.yaml""")
    return 0


if __name__ == "__main__":
    sys.exit(main())
