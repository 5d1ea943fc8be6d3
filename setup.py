"""Build step that pyproject.toml cannot declare: the wheel carries ``conf/`` as ``mom/conf/``."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copy the configuration next to the code; an editable install reads that of the checkout."""

    def run(self) -> None:
        """Build the package, then copy the files."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "mom", "conf")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("conf", target)


setup(cmdclass={"build_py": BuildWithConf})
