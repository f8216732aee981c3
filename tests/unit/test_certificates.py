"""The private authority and its certificate: content, renewal, damage, and that TLS takes them."""

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from homing.certificates import CertificateError, CertificateFiles, ensure_certificates, facts, files_in

NOW = datetime(2026, 5, 4, 12, tzinfo=UTC)
NAMES = ["ns.members.example."]
ADDRESSES = ["127.0.0.1", "::1"]


def make(
    directory: Path, days: float = 0, names: list[str] = NAMES, addresses: list[str] = ADDRESSES
) -> CertificateFiles:
    return ensure_certificates(directory, names, addresses, now=NOW + timedelta(days=days))


def parse(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def test_what_is_made(tmp_path: Path) -> None:
    files = make(tmp_path / "tls")
    certificate, authority = parse(files.certificate_file), parse(files.ca_file)
    certificate.verify_directly_issued_by(authority)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["ns.members.example"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]
    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert public.curve.name == "secp256r1"
    assert certificate.not_valid_after_utc - certificate.not_valid_before_utc == timedelta(days=825)
    assert authority.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    files = make(tmp_path)
    keys = [files.key_file, tmp_path / "ca-key.pem"]
    assert [file.stat().st_mode & 0o777 for file in keys] == [0o600, 0o600]
    for file in keys:
        file.chmod(0o644)
    make(tmp_path)
    assert [file.stat().st_mode & 0o777 for file in keys] == [0o600, 0o600]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["ca-key.pem", "ca.pem", "server-key.pem", "server.pem"]


@pytest.mark.parametrize(
    ("days", "names", "addresses", "renewed"),
    [
        (0, NAMES, ADDRESSES, False),
        (700, NAMES, ADDRESSES, False),
        (794, NAMES, ADDRESSES, False),
        (796, NAMES, ADDRESSES, True),
        (1000, NAMES, ADDRESSES, True),
        (1, ["NS.Members.Example"], ["::1", "127.0.0.1", "::1"], False),
        (1, ["ns2.members.example."], ADDRESSES, True),
        (1, [*NAMES, "other.example."], ADDRESSES, True),
        (1, NAMES, ["127.0.0.1"], True),
        (-2, NAMES, ADDRESSES, True),
    ],
)
def test_renewed_only_when_needed(
    tmp_path: Path, days: float, names: list[str], addresses: list[str], renewed: bool
) -> None:
    before = make(tmp_path)
    old, authority = before.certificate_file.read_bytes(), before.ca_file.read_bytes()
    after = make(tmp_path, days, names, addresses)
    assert after == before
    assert (after.certificate_file.read_bytes() != old) == renewed
    assert after.ca_file.read_bytes() == authority


def test_an_ending_authority_is_replaced_and_never_outlived(tmp_path: Path) -> None:
    files = make(tmp_path)
    first = parse(files.ca_file)
    make(tmp_path, days=3000)
    assert parse(files.ca_file) == first
    assert parse(files.certificate_file).not_valid_after_utc == first.not_valid_after_utc
    make(tmp_path, days=3640)
    second = parse(files.ca_file)
    assert second.subject != first.subject
    parse(files.certificate_file).verify_directly_issued_by(second)


@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nxx\n"])
@pytest.mark.parametrize("name", ["server.pem", "server-key.pem"])
def test_a_damaged_certificate_is_made_again(tmp_path: Path, name: str, damage: bytes) -> None:
    files = make(tmp_path)
    (tmp_path / name).write_bytes(damage)
    make(tmp_path)
    parse(files.certificate_file).verify_directly_issued_by(parse(files.ca_file))


def test_a_certificate_with_another_key_is_made_again(tmp_path: Path) -> None:
    mine, other = make(tmp_path / "mine"), make(tmp_path / "other")
    mine.key_file.write_bytes(other.key_file.read_bytes())
    make(tmp_path / "mine")
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(mine.certificate_file, mine.key_file)


@pytest.mark.parametrize("name", ["ca.pem", "ca-key.pem"])
def test_half_an_authority_is_an_error(tmp_path: Path, name: str) -> None:
    make(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(CertificateError, match=r"restore them, or remove both"):
        make(tmp_path)


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CertificateError, match=r"cannot keep certificates in .*: Not a directory"):
        make(tmp_path / "file" / "below")


def test_nothing_to_certify(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a name or an address"):
        make(tmp_path, names=[], addresses=[])


@pytest.mark.parametrize(
    ("host", "accepted"), [("127.0.0.1", True), ("ns.members.example", True), ("127.0.0.2", False)]
)
def test_tls_takes_it_for_its_names_only(tmp_path: Path, host: str, accepted: bool) -> None:
    files = ensure_certificates(tmp_path, NAMES, ADDRESSES)  # OpenSSL looks at today's clock
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.certificate_file, files.key_file)
    asking = ssl.create_default_context(cafile=str(files.ca_file))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = asking.wrap_bio(to_client, to_server, server_hostname=host)
    server = serving.wrap_bio(to_server, to_client, server_side=True)
    if accepted:
        _shake_hands(client, server)
        assert client.getpeercert()
    else:
        with pytest.raises(ssl.SSLCertVerificationError):
            _shake_hands(client, server)


def _shake_hands(client: ssl.SSLObject, server: ssl.SSLObject) -> None:
    waiting = [client, server]
    for _ in range(6):
        for side in list(waiting):
            try:
                side.do_handshake()
                waiting.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not waiting


def test_a_short_lived_certificate_is_renewed_at_a_third_of_its_life(tmp_path: Path) -> None:
    def pem(day: float) -> bytes:
        files = ensure_certificates(tmp_path, NAMES, ADDRESSES, days=9, now=NOW + timedelta(days=day))
        return files.certificate_file.read_bytes()

    first = pem(0)
    assert pem(5.9) == first
    second = pem(6.1)
    assert second != first
    assert pem(6.1) == second


def test_renewed_on_demand_with_the_same_authority(tmp_path: Path) -> None:
    files = ensure_certificates(tmp_path, NAMES, ADDRESSES, now=NOW)
    before = files.certificate_file.read_bytes(), files.ca_file.read_bytes()
    ensure_certificates(tmp_path, NAMES, ADDRESSES, renew=True, now=NOW)
    assert files.certificate_file.read_bytes() != before[0]
    assert files.ca_file.read_bytes() == before[1]


def test_facts(tmp_path: Path) -> None:
    assert facts(files_in(tmp_path)) is None
    files = ensure_certificates(tmp_path, NAMES, ADDRESSES, days=10, now=NOW)
    found = facts(files)
    assert found is not None
    assert found.names == sorted(name.rstrip(".") for name in NAMES)
    assert found.addresses == sorted(ADDRESSES)
    assert found.ends < found.authority_ends
    files.certificate_file.write_text("nothing")
    with pytest.raises(CertificateError, match="cannot read"):
        facts(files)
