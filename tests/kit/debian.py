"""Installs programs that a test needs, if that needs no interaction.

That is: by root, with apt-get, without a terminal.
"""

import os
import shutil
import subprocess

PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"
# Another worker of the tests may be installing, too.
_INSTALL = (
  *("apt-get", "-o", "DPkg::Lock::Timeout=300", "install", "-y"),
  "--no-install-recommends",
)


def why_missing(programs, packages):
  """Why these programs are not here, or "" if they are or were installed."""

  def missing():
    return [p for p in programs if not shutil.which(p, path=PATH)]

  if not missing():
    return ""
  why = f"{', '.join(missing())} missing, and not installed: "
  if os.geteuid():
    return why + "this is not root"
  if not shutil.which("apt-get"):
    return why + "there is no apt-get"
  try:
    os.close(os.open("/dev/tty", os.O_RDWR))
    return why + f"at a terminal; apt-get install {' '.join(packages)}"
  except OSError:
    pass
  install = [*_INSTALL, *packages]
  for command in (install, ["apt-get", "update"], install):
    try:
      done = subprocess.run(
        command,
        env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
      )
    except subprocess.TimeoutExpired as error:
      return f"{why}{error}"
    if not missing():
      return ""
  return why + done.stderr.strip()[-300:]
