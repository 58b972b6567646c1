import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """What is counted of a test's data is not kept among the user's own."""
    os.environ["KIRIE_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def shared():
    """The folder of real data beside the repository, or where KIRIE_SHARED says; tests that ask for it skip without."""
    place = Path(os.environ.get("KIRIE_SHARED") or Path(__file__).resolve().parents[2] / "shared")
    if not (place / "data").is_dir():
        pytest.skip(f"no real data at {place}; set KIRIE_SHARED to the folder that holds data/")
    return place
