"""Lengths: files and functions, and the lines that clang-format does not keep short."""

import ast
import re

FILE_LINES_MAX = 500
ONE_FILE = {"tools/stillhouse.py"}  # users copy it
FUNCTION_LINES_MAX = 70
PYTHON_COLUMNS_MAX = 120

_SCOPE = re.compile(r"\b(namespace|class|struct|union|enum)\b[^()]*$")


def _is_function(head):
    """Whether the text before an opening brace, back to the last ; { or }, heads a function."""
    head = re.sub(r"^\s*#[^\n]*$", "", head, flags=re.M).strip()
    if ")" not in head or head.startswith(("=", ",", ")", "(")):
        return False
    if re.match(r"^(if|for|while|switch|catch|do|else|try|return|case|default)\b", head):
        return False
    if _SCOPE.search(head):
        return False
    return not re.search(r"=\s*$|\breturn\b", head)


def cpp_functions(code):
    """(first line, last line, head) of every outermost function body in stripped C++ `code`."""
    depth_of_function = None
    depth = 0
    start = 0
    head_start = 0
    for index, character in enumerate(code):
        if character == "{":
            if depth_of_function is None and _is_function(code[head_start:index]):
                depth_of_function = depth
                head = code[head_start:index]
                start = head_start + len(head) - len(head.lstrip())
            depth += 1
            head_start = index + 1
        elif character == "}":
            depth -= 1
            if depth_of_function == depth:
                first = code.count("\n", 0, start) + 1
                last = code.count("\n", 0, index) + 1
                yield first, last, " ".join(code[start:code.index("{", start)].split())
                depth_of_function = None
            head_start = index + 1
        elif character == ";" and depth_of_function is None:
            head_start = index + 1


def _python_functions(text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield node.lineno, node.end_lineno, node.name


def _too_long(path, functions):
    for first, last, name in functions:
        lines = last - first + 1
        if lines > FUNCTION_LINES_MAX:
            yield path, first, f"{lines} lines in one function, at most {FUNCTION_LINES_MAX}: {name[:60]}"


def _long_lines(path, text):
    for number, line in enumerate(text.split("\n"), 1):
        if len(line) > PYTHON_COLUMNS_MAX:
            yield path, number, f"{len(line)} columns, at most {PYTHON_COLUMNS_MAX}"


def check(tree):
    for path in tree.cpp() + tree.python():
        text = tree.text(path)
        if text is None:
            yield path, 1, "is not UTF-8 text"
            continue
        lines = text.count("\n")
        if lines > FILE_LINES_MAX and path not in ONE_FILE:
            yield path, 1, f"{lines} lines, at most {FILE_LINES_MAX}: more than one idea?"
        if path.endswith(".py"):
            yield from _too_long(path, _python_functions(text))
            yield from _long_lines(path, text)
        else:
            yield from _too_long(path, cpp_functions(tree.code(path)))
