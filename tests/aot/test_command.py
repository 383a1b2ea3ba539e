"""The command and what it shows."""

import json

import pytest

import aot
from aot import report, targets
from tests.aot import target


def test_a_missing_compiler_says_how_to_install_it(monkeypatch, capsys):
    monkeypatch.setattr(targets, "_installed", lambda name: False)
    for name, extra in (("v5e", "aot-tpu"), ("h100", "aot-gpu")):
        with pytest.raises(SystemExit):
            aot.main(["--targets", name, "--cases", "sigmoid_64m"])
        assert f"pip install 'jaxloss[{extra}]'" in capsys.readouterr().err


ROW = {
    "target": "v5e", "case": "some", "program": "naive", "devices": 1, "fits": False,
    "temporary_bytes": 5e9,
}  # fmt: skip


def test_what_does_not_fit_is_a_result():
    message = "RESOURCE_EXHAUSTED: ... required for HLO temporaries (49.35G) exceeds available HBM"
    assert targets.DoesNotFit(message).needed == 49.35 * 2**30
    assert "5,000, does not fit" in report.markdown([ROW], {"jax": "1.0"})


@pytest.mark.parametrize("name", [target("h100")])
def test_the_command_writes_rows(name, tmp_path, capsys):
    path = tmp_path / "rows.json"
    case, only = "vit_classifier", "jaxloss"
    rows = aot.main(["--targets", name, "--cases", case, "--programs", only, "--json", str(path)])
    assert json.loads(path.read_text())["rows"] == rows
    (row,) = rows
    assert row["kernels"] and row["moved_bytes"] >= row["output_bytes"]
    assert case in capsys.readouterr().out
