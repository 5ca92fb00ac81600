"""A real model in our engine and in others, with the files they take: `python -m serving.bench --only=real`.

    make real-peers                                                  environments, once (some 8 GB, minutes)
    python -m serving.bench --only=real                                                everything, an hour
    python -m serving.bench --only=real --real_seconds=170 --real_cases=one,sixteen  a part; again: the next

Every side is a process of its own, pinned to one core or two. The sides of a case take turns, round by
round, each with prompts that no round before had. Measurements are appended to a file as
they are made, so that a run which was stopped goes on; the table is made of all of them.
"""
