"""One lab without clients for all tests of a module."""

from collections.abc import Iterator

import pytest

from tests.support.foreign import LabProcess, start_lab


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabProcess]:
    with start_lab(tmp_path_factory.mktemp("lab") / "state", "--no-clients") as running:
        yield running
