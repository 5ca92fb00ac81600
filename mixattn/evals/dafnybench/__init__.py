"""DafnyBench (arXiv 2406.08467): give a program back its proof hints, checked by the verifier and for cheats."""
