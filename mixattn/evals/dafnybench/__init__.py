"""DafnyBench (arXiv 2406.08467): give a program its proof hints back, without cheating."""
