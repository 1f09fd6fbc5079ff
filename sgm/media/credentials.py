"""Content Credentials: a signed C2PA manifest in a file, where the extra `c2pa` is installed.

The manifest says that a trained model made the file, which program and weights, and holds the hash of the picture.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from PIL import Image

from sgm import __version__
from sgm.errors import UserError, reason_of
from sgm.media.provenance import SOURCE_TYPE
from sgm.paths import is_file, refusals_explained, user_path

SWITCH = "SGM_C2PA"  # "off": nothing is signed
CERTIFICATE, KEY = "SGM_C2PA_CERTIFICATE", "SGM_C2PA_KEY"  # files of the user's own, both PEM
_SELF_MADE = "self-made, names nobody"
_LARGEST = 1 << 20  # bytes of the user's files that are read
_DAYS = 3650  # that a self-made certificate is valid: the manifest has no time stamp of others
# A thumbnail of an animation takes seconds, and as many bytes as the file.
_SETTINGS = {"builder": {"thumbnail": {"enabled": False}}}


def check_credentials() -> None:
    """Raise UserError where the user's own certificate cannot sign a file. To be called before the work."""
    if os.environ.get(SWITCH) != "off" and (os.environ.get(CERTIFICATE) or os.environ.get(KEY)):
        picture = io.BytesIO()
        Image.new("L", (1, 1)).save(picture, "PNG")
        signed(picture.getvalue(), "image/png", {"sgm": {}})  # what does not fit together is told then alone


def signed(content: bytes, kind: str, settings: Mapping[str, Any] | None) -> bytes:
    """A file's content with a manifest; as it is without a recipe in `settings`, and without the extra `c2pa`.

    kind: its MIME type. Raises UserError as `check_credentials` does.
    """
    mark = (settings or {}).get("sgm")
    off = os.environ.get(SWITCH) == "off"
    if off or not isinstance(mark, Mapping) or mark.get("input") is True or (signer := _signer()) is None:
        return content
    import c2pa

    with _explained():
        context, file = c2pa.Context(c2pa.Settings.from_dict(_SETTINGS)), io.BytesIO()
        with c2pa.Builder(_manifest(settings or {}, mark), context) as builder:
            builder.sign(signer, kind, io.BytesIO(content), file)
        return file.getvalue()


def _manifest(settings: Mapping[str, Any], mark: Mapping[str, Any]) -> dict[str, Any]:
    program = {"name": "sgm-video", "version": __version__}
    weights = mark.get("weights")
    model = {"com.sgm-video.version": settings.get("version")}
    if isinstance(weights, Mapping):
        model |= {f"com.sgm-video.weights.{name}": weights[name] for name in ("name", "sha256") if name in weights}
    created = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": program,
        "parameters": model,
    }
    picture = {"title": "picture", "format": "application/octet-stream", "relationship": "inputTo"}
    picture["instance_id"] = f"sha256:{mark.get('picture')}"
    return {
        "claim_generator_info": [program],
        "title": "clip",
        "ingredients": [picture] if mark.get("picture") else [],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }


@cache
def _signer() -> Any:
    """What signs in this process; None without the extra. A self-made certificate is kept in memory alone."""
    try:
        import c2pa
        from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        return None
    own = os.environ.get(CERTIFICATE), os.environ.get(KEY)
    certificates, key = (_read(CERTIFICATE, own[0]), _read(KEY, own[1])) if any(own) else _self_made()
    with _explained():
        private = load_pem_private_key(key, None)
        if isinstance(private, ec.EllipticCurvePrivateKey):
            algorithm = {256: "ES256", 384: "ES384", 521: "ES512"}[private.curve.key_size]
        else:
            kinds = {rsa.RSAPrivateKey: "PS256", ed25519.Ed25519PrivateKey: "ED25519"}
            algorithm = next(name for kind, name in kinds.items() if isinstance(private, kind))
        signs = getattr(c2pa.C2paSigningAlg, algorithm)
        return c2pa.Signer.from_info(c2pa.C2paSignerInfo(signs, certificates, key, None))


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong inside, in any of three libraries, comes as a UserError that names the files."""
    try:
        yield
    except Exception as error:
        files = " and ".join(filter(None, map(os.environ.get, (CERTIFICATE, KEY)))) or "a self-made certificate"
        reason = reason_of(error).removeprefix("Signature: ").removeprefix("Other: ")
        raise UserError(
            f"No file can be signed with {files} ({reason}): {CERTIFICATE} must name a chain of certificates as PEM, "
            f"yours first, valid now and made for signing e-mail or documents; {KEY} its private key as PEM, without a "
            f"password. {SWITCH}=off signs nothing."
        ) from error


def _read(variable: str, name: str | None) -> bytes:
    path = user_path(name) if name else None
    if path is None or not is_file(path):
        raise UserError(
            f"{variable} {f'names {path}, which is no file' if path else 'is missing'}: {CERTIFICATE} and {KEY} must "
            "name the files of a certificate and of its key; without both, a self-made one signs."
        )
    with refusals_explained(path), path.open("rb") as file:
        return file.read(_LARGEST)


def _self_made() -> tuple[bytes, bytes]:
    """A chain of certificates and the first one's private key, PEM. C2PA refuses one that signed itself."""
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    def made(title: str, key: Any, issuer: str, issuer_key: Any, root: bool) -> x509.Certificate:
        names = [
            x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, "sgm-video"),
                    x509.NameAttribute(NameOID.COMMON_NAME, name),
                ]
            )
            for name in (title, issuer)
        ]
        uses = dict.fromkeys(
            ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"), False
        ) | dict.fromkeys(("encipher_only", "decipher_only"), False)
        usage = x509.KeyUsage(digital_signature=not root, key_cert_sign=root, crl_sign=root, **uses)
        builder = (
            x509.CertificateBuilder(names[1], names[0], key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=_DAYS))
            .add_extension(x509.BasicConstraints(root, None), True)
            .add_extension(usage, True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), False)
        )
        if not root:
            email = ExtendedKeyUsageOID.EMAIL_PROTECTION  # among the uses that C2PA asks for
            builder = builder.add_extension(x509.ExtendedKeyUsage([email]), False)
        return builder.sign(issuer_key, hashes.SHA256())

    now = datetime.datetime.now(datetime.timezone.utc)
    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    chain = [
        made(_SELF_MADE, key, f"{_SELF_MADE}: root", root_key, False),
        made(f"{_SELF_MADE}: root", root_key, f"{_SELF_MADE}: root", root_key, True),
    ]
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return b"".join(one.public_bytes(pem) for one in chain), key.private_bytes(pem, form, serialization.NoEncryption())
