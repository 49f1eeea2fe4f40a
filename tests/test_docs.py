"""What README.md and docs/ show is run: each page in a process of its own, from top to bottom.

Blocks of a page, by their language:

python   run in one namespace
output   what the blocks since the last such one have printed
pycon    typed at the prompt of ``python -m greenback``
ipython  run as a cell of IPython, which also prints its value

``<!-- skip: next -->`` leaves out a block that is no program. Others, such as
shell commands, are not looked at.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [
    str(path.relative_to(ROOT))
    for path in sorted([ROOT / "README.md", *ROOT.glob("docs/**/*.md")])
    if re.search("^```(python|pycon|ipython)$", path.read_text("utf-8"), re.MULTILINE)
]

if not (ROOT / "docs").is_dir():
    pytest.skip("the documentation is not here", allow_module_level=True)
pytest.importorskip("sybil")


@pytest.mark.parametrize("page", PAGES)
def test_page(page: str, tmp_path: Path) -> None:
    """All blocks run, print what is shown, and write no error or warning."""
    result = subprocess.run(
        [sys.executable, __file__, ROOT / page],
        capture_output=True,
        cwd=tmp_path,
        env=os.environ | {"IPYTHONDIR": str(tmp_path)},
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""


def test_links_of_readme() -> None:
    """Sphinx checks those of docs/; the files that README.md links to exist."""
    targets = re.findall(
        r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text("utf-8")
    )
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_tables_of_benchmarks() -> None:
    """They say what the results say; ``make bench-plots`` writes them."""
    command = [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def main(path: str) -> None:
    """Run one page."""
    from sybil import Example, Sybil
    from sybil.evaluators.python import PythonEvaluator
    from sybil.parsers.markdown import CodeBlockParser, SkipParser

    printed = io.StringIO()
    run_python = PythonEvaluator()

    def python(example: Example) -> None:
        with contextlib.redirect_stdout(printed):
            run_python(example)

    def ipython(example: Example) -> None:
        shell = ipython_shell()
        with contextlib.redirect_stdout(printed):
            shell.run_cell(example.parsed).raise_error()

    def output(example: Example) -> str | None:
        actual = printed.getvalue()
        printed.seek(0)
        printed.truncate()
        return difference(example.parsed, actual)

    def pycon(example: Example) -> str | None:
        lines = example.parsed.splitlines()
        typed = [line[4:] for line in lines if is_typed(line)]
        shown = [f"{line[:3]} " if is_typed(line) else f"{line}\n" for line in lines]
        result = subprocess.run(
            [sys.executable, "-q", "-m", "greenback"],
            input="\n".join(typed) + "\n",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
        return difference("".join(shown) + ">>> \n", result.stdout)

    parsers = [
        CodeBlockParser(evaluator.__name__, evaluator)
        for evaluator in (python, output, pycon, ipython)
    ]
    page = Sybil([*parsers, SkipParser()]).parse(Path(path))
    page.namespace["__name__"] = "__main__"
    for example in page.examples():
        example.evaluate()
    if printed.getvalue():
        raise AssertionError(f"{path} does not show this output:\n{printed.getvalue()}")


def is_typed(line: str) -> bool:
    """Tell whether the line of a session is input."""
    return line[:4].rstrip() in (">>>", "...")


def difference(expected: str, actual: str) -> str | None:
    """Compare, and say what is wrong."""
    if actual == expected:
        return None
    return f"the page shows\n{expected}\nit is\n{actual}"


def ipython_shell():  # type: ignore[no-untyped-def]
    """Return the shell of IPython, whose prompts are not printed."""
    from IPython.terminal.interactiveshell import TerminalInteractiveShell
    from IPython.terminal.prompts import ClassicPrompts

    return TerminalInteractiveShell.instance(prompts_class=ClassicPrompts)


if __name__ == "__main__":
    main(sys.argv[1])
