"""How connections to MySQL are encrypted."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

TlsMode = Literal["DISABLED", "PREFERRED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"]

#: Values of `ssl-mode`, and what other clients (libpq, Prisma, mysql2, JDBC) call the same.
_TLS_MODES: dict[str, TlsMode] = {
    "disabled": "DISABLED",
    "disable": "DISABLED",
    "false": "DISABLED",
    "0": "DISABLED",
    "preferred": "PREFERRED",
    "prefer": "PREFERRED",
    "allow": "PREFERRED",
    "required": "REQUIRED",
    "require": "REQUIRED",
    "true": "REQUIRED",
    "1": "REQUIRED",
    "verify_ca": "VERIFY_CA",
    "verify_identity": "VERIFY_IDENTITY",
    "verify_full": "VERIFY_IDENTITY",
}


def unchecked() -> ssl.SSLContext:
    """Encryption with whoever answers: for PREFERRED, where no certificate is asked for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@dataclass(frozen=True, kw_only=True)
class Tls:
    """How the connection is encrypted; `mode` as MySQL's own clients understand it, the rest are paths of PEM files."""

    mode: TlsMode = "PREFERRED"
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def context(self) -> ssl.SSLContext:
        """For every mode but DISABLED and PREFERRED.

        Made here because pymysql never checks the host's name unless it is given a CA, whatever one asks of it.

        :raises OSError: for a file that can't be read or holds no certificate.
        """
        context = ssl.create_default_context(cafile=self.ca)
        # The certificates that MySQL makes for itself fail what Python 3.13 has become strict about.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = self.mode == "VERIFY_IDENTITY"
        context.verify_mode = ssl.CERT_REQUIRED if self.mode.startswith("VERIFY") else ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(self.cert, self.key)
        return context


def tls_of(options: Mapping[str, str], fault: Callable[[str], Exception]) -> Tls:
    """What the options ssl-mode, ssl-ca, ssl-cert and ssl-key say together; a CA without a mode means VERIFY_CA.

    :param fault: makes the error that is raised of its cause.
    """
    ca, cert, key = options.get("ssl-ca"), options.get("ssl-cert"), options.get("ssl-key")
    given = options.get("ssl-mode")
    mode: TlsMode = "VERIFY_CA" if ca else "REQUIRED" if cert else "PREFERRED"
    if given is not None:
        wanted = _TLS_MODES.get(given.lower().replace("-", "_"))
        if wanted is None:
            raise fault("ssl-mode: expected DISABLED, PREFERRED, REQUIRED, VERIFY_CA or VERIFY_IDENTITY")
        # A bare ssl=true beside a CA wants that CA to count.
        mode = mode if wanted == "REQUIRED" and ca and given.lower() in {"true", "1"} else wanted
    if bool(cert) != bool(key):
        raise fault("ssl-cert and ssl-key go together")
    return Tls(mode=mode, ca=ca or None, cert=cert or None, key=key or None)
