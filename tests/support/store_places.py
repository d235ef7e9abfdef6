"""A place in each object store, behind the site, which counts the connections and can stall."""

from __future__ import annotations

import http.client
import json
import urllib.request
from base64 import b64encode
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from urllib.parse import quote, urlsplit

from embedstream_core.fetch.fetcher import Fetcher, open_fetcher
from embedstream_core.settings import FetchPolicy
from fetch_places import MAX_BYTES, Site, Visit

__all__ = ["AzurePlace", "GsPlace", "S3Place", "StorePlace", "relay", "write_google_key"]


@dataclass
class StorePlace:
    """Where references to one store lead; its class says how they and requests are written."""

    site: Site
    store: Any
    """What uploads to it."""

    endpoint: ClassVar[str]
    """The setting that names the store's address."""
    root: ClassVar[str]
    """A reference to a bucket."""
    request: ClassVar[str]
    """The path of the request for an object of the allowed bucket."""

    @property
    def policy(self) -> FetchPolicy:
        policy = FetchPolicy(
            buckets=(self.root.format("pictures"),),
            s3_region="us-east-1",
            max_bytes=MAX_BYTES,
            timeout_s=5,
            backoff_s=0.01,
        )
        return replace(policy, **{self.endpoint: self.site.url})  # type: ignore[arg-type]

    def upload(self, bucket: str, name: str, content: bytes) -> None:
        raise NotImplementedError

    def refer(self, name: str, bucket: str = "pictures") -> str:
        """A reference to an object, which need not exist."""
        return f"{self.root.format(bucket)}/{name}"

    def put(self, name: str, content: bytes) -> str:
        self.upload("pictures", name, content)
        return self.refer(name)

    def missing(self) -> str:
        return self.refer("missing")

    def outside(self) -> str:
        self.upload("private", "secret", b"secret")
        return self.refer("secret", bucket="private")

    def slow(self) -> tuple[Fetcher, str]:
        self.site.pages[self.request.format("slow")] = Visit.stall
        return open_fetcher(replace(self.policy, timeout_s=0.5)), self.refer("slow")

    def connections(self) -> int:
        return self.site.connections


class S3Place(StorePlace):
    """Objects in moto."""

    endpoint = "s3_endpoint"
    root = "s3://{}"
    request = "/pictures/{}"

    def upload(self, bucket: str, name: str, content: bytes) -> None:
        self.store.put_object(Bucket=bucket, Key=name, Body=content)


class GsPlace(StorePlace):
    """Objects in an emulator of Google Cloud Storage."""

    endpoint = "gs_endpoint"
    root = "gs://{}"
    request = "/storage/v1/b/pictures/o/{}"

    def upload(self, bucket: str, name: str, content: bytes) -> None:
        # The emulator refuses an empty body, and changes bytes that are not in base64.
        body = "\r\n".join(
            [
                *["--part", "Content-Type: application/json", "", json.dumps({"name": name})],
                *["--part", "Content-Transfer-Encoding: base64", "", b64encode(content).decode()],
                "--part--",
            ]
        )
        url = f"{self.store}/upload/storage/v1/b/{bucket}/o?uploadType=multipart"
        kind = {"Content-Type": "multipart/related; boundary=part"}
        send("POST", url, body.encode(), **kind)


class AzurePlace(StorePlace):
    """Blobs in Azurite."""

    endpoint = "azure_endpoint"
    root = "abfss://{}@embeddings.dfs.core.windows.net"
    request = "/embeddings/pictures/{}"

    def upload(self, bucket: str, name: str, content: bytes) -> None:
        url = f"{self.store.url}/embeddings/{bucket}/{quote(name)}?{self.store.signature}"
        send("PUT", url, content, **{"x-ms-blob-type": "BlockBlob"})


def send(method: str, url: str, content: bytes, **headers: str) -> None:
    """Send a request that must succeed."""
    request = urllib.request.Request(url, content, headers, method=method)
    urllib.request.urlopen(request, timeout=20).close()


def relay(visit: Visit, origin: str) -> None:
    """Send the response of the server at `origin`."""
    connection = http.client.HTTPConnection(urlsplit(origin).netloc)
    connection.request("GET", visit.path, headers=dict(visit.headers))
    response = connection.getresponse()
    content = response.read()
    connection.close()
    named = {name: value for name, value in response.headers.items() if name.startswith("x-ms-")}
    visit.answer(response.status, content, Content_Type=response.headers["Content-Type"], **named)


def write_google_key(site: Site, private_key: str) -> str:
    """The text of a service account's key; the site gives the tokens."""
    token = json.dumps({"access_token": "canary", "expires_in": 3600, "token_type": "Bearer"})
    site.pages["/token"] = lambda visit: visit.answer(
        200, token.encode(), Content_Type="application/json"
    )
    return json.dumps(
        {
            "type": "service_account",
            "client_email": "tests@images.test",
            "private_key": private_key,
            "private_key_id": "1",
            "token_uri": f"{site.url}/token",
        }
    )
