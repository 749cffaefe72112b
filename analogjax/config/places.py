"""Places of a cache or of checkpoints: folders and object stores."""

import urllib.parse


def check_place(location: str, s3_endpoint: str) -> None:
  """Checks a place: a folder, or a URL of s3:// or gs://.

  `s3_endpoint` is the URL of a server that speaks S3; "": Amazon's.

  Raises:
    ValueError: the scheme is unknown, there is no bucket, or an endpoint
      without s3://.
  """
  if "://" not in location:
    if s3_endpoint:
      raise ValueError(
        "s3_endpoint: expected '', as location does not"
        f" begin with s3://, found {s3_endpoint!r}."
      )
    return
  scheme, _, rest = location.rstrip("/").partition("://")
  if scheme not in ("file", "s3", "gs") or not rest.strip("/"):
    raise ValueError(
      f"location: expected a folder, s3://bucket/prefix or"
      f" gs://bucket/prefix, found {location!r}."
    )
  if s3_endpoint:
    url = urllib.parse.urlsplit(s3_endpoint)
    if scheme != "s3" or url.scheme not in ("http", "https") or not url.netloc:
      raise ValueError(
        f"s3_endpoint: expected http(s)://host:port of the server"
        f" that holds {location!r}, which has to begin with s3://, found"
        f" {s3_endpoint!r}."
      )
