# SPDX-License-Identifier: GPL-2.0-or-later
"""What setup.cfg requires, as a package of Debian has it.

``python dependencies.py ROOT copy DIRECTORY DOC`` copies what not every release has in a version that will do into
DIRECTORY, from where this Python imports it, and its licences into DOC; ``compiled`` instead of ``copy`` fetches what
is compiled, for each Python. ``python dependencies.py ROOT NAME`` prints what follows ``Depends:`` or
``Suggests:`` in the control file.
"""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

# Bookworm and trixie have these in versions that setup.cfg allows.
DEBIAN = {"click": "python3-click", "rich": "python3-rich"}
# Bookworm's construct is too old, and neither has qemu.qmp.
COPIED = ("construct", "qemu.qmp")
# Bookworm has it not at all; compiled for one Python, and these are those that setup.cfg allows.
COMPILED = ("msgspec",)
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux2014_x86_64")
FETCH_SECONDS = 120.0
# Tools for a person, which want more libraries, and what is under GPL-2 alone.
LEFT_OUT = ("legacy.py", "qmp_shell.py", "qmp_tui.py")
# Compiled for one Python, and done without: images in zstd are refused then.
DONE_WITHOUT = ("backports.zstd",)
SUGGESTED = {"etcd3gw": "python3-etcd3gw", "prometheus-client": "python3-prometheus-client"}
# The control file recommends its package.
RECOMMENDED = ("libvirt-python",)
RELATIONS = {">=": ">=", "<": "<<"}
_REQUIREMENT = re.compile(r"([\w.-]+)((?:[<>=]+[\w.]+,?)*)")


def requirements(root: Path, section: str, key: str) -> Iterator[tuple[str, str]]:
    """Names, and the versions that are allowed."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    for line in config[section][key].splitlines():
        if match := _REQUIREMENT.fullmatch(line.strip()):
            yield match[1], match[2]


def relation(package: str, versions: str) -> str:
    """As a control file has it: one for each bound."""
    bounds = re.findall(r"(>=|<)([\w.]+)", versions)
    return ", ".join(f"{package} ({RELATIONS[how]} {version})" for how, version in bounds) or package


def depends(root: Path) -> str:
    """What the package cannot do without."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    found = [relation("python3", config["options"]["python_requires"])]
    for name, versions in requirements(root, "options", "install_requires"):
        if name in DEBIAN:
            found.append(relation(DEBIAN[name], versions))
        elif name not in (*COPIED, *COMPILED, *DONE_WITHOUT):
            sys.exit(f"setup.cfg: nobody has said yet where Debian gets {name} from")
    return ", ".join(found)


def suggests(root: Path) -> str:
    """What the extras of setup.cfg ask for, except those of the tests."""
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg")
    extras = [extra for extra in config["options.extras_require"] if extra != "test"]
    wanted = dict(one for extra in extras for one in requirements(root, "options.extras_require", extra))
    return ", ".join(relation(SUGGESTED[name], wanted[name]) for name in sorted(wanted) if name not in RECOMMENDED)


def copy(target: Path, doc: Path) -> None:
    """Copy what is not Debian's, in Python alone, and its licences."""
    for name in COPIED:
        found = distribution(name)
        for file in found.files or ():
            source = Path(str(found.locate_file(file)))
            if (place := _place(file, name, target, doc)) is not None:
                shutil.copyfile(source, place)


def compiled(target: Path, doc: Path) -> None:
    """Fetch what is compiled, in the version that this Python has, and its licences."""
    for name in COMPILED:
        for python in PYTHONS:
            with TemporaryDirectory(prefix="qmpfilter-wheel-") as directory:
                _fetch(f"{name}=={distribution(name).version}", python, Path(directory))
                (wheel,) = Path(directory).iterdir()
                with zipfile.ZipFile(wheel) as files:
                    for member in files.namelist():
                        if (place := _place(PurePosixPath(member), name, target, doc)) is not None:
                            place.write_bytes(files.read(member))


def _fetch(requirement: str, python: str, directory: Path) -> None:
    platforms = [f"--platform={platform}" for platform in PLATFORMS]
    options = ["--only-binary=:all:", "--no-deps", f"--python-version={python}", *platforms, f"--dest={directory}"]
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input",
         *options, requirement],
        check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr, timeout=FETCH_SECONDS,
    )  # fmt: skip


def _place(file: PurePosixPath, name: str, target: Path, doc: Path) -> Path | None:
    """Where a file of a distribution belongs, its directory made; None for what is left out."""
    if file.name.startswith("LICEN") and not file.name.endswith("GPL2"):
        place = doc / name / file.name
    elif file.suffix in (".py", ".so") and file.name not in LEFT_OUT and file.parts[0] == name.partition(".")[0]:
        place = target / file
    else:
        return None
    place.parent.mkdir(parents=True, exist_ok=True)
    return place


def _main(arguments: list[str]) -> None:
    match arguments:
        case [root, "depends"]:
            print(depends(Path(root)))
        case [root, "suggests"]:
            print(suggests(Path(root)))
        case [_, "copy", target, doc]:
            copy(Path(target), Path(doc))
        case [_, "compiled", target, doc]:
            compiled(Path(target), Path(doc))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    _main(sys.argv[1:])
