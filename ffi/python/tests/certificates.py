"""Certificates for tests, good and bad."""

from __future__ import annotations

import datetime
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

DAY = datetime.timedelta(days=1)


class Identity(NamedTuple):
    """The paths of a certificate and its key."""

    certificate: str
    key: str


class Authority:
    """An authority of one cluster, which signs certificates without the names of hosts."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(self._name, self._key.public_key(), days=30)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        self.certificate = str(folder / f"{name}-ca.pem")
        _write(self.certificate, builder.sign(self._key, hashes.SHA256()))

    def sign(self, name: str, *, days: int = 30) -> Identity:
        """Sign a certificate that is valid for so many days, or expired if that is negative."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = self._builder(subject, key.public_key(), days)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        identity = Identity(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}-key.pem"))
        _write(identity.certificate, builder.sign(self._key, hashes.SHA256()))
        _write_key(identity.key, key)
        return identity

    def self_signed(self) -> Identity:
        """Return the authority's own certificate and key, as ``openssl req -x509`` makes a self-signed one."""
        key = str(self._folder / "self-signed-key.pem")
        _write_key(key, self._key)
        return Identity(self.certificate, key)

    def sign_version_1(self, name: str) -> Identity:
        """Sign as a bare ``openssl x509 -req`` does, which makes a certificate of version 1."""
        openssl = shutil.which("openssl")
        assert openssl, "these tests need openssl"
        identity = Identity(str(self._folder / f"{name}.pem"), str(self._folder / f"{name}-key.pem"))
        authority_key, request = self._folder / "authority-key.pem", self._folder / "request.pem"
        _write_key(str(authority_key), self._key)
        commands = [
            f"req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN={name}"
            f" -keyout {identity.key} -out {request}",
            f"x509 -req -in {request} -CA {self.certificate} -CAkey {authority_key} -CAcreateserial -days 30"
            f" -out {identity.certificate}",
        ]
        for command in commands:
            subprocess.run([openssl, *command.split()], check=True, capture_output=True, timeout=30)
        return identity

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePublicKey, days: int
    ) -> x509.CertificateBuilder:
        now = datetime.datetime.now(tz=datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 60 * DAY)
            .not_valid_after(now + days * DAY)
        )


def _write(path: str, certificate: x509.Certificate) -> None:
    Path(path).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _write_key(path: str, key: ec.EllipticCurvePrivateKey) -> None:
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    Path(path).write_bytes(key.private_bytes(encoding, form, serialization.NoEncryption()))
