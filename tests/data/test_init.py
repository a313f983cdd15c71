from __future__ import annotations

import pytest

import pyseq.data


@pytest.mark.parametrize("name", pyseq.data.__all__)
def test_every_name_of_the_package_is_there(name):
    assert getattr(pyseq.data, name).__name__ == name
    assert name in dir(pyseq.data)


def test_another_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="NoSuchDataset"):
        _ = pyseq.data.NoSuchDataset
