"""Who may ask: this machine's own browser, with the token, and with little to say."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from studio.conftest import Served, Site, serve

from potstill.errors import RunError
from potstill.studio.guard import MOST_BODY_BYTES
from potstill.studio.server import HOST, free_socket
from potstill.studio.workspace import Workspace


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    yield from serve(tmp_path / "runs")


def test_the_address_with_its_token_is_served(site: Site) -> None:
    assert site.get().status_code == 200


@pytest.mark.parametrize("path", ["/", "/runs/x", "/static/studio.css", "/wrong-token/", "/" + 43 * "A" + "/"])
def test_without_the_token_there_is_nothing(site: Site, path: str) -> None:
    answer = site.client.get(path)
    assert answer.status_code == 403
    assert site.studio.token not in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1:1", "127.0.0.1.evil.example:8765", ""]
)
def test_a_name_that_was_pointed_here_is_refused(site: Site, host: str) -> None:
    """DNS rebinding: the browser asks this machine, and says another name."""
    assert site.get(host=host).status_code == 421


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:1", "null", "http://localhost:8765"])
def test_another_origin_is_refused(site: Site, origin: str) -> None:
    for method in ("GET", "POST"):
        answer = site.client.request(method, f"/{site.studio.token}/", headers={"origin": origin})
        assert answer.status_code == 403, method


def test_a_form_without_origin_is_refused(site: Site) -> None:
    assert site.client.post(f"/{site.studio.token}/runs", data={"name": "x"}).status_code == 403
    assert site.studio.workspace.names() == []


def test_a_link_on_another_site_is_refused(site: Site) -> None:
    assert site.get(**{"sec-fetch-site": "cross-site"}).status_code == 403


def test_no_address_leads_outside_the_runs(served: Served) -> None:
    """As written on the wire: clients tidy such paths up."""
    host = served.address.split("/")[2]
    for path in _OUTSIDE:
        for part in ("", "/report", "/records"):
            with socket.create_connection(("127.0.0.1", int(host.split(":")[1])), timeout=20) as wire:
                head = f"Host: {host}\r\nConnection: close"
                wire.sendall(f"GET /{served.studio.token}/{path}{part} HTTP/1.1\r\n{head}\r\n\r\n".encode())
                answer = b"".join(iter(lambda: wire.recv(65536), b""))
            assert answer.split(b" ")[1] in (b"404", b"403", b"400"), path
            assert b"root:" not in answer and b"import" not in answer


_OUTSIDE = (
    "runs/..", "runs/../..", "runs/%2e%2e", "runs/..%2f..%2fetc", "runs/.studio", "runs/.studio/recipe",
    "static/..%2fapp.py", "static/%2e%2e%2fapp.py", "runs/x%00y", "runs//etc/passwd", "runs/x/../../../../etc/passwd",
    "../../etc/passwd",
)  # fmt: skip


def test_a_link_out_of_the_folder_is_no_run(site: Site, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "recipe.yaml").write_text("name: outside")
    (site.studio.workspace.folder / "link").symlink_to(outside)
    assert site.get("runs/link").status_code == 404


def test_every_answer_has_the_policy(site: Site) -> None:
    for path in ("", "static/studio.js", "nowhere"):
        headers = site.get(path).headers
        assert "unsafe" not in headers["content-security-policy"]
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "same-origin"


def _send(served: Served, head: str, body: bytes, pieces: int = 1) -> bytes:
    """The answer to a request of any shape."""
    host, port = served.address.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=20) as wire:
        wire.sendall(
            f"POST /{served.studio.token}/runs HTTP/1.1\r\nHost: {host}:{port}\r\nOrigin: http://{host}:{port}\r\n"
            f"{head}\r\n\r\n".encode()
        )
        try:
            for _ in range(pieces):
                wire.sendall(body)
        except OSError:
            pass  # the other side has closed: that is the point
        try:
            return wire.recv(1000)
        except OSError:
            return b""


def test_a_hundred_megabytes_are_refused_before_they_are_read(served: Served) -> None:
    assert b" 413 " in _send(served, f"Content-Length: {100_000_000}", b"")


def test_a_hundred_megabytes_of_unknown_length_are_refused(served: Served) -> None:
    piece = f"{1_000_000:x}\r\n".encode() + 1_000_000 * b"x" + b"\r\n"
    answer = _send(served, "Transfer-Encoding: chunked", piece, pieces=100)
    assert answer == b"" or b" 413 " in answer
    assert served.studio.workspace.names() == []


def test_a_form_of_ordinary_length_is_read(site: Site) -> None:
    assert site.post("runs", name="first").status_code == 303
    assert site.post("runs", name="x" * (MOST_BODY_BYTES + 1)).status_code == 413


def test_a_port_that_is_in_use_gives_the_next_one() -> None:
    with free_socket(19765) as first:
        number = first.getsockname()[1]
        with free_socket(number) as second:
            assert second.getsockname()[1] > number
            assert second.getsockname()[0] == HOST == "127.0.0.1"


def test_no_port_at_all_is_said() -> None:
    with free_socket(65535), pytest.raises(RunError, match="no port"):
        free_socket(65535)


def test_the_token_is_kept_and_is_its_owners_alone(tmp_path: Path) -> None:
    first = Workspace(tmp_path).token()
    assert len(first) == 43
    assert Workspace(tmp_path).token() == first
    assert (tmp_path / ".studio" / "token").stat().st_mode & 0o077 == 0
    (tmp_path / ".studio" / "token").write_text("x")
    assert len(Workspace(tmp_path).token()) == 43
