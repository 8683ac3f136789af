#!/usr/bin/env bash
# SQLAlchemy 2.1.9.
#
# Guess:     the path of a sqlite address is taken as it is, so that "sqlite:///" + the absolute path of a file is
#            always the address of that file. It was so in 2.0.51.
# Behaviour: the path is percent-decoded, unlike with `URL.create(database=...)`: in a folder named "50%20off" the
#            database of that address is looked for in a folder "50 off" beside it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
python3 -m venv env
env/bin/pip install -qq --disable-pip-version-check sqlalchemy==2.1.9
mkdir "50%20off" "50 off"
cat > try.py <<'PY'
from pathlib import Path

from sqlalchemy import URL, create_engine, make_url

address = f"sqlite:///{Path('50%20off').resolve()}/runs.db"
with create_engine(address).connect() as connection:
    connection.exec_driver_sql("create table a (b)")
print("make_url:", Path(make_url(address).database).parent.name)
print("URL.create:", Path(URL.create("sqlite", database="50%20off/runs.db").database).parent.name)
print("file in:", [path.parent.name for path in Path().glob("50*/runs.db")])
PY
env/bin/python try.py | tee seen
diff seen - <<'SEEN'
make_url: 50 off
URL.create: 50%20off
file in: ['50 off']
SEEN
echo "as described"
