#!/usr/bin/env bash
# `constriction` 0.5.0: `Categorical(probabilities)` codes as it always did, while its own warning says that the default
# is another one from version 0.5 on.
#
# Without `perfect` or `lazy` the model warns: "perfect currently defaults to True for backward compatibility, but this
# default will change to perfect=False in constriction version 0.5". That was written by 0.4. The two defaults code the
# same symbols in other bytes, so who reads the warning pins the version, or rewrites stored files, before going to 0.5.
#
# Expected before it was run: 0.5.0 codes as `perfect=False`, or at least no longer warns. Seen: 0.4.2 and 0.5.0 make the
# same bytes in all cases, the default is still `perfect=True`, and the warning still speaks of 0.5 as of the future.
# So files stay readable; only an argument that is written out is safe against the day when it does change.
#
# Printed below: a digest of the coded bytes by version and argument. Exits with 1 when the behaviour is another one.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
cat > look.py <<'PY'
import hashlib
from importlib.metadata import version

import numpy as np
from constriction import stream

probabilities = np.array([0.5, 0.2, 0.2, 0.05, 0.03, 0.02], np.float32)
symbols = (np.arange(10_000) ** 2 % 97 % 6).astype(np.int32)


def coded(**arguments):
    coder = stream.stack.AnsCoder()
    coder.encode_reverse(symbols, stream.model.Categorical(probabilities, **arguments))
    return hashlib.sha256(coder.get_compressed().tobytes()).hexdigest()[:12]


print(version("constriction"), coded(), coded(perfect=True), coded(perfect=False))
PY
for number in 0.4.2 0.5.0; do
  python3 -m venv "env$number"
  "env$number/bin/pip" install --quiet "constriction==$number" numpy==2.4.6
  "env$number/bin/python" look.py > "said$number" 2>&1 || { cat "said$number" >&2; exit 1; }
done
grep "version 0.5" said0.5.0 || { echo "0.5.0 warns no longer"; exit 1; }
echo "version default perfect=True perfect=False"
tail -qn 1 said0.4.2 said0.5.0
read -r _ default perfect lazy <<< "$(tail -n 1 said0.5.0)"
[ "$default" = "$perfect" ] && [ "$default" != "$lazy" ] || { echo "another default in 0.5.0"; exit 1; }
[ "$(tail -n 1 said0.4.2 | cut -d' ' -f2-)" = "$(tail -n 1 said0.5.0 | cut -d' ' -f2-)" ] || { echo "other bytes"; exit 1; }
