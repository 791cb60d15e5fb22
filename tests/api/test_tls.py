"""The pages over TLS, by the files of a certificate."""

from __future__ import annotations

import ssl
import subprocess

import httpx
import pytest

from app.api.service import WebServer
from app.broker import free_port
from tests.api.served import Served


@pytest.fixture
def files(tmp_path):
    """A certificate of this machine's own, and its key."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", *names]
    subprocess.run([*made, "-keyout", key, "-out", cert], check=True, capture_output=True)
    return cert, key


async def test_pages_are_served_over_tls_alone(files):
    """Who trusts the certificate is answered; who speaks in the clear, or trusts others, is not."""
    cert, key = files
    port = free_port()
    access = {"cert_file": str(cert), "key_file": str(key)}
    served = Served(access=access, worker={"web_host": "127.0.0.1", "web_port": port})
    server = WebServer(next(iter(served.desks.values())))
    await server.start()
    try:
        trusting = ssl.create_default_context(cafile=str(cert))
        async with httpx.AsyncClient(verify=trusting) as client:
            answer = await client.get(f"https://127.0.0.1:{port}/v1/models")
            assert (200, "application/json") == (answer.status_code, answer.headers["content-type"])
            with pytest.raises(httpx.HTTPError):
                await client.get(f"http://127.0.0.1:{port}/v1/models")
        async with httpx.AsyncClient() as stranger:
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await stranger.get(f"https://127.0.0.1:{port}/v1/models")
    finally:
        await server.stop()
