from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.foreign.made import same, saved, searched, table
from uda_reid.foreign import Search, read_search

DOCS = Path(__file__).resolve().parents[2] / "docs" / "features.md"


def snippets() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def held(search: Search, tool: int) -> dict[str, Any]:
    """The variables that a tool holds where its snippet is pasted."""
    assert search.query_cams is not None and search.gallery_cams is not None
    q_pids, g_pids, q_cams, g_cams = search.query_pids, search.gallery_pids, search.query_cams, search.gallery_cams
    if tool == 0:
        held = {"qf": search.query, "gf": search.gallery, "q_camids": q_cams, "g_camids": g_cams}
        return {**held, "q_pids": q_pids, "g_pids": g_pids}
    features = {"query_features": search.query, "gallery_features": search.gallery}
    if tool == 1:
        return {**features, "pids": np.concatenate([q_pids, g_pids]), "camids": np.concatenate([q_cams, g_cams])}
    if tool == 2:
        return {**features, "q_pids": q_pids, "g_pids": g_pids, "q_cids": q_cams, "g_cids": g_cams}
    query = [("a.jpg", pid, cam) for pid, cam in zip(q_pids.tolist(), q_cams.tolist(), strict=True)]
    gallery = [("b.jpg", pid, cam) for pid, cam in zip(g_pids.tolist(), g_cams.tolist(), strict=True)]
    arrays = {name: tensor.numpy() for name, tensor in features.items()}
    return {**arrays, "query": query, "gallery": gallery}


@pytest.mark.parametrize("tool", range(4))
def test_snippets_write_what_is_read(tool: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    search = searched()
    exec(snippets()[tool], held(search, tool))
    same(read_search([Path("q.npy"), Path("g.npy")], Path("ids.csv")), search)


def test_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path, searched())
    (last,) = snippets()[4:]
    exec(last, {})
    assert capsys.readouterr().out.startswith("plain 0.")


def test_table_of_the_page_is_read_as_the_text_says(tmp_path: Path) -> None:
    (text,) = re.findall(r"^```csv\n(.*?)^```$", DOCS.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    np.save(tmp_path / "q.npy", np.eye(2, 3))
    np.save(tmp_path / "g.npy", np.eye(3))
    search = read_search([tmp_path / "q.npy", tmp_path / "g.npy"], table(tmp_path, text))
    assert search.query_pids.tolist() == [7, 12]
    assert search.gallery_pids.tolist() == [7, 0, -1]
