# SPDX-License-Identifier: GPL-2.0-or-later
"""Certificates that are made for a test, by the program openssl, in the layout of libvirt."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Final

__all__ = ["Authority"]

_KEY: Final = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


class Authority:
    """An authority, which signs.

    :param directory: its own
    """

    def __init__(self, directory: Path, name: str = "test authority") -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.certificate, self._key = directory / "cacert.pem", directory / "cakey.pem"
        _openssl(
            "req", "-x509", *_KEY, "-subj", f"/CN={name}", "-days", "2", "-addext", "keyUsage=critical,keyCertSign",
            "-keyout", self._key, "-out", self.certificate,
        )  # fmt: skip

    def host(
        self, directory: Path, names: str = "DNS:localhost,IP:127.0.0.1", *, client: str = "client", days: int = 2
    ) -> Path:
        """A host's directory: certificates for it as a server and as a client.

        :param names: of the server, as subjectAltName has them
        :param client: what the client is called
        :param days: for which the certificates hold; -1 for expired ones
        """
        (directory / "CA").mkdir(parents=True)
        (directory / "libvirt" / "private").mkdir(parents=True)
        (directory / "CA" / "cacert.pem").write_bytes(self.certificate.read_bytes())
        for kind, subject, extension in (
            ("server", "server", f"subjectAltName={names}\nextendedKeyUsage=serverAuth"),
            ("client", client, "extendedKeyUsage=clientAuth"),
        ):
            key = directory / "libvirt" / "private" / f"{kind}key.pem"
            request, extensions = directory / "request.pem", directory / "extensions"
            extensions.write_text(f"{extension}\n")
            _openssl("req", "-new", *_KEY, "-subj", f"/O=qmpfilter/CN={subject}", "-keyout", key, "-out", request)
            _openssl(
                "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", str(days),
                "-extfile", extensions, "-out", directory / "libvirt" / f"{kind}cert.pem",
            )  # fmt: skip
        return directory


def _openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True)
