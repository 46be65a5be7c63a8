"""Artifacts in a bucket that speaks S3 (AWS, MinIO, Ceph, …), through fsspec's s3fs.

    <prefix>/<first two digits>/<sha>/<token>/<name>   the files of one upload
    <prefix>/<first two digits>/<sha>/<token>.json     their list, written last: without it the upload does not count
    <prefix>/<first two digits>/<sha>/used             empty; written when the artifact is used

Every upload has its own token, and objects are never overwritten, so nothing has to be locked. A process that removes
an artifact removes the uploads that it saw; an upload that another process finishes meanwhile stays. An unfinished
upload is not visible, and a later `sweep` removes it. boto finds the access keys: AWS_ACCESS_KEY_ID and so on.
"""

import contextlib
import secrets
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from service.artifacts.place import Stored
from weightgen.errors import BadOption, StorageFailed

BLOCK_BYTES = 8 * 2**20
"""Bytes of one read, which is one request."""
CONNECT_SECONDS, ANSWER_SECONDS, MAX_ATTEMPTS = 5, 30, 4


@dataclass
class _Upload:
    """The objects with one token."""

    keys: list[str] = field(default_factory=list)
    size: int = 0
    """Bytes of the files."""
    newest: float = 0.0
    listed: float | None = None
    """When its list was written; None if the upload is not finished."""


@dataclass
class _Artifact:
    uploads: dict[str, _Upload] = field(default_factory=dict)
    used: float = 0.0
    """Seconds since the epoch; 0 if it was not used since it was added."""

    def newest(self) -> str | None:
        """The token of the newest finished upload; None if there is none."""
        whole = [(upload.listed, token) for token, upload in self.uploads.items() if upload.listed is not None]
        return max(whole)[1] if whole else None


