from __future__ import annotations

import csv
import io
import random

import pytest

from uda_reid.cells import FORMULAS, Table, plain, safe, text_of

WIDE = ["＝1+1", "＠x", "＋1", "－1"]


@pytest.mark.parametrize(
    "text", ["=cmd|' /C calc'!A0", "+a", "-b", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "-1+1", "'=1", *WIDE]
)
def test_no_text_begins_a_formula(text: str) -> None:
    assert safe(text) == f"'{text}" and plain(safe(text)) == text


@pytest.mark.parametrize("number", ["-1", "+2", "-1.5e-3", "-inf", -3, -2.5, None, 7])
def test_numbers_stay_numbers(number: object) -> None:
    assert safe(number) == number


def test_every_text_comes_back() -> None:
    letters = random.Random(0)
    for _ in range(2000):
        text = "".join(letters.choices([*FORMULAS, "a", "1", ",", '"', "\n"], k=letters.randrange(6)))
        assert plain(str(safe(text))) == text
        assert not str(safe(text)).startswith(("=", "@", "\t", "\r"))


def test_both_writers_write_the_same() -> None:
    rows = [["=1", -1, None, "o'neil"], ['a,"b"', "-x", 0.5, ""]]
    file = io.BytesIO()
    table = Table(file)
    for row in rows:
        table.write(*row)
    assert file.getvalue().decode() == text_of(rows)
    assert next(csv.reader(io.StringIO(text_of(rows)))) == ["'=1", "-1", "", "o'neil"]


@pytest.mark.parametrize("name", ["a\rb", "a\r\nb", "a\nb", "\ra", 'a"\r', "\r"])
def test_a_name_with_any_line_end_stays_on_its_line(name: str) -> None:
    text = text_of([["row", "path"], [0, name], [1, "c"]])
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert [[plain(cell) for cell in row] for row in rows] == [["row", "path"], ["0", name], ["1", "c"]]
