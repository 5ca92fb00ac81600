"""A stand-in for Dafny 4, which cannot be installed here: it prints what Dafny 4's manual and logs show.

It proves nothing. Its verdict is that of the program's first line, e.g. `// failed`, and every method, lemma
and function is a procedure of its log unless a line `// unlogged NAME` says otherwise.
"""

import stat
from pathlib import Path

_SCRIPT = r"""#!/bin/sh
# CALLS: removes itself after so many calls.
here="DIRECTORY"
if [ "$1" = "--version" ]; then echo "4.3.0+1234567890"; exit 0; fi
for word in "$@"; do
  case "$word" in *LogFileName=*) log="${word#*LogFileName=}" ;; esac
  file="$word"
done
echo "$*" >> "$here/asked"
if [ "$(wc -l < "$here/asked")" -ge CALLS ]; then rm -f "$here/dafny"; fi
names=$(grep -oE "(method|lemma|function|predicate) +[A-Za-z_]+" "$file" | sed 's/.* //')
outcome=Passed
case "$(head -n 1 "$file")" in
"// parse") echo "$file(2,17): Error: closeparen expected"
  echo "  |"; echo "1 parse errors detected in $file"; exit 2 ;;
"// resolve") echo "$file(2,9): Error: unresolved identifier: Missing"
  echo "1 resolution/type errors detected in $file"; exit 2 ;;
"// failed") outcome=Failed ;;
"// timeout") echo "$file(2,7): Error: Verification of 'M' timed out after 20 seconds"; echo
  echo "Dafny program verifier finished with 1 verified, 0 errors, 1 time out"; exit 4 ;;
esac
n=0
r=TestResult
echo "$r.DisplayName,$r.Outcome,$r.Duration,$r.ResourceCount,RandomSeed" > "$log"
for name in $names; do
  if grep -q "^// unlogged $name\$" "$file"; then continue; fi
  n=$((n + 1))
  echo "$name (well-formedness),Passed,00:00:00.1,1000,0" >> "$log"
  echo "$name (correctness) (assertion batch 1),Passed,00:00:00.1,1000,0" >> "$log"
  echo "$name (correctness) (assertion batch 2),$outcome,00:00:00.1,1000,0" >> "$log"
done
if [ $outcome = Failed ]; then
  echo "$file(3,0): Error: a postcondition could not be proved on this return path"
  echo "  |"; echo "3 | {"; echo "  | ^"; echo
  echo "$file(2,10): Related location: this is the postcondition that could not be proved"
  echo "  |"; echo "2 |   ensures y > x"; echo "  |           ^^^^^"; echo
  echo "Dafny program verifier finished with $((n - 1)) verified, 1 error"; exit 4
fi
echo; echo "Dafny program verifier finished with $n verified, 0 errors"
"""


def dafny_4(folder: Path, calls: int = 1_000_000) -> Path:
    """Writes the stand-in into `folder`; `calls`: it is gone after so many programs. Returns its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "dafny"
    path.write_text(_SCRIPT.replace("DIRECTORY", str(folder)).replace("CALLS", str(calls)))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path
