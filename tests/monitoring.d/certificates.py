"""An authority and the certificates that it issues."""

import datetime
import ipaddress

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class Certificates:
    """An authority of its own, with files in one folder."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, folder.name)])
        constraints = x509.BasicConstraints(ca=True, path_length=None)
        authority = self.builder(self.name, self.key.public_key(), datetime.timedelta(days=365))
        authority = authority.add_extension(constraints, critical=True).sign(self.key, hashes.SHA256())
        (folder / "ca.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))

    def builder(self, subject, key, lifetime):
        now = datetime.datetime.now(datetime.timezone.utc)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + lifetime)
        )

    def issue(self, name, names, lifetime=datetime.timedelta(days=90)):
        """Issues NAME.pem and NAME.key, or replaces them."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self.builder(subject, key.public_key(), lifetime)
        alternative = x509.SubjectAlternativeName(names)
        certificate = certificate.add_extension(alternative, critical=False).sign(self.key, hashes.SHA256())
        encoding = serialization.Encoding.PEM
        plain = serialization.NoEncryption()
        private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
        (self.folder / f"{name}.key").write_bytes(private)
        (self.folder / f"{name}.pem").write_bytes(certificate.public_bytes(encoding))

    def files(self, name):
        """The authority, the certificate and its key."""
        return self.folder / "ca.pem", self.folder / f"{name}.pem", self.folder / f"{name}.key"

    def issue_server(self, name, lifetime=datetime.timedelta(days=90)):
        address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
        self.issue(name, [x509.DNSName("localhost"), address], lifetime)

    def issue_caller(self, name, lifetime=datetime.timedelta(days=90)):
        self.issue(name, [x509.UniformResourceIdentifier(f"spiffe://example.org/{name}")], lifetime)
