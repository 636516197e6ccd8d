#!/usr/bin/env python3
"""Plants one mistake at a time in a small tree and demands that tools/tidy.py names it, and only it."""

import pathlib
import subprocess
import sys
import tempfile
import unittest

TIDY = pathlib.Path(__file__).resolve().parents[2] / "tools" / "tidy.py"

CLEAN = {
    "cmake/Layers.cmake": "set(SH_EDGES_common \"\")\nset(SH_EDGES_storage common)\n"
                          "set(SH_EDGES_transport common)\nset(SH_EDGES_student common storage)\n",
    "common/CMakeLists.txt": "sh_library(common SOURCES file.cc)\n",
    "common/file.h": "int Read();\n",
    "common/file.cc": '#include "common/file.h"\nint Read() {\n  return 1;\n}\n',
    "storage/CMakeLists.txt": "sh_library(storage SOURCES store.cc USES common)\n"
                              "sh_program(server SOURCES server_main.cc USES storage)\n",
    "storage/store.h": '#include "common/file.h"\nint Open();\n',
    "storage/store.cc": '#include "storage/store.h"\n#include <rocksdb/db.h>\nint Open() { return Read(); }\n',
    "storage/server_main.cc": '#include "common/file.h"\n#include "storage/store.h"\n'
                              "int main() {\n  std::exit(Open());\n}\n",
    "tests/storage/CMakeLists.txt": "sh_test(store_test SOURCES store_test.cc USES storage)\n",
    "tests/storage/store_test.cc": '#include "storage/store.h"\nTEST(StoreTest, Opens) { Open(); }\n',
    "README.md": "See [the store](storage/store.h).\n",
}


class TidyTest(unittest.TestCase):
    def run_on(self, replaced=None):
        """Findings on the clean tree with some files replaced or added."""
        files = {**CLEAN, **(replaced or {})}
        with tempfile.TemporaryDirectory() as folder:
            for path, text in files.items():
                full = pathlib.Path(folder, path)
                full.parent.mkdir(parents=True, exist_ok=True)
                full.write_text(text, encoding="utf-8")
            run = subprocess.run([sys.executable, str(TIDY), "--root", folder], capture_output=True, text=True,
                                 check=False)
        lines = [line for line in run.stdout.splitlines() if not line.startswith("tidy: ")]
        self.assertEqual(run.stderr, "")
        self.assertEqual(run.returncode, 1 if lines else 0)
        return lines

    def expect(self, path, line, words, text):
        found = self.run_on({path: text})
        self.assertEqual(len(found), 1, found)
        self.assertTrue(found[0].startswith(f"{path}:{line}: "), found)
        self.assertIn(words, found[0])

    def add(self, code):
        return CLEAN["storage/store.cc"] + code

    def test_clean_tree_has_no_finding(self):
        self.assertEqual(self.run_on(), [])

    def test_banned_words_in_code(self):
        for code in ("void F() { std::this_thread::sleep_for(d); }\n",
                     "auto t = std::chrono::system_clock::now();\n",
                     "int r = rand();\n", "std::mutex m;\n", "std::regex r;\n", "absl::Mutex m;\n",
                     "void F() { exit(3); }\n", "void F() { std::exit(3); }\n"):
            with self.subTest(code):
                self.expect("storage/store.cc", 4, "'", self.add(code))

    def test_words_in_comments_and_strings_are_free(self):
        found = self.run_on({"storage/store.cc": self.add(
            '// never exit( here\n/* rand() */ const char* kText = "std::mutex exit(1)";\n'
            'const char* kRaw = R"(std::regex " exit(1))";\nint NotBrand();\nvoid G() { x.exit(1); _exit(2); }\n')})
        self.assertEqual(found, [])

    def test_unfinished_marks_and_machine_paths(self):
        self.expect("storage/store.cc", 4, "finish it", self.add("// TO" "DO later\n"))
        self.expect("README.md", 1, "one machine", "Look in /wo" "rk/main.\n")
        self.expect("README.md", 1, "does not have", "As iss" "ue #3 says.\n")

    def test_include_against_the_edge_table(self):
        self.expect("common/file.cc", 1, "storage is not in cmake/Layers.cmake",
                    '#include "storage/store.h"\n')
        self.expect("tests/storage/store_test.cc", 1, "not in its USES", '#include "transport/channel.h"\n')

    def test_confined_headers(self):
        self.expect("common/file.cc", 1, "RocksDB belongs to storage", "#include <rocksdb/db.h>\n")
        self.expect("storage/store.h", 1, "stays in .cc files", "#include <rocksdb/db.h>\nint Open();\n")
        self.expect("storage/store.cc", 1, "LibTorch belongs to", "#include <ATen/core/Tensor.h>\n")

    def test_torch_and_protobuf_in_one_file(self):
        found = self.run_on({
            "student/CMakeLists.txt": "sh_library(student SOURCES a.cc)\n",
            "student/a.cc": '#include "student/a.h"\n#include "proto/control.pb.h"\n',
            "student/a.h": "#include <ATen/core/Tensor.h>\n"})
        self.assertTrue(any("sees both" in line for line in found), found)

    def test_long_file_and_long_function(self):
        self.expect("storage/store.cc", 1, "502 lines", CLEAN["storage/store.cc"] + "\n" * 499)
        body = "".join(f"  Step({i});\n" for i in range(70))
        self.expect("storage/store.cc", 4, "72 lines in one function", self.add("int Long(int a) {\n" + body + "}\n"))
        method = "namespace n {\nclass C {\n  void M() const {\n" + body + "  }\n};\n}\n"
        self.expect("storage/store.cc", 6, "72 lines in one function", self.add(method))
        members = "".join(f"  int m{i}(int a) {{ return a; }}\n" for i in range(90))
        scope = "namespace n {\nstruct S {\n" + members + "};\n}\n"
        self.assertEqual(self.run_on({"storage/store.cc": self.add(scope)}), [])

    def test_unlisted_sources(self):
        self.expect("storage/new.cc", 1, "no CMakeLists.txt names this source", "int x;\n")
        self.expect("tests/storage/new_test.cc", 1, "no CMakeLists.txt names this test", "int x;\n")

    def test_dead_link(self):
        self.expect("README.md", 1, "leads nowhere", "See [it](storage/gone.h).\n")

    def test_recipe_keys_without_a_description(self):
        reader = 'void Read(Fields& f) {\n  f.Integer("steps", 1);\n  ReadPath(f, "output", 2);\n}\n'
        files = {"recipe/CMakeLists.txt": "sh_library(recipe SOURCES recipe.cc)\n", "recipe/recipe.cc": reader,
                 "cmake/Layers.cmake": CLEAN["cmake/Layers.cmake"] + 'set(SH_EDGES_recipe "")\n'}
        document = "docs/recipe.md"
        self.assertEqual(self.run_on({**files, document: "`output`, `students.steps`\n"}), [])
        self.assertEqual(self.run_on({**files, document: "`output`\n"}),
                         [f"recipe/recipe.cc:2: the key steps is not in {document}"])


if __name__ == "__main__":
    unittest.main()
