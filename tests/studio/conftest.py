import pytest
from in_browser import browsing


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A headless Chromium, see in_browser.py."""
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found
