"""The public benchmark's own check, so that rates can be compared with published ones. It is not sound.

It compares lines that mention a specification, looks for two substrings, and takes "verified, 0 errors"
anywhere in the verifier's output as success: also in "1 verified, 0 errors, 1 time out".
"""

from mixattn.evals.dafny.reading import Cheat

FORBIDDEN = ("{:verify false}", "assume false")


def specification_lines(program: str) -> list[str]:
    """Lines with "requires" or "ensures" without their blanks, comments left out where it notices."""
    lines, inside = [], False
    for line in program.split("\n"):
        bare = line.strip()
        if bare.startswith("/*"):
            inside = not inside
        if ("requires" in line or "ensures" in line) and not inside and not bare.startswith("//"):
            lines.append(bare.replace(" ", ""))
        if bare.endswith("*/"):
            inside = not inside
    return lines


def cheats(stripped: str, solution: str) -> tuple[Cheat, ...]:
    """What the public check refuses, apart from the verifier's verdict."""
    found = [Cheat("forbidden text", 0, text) for text in FORBIDDEN if text in solution]
    if specification_lines(stripped) != specification_lines(solution):
        found.append(Cheat("changed specification lines", 0, ""))
    return tuple(found)


def verified(output: str) -> bool:
    """Whether the public check takes this output of the verifier for success."""
    return "verified, 0 errors" in output and "File contains no code" not in output
