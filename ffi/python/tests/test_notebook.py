"""Claims: the notebook of taxi trips runs as it is, and its results equal those of pandas alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from links import library

NOTEBOOK = Path(__file__).resolve().parents[3] / "examples/dask/taxi_trips.ipynb"


@pytest.mark.timeout(180)
def test_the_notebook_computes_what_pandas_does(tmp_path: Path) -> None:
    library("pyarrow")
    pandas = library("pandas")
    namespace: dict[str, Any] = {"__name__": "notebook"}
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    for cell in cells:
        exec(compile("".join(cell["source"]), "notebook", "exec"), namespace)
        if "parameters" in cell["metadata"].get("tags", []):
            namespace |= {"ROWS": 40_000, "FILES": 4, "FOLDER": str(tmp_path / "trips")}
    trips = pandas.concat([namespace["trips"](number, 10_000) for number in range(4)])
    joined = trips.merge(namespace["zones"], left_on="from_zone", right_on="zone")
    expected = joined.groupby("borough")[["fare", "tip", "miles"]].sum().sort_index()
    assert set(namespace["results"]) == {"tcp", "towline"}
    for by_borough, rows, _group_s, _shuffle_s in namespace["results"].values():
        assert rows == 40_000
        assert list(by_borough.index) == list(expected.index)
        assert np.allclose(by_borough.to_numpy(), expected.to_numpy())
