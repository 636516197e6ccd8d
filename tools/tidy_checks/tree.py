"""The files under check, and what the CMake files say about them."""

import functools
import pathlib
import re
import subprocess

CPP = {".cc", ".h", ".cu", ".cuh"}


def strip_cpp(text, keep_strings=False):
    """`text` with comments (and, unless kept, the insides of literals) blanked; line breaks stay."""

    def blank(match):
        token = match.group(0)
        if token.startswith("/"):
            return re.sub(r"[^\n]", " ", token)
        if keep_strings:
            return token
        if token.startswith("R"):
            return 'R"' + re.sub(r"[^\n]", " ", token[2:-1]) + '"'
        return token[0] + " " * (len(token) - 2) + token[-1]

    return _TOKEN.sub(blank, text)


_TOKEN = re.compile(
    r"""//(?:\\\n|[^\n])*
      | /\*.*?\*/
      | (?<![A-Za-z0-9_])R"(?P<raw>[^(\s]{0,16})\(.*?\)(?P=raw)"
      | "(?:\\.|[^"\\\n])*"
      | (?<![0-9A-Fa-f])'(?:\\.|[^'\\\n])+'
    """,
    re.S | re.X,
)


class Tree:
    """A snapshot of one source tree. Paths are relative to the root, with forward slashes."""

    def __init__(self, root):
        self.root = pathlib.Path(root)
        self.paths = self._list()
        self.edges = self._edges()

    def _list(self):
        try:
            listed = subprocess.run(
                ["git", "-C", str(self.root), "ls-files", "-z", "-co", "--exclude-standard"],
                check=True, capture_output=True).stdout.decode().split("\0")
        except (OSError, subprocess.CalledProcessError):
            listed = [str(p.relative_to(self.root)) for p in self.root.rglob("*") if p.is_file()]
        return sorted(p for p in listed if p and (self.root / p).is_file())

    @functools.lru_cache(maxsize=None)
    def text(self, path):
        """The text of a file, or None for what is not text."""
        data = (self.root / path).read_bytes()
        if b"\0" in data[:8192]:
            return None
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return None

    @functools.lru_cache(maxsize=None)
    def code(self, path):
        return strip_cpp(self.text(path) or "")

    def cpp(self):
        return [p for p in self.paths if pathlib.PurePosixPath(p).suffix in CPP]

    def python(self):
        return [p for p in self.paths if p.endswith(".py")]

    def _edges(self):
        """library → the libraries it may use, in the order of cmake/Layers.cmake."""
        layers = self.text("cmake/Layers.cmake") if "cmake/Layers.cmake" in self.paths else ""
        edges = {}
        for name, used in re.findall(r"^set\(SH_EDGES_(\w+)\s+([^)]*)\)", layers, re.M):
            edges[name] = re.findall(r"\w+", used)
        return edges

    @functools.cached_property
    def _library_folders(self):
        """folder → the library whose sources lie in it."""
        folders = {name: name for name in self.edges}
        made = {}
        for cmake, command, words in self.commands():
            if command == "sh_library" and words:
                home = pathlib.PurePosixPath(cmake).parent
                sources = [word for word in words[1:] if word.endswith((".cc", ".cu"))] or ["x.cc"]
                for source in sources:
                    made.setdefault(str((home / source).parent), words[0])
        return {**folders, **made}

    def library_of(self, path):
        """The library whose folder holds the file; None outside the library folders."""
        for folder in pathlib.PurePosixPath(path).parents:
            if str(folder) in self._library_folders:
                return self._library_folders[str(folder)]
        return None

    def reachable(self, names):
        """`names` and all that their edges lead to."""
        seen = set()
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            if name not in seen:
                seen.add(name)
                waiting.extend(self.edges.get(name, ()))
        return seen

    @staticmethod
    def named(cmake, word):
        """The path below the root that `word` in the file `cmake` stands for."""
        for variable, folder in (("${PROJECT_SOURCE_DIR}/", pathlib.PurePosixPath("")),
                                 ("${CMAKE_CURRENT_SOURCE_DIR}/", pathlib.PurePosixPath(cmake).parent)):
            if word.startswith(variable):
                return str(folder / word[len(variable):])
        return str(pathlib.PurePosixPath(cmake).parent / word)

    @functools.lru_cache(maxsize=None)
    def commands(self):
        """Every command of the CMakeLists.txt files, as (file, command, words)."""
        found = []
        for path in self.paths:
            if pathlib.PurePosixPath(path).name == "CMakeLists.txt":
                text = re.sub(r"#[^\n]*", "", self.text(path))
                for command, body in re.findall(r"(\w+)\s*\(([^()]*(?:\([^()]*\)[^()]*)*)\)", text):
                    words = re.findall(r'"[^"]*"|[^\s"]+', body)
                    found.append((path, command.lower(), [w.strip('"') for w in words]))
        return found
