"""A store in a bucket: copied there, fetched and opened again, through a real S3 server on loopback (moto's)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
import s3fs
from moto.server import ThreadedMotoServer
from store.test_exchange import ConnectionClosedError, made

from potstill.errors import DataError, RunError
from potstill.store.exchange import INCOMING, pull, push
from potstill.store.files import FACTS, SignalStore


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def system(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[s3fs.S3FileSystem]:
    """The file system of this server, as the environment names it: nothing else of this machine is asked."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("PROFILE", "SESSION_TOKEN", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE"):
        monkeypatch.delenv(f"AWS_{name}", raising=False)
    for name, value in {
        "ENDPOINT_URL": server,
        "ACCESS_KEY_ID": "of-a-test",
        "SECRET_ACCESS_KEY": "of-a-test",
        "DEFAULT_REGION": "us-east-1",
        "EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3fs.S3FileSystem.clear_instance_cache()
    system, _ = fsspec.core.url_to_fs("s3://signals")
    assert isinstance(system, s3fs.S3FileSystem)
    yield system
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def url(system: s3fs.S3FileSystem, request: pytest.FixtureRequest) -> str:
    if not system.exists("signals"):
        system.mkdir("signals")
    return f"s3://signals/{request.node.name}/store"


def test_a_store_goes_to_a_bucket_and_comes_back(tmp_path: Path, url: str, system: s3fs.S3FileSystem) -> None:
    (tmp_path / "here" / "tokenizer").mkdir(parents=True)
    (tmp_path / "here" / "tokenizer" / "tokenizer.json").write_text("{}")
    store = made(tmp_path / "here")
    push(tmp_path / "here", url)
    found = pull(url, tmp_path / "there")
    assert found.damaged() == [] and found.facts == store.facts and found.check_files("tokenizer")
    assert (found.read("r11", "d11").weights == store.read("r11", "d11").weights).all()
    assert not system.exists(f"{url}/{INCOMING}")


def test_a_copy_that_was_interrupted_goes_on_in_both_directions(
    tmp_path: Path, url: str, system: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "here")
    for method, copy, half in (
        ("put_file", lambda: push(tmp_path / "here", url), lambda: pull(url, tmp_path / "half")),
        ("get_file", lambda: pull(url, tmp_path / "there"), lambda: SignalStore(tmp_path / "there")),
    ):
        real, copied = getattr(system, method), list[str]()

        def broken(source: str, target: str, real=real, copied=copied) -> None:  # type: ignore[no-untyped-def]
            if len(copied) == 2:
                copied.append("a cut")
                raise ConnectionClosedError("the connection broke")
            copied.append(source)
            real(source, target)

        with monkeypatch.context() as patched:
            patched.setattr(system, method, broken)
            with pytest.raises(RunError, match="the connection broke"):
                copy()
            with pytest.raises(DataError, match="no finished store"):
                half()
            copy()
        assert len(copied) == len(set(copied)) == 5, "four files, each once"
    assert SignalStore(tmp_path / "there").damaged() == []


def test_a_flipped_object_is_found_and_named_and_copied_again(
    tmp_path: Path, url: str, system: s3fs.S3FileSystem
) -> None:
    made(tmp_path / "here")
    push(tmp_path / "here", url)
    content = bytearray(system.cat_file(f"{url}/shard-00001.bin"))
    content[9] ^= 1
    system.pipe_file(f"{url}/shard-00001.bin", bytes(content))
    with pytest.raises(DataError, match=r"shard-00001.bin is damaged"):
        pull(url, tmp_path / "there")
    assert not (tmp_path / "there" / FACTS).exists()
    push(tmp_path / "here", url)
    assert pull(url, tmp_path / "there").damaged() == []


def test_no_bucket_is_made_and_none_is_found(tmp_path: Path, system: s3fs.S3FileSystem) -> None:
    made(tmp_path / "here")
    with pytest.raises(RunError, match=r"bucket does not exist[\s\S]*that its bucket exists"):
        push(tmp_path / "here", "s3://sigmals/store")
    assert not system.exists("sigmals")
    with pytest.raises(DataError, match="there is no finished store"):
        pull("s3://sigmals/store", tmp_path / "there")


@pytest.mark.parametrize("way", ["push", "pull"])
def test_missing_credentials_are_named(
    tmp_path: Path, url: str, way: str, system: s3fs.S3FileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path / "here")
    push(tmp_path / "here", url)
    for name in ("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.delenv(f"AWS_{name}")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(RunError, match=r"Unable to locate credentials[\s\S]*AWS_ACCESS_KEY_ID"):
        push(tmp_path / "here", url) if way == "push" else pull(url, tmp_path / "there")
