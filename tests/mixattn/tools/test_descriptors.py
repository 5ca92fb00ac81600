"""Room for open files is asked for, up to what the system allows."""

import subprocess
import sys

ASK = """
import resource, sys
from mixattn.tools.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 200))
print(raise_limit(50), raise_limit(150), raise_limit(1000), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


def test_the_limit_is_raised_as_far_as_the_system_lets_it():
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["64", "150", "200", "200", "200"]
