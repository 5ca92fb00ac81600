"""Who is served next: one policy a file. Standard library only, no clock."""