class S3Place:
    """A `service.artifacts.place.Place` below s3://<bucket>/<prefix>."""

    count_seconds = 60.0

    def __init__(self, url: str, *, endpoint_url: str = "") -> None:
        """`endpoint_url` names a server other than Amazon's, as AWS_ENDPOINT_URL. BadOption if s3fs is missing."""
        try:
            import s3fs
        except ModuleNotFoundError as error:
            raise BadOption(f"{url!r} needs s3fs, which is not installed; pip install 'weightgen[s3]'") from error
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not url.startswith("s3://") or not bucket or any(part in ("", ".", "..") for part in _parts(prefix)):
            raise BadOption(f"artifacts cannot be kept at {url!r}; expected s3://<bucket>/<prefix>")
        if endpoint_url and not endpoint_url.startswith(("http://", "https://")):
            raise BadOption(f"s3_endpoint_url is {endpoint_url!r}, expected http://… or https://…")
        retries = {"max_attempts": MAX_ATTEMPTS, "mode": "standard"}
        self._url, self._bucket = url, bucket
        self._root = "/".join([bucket, *_parts(prefix)])
        self._tokens: dict[str, str] = {}
        self.filesystem = s3fs.S3FileSystem(
            endpoint_url=endpoint_url or None,
            config_kwargs={"connect_timeout": CONNECT_SECONDS, "read_timeout": ANSWER_SECONDS, "retries": retries},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def check(self) -> None:
        with self._told(missing="the bucket does not exist"):
            self.filesystem.call_s3("list_objects_v2", Bucket=self._bucket, MaxKeys=1)

    def put(self, sha: str, listing: bytes, folder: Path, *, admit: Callable[[], None] = lambda: None) -> None:
        admit()
        token = secrets.token_hex(8)
        with self._told(missing="the bucket does not exist"):
            for path in sorted(folder.iterdir()):
                self.filesystem.put_file(str(path), self._key(sha, token, path.name))
            self.filesystem.pipe_file(self._key(sha, f"{token}.json"), listing)
        self._remember(sha, token)
        shutil.rmtree(folder)

    def has(self, sha: str) -> bool:
        return self._look_up(sha) is not None

    def read_listing(self, sha: str) -> bytes:
        with self._told():
            return self._retried(sha, lambda token: self.filesystem.cat_file(self._key(sha, f"{token}.json")))

    def open(self, sha: str, name: str) -> BinaryIO:
        with self._told():
            opened = self._retried(sha, lambda token: self.filesystem.open(self._key(sha, token, name), "rb"))
            return cast(BinaryIO, opened)

    def read(self, sha: str, name: str, start: int, end: int) -> Iterator[bytes]:
        for first in range(start, end, BLOCK_BYTES):
            last = min(first + BLOCK_BYTES, end)
            with self._told():
                block = self._retried(
                    sha,
                    lambda token, first=first, last=last: self.filesystem.cat_file(
                        self._key(sha, token, name), start=first, end=last
                    ),
                )
            yield block

    def touch(self, sha: str) -> bool:
        if not self.has(sha):
            return False
        with self._told():
            self.filesystem.pipe_file(self._key(sha, "used"), b"")
        return self.has(sha)  # it may have been removed in between

    def delete(self, sha: str, *, unused_since: float = float("inf")) -> bool:
        artifact = self._survey(self._key(sha) + "/").get(sha, _Artifact())
        token = artifact.newest()
        if token is None or max(artifact.used, artifact.uploads[token].listed or 0.0) >= unused_since:
            return False
        self._tokens.pop(sha, None)
        whole = {token: upload for token, upload in artifact.uploads.items() if upload.listed is not None}
        self._remove(sha, whole, [self._key(sha, "used")])  # others may be in progress
        return True

    def stored(self) -> Iterator[Stored]:
        for sha, artifact in self._survey(self._root + "/").items():
            if (token := artifact.newest()) is not None:
                size = sum(upload.size for upload in artifact.uploads.values())
                yield Stored(sha, size, max(artifact.used, artifact.uploads[token].listed or 0.0))

    def sweep(self, *, before: float) -> int:
        """Remove uploads from before a time: unfinished ones, and all but the newest of each artifact."""
        removed = 0
        for sha, artifact in self._survey(self._root + "/").items():
            newest = artifact.newest()
            old = {t: upload for t, upload in artifact.uploads.items() if t != newest and upload.newest < before}
            lone = newest is None and len(old) == len(artifact.uploads) and artifact.used < before
            if old or lone:
                removed += self._remove(sha, old, [self._key(sha, "used")] if lone and artifact.used else [])
        return removed + self._abort_parts(before)

    def _abort_parts(self, before: float) -> int:
        """Remove the parts of large files whose upload never ended; returns how many uploads."""
        removed = 0
        with self._told():
            for upload in cast(list[dict[str, Any]], self.filesystem.list_multipart_uploads(self._bucket)):
                key = f"{self._bucket}/{upload['Key']}"
                if key.startswith(self._root + "/") and upload["Initiated"].timestamp() < before:
                    self.filesystem.call_s3(
                        "abort_multipart_upload", Bucket=self._bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                    )
                    removed += 1
        return removed

    def _remove(self, sha: str, uploads: dict[str, _Upload], more: list[str]) -> int:
        """Remove uploads, and more keys; the lists first, because an upload without its list is not visible."""
        lists = [self._key(sha, f"{token}.json") for token, upload in uploads.items() if upload.listed is not None]
        keys = [key for upload in uploads.values() for key in upload.keys if key not in lists]
        with self._told():
            for group in (lists, keys + more):
                if group:
                    self.filesystem.rm(group)
        return len(lists) + len(keys)

    def _retried(self, sha: str, read: Any) -> Any:
        """What `read` returns for the newest upload, which is looked up again if the remembered one is gone."""
        known = self._tokens.get(sha)
        if known is not None:
            with contextlib.suppress(FileNotFoundError):
                return read(known)
        token = self._look_up(sha)
        if token is None:
            raise FileNotFoundError(sha)
        return read(token)

    def _look_up(self, sha: str) -> str | None:
        token = self._survey(self._key(sha) + "/").get(sha, _Artifact()).newest()
        self._tokens.pop(sha, None)
        if token is not None:
            self._remember(sha, token)
        return token

    def _remember(self, sha: str, token: str) -> None:
        if len(self._tokens) >= 10_000:
            self._tokens.clear()
        self._tokens[sha] = token

    def _survey(self, prefix: str) -> dict[str, _Artifact]:
        """The objects below a prefix, by artifact and upload."""
        artifacts: dict[str, _Artifact] = {}
        with self._told(missing="the bucket does not exist"):
            found = self.filesystem.find(prefix.rstrip("/"), detail=True)
        for key, info in cast(dict[str, dict[str, Any]], found).items():
            parts = key.removeprefix(self._root + "/").split("/")
            if info["type"] != "file" or len(parts) < 3 or len(parts) > 4:
                continue  # not ours, or the prefix itself, which s3fs lists when an object below it is new
            artifact, when = artifacts.setdefault(parts[1], _Artifact()), _seconds(info["LastModified"])
            if parts[2] == "used":
                artifact.used = when
                continue
            upload = artifact.uploads.setdefault(parts[2].removesuffix(".json"), _Upload())
            upload.keys.append(key)
            upload.newest = max(upload.newest, when)
            if len(parts) == 4:
                upload.size += info["size"]
            else:
                upload.listed = when
        return artifacts

    def _key(self, sha: str, *parts: str) -> str:
        return "/".join([self._root, sha[:2], sha, *parts])

    @contextlib.contextmanager
    def _told(self, *, missing: str = "") -> Iterator[None]:
        """Turn errors of the server and the connection into StorageFailed, and with `missing` a missing object too."""
        from aiohttp import ClientError as AiohttpError
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except FileNotFoundError as error:
            if not missing:
                raise
            raise StorageFailed(f"{self._url}: {missing}") from error
        except (OSError, BotoCoreError, ClientError, AiohttpError) as error:
            raise StorageFailed(f"{self._url}: {error or type(error).__name__}") from error


def _parts(prefix: str) -> list[str]:
    prefix = prefix.rstrip("/")
    return prefix.split("/") if prefix else []


def _seconds(when: datetime) -> float:
    return when.timestamp()
