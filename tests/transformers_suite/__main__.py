"""Fetch the tests in the source distribution of the installed transformers, and run them on our models."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import transformers

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "transformers-tests" / transformers.__version__
PACKAGE = "transformers_tests"
STAND_INS = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": "config_common_kwargs = {}\n",
}
"""Files that the tests import and the distribution lacks."""


def fetch() -> None:
    """Download the distribution by pip, and write its ``tests/*.py`` and the stand-ins as a package."""
    requirement = f"transformers=={transformers.__version__}"
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-binary", ":all:"]
    package = FOLDER / PACKAGE
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", *options, "--dest", folder, requirement]
        subprocess.run(pip, check=True)
        (archive,) = Path(folder).glob("transformers-*.tar.gz")
        package.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as files:
            for member in files:
                path = Path(member.name)
                if path.parent.name == "tests" and path.suffix == ".py" and len(path.parts) == 3:
                    source = files.extractfile(member)
                    assert source is not None
                    (package / path.name).write_bytes(source.read())
    for name, source in STAND_INS.items():
        (package / name).parent.mkdir(exist_ok=True)
        (package / name).write_text(source, encoding="utf-8")
        (package / name).with_name("__init__.py").touch()
    (package / "__init__.py").touch()  # last: the folder is complete


def main() -> int:
    """Run the tests; return pytest's exit code."""
    if not (FOLDER / PACKAGE / "__init__.py").is_file():
        fetch()
    environment = os.environ | {"MOM_TRANSFORMERS_TESTS": str(FOLDER)}
    # Their markers are not registered here, which would be an error, or else a page of warnings.
    options = ["-q", "--override-ini=addopts=-rs --import-mode=importlib", "--disable-warnings"]
    command = [sys.executable, "-m", "pytest", *options, str(Path(__file__).parent), *sys.argv[1:]]
    return subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
