"""The file of an interrupted measurement: read by chip, refused where it is damaged or of another measurement."""

from __future__ import annotations

import pytest

from neuralfuse.errors import FileFormatError
from neuralfuse.evaluation import ChipResult, PartialRecord
from neuralfuse.files import write_json

CONFIG = {"ber": 0.01}
RESULT = ChipResult(50_010, 12.5, None, 0.005)


def test_results_are_read_back_by_chip(tmp_path):
    path = tmp_path / "partial.json"
    PartialRecord(path, CONFIG, resume=False).add(RESULT)
    again = PartialRecord(path, CONFIG, resume=True)
    assert again.prior(ChipResult) == {50_010: RESULT}
    again.remove()
    assert not path.exists()
    PartialRecord(path, CONFIG, resume=False).add(RESULT)
    with pytest.raises(FileFormatError, match="must belong to the same measurement"):
        PartialRecord(path, {"ber": 0.02}, resume=True)


@pytest.mark.parametrize("parts", [{"": [{"seed": 1}]}, {"": [5]}, {"": 5}, {"": [{"seed": 1, "unknown": 2}]}, 5])
def test_a_damaged_file_is_refused(parts, tmp_path):
    path = tmp_path / "partial.json"
    write_json(path, {"schema": "neuralfuse/partial/1", "config": CONFIG, "per_chip": parts})
    with pytest.raises(FileFormatError, match="must hold the results of chips: got .* Omit --resume"):
        PartialRecord(path, CONFIG, resume=True).prior(ChipResult)
