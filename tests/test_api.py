"""What `import scangolf` offers."""

import subprocess
import sys

import pytest

import scangolf


@pytest.mark.parametrize("name", scangolf.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(scangolf, name) is not None


def test_presets_are_functions_by_name() -> None:
    assert scangolf.presets["baseline"]().preset == "baseline"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'selective_scam'"):
        scangolf.selective_scam  # noqa: B018


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, scangolf, scangolf.cli; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
